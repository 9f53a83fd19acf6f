"""The commands on a real journal and spool, as an operator types them: what is said, what is done, and exit codes."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from appliance.cli import COMMANDS, Commands, app, main, queue
from appliance.cli.attention import attentions
from appliance.cli.attention.studies import AWAITED_MS
from appliance.cli.situation import look
from appliance.cli.tables import Output
from appliance.config import load
from appliance.daemon import sole_owner
from appliance.digest import digest_of
from appliance.dimse.small_pacs import ScriptedPacs
from appliance.file_head import file_head
from appliance.journal import inbox, outbox, performed
from appliance.journal.commitments import Answer, Asked, ask
from appliance.journal.identity import AlarmEvent, raise_alarm
from appliance.journal.store import Journal
from appliance.model import Delivery, Owed, PerformedSeries, Urgency
from appliance.routing import UNROUTED
from appliance.states import DeliveryState, Event, StepState
from appliance.wakeup import Bell
from tests.certificates import Authority
from tests.journals import CT_IMAGE, EXPLICIT, SERIES, STUDY, arrival, events, open_journal, receive
from tests.scanner import data_set, part10

CONFIG = """\
node: box
state: ./var
engines: []
engines_dir: ./engines
reserve: {{free_mb: 1, free_inodes: 0, journal_mb: 1}}
destinations:
  - {{name: {name}, kind: folder, path: ./out, takes: [image], when: {{modality: [{modality}]}}}}
"""
HEAVY = ("pydicom", "pynetdicom", "numpy", "highdicom", "onnxruntime", "scipy")


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("SCANSIDE_CONFIG", raising=False)

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


@dataclass(frozen=True, slots=True)
class Site:
    """A state folder as a stopped appliance leaves it."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "scanside.yaml"

    def configure(self, name: str = "pacs", modality: str = "CT") -> None:
        self.config.write_text(CONFIG.format(name=name, modality=modality))

    def journal(self) -> Journal:
        return open_journal(self.folder / "var" / "journal.sqlite")

    def hold(self, *numbers: int, owed: Owed) -> None:
        """Images in spool and journal."""
        journal = self.journal()
        for number in numbers:
            data = data_set(number)
            file = self.folder / "var" / "spool" / "received" / "000000" / f"{number:09d}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(file_head(CT_IMAGE, f"{SERIES}.{number}", EXPLICIT, "CT01") + data)
            came = arrival(number, data)
            inbox.record(journal, [came], lambda _: [owed])
            assert came.digest == digest_of(data)
        journal.close()

    def refuse(self, reason: str) -> None:
        """The destination refuses all that is queued."""
        journal = self.journal()
        settlements = [
            outbox.Settlement(delivery=one, event=Event.REFUSE, reason=reason, started_tick=0, attempts=1)
            for one in outbox.next_queued(journal, "pacs", 100)
        ]
        outbox.settle(journal, settlements)
        journal.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.configure()
    (tmp_path / "var").mkdir()
    return made


TO_PACS = Owed(destination="pacs", urgency=Urgency.IMAGE)
TO_NOBODY = Owed(destination="", urgency=Urgency.IMAGE, held=UNROUTED)


# Help, and what is wrong before anything happens.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(run: Run, name: str) -> None:
    told = run(name, "--help")
    assert told.code == 0
    assert "Example" in told.out
    assert "Exit codes: 0 " in told.out
    assert COMMANDS[name].summary in told.out


