"""P3, P4 and P6 around destinations that are down, that refuse, and that go away; and the configuration as shipped."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.requestor import VERIFICATION_PAIR, connect
from appliance.dimse.small_pacs import ScriptedPacs, SmallPacs
from appliance.errors import DestinationRefused
from tests.acceptance.rig import (
    ROOT,
    SCANNER,
    Appliance,
    Original,
    Scanner,
    engines,
    folder_destination,
    free_port,
    hashes,
    node,
    settings,
    small_series,
)
from tests.waiting import eventually

DELIVERED_S = 45.0
SPOKEN_S = 90.0


def scanside(appliance: Appliance, *arguments: str) -> dict[str, Any]:
    """A command of the command line, by another process, as an operator types it."""
    command = [sys.executable, "-m", "appliance", *arguments, "--config", str(appliance.config_path), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def assert_whole(pacs: SmallPacs, paths: Sequence[Path], times: int = 1) -> None:
    """Each image is there, byte for byte, and was sent as often as said."""
    assert {one.sop_instance_uid: one.sha256 for one in pacs.received()} == hashes(paths)
    assert {one.times for one in pacs.received()} == {times}


def held(appliance: Appliance) -> dict[str, str]:
    """SOP Instance UID -> why its delivery is held."""
    return appliance.pairs(
        "SELECT i.sop_instance_uid, d.reason FROM delivery d JOIN instance i ON i.id=d.instance WHERE d.state='held'"
    )


@pytest.mark.promise("P3")
def test_what_came_while_the_pacs_was_down_arrives_when_it_is_up_whatever_happened_between(work: Path) -> None:
    """Down at the start; a restart in order and a killed one with everything still owed; then it comes."""
    pacs, paths = SmallPacs(work / "pacs", port=free_port()), small_series(work / "scans", 20)
    appliance = Appliance(work / "appliance", settings(node("pacs", pacs.port)))
    with appliance:
        Scanner(appliance).insist(paths[:10], 20)
        assert appliance.owed() == 10
        assert appliance.stop() == 0
        appliance.start()
        Scanner(appliance).insist(paths[10:], 20)
        appliance.kill()
        appliance.start()
        assert appliance.owed() == 20
        with pacs:
            eventually(lambda: not appliance.owed(), DELIVERED_S, "everything is delivered")
            assert_whole(pacs, paths)


@pytest.mark.promise("P4")
def test_what_a_pacs_refuses_is_held_and_told_while_the_rest_goes_on_and_an_operator_can_send_it_again(
    work: Path,
) -> None:
    not_supported = 0x0122
    pacs, paths = ScriptedPacs(work / "pacs", [not_supported] * 3), small_series(work / "scans", 12)
    with pacs, Appliance(work / "appliance", settings(node("pacs", pacs.port))) as appliance:
        Scanner(appliance).insist(paths, 20)
        eventually(lambda: not appliance.owed(), DELIVERED_S, "everything is delivered or held")
        refused = held(appliance)
        assert len(refused) == 3
        assert set(refused.values()) == {"0x0122 SOP class not supported"}
        assert len(pacs.received()) == 9
        scanside(appliance, "requeue", "--all")
        eventually(lambda: len(pacs.received()) == 12, DELIVERED_S, "what was held is delivered")
        assert_whole(pacs, paths)
        eventually(lambda: not held(appliance), 5)


@pytest.mark.promise("P3")
def test_a_pacs_that_is_out_of_resources_or_breaks_off_gets_everything_in_the_end(work: Path) -> None:
    pacs = ScriptedPacs(work / "pacs", [0xA700, "abort", 0x0000, 0xA700, "abort"])
    paths = small_series(work / "scans", 12)
    with pacs, Appliance(work / "appliance", settings(node("pacs", pacs.port))) as appliance:
        Scanner(appliance).insist(paths, 20)
        eventually(lambda: not appliance.owed(), DELIVERED_S, "everything is delivered")
        assert_whole(pacs, paths)
        assert not held(appliance)


@pytest.mark.promise("P4")
def test_what_is_owed_to_a_destination_that_is_gone_from_the_configuration_is_held_not_forgotten(work: Path) -> None:
    paths, port = small_series(work / "scans", 5), free_port()
    archive = folder_destination("archive", work / "archive")
    with Appliance(work / "appliance", settings(node("old", port), archive)) as appliance:
        Scanner(appliance).insist(paths, 20)
        eventually(lambda: len(list((work / "archive").iterdir())) == 5, DELIVERED_S)
        appliance.stop()
        appliance.configure(settings(archive))
        appliance.start()
        assert set(held(appliance)) == set(hashes(paths))
        assert all(why.startswith("destination gone") for why in held(appliance).values())
        appliance.stop()
        appliance.configure(settings(node("old", port), archive))
        with SmallPacs(work / "pacs", port=port) as pacs:
            appliance.start()
            scanside(appliance, "requeue", "--all")
            eventually(lambda: len(pacs.received()) == 5, DELIVERED_S)
            assert_whole(pacs, paths)


@pytest.mark.promise("P4")
def test_what_no_destination_takes_is_held_and_told(work: Path) -> None:
    paths = small_series(work / "scans", 3)
    only_films = folder_destination("films", work / "films", when={"modality": ["DX"]})
    with Appliance(work / "appliance", settings(only_films)) as appliance:
        Scanner(appliance).insist(paths, 20)
        assert all(why.startswith("unrouted") for why in held(appliance).values())
        assert set(held(appliance)) == set(hashes(paths))
        assert not list((work / "films").iterdir())


@pytest.mark.promise("P2")
def test_a_destination_that_is_down_delays_no_other(work: Path) -> None:
    paths = small_series(work / "scans", 10)
    destinations = node("down", free_port()), *(folder_destination(f"up-{n}", work / f"up-{n}") for n in range(4))
    with Appliance(work / "appliance", settings(*destinations)) as appliance:
        Scanner(appliance).insist(paths, 20)
        folders = [work / f"up-{n}" for n in range(4)]
        eventually(
            lambda: all(hashes(folder.glob("*.dcm")) == hashes(paths) for folder in folders), 10, "they have all"
        )
        eventually(lambda: appliance.owed() == 10, 5, "only what is owed to the one that is down is still owed")
        assert not [line for line in appliance.log_lines() if line["event"] in ("ended", "worker_failed")]


@pytest.mark.promise("P6")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["publish", "shadow"])
def test_results_of_reference_engines_go_only_where_the_site_asked_for_them(
    work: Path, lung_ct: Original, mode: str
) -> None:
    """Published ones to no destination without accept_reference; those in shadow to nobody at all."""
    study = lung_ct.copy(work / "scans", mode)
    review = folder_destination("review", work / "review", takes=["sr", "sc"], accept_reference=True)
    record = folder_destination("record", work / "record")
    config = settings(record, review, engines=engines(mode), series={"silence_s": {"CT": 2}})
    with Appliance(work / "appliance", config) as appliance:
        Scanner(appliance).insist(study.paths, 30)
        eventually(
            lambda: appliance.number("SELECT count(*) FROM job WHERE state='reported'"),
            SPOKEN_S,
            "the engine has spoken",
        )
        eventually(lambda: not appliance.owed(), DELIVERED_S)
        assert hashes((work / "record").glob("*.dcm")) == study.hashes()
        kinds = [
            row["kind"] for row in appliance.query("SELECT kind FROM instance WHERE origin='result' ORDER BY kind")
        ]
        sent = len(list((work / "review").iterdir()))
        assert (kinds, sent) == ((["sc", "sr"], 2) if mode == "publish" else ([], 0))


@pytest.mark.promise("P9")
@pytest.mark.timeout(180)
def test_the_shipped_configuration_boots_as_it_is_and_lets_nobody_in(work: Path) -> None:
    text = (ROOT / "config" / "scanside.yaml").read_text()
    port = free_port()
    assert "\n  port: 11112 " in text
    (work / "engines").symlink_to(ROOT / "engines")
    appliance = Appliance(work / "config", text.replace("\n  port: 11112 ", f"\n  port: {port} "))
    appliance.start(wait=False)
    try:
        eventually(lambda: any(line["event"] == "ready" for line in appliance.log_lines()), 60, "it is ready")
        eventually(appliance.engines_serve, SPOKEN_S, "its engines serve")
        for title in (SCANNER, "ANY", "SCANSIDE"):
            with pytest.raises(DestinationRefused, match="calling AE title not recognised"):
                connect(appliance.target(title), [VERIFICATION_PAIR])
        listening = [
            one.laddr.ip
            for process in appliance.family()
            for one in process.net_connections()
            if one.status == "LISTEN"
        ]
        assert listening == ["127.0.0.1"]
    finally:
        code = appliance.stop()
    assert code == 0
