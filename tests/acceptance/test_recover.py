"""P12: a lost journal is rebuilt from the spool, everything is owed again, and no result is made a second time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.small_pacs import SmallPacs
from tests.acceptance.rig import PROCESSES, ROOT, Appliance, Original, Scanner, engines, free_port, node, settings
from tests.waiting import eventually

SILENCE_S = 1.0
VERIFIED_S = 90.0
SETTLED_S = 90.0


def recover(appliance: Appliance) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "appliance", "recover", "--config", str(appliance.config_path), "--yes", "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def settled(appliance: Appliance) -> bool:
    """In the order in which one makes the next: a job that is reported by now has its results owed by now."""
    return (
        not appliance.number("SELECT count(*) FROM series WHERE state='open'")
        and bool(appliance.number("SELECT count(*) FROM job"))
        and not appliance.number("SELECT count(*) FROM job WHERE state NOT IN ('reported', 'superseded')")
        and not appliance.owed()
    )


def at(pacs: SmallPacs) -> dict[str, str]:
    return {one.sop_instance_uid: one.sha256 for one in pacs.received()}


@pytest.mark.promise("P12")
@pytest.mark.promise("P3")
@pytest.mark.timeout(300)
def test_a_lost_journal_costs_a_second_delivery_and_nothing_else(work: Path, lung_ct: Original) -> None:
    port = free_port()
    study = lung_ct.copy(work / "scans", "recover")
    config = settings(
        node("pacs", port, accept_reference=True), engines=engines("publish"), series={"silence_s": {"CT": SILENCE_S}}
    )
    appliance = Appliance(work / "appliance", config)
    with appliance, SmallPacs(work / "pacs", port=port) as pacs:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
        Scanner(appliance).send(study.paths)
        eventually(lambda: settled(appliance), SETTLED_S, "the study is read and delivered")
        before = at(pacs)
    assert len(before) == len(study.paths) + 2

    lose_the_journal(appliance)
    refuses_to_start(appliance)
    torn, twice = tear_one(appliance), double_a_result(appliance)
    done = recover(appliance)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["instances"], told["results"]) == (len(study.paths), 2)
    assert [Path(name).name for name in told["quarantined"]] == [torn.name]
    assert not torn.exists()
    assert not twice.exists()
    assert len(list((appliance.state / "spool" / "quarantine").iterdir())) == 1

    with appliance, SmallPacs(work / "pacs again", port=port) as pacs:
        assert recover(appliance).returncode == 1, "not beside a running appliance"
        eventually(lambda: settled(appliance), SETTLED_S, "everything is delivered again")
        eventually(lambda: appliance.number("SELECT count(*) FROM job WHERE state='superseded'"), 10)
        assert at(pacs) == before, "the same objects, byte for byte, the results among them"
        assert {one.times for one in pacs.received()} == {1}
        assert appliance.number("SELECT count(*) FROM instance WHERE origin='result'") == 2


def lose_the_journal(appliance: Appliance) -> None:
    for path in appliance.state.glob("journal.sqlite*"):
        path.unlink()


def refuses_to_start(appliance: Appliance) -> None:
    """It says what to do, takes nothing, and touches nothing."""
    files = sorted((appliance.state / "spool").rglob("*.dcm"))
    appliance.start(wait=False)
    try:
        eventually(lambda: refusals(appliance).keys() >= set(PROCESSES), 60, "every process refuses")
        assert all("`scanside recover`" in reason for reason in refusals(appliance).values())
        assert not appliance.answers()
    finally:
        appliance.stop()
    assert sorted((appliance.state / "spool").rglob("*.dcm")) == files


def refusals(appliance: Appliance) -> dict[str, str]:
    """Process -> why it failed."""
    return {line["process"]: line["reason"] for line in appliance.log_lines() if line["event"] == "failed"}


def tear_one(appliance: Appliance) -> Path:
    """A file that a power cut left half written: it was never acknowledged."""
    whole = min((appliance.state / "spool" / "received").rglob("*.dcm"))
    torn = whole.with_name("000009999.dcm")
    torn.write_bytes(whole.read_bytes()[:-1000])
    return torn


def double_a_result(appliance: Appliance) -> Path:
    """The same result in a second file, as a kill between file and journal leaves one."""
    built = min((appliance.state / "spool" / "results").rglob("*.dcm"))
    return Path(shutil.copy(built, built.with_name("000009999.dcm")))