def test_the_list_of_commands_is_the_table(run: Run) -> None:
    told = run("--help")
    assert all(f"  {name}" in told.out for name in COMMANDS)
    group = typer.main.get_command(app)
    assert isinstance(group, Commands)
    assert list(group.commands) == list(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from appliance.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit: print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    )
    for arguments in (["--help"], ["status", "--config", "config/scanside.yaml"], ["send", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
        assert not done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chek"], "Did you mean 'check'"),
        (["send"], "Missing argument 'PATH'"),
        (["send", "x", "--to", "nowhere"], "'nowhere' is no HOST:PORT"),
        (["send", "x", "--to", "host:104", "--calling", "A" * 17], "at most 16"),
        (["trace", "not-a-uid"], "is no UID"),
        (["status"], "Name yours with --config FILE"),
        (["status", "--config", "/nonexistent/scanside.yaml"], "No such file"),
        (["requeue"], "give one ID, or --all"),
        (["requeue", "7", "--all"], "give one ID, or --all"),
        (["abandon", "7"], "Missing option '--reason'"),
        (["abandon", "7", "--reason", "  "], "say why"),
        (["deliveries", "--state", "lost"], "'lost' is not one of"),
    ],
)
def test_a_wrong_command_line_is_told_in_words(run: Run, arguments: list[str], words: str) -> None:
    told = run(*arguments)
    assert told.code == 2
    assert words in told.err
    assert not told.out


def test_check_tells_every_error_at_once(run: Run, site: Site) -> None:
    assert run("check", "--config", site.config).code == 0
    site.config.write_text("nod: x\nreceive: {port: 99999}\n")
    told = run("check", "--config", site.config)
    assert told.code == 2
    assert f"{site.config}:1: nod:" in told.err
    assert f"{site.config}:2: receive.port:" in told.err
    machine = run("check", "--config", site.config, "--json")
    assert (machine.code, machine.document["ok"], len(machine.document["errors"])) == (2, False, 2)


def test_check_looks_into_certificates_and_says_how_it_listens(run: Run, site: Site) -> None:
    authority = Authority(site.folder / "papers", "CA")
    over = authority.issue("box", days=-1)
    tls = f"{{certificate: {over.certificate}, key: {over.key}, ca: {authority.certificate}}}"
    plain = "unencrypted_port: 104, unencrypted_reason: DX01 is from 2009"
    site.config.write_text(f"receive: {{tls: {tls}, {plain}, peers: []}}\n")
    told = run("check", "--config", site.config, "--json")
    assert (told.code, told.document["ok"]) == (0, True)
    assert f"{site.config}:1: receive.tls.certificate: {over.certificate} expired" in told.document["remarks"][0]
    words = run("check", "--config", site.config).out
    assert "client certificates: required; port 104 is not encrypted: DX01 is from 2009" in words
    over.key.unlink()
    assert "receive.tls.key: " in run("check", "--config", site.config).err


# Status.


def test_status_of_an_appliance_that_never_ran(run: Run, site: Site) -> None:
    told = run("status", "--config", site.config)
    assert told.code == 1
    assert "NOT RUNNING" in told.out
    assert "it has never run" in told.out
    assert not (site.folder / "var" / "journal.sqlite").exists()


def test_status_while_it_is_down_tells_what_is_owed_and_held(run: Run, site: Site) -> None:
    site.hold(1, 2, 3, owed=TO_PACS)
    site.refuse("0xA900 data set does not match its SOP class")
    site.hold(4, owed=TO_PACS)
    told = run("status", "--config", site.config, "--json")
    assert told.code == 1
    assert told.document["running"] is False
    owed = {(one["destination"], one["state"]): one["count"] for one in told.document["journal"]["owed"]}
    assert owed == {("pacs", "queued"): 1, ("pacs", "held"): 3}
    assert any("3 held for pacs: 0xA900" in one["what"] for one in told.document["attention"])


