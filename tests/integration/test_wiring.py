"""What all processes are made of: workers that end a process visibly, facts for `status`, the spool and its journal."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Config
from appliance.dimse.association import AssociateRequest
from appliance.dimse.services import Caller
from appliance.dimse.sop_classes import MODALITY_PERFORMED_PROCEDURE_STEP, STORAGE_COMMITMENT_PUSH
from appliance.errors import StoreFailed
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Reserve, Spool
from appliance.stages.confirm import Desk
from appliance.wiring import forward, receive
from appliance.wiring.common import EX_FAILED, EX_LATCHED, EX_OK, Worker, join, publish_facts
from appliance.wiring.confirm import confirmers
from appliance.wiring.reporting import Reporters
from tests.journals import CT_IMAGE, SERIES, ClosedLater
from tests.waiting import eventually

LIMITS = Reserve(free_bytes=0, free_inodes=0, journal_bytes=0)


def fails(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    ("run", "status", "told"),
    [
        (lambda: None, EX_OK, []),
        (fails(StoreFailed("cannot sync")), EX_LATCHED, [("latch", "cannot sync"), ("store_failed", "cannot sync")]),
        (fails(KeyError("Secret^Name")), EX_FAILED, [("worker_failed", "KeyError at test_wiring.py")]),
    ],
    ids=["well", "store failed", "bug"],
)
def test_a_worker_that_fails_ends_the_process_and_a_failed_store_is_latched_first(
    run: Callable[[], None], status: int, told: list[tuple[str, str]]
) -> None:
    said: list[tuple[str, str]] = []

    def log(event: str, **detail: Any) -> None:
        said.append((event, detail["reason"].partition(":")[0]))

    life = Life()
    worker = Worker("worker", run, life, log, lambda reason: said.append(("latch", reason)))
    worker.join()
    assert (worker.status, worker.alive, life.stopping.is_set(), said) == (status, False, status != EX_OK, told)


def test_facts_are_replaced_whole_by_many_at_once_and_lost_with_no_harm(tmp_path: Path) -> None:
    config = Config(state=tmp_path)
    publish_facts(config, "lanes", {"there is": "no such folder"})
    config.run_dir.mkdir()

    def publish(number: int) -> None:
        for _ in range(50):
            publish_facts(config, "lanes", {"lane": [number] * 500})

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        file = config.run_dir / "lanes.json"
        if file.exists():
            assert len(set(json.loads(file.read_text())["lane"])) == 1
    for thread in threads:
        thread.join()
    assert [path.name for path in config.run_dir.iterdir()] == ["lanes.json"]


@pytest.mark.promise("P4")
def test_a_spool_is_given_to_one_journal_and_to_no_other(tmp_path: Path, closed_later: ClosedLater) -> None:
    spool = Spool(tmp_path / "spool", "received", LIMITS)
    first, second = closed_later(Journal(tmp_path / "one", "test")), closed_later(Journal(tmp_path / "two", "test"))
    join(spool, first)
    join(spool, first)
    join(Spool(tmp_path / "spool", "results", LIMITS), closed_later(Journal(tmp_path / "one", "analyse")))
    with pytest.raises(StoreFailed, match="scanside recover"):
        join(spool, second)
    spool.own(second.identity)  # what recover does when it is through
    join(spool, second)


@pytest.mark.promise("P4")
def test_the_configured_proof_is_what_frees_a_copy(tmp_path: Path, closed_later: ClosedLater) -> None:
    options = {"kind": "dimse", "host": "127.0.0.1", "port": 104, "called_ae": "PACS", "takes": ["image"], "keep_h": 2}
    named = [{**options, "name": proof, "proof": proof} for proof in ("store", "commitment", "find")]
    config = Config.model_validate({"state": str(tmp_path), "destinations": named})
    spool = Spool(tmp_path / "spool", "received", LIMITS)
    retainer = forward._retainer(config, closed_later(Journal(tmp_path / "j", "forward")), spool, lambda *_: None)
    keeps = retainer._upkeep.rules.keeps
    assert {name: keep.commitment for name, keep in keeps.items()} == {
        "store": False,
        "commitment": True,
        "find": True,
    }
    assert {keep.keep_ms for keep in keeps.values()} == {2 * 3_600_000}


@pytest.mark.promise("P4")
def test_files_that_are_nobodys_are_given_to_no_journal(tmp_path: Path, closed_later: ClosedLater) -> None:
    spool = Spool(tmp_path / "spool", "received", LIMITS)
    incoming = spool.begin(SERIES.encode())
    incoming.finish()
    with pytest.raises(StoreFailed, match="scanside recover"):
        join(spool, closed_later(Journal(tmp_path / "j", "test")))
    assert spool.files() == [incoming.name]


def asking(*changes: dict[str, Any], mpps: bool = True) -> Config:
    peer = {"ae_title": "CT01", "address": "127.0.0.1"}
    peers = [{**peer, **change} for change in changes]
    return Config.model_validate({"receive": {"peers": peers, "mpps": mpps}})


def request_from(calling_ae: str) -> AssociateRequest:
    return AssociateRequest(called_ae="SCANSIDE", calling_ae=calling_ae, contexts=())


@pytest.mark.promise("P9")
def test_commitment_is_served_to_whom_the_config_says_at_its_address_and_steps_to_all_or_none() -> None:
    config = asking(
        {"commitment": "custody", "reports_to": "ct:104"}, {"ae_title": "CT02"}, {"ae_title": "CT03"}, mpps=False
    )
    policy = receive._policy(config)
    for title, address, served in [
        ("CT01", "127.0.0.1", True),
        ("CT01", "127.0.0.2", False),
        ("CT02", "127.0.0.1", False),
    ]:
        accepts = policy.accepts_from(request_from(title), address)
        assert accepts(STORAGE_COMMITMENT_PUSH) is served
        assert accepts(CT_IMAGE)
        assert not accepts(MODALITY_PERFORMED_PROCEDURE_STEP)
    assert receive._policy(asking({})).accepts(MODALITY_PERFORMED_PROCEDURE_STEP)


def test_an_ae_title_at_several_addresses_is_answered_once(tmp_path: Path, closed_later: ClosedLater) -> None:
    said = {"commitment": "delivered", "reports_to": "[2001:db8::1]:104"}
    config = asking(said, {**said, "address": "127.0.0.2"}, {"ae_title": "CT02"})
    spool = Spool(tmp_path / "spool", "received", LIMITS)
    desk = Desk(journal=closed_later(Journal(tmp_path / "j", "forward")), log=lambda *_: None, changed=lambda: None)
    assert [one.calling_ae for one in confirmers(config, spool, desk)] == ["CT01"]


def committing(*changes: dict[str, Any], **receive_options: Any) -> Reporters:
    options = {"name": "pacs", "kind": "dimse", "host": "192.0.2.1", "port": 104, "called_ae": "PACS"}
    options |= {"takes": ["image"], "proof": "commitment"}
    return Reporters(
        Config.model_validate(
            {"destinations": [{**options, **change} for change in changes], "receive": receive_options}
        )
    )


@pytest.mark.promise("P9")
def test_only_destinations_that_are_asked_for_commitment_may_report_and_only_from_where_they_are() -> None:
    reporters = committing(
        {"calling_ae": "EDGE"},
        {"name": "two", "called_ae": "TWO", "host": "2001:db8::1"},
        {"name": "look", "called_ae": "LOOK", "proof": "find"},
        {"name": "store", "called_ae": "STORE", "proof": "store"},
        {"name": "named", "called_ae": "NAMED", "host": "localhost"},
        {"name": "nowhere", "called_ae": "NOWHERE", "host": "nowhere.invalid"},
    )
    admitted = reporters.admitted()
    assert [(one.ae_title, str(one.network), one.knows_us_as) for one in admitted] == [
        ("PACS", "192.0.2.1/32", "EDGE"),
        ("TWO", "2001:db8::1/128", "SCANSIDE"),
    ]
    stopping = threading.Event()
    looking = threading.Thread(target=reporters.run, args=(stopping,), daemon=True)
    looking.start()
    eventually(lambda: len(reporters.admitted()) > 2, 20.0, "the name is looked up")
    stopping.set()
    looking.join(10.0)
    assert ("NAMED", "127.0.0.1/32") in [(one.ae_title, str(one.network)) for one in reporters.admitted()]
    assert not any(one.ae_title == "NOWHERE" for one in reporters.admitted())
    caller = Caller(number=1, calling_ae="NAMED", called_ae="SCANSIDE", address="::ffff:127.0.0.1")
    assert reporters.reporting().destinations(caller) == {"named"}


@pytest.mark.promise("P9")
def test_a_destination_with_tls_reports_with_its_certificate_where_we_ask_for_one(tmp_path: Path) -> None:
    papers = {name: tmp_path / f"{name}.pem" for name in ("ca", "certificate", "key")}
    for file in papers.values():
        file.touch()
    ours = {name: str(file) for name, file in papers.items()}
    tls = {"tls": {"ca": ours["ca"]}}
    named = {"name": "two", "tls": {"ca": ours["ca"], "server_name": "pacs.example"}}
    found = committing(tls, named, {"name": "three"}, tls=ours).admitted()
    assert [one.certificate for one in found] == ["192.0.2.1", "pacs.example", ""]
    assert [one.certificate for one in committing(tls).admitted()] == [""]


def test_a_web_server_has_a_lane_and_its_library_is_there_for_no_others(tmp_path: Path) -> None:
    """In a process of its own: httpx takes memory that most sites' forward process does not need."""
    program = """
import sys
from pathlib import Path
from appliance.config import load
from appliance.wiring.lanes import adapter
config = load(Path(sys.argv[1]))
for options in config.destinations:
    made = adapter(config, options, lambda size: None)
    print(type(made).__name__, "httpx" in sys.modules)
"""
    file = tmp_path / "box.yaml"
    file.write_text(
        "state: ./var\nengines: []\ndestinations:\n"
        "  - {name: out, kind: folder, path: ./out, takes: [image]}\n"
        "  - {name: pacs, kind: dimse, host: 192.0.2.1, port: 104, called_ae: PACS, takes: [image]}\n"
        "  - {name: web, kind: stow, url: 'https://pacs.example/rs', takes: [image], tls: {ca: ca.pem}, token: t}\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, file], check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split("\n")[:3] == ["Folder False", "DimseNode False", "StowNode True"]
