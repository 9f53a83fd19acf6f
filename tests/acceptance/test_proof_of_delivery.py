"""Proof of delivery with other people's PACS: a local copy is free only when the PACS answers for it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.dcmqrscp import Dcmqrscp
from tests.acceptance.orthanc import ORTHANC, Orthanc
from tests.acceptance.rig import ROOT, Appliance, Scanner, free_port, node, settings, small_series
from tests.missing import missing
from tests.proving import Archive, Asked
from tests.waiting import eventually, listens_at

PROVEN_S = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    appliance: Appliance
    orthanc: Orthanc
    old: Dcmqrscp
    images: list[Path]

    def states(self, destination: str) -> dict[str, int]:
        rows = self.appliance.query(
            "SELECT state, count(*) FROM delivery WHERE destination=? GROUP BY state", destination
        )
        return {row[0]: row[1] for row in rows}

    def say(self, *words: str) -> str:
        command = [sys.executable, "-m", "appliance", *words, "--config", str(self.appliance.config_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False).stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.say("status", "--json"))
        return found


@pytest.fixture
def site(work: Path) -> Iterator[Site]:
    if not ORTHANC.exists():
        missing("Orthanc is not installed")
    config = settings()
    us = {"AET": "SCANSIDE", "Host": "127.0.0.1", "Port": config["receive"]["port"], "AllowStorageCommitment": True}
    with ExitStack() as stack:
        orthanc = stack.enter_context(Orthanc(work / "orthanc", DicomModalities={"us": us}))
        old = stack.enter_context(Dcmqrscp(work / "old"))
        config["destinations"] = [
            node("pacs", orthanc.port, proof="commitment", keep_h=0),
            node("look", orthanc.port, proof="find", keep_h=0),
            node("old", old.port, called_ae="OLDPACS", proof="commitment", keep_h=0),
        ]
        appliance = stack.enter_context(Appliance(work / "box", config))
        yield Site(appliance, orthanc, old, small_series(work / "images", 4))


@pytest.mark.promise("P4")
@pytest.mark.promise("P11")
def test_orthanc_answers_for_what_it_has_and_a_pacs_without_commitment_for_nothing(site: Site) -> None:
    Scanner(site.appliance).send(site.images)
    eventually(lambda: len(site.orthanc.instances()) == 4, 20.0, "Orthanc has all of them")
    lost = site.orthanc.instances()[0]
    site.orthanc.delete(f"/instances/{lost}")  # before it is asked: it has to be quiet for 3 s

    failed = "SELECT count(*) FROM history WHERE event='commitment_failed' AND detail LIKE '%0x0112%'"
    eventually(lambda: site.appliance.number(failed) == 1, PROVEN_S, "the one it lost is named")
    eventually(lambda: site.states("pacs") == {"committed": 4}, PROVEN_S, "commitment answers for all")
    eventually(lambda: site.states("look") == {"committed": 4}, PROVEN_S, "queries show all")
    assert len(site.orthanc.instances()) == 4

    assert site.states("old") == {"delivered": 4}
    assert len(site.old.files()) == 4
    told = site.status()
    assert told["proofs"]["old"]["state"] == "refused"
    assert any("old does not prove what it gets" in one["what"] for one in told["attention"])
    assert [(one["destination"], one["count"]) for one in told["journal"]["unproven"]] == [("old", 4)]
    assert site.appliance.number("SELECT count(*) FROM copy") == 4  # kept, for `old`
    study = site.appliance.query("SELECT study_instance_uid FROM instance")[0][0]
    trace = site.say("trace", study)
    assert "pacs answers for it" in trace
    assert "look answers for it" in trace
    assert "old answers for it" not in trace


@pytest.mark.promise("P12")
@pytest.mark.promise("P4")
def test_killed_between_question_and_answer_nothing_is_lost_or_freed_too_soon(work: Path) -> None:
    archive = Archive(port=free_port())
    images = small_series(work / "images", 5)
    config = settings(node("pacs", archive.port, proof="commitment", keep_h=0))
    committed = "SELECT count(*) FROM delivery WHERE state='committed'"
    with archive.listening(), Appliance(work / "box", config) as appliance:
        Scanner(appliance).send(images[:3])
        asked = archive.request(within_s=PROVEN_S)
        kill(appliance, "forward")
        kill(appliance, "receive")
        report(archive, asked, appliance)  # again and again, as a PACS does, until somebody is there
        kill(appliance, "receive")  # what it said it had taken is on the disk
        eventually(lambda: appliance.number(committed) == 3, PROVEN_S, "the answer is read after the kills")

        requests = len(archive.asked)
        eventually(lambda: listens_at(appliance.port), PROVEN_S, "receive is back")
        Scanner(appliance).insist(images[3:], PROVEN_S)
        asked = archive.request(requests + 1, PROVEN_S)
        appliance.kill()
        assert appliance.number(committed) == 3
        appliance.start()
        report(archive, asked, appliance)
        eventually(lambda: appliance.number(committed) == 5, PROVEN_S, "all are answered for")
        assert sorted(set(archive.stored)) == sorted(archive.has)
        assert appliance.number("SELECT count(*) FROM delivery WHERE state<>'committed'") == 0


def kill(appliance: Appliance, name: str) -> None:
    process = appliance.process(name)
    assert process is not None
    process.kill()
    process.wait(10)


def report(archive: Archive, asked: Asked, appliance: Appliance) -> None:
    def is_taken() -> bool:
        return listens_at(appliance.port) and archive.report(asked, appliance.port) == 0

    eventually(is_taken, PROVEN_S, "the report is taken")