def test_status_of_a_running_appliance_is_loud_about_what_does_not_work(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    folder = site.folder / "var" / "run"
    bells = [Bell(folder, name) for name in ("receive", "forward")]
    (folder / "receive.json").write_text('{"port": 4711}')
    (folder / "lanes.json").write_text('{"pacs": {"state": "suspended", "reason": "AE title not recognised"}}')
    try:
        told = run("status", "--config", site.config)
        assert told.code == 1
        assert "AI OFF" in told.out
        assert "pacs suspended: AE title not recognised" in told.out
        assert "port 4711" in told.out
    finally:
        for bell in bells:
            bell.close()


def test_status_says_what_is_wrong_with_our_own_certificate(run: Run, site: Site) -> None:
    folder = site.folder / "var" / "run"
    bells = [Bell(folder, name) for name in ("receive", "analyse", "forward")]
    times = {"begins": "2020-01-01T00:00:00+00:00", "ends": "2021-01-01T00:00:00+00:00"}
    tls = {"minimum_version": "TLSv1.2", "client_certificates": "required", "fault": "box.key is not the key", **times}
    (folder / "receive.json").write_text(json.dumps({"port": 4711, "tls": tls}))
    try:
        told = run("status", "--config", site.config)
    finally:
        for bell in bells:
            bell.close()
    assert told.code == 1
    assert "our certificate (receive.tls) expired 2021-01-01 00:00 UTC" in told.out
    assert "is no use, the old one is still in use: box.key is not the key" in told.out
    assert "port 4711 (TLS, client certificates required)" in told.out


def test_when_all_is_well_status_says_so(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    bells = [Bell(site.folder / "var" / "run", name) for name in ("receive", "analyse", "forward")]
    try:
        told = run("status", "--config", site.config)
    finally:
        for bell in bells:
            bell.close()
    assert (told.code, told.out.splitlines()[0]) == (0, "All is well.")


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (
            {"serves": False, "reason": "altered: model.onnx", "since": "2026-11-24T08:00:00+00:00"},
            ["AI OFF for ct-lesion@1: altered: model.onnx, since 2026-11-24T08:00:00+00:00"],
        ),
        (
            {
                "serves": True,
                "reason": "",
                "since": "",
                "runtime": "tensorrt 10.3.0",
                "device": "a GPU (a test)",
                "plan_sha256": "c" * 64,
                "degraded": "the server is away",
            },
            ["DEGRADED: ct-lesion@1: the server is away", "tensorrt 10.3.0, plan cccccccccccc", "a GPU (a test)"],
        ),
    ],
)
def test_an_engine_that_does_not_serve_or_not_where_it_should_is_told(
    run: Run, site: Site, fact: dict[str, object], words: list[str]
) -> None:
    site.config.write_text(site.config.read_text().replace("engines: []", "engines: [{id: ct-lesion}]"))
    bells = [Bell(site.folder / "var" / "run", name) for name in ("receive", "analyse", "forward")]
    facts = {"ct-lesion@1": {"publish": True} | fact}
    (site.folder / "var" / "run" / "engines.json").write_text(json.dumps(facts))
    try:
        told = run("status", "--config", site.config)
    finally:
        for bell in bells:
            bell.close()
    assert told.code == 1
    assert [one for one in words if one not in told.out] == []


def test_a_changed_patient_identity_is_told_by_its_study(run: Run, site: Site) -> None:
    journal = site.journal()
    with journal.write(durable=True) as tx:
        assert raise_alarm(tx, AlarmEvent.CHANGED, STUDY, b"q" * 32)
        assert not raise_alarm(tx, AlarmEvent.CHANGED, STUDY, b"q" * 32)
    journal.close()
    told = run("status", "--config", site.config)
    assert told.code == 1
    assert f"PATIENT IDENTITY CHANGED after a result was sent: study {STUDY}" in told.out
    document = run("status", "--config", site.config, "--json").document
    (alarm,) = document["journal"]["alarms"]
    assert alarm.keys() == {"event", "study_instance_uid", "tick"}


def test_who_waits_for_a_commitment_report_is_told_and_who_can_get_none_needs_somebody(run: Run, site: Site) -> None:
    peer = "{ae_title: CT01, address: 192.0.2.10, commitment: custody, reports_to: 192.0.2.10:104}"
    site.config.write_text(site.config.read_text() + f"receive: {{peers: [{peer}]}}\n")
    journal = site.journal()
    for calling_ae in ("CT01", "CT02"):
        asked = Asked(
            calling_ae=calling_ae, called_ae="EDGE", transaction_uid="1.2", references=((CT_IMAGE, f"{SERIES}.1"),)
        )
        assert ask(journal, asked) is Answer.TAKEN
    journal.close()
    told = run("status", "--config", site.config)
    assert told.code == 1
    assert "CT02 waits for 1 storage commitment report that we cannot send" in told.out
    assert "CT01 waits for 1 storage commitment report, the oldest for" in told.out
    document = run("status", "--config", site.config, "--json").document
    assert [one["calling_ae"] for one in document["journal"]["commitments"]] == ["CT01", "CT02"]
    assert document["reports"] == {}


def test_a_latched_store_and_a_full_disk_are_told_first(run: Run, site: Site) -> None:
    (site.folder / "var" / "spool").mkdir()
    (site.folder / "var" / "spool" / "latched").write_text("cannot sync 000000001.dcm")
    site.config.write_text(site.config.read_text().replace("free_mb: 1,", "free_mb: 99999999,"))
    lines = run("status", "--config", site.config).out.splitlines()
    assert "REFUSING IMAGES: writing to the disk failed" in lines[0]
    assert any("the reserve is" in line for line in lines)


@pytest.mark.promise("P6")
def test_a_series_that_waits_for_what_its_scanner_named_is_told(run: Run, site: Site) -> None:
    journal = site.journal()
    receive(journal, arrival(1), arrival(2))
    performed.create(journal, "1.9", "CT01", [STUDY])
    named = PerformedSeries(
        series_instance_uid=SERIES, sop_instance_uids=tuple(f"{SERIES}.{number}" for number in (1, 3, 4, 5))
    )
    performed.update(journal, "1.9", "CT01", performed.Change(state=StepState.COMPLETED, series=(named,)))
    words = f"CT01 named 4 images of series {SERIES}, of which 3 have not come: waiting for"
    now = look(load(site.config))
    assert now.journal is not None
    for waited_ms, needs in [(AWAITED_MS - 1, []), (AWAITED_MS, [words])]:
        (one,) = now.journal.awaited
        later = replace(now, journal=replace(now.journal, tick=one.since_tick + waited_ms))
        told = [need.what[: len(words)] for need in attentions(load(site.config), later)]
        assert [what for what in told if "named" in what] == needs
    assert words in run("status", "--config", site.config).out
    (one,) = run("status", "--config", site.config, "--json").document["journal"]["awaited"]
    assert (one["series_instance_uid"], one["named"], one["missing"]) == (SERIES, 4, 3)
    receive(journal, *(arrival(number) for number in (3, 4, 5)))
    journal.close()
    assert run("status", "--config", site.config, "--json").document["journal"]["awaited"] == []


def test_a_broken_journal_is_no_traceback(run: Run, site: Site) -> None:
    (site.folder / "var" / "journal.sqlite").write_text("no database" * 100)
    told = run("status", "--config", site.config)
    assert told.code == 1
    assert "scanside recover" in told.out
    assert "not a database" in run("trace", "1.2.3", "--config", site.config).err


# Trace.


@pytest.mark.promise("P11")
def test_trace_of_a_study_sums_up_and_of_an_instance_does_not(run: Run, site: Site) -> None:
    site.hold(1, 2, 3, owed=TO_PACS)
    site.refuse("0xA900")
    study = run("trace", STUDY, "--config", site.config)
    assert study.code == 0
    assert study.out.count("received") == 1
    assert "3 instances within" in study.out
    assert run("trace", STUDY, "--full", "--config", site.config).out.count("calling_ae=CT01") == 3
    one = run("trace", f"{SERIES}.2", "--config", site.config, "--json")
    assert [line["event"] for line in one.document["lines"]] == ["received", "held"]


def test_trace_of_what_never_came_fails(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    told = run("trace", "1.9.9", "--config", site.config)
    assert told.code == 1
    assert "nothing is known of 1.9.9" in told.err
    assert "has never run" in run("trace", "1.9.9", "--config", _elsewhere(site)).err


def _elsewhere(site: Site) -> Path:
    other = site.folder / "other.yaml"
    other.write_text("state: ./other\n")
    return other


# What is owed, and what people decide.


def test_deliveries_lists_what_is_held_and_queued(run: Run, site: Site) -> None:
    site.hold(1, 2, owed=TO_PACS)
    site.refuse("0xA900 no")
    site.hold(3, owed=TO_PACS)
    told = run("deliveries", "--config", site.config)
    assert [line.split()[:3] for line in told.out.splitlines()[1:]] == [
        ["1", "pacs", "held"],
        ["2", "pacs", "held"],
        ["3", "pacs", "queued"],
    ]
    machine = run("deliveries", "--state", "held", "--limit", 1, "--config", site.config, "--json").document
    assert [one["id"] for one in machine["deliveries"]] == [1]


def test_requeue_one_and_the_rest(run: Run, site: Site) -> None:
    site.hold(1, 2, 3, owed=TO_PACS)
    site.refuse("0xA900 no")
    forward = Bell(site.folder / "var" / "run", "forward")
    try:
        assert run("requeue", 2, "--config", site.config, "--by", "R. Okafor").code == 0
        told = run("requeue", "--all", "--config", site.config, "--json")
        assert told.document == {"queued": [1, 3], "left": [], "stopped": ""}
        assert list((site.folder / "var" / "run").glob("cli-*")) == []
    finally:
        forward.close()
    journal = site.journal()
    assert len(outbox.next_queued(journal, "pacs", 10)) == 3
    assert events(journal).count("requeued") == 3
    journal.close()
    assert run("requeue", "--all", "--config", site.config).out == "0 deliveries queued again\n"


def test_requeue_of_many_goes_a_page_at_a_time(run: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PAGE", 2)
    site.hold(1, 2, 3, 4, 5, owed=TO_NOBODY)
    site.hold(6, owed=Owed(destination="gone", urgency=Urgency.IMAGE, held="0xA900 no"))
    told = run("requeue", "--all", "--config", site.config, "--json").document
    assert told["queued"] == [1, 2, 3, 4, 5]
    assert [one["id"] for one in told["left"]] == [6]


def test_requeue_names_what_it_leaves(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    assert run("requeue", 1, "--config", site.config).err == "1: is queued, not held\n"
    assert "there is no delivery 9" in run("requeue", 9, "--config", site.config).err
    site.refuse("gone")
    site.configure(name="other")
    told = run("requeue", "--all", "--config", site.config)
    assert told.code == 1
    assert "1: the configuration has no destination pacs" in told.err


@pytest.mark.promise("P4")
def test_what_nobody_took_goes_to_whoever_takes_it_now(run: Run, site: Site) -> None:
    site.hold(1, 2, owed=TO_NOBODY)
    site.configure(modality="MR")
    assert run("requeue", "--all", "--config", site.config).err.count("still no destination takes it") == 2
    site.configure(modality="CT")
    assert run("requeue", "--all", "--config", site.config).code == 0
    journal = site.journal()
    assert [one.id for one in outbox.next_queued(journal, "pacs", 10)] == [1, 2]
    assert events(journal).count("rerouted") == 2
    journal.close()


@pytest.mark.promise("P4")
def test_abandon_needs_a_held_one_and_keeps_name_and_reason(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    told = run("abandon", 1, "--reason", "x", "--config", site.config)
    assert (told.code, told.err) == (1, "scanside: delivery 1 is queued: only what is held can be abandoned\n")
    site.refuse("0xA900 no")
    told = run("abandon", 1, "--reason", "test image", "--by", "R. Okafor", "--config", site.config, "--json")
    assert told.document == {"abandoned": 1, "by": "R. Okafor", "reason": "test image"}
    lines = run("trace", f"{SERIES}.1", "--config", site.config, "--json").document["lines"]
    assert lines[-1]["detail"] == {"destination": "pacs", "by": "R. Okafor", "reason": "test image"}
    assert run("abandon", 1, "--reason", "again", "--config", site.config).code == 1


def test_who_decides_is_the_person_behind_sudo(run: Run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.hold(1, owed=TO_PACS)
    site.refuse("no")
    monkeypatch.setenv("SUDO_USER", "okafor")
    assert run("abandon", 1, "--reason", "x", "--config", site.config, "--json").document["by"] == "okafor"


@pytest.mark.promise("P1")
def test_nothing_is_changed_while_the_disk_is_not_to_be_trusted(run: Run, site: Site) -> None:
    site.hold(1, 2, owed=TO_PACS)
    site.refuse("0xA900 no")
    latch = site.folder / "var" / "spool" / "latched"
    latch.write_text("cannot sync 000000001.dcm: Input/output error")
    before = (site.folder / "var" / "journal.sqlite").read_bytes()
    for command in (("requeue", 1), ("requeue", "--all"), ("abandon", 1, "--reason", "not wanted")):
        told = run(*command, "--config", site.config)
        assert (told.code, told.out) == (1, "")
        assert "nothing was changed: writing to the disk failed (cannot sync 000000001.dcm: Input/output" in told.err
    assert (site.folder / "var" / "journal.sqlite").read_bytes() == before
    assert len(run("deliveries", "--config", site.config, "--json").document["deliveries"]) == 2, "to look is no change"
    latch.unlink()
    assert run("requeue", "--all", "--config", site.config, "--json").document["queued"] == [1, 2]


@pytest.mark.promise("P1")
def test_requeue_stops_where_the_disk_fails_on_the_way(run: Run, site: Site) -> None:
    """As far as it came it is said; the rest is held as before."""
    site.hold(1, 2, 3, owed=TO_PACS)
    site.refuse("0xA900 no")
    latch, loaded = site.folder / "var" / "spool" / "latched", load(site.config)
    journal = site.journal()
    first, *rest = outbox.list_deliveries(journal, DeliveryState.HELD, 10)

    def pages() -> Iterator[Sequence[Delivery]]:
        yield [first]
        latch.write_text("cannot sync")
        yield rest

    done = queue._requeue(queue._Desk(loaded, journal, "R. Okafor"), pages(), 3, Output(as_json=True))
    journal.close()
    assert (done.queued, done.left) == ([1], {})
    assert "cannot sync" in done.stopped
    latch.unlink()
    assert run("requeue", "--all", "--config", site.config, "--json").document["queued"] == [2, 3]


# Recover.


@pytest.mark.promise("P12")
def test_recover_makes_a_new_journal_and_owes_everything_again(run: Run, site: Site) -> None:
    site.hold(1, 2, 3, owed=TO_PACS)
    torn = site.folder / "var" / "spool" / "received" / "000000" / "000000003.dcm"
    torn.write_bytes(torn.read_bytes()[:-7])
    told = run("recover", "--yes", "--config", site.config, "--json")
    assert told.code == 0
    assert (told.document["instances"], told.document["quarantined"]) == (2, ["received/000000/000000003.dcm"])
    assert Path(told.document["set_aside"][0]).exists()
    journal = site.journal()
    assert len(outbox.next_queued(journal, "pacs", 10)) == 2
    journal.close()


def test_recover_says_who_must_ask_again(run: Run, site: Site) -> None:
    """Requests for commitment that were not reported went with the journal."""
    site.hold(1, owed=TO_PACS)
    assert run("recover", "--yes", "--config", site.config, "--json").document["must_ask_again"] == []
    peer = "{ae_title: CT01, address: 192.0.2.1, commitment: custody, reports_to: '192.0.2.1:104'}"
    site.config.write_text(site.config.read_text() + f"receive: {{peers: [{peer}]}}\n")
    told = run("recover", "--yes", "--config", site.config)
    assert "Ask again at CT01" in told.out
    assert run("recover", "--yes", "--config", site.config, "--json").document["must_ask_again"] == ["CT01"]
    assert "it must ask again" in " ".join(run("recover", "--help").out.split())


@pytest.mark.promise("P1")
def test_recover_proves_a_disk_that_failed_before_it_believes_it(run: Run, site: Site) -> None:
    site.hold(1, owed=TO_PACS)
    latch, probe = (site.folder / "var" / "spool" / name for name in ("latched", "probe"))
    latch.write_text("cannot sync")
    probe.mkdir()  # in its way, as a disk that takes nothing is
    told = run("recover", "--yes", "--config", site.config)
    assert (told.code, "the probe write failed" in told.err) == (1, True)
    assert latch.exists()
    assert not list((site.folder / "var").glob("*aside*"))
    probe.rmdir()
    told = run("recover", "--yes", "--config", site.config, "--json")
    assert (told.code, told.document["instances"], latch.exists()) == (0, 1, False)


def test_recover_asks_and_never_beside_an_appliance(run: Run, site: Site) -> None:
    assert "there is no spool" in run("recover", "--yes", "--config", site.config).err
    site.hold(1, owed=TO_PACS)
    told = run("recover", "--config", site.config)
    assert (told.code, "say --yes" in told.err) == (2, True)
    with sole_owner(load(site.config)):
        told = run("recover", "--yes", "--config", site.config)
    assert (told.code, "in use: an appliance runs on it" in told.err) == (1, True)
    with sole_owner(load(site.config)):
        assert run("run", "--config", site.config).code == 1


# Engines.


def test_engines_names_what_is_wrong_with_a_package(run: Run, site: Site) -> None:
    assert "No engines" in run("engines", "list", "--config", site.config).out
    (site.folder / "engines" / "broken").mkdir(parents=True)
    (site.folder / "engines" / "broken" / "engine.yaml").write_text("schema: 1\nid: [")
    told = run("engines", "list", "--config", site.config)
    assert (told.code, "broken is not valid" in told.out) == (0, True)  # nobody uses it
    site.config.write_text(site.config.read_text().replace("engines: []", "engines: [{id: broken}, {id: absent}]"))
    told = run("engines", "list", "--config", site.config, "--json")
    assert told.code == 1
    assert [(one["id"], one["mode"], one["valid"]) for one in told.document["engines"]] == [
        ("broken", "shadow", False),
        ("absent", "shadow", False),
    ]


# Send.


def test_send_tells_of_each_object(run: Run, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(1, 5):
        part10(tmp_path / "scans", number)
    (tmp_path / "scans" / "readme.txt").write_text("x")
    with tarfile.open(tmp_path / "scans.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "scans", "scans")
    with ScriptedPacs(tmp_path / "pacs", [0x0000, 0xA700, 0xB000]) as pacs:
        to = ("--to", f"127.0.0.1:{pacs.port}")
        told = run("send", tmp_path / "scans.tar.gz", *to)
        assert told.code == 1
        assert told.out.startswith("3 of 4 objects stored")
        assert "status 0xA700" in told.out
        assert "scans/readme.txt" in told.out
        machine = run("send", tmp_path / "scans", *to, "--associations", 3, "--shuffle", "--json")
        assert machine.code == 0
        assert (machine.document["sent"], machine.document["failed"]) == (4, 0)
        assert [one["file"] for one in machine.document["objects"]] == [f"0000{number}.dcm" for number in range(1, 5)]
        assert {one.times for one in pacs.received()} == {1, 2}


def test_send_goes_on_over_a_new_association_when_one_breaks(run: Run, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(1, 6):
        part10(tmp_path / "scans", number)
    with ScriptedPacs(tmp_path / "pacs", [0x0000, "abort"]) as pacs:
        told = run("send", tmp_path / "scans", "--to", f"127.0.0.1:{pacs.port}", "--json")
        assert (told.code, told.document["sent"], told.document["failed"]) == (1, 4, 1)
        assert len(pacs.received()) == 4


def test_send_to_nobody_fails_once_for_all(run: Run, tmp_path: Path) -> None:
    for number in range(1, 31):
        part10(tmp_path, number)
    told = run("send", tmp_path, "--to", "127.0.0.1:1")
    assert told.code == 1
    assert told.out.count("cannot connect to 127.0.0.1:1") == 1
