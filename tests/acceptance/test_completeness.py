"""P6: however a study comes in, there is one report, of all of it; never one of a part.

A real study of 99 slices in 1, 10 and 99 associations, with pauses, out of order, broken off and sent again. The
silence that closes a series and the pauses are scaled to a tenth; SCANSIDE_FULL=1 takes the real ones (20 s; 0.2, 3
and 10 s), which needs half an hour.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from pydicom import dcmread

from appliance.dimse.header import part10
from appliance.dimse.small_pacs import Received, SmallPacs
from tests.acceptance.rig import (
    FULL,
    ROOT,
    SCANNER,
    Appliance,
    Original,
    Scanner,
    SlowLine,
    Study,
    engines,
    node,
    report_texts,
    settings,
)
from tests.waiting import eventually

SLICES = 99
SILENCE_S = 20.0 if FULL else 2.0
GAPS_S = (0.2, 3.0, 10.0) if FULL else (0.02, 0.3, 1.0)
VERIFIED_S = 90.0
SPOKEN_S = 60.0
SEED = 20261124
CONCLUDED = (
    "SELECT EXISTS (SELECT 1 FROM job WHERE study_instance_uid=?1 AND state='reported')"
    " AND NOT EXISTS (SELECT 1 FROM job WHERE study_instance_uid=?1 AND state NOT IN ('reported', 'superseded'))"
    " AND NOT EXISTS (SELECT 1 FROM series WHERE study_instance_uid=?1 AND state='open')"
    " AND NOT EXISTS (SELECT 1 FROM delivery WHERE state='queued')"
)


@dataclass(frozen=True, slots=True)
class Site:
    appliance: Appliance
    pacs: SmallPacs


@pytest.fixture(scope="module")
def site(module_work: Path) -> Iterator[Site]:
    """One appliance for all: each send has a study of its own."""
    with SmallPacs(module_work / "pacs") as pacs:
        config = settings(
            node("pacs", pacs.port, accept_reference=True, keep_h=0),
            engines=engines("publish"),
            series={"silence_s": {"CT": SILENCE_S}},
        )
        with Appliance(module_work / "appliance", config) as appliance:
            eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
            yield Site(appliance, pacs)


def parts(paths: Sequence[Path], count: int) -> list[Sequence[Path]]:
    """`paths` cut into so many runs of about the same length."""
    edges = [round(n * len(paths) / count) for n in range(count + 1)]
    return [paths[a:b] for a, b in pairwise(edges)]


def results_of(site: Site, study: Study) -> dict[str, Received]:
    """Kind -> what the PACS got; fails where there is more than one of a kind."""
    rows = site.appliance.query(
        "SELECT kind, sop_instance_uid FROM instance WHERE origin='result' AND study_instance_uid=? ORDER BY kind",
        study.study_instance_uid,
    )
    assert [row["kind"] for row in rows] == ["sc", "sr"], "exactly one SR and one SC are published"
    at_pacs = {one.sop_instance_uid: one for one in site.pacs.received()}
    return {row["kind"]: at_pacs[row["sop_instance_uid"]] for row in rows}


def concluded(site: Site, study: Study) -> bool:
    """Whether its series is closed, and nothing is left to do for it."""
    return bool(site.appliance.number(CONCLUDED, study.study_instance_uid))


def assert_one_report_of_all(site: Site, study: Study, image_times: int = 1) -> None:
    """And each image at the PACS, byte for byte, no more often than `image_times`."""
    eventually(lambda: concluded(site, study), SILENCE_S * 3 + SPOKEN_S, "the study is concluded and delivered")
    results = results_of(site, study)
    assert {one.times for one in results.values()} == {1}
    assert any(text.startswith(f"Read: {SLICES} slices") for text in report_texts(results["sr"].path))
    outcomes = site.appliance.query(
        "SELECT outcome FROM job WHERE study_instance_uid=? AND state='reported'", study.study_instance_uid
    )
    assert [json.loads(row["outcome"])["extent"]["instances"] for row in outcomes] == [SLICES]
    at_pacs = {one.sop_instance_uid: one for one in site.pacs.received()}
    wanted = study.hashes()
    assert {uid: at_pacs[uid].sha256 for uid in wanted} == wanted
    assert max(at_pacs[uid].times for uid in wanted) <= image_times


@dataclass(frozen=True, slots=True)
class Manner:
    """How a scanner sends a study."""

    associations: int
    gap_s: float = 0.0
    shuffled: bool = False

    def __str__(self) -> str:
        return f"{self.associations}-gap-{self.gap_s:g}{'-shuffled' if self.shuffled else ''}"


MANNERS = [
    Manner(1),
    Manner(10, shuffled=True),
    Manner(99),
    Manner(10, GAPS_S[2]),
    Manner(10, GAPS_S[1], shuffled=True),
    Manner(99, GAPS_S[0], shuffled=True),
    *([Manner(99, GAPS_S[1], shuffled=True), Manner(99, GAPS_S[2])] if FULL else []),
]


@pytest.mark.promise("P6")
@pytest.mark.timeout(1800 if FULL else 180)
@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_one_report_of_all_however_many_associations_bring_it(
    work: Path, site: Site, lung_ct: Original, manner: Manner
) -> None:
    study = lung_ct.copy(work / "scans", str(manner))
    order = in_z(study.paths)
    if manner.shuffled:
        random.Random(SEED).shuffle(order)
    scanner = Scanner(site.appliance)
    for number, part in enumerate(parts(order, manner.associations)):
        if number:
            time.sleep(manner.gap_s)
        scanner.send(part)
    assert len(scanner.acknowledged) == SLICES
    assert_one_report_of_all(site, study)


@pytest.mark.promise("P6")
@pytest.mark.timeout(600 if FULL else 180)
def test_no_report_of_a_half_when_the_scanner_breaks_off_and_comes_back(
    work: Path, site: Site, lung_ct: Original
) -> None:
    """Aborted after half of the slices; silent for longer than closes a series; then all of it again."""
    study = lung_ct.copy(work / "scans", "aborted")
    order = in_z(study.paths)
    Scanner(site.appliance).send(order[: SLICES // 2], abort=True)
    time.sleep(1.5 * SILENCE_S)
    assert published(site, study) == 0
    Scanner(site.appliance).send(order)
    assert_one_report_of_all(site, study)


@pytest.mark.promise("P6")
@pytest.mark.timeout(600 if FULL else 180)
def test_no_report_of_a_half_when_the_scanner_dies_in_the_middle_of_an_image(
    work: Path, site: Site, lung_ct: Original
) -> None:
    study = lung_ct.copy(work / "scans", "died")
    command = [sys.executable, "-m", "appliance", "send", str(work / "scans"), "--calling", SCANNER]
    command += ["--called", "SCANSIDE", "--to", f"127.0.0.1:{site.appliance.port}"]
    place = {**os.environ, "TMPDIR": str(work)}  # killed, it leaves a folder
    sending = subprocess.Popen(command, cwd=ROOT, env=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: arrived(site, study) >= SLICES // 3, 30, "a third has come")
    finally:
        sending.kill()
        sending.wait()
    time.sleep(1.5 * SILENCE_S)
    assert SLICES // 3 <= arrived(site, study) < SLICES, "it was broken off in the middle"
    assert published(site, study) == 0
    Scanner(site.appliance).send(study.paths)
    assert_one_report_of_all(site, study)


@pytest.mark.promise("P6")
@pytest.mark.timeout(600 if FULL else 180)
def test_no_report_of_a_half_when_the_box_was_down_for_longer_than_the_silence(
    work: Path, site: Site, lung_ct: Original
) -> None:
    """Receive is killed in mid-send, and again and again until it has been deaf for longer than closes a series."""
    study = lung_ct.copy(work / "scans", "deaf")
    order = in_z(study.paths)
    scanner = Scanner(site.appliance)
    items = [part10(path) for path in order]
    association = scanner.associate(items)
    for item in items[: SLICES // 2]:
        scanner.store(association, item)
    deaf_until = time.monotonic() + 1.5 * SILENCE_S
    while time.monotonic() < deaf_until:
        if (receive := site.appliance.process("receive")) is not None:
            receive.kill()
        time.sleep(0.05)
    association.abort()
    eventually(site.appliance.answers, 60, "it listens again")
    time.sleep(0.75 * SILENCE_S)  # scanners try again in their own time
    assert published(site, study) == 0
    scanner.send(order)
    # What is sent again a minute after it was delivered counts as a repair, and is delivered again.
    assert_one_report_of_all(site, study, image_times=2 if FULL else 1)


@pytest.mark.promise("P6")
@pytest.mark.timeout(600 if FULL else 180)
def test_no_report_of_a_part_when_one_slice_takes_longer_than_the_silence(
    work: Path, site: Site, lung_ct: Original
) -> None:
    """A slow line is not silent: its bytes come all the time."""
    study = lung_ct.copy(work / "scans", "slow")
    order = in_z(study.paths)
    Scanner(site.appliance).send(order[:-2])
    slice_bytes = order[-1].stat().st_size
    with SlowLine(site.appliance.port, slice_bytes / (1.5 * SILENCE_S)) as line:
        scanner = Scanner(site.appliance, port=line.port)
        scanner.send(order[-2:])
    assert max(scanner.seconds) > 1.2 * SILENCE_S, "the line was slow"
    assert_one_report_of_all(site, study)


@pytest.mark.promise("P6")
@pytest.mark.timeout(600 if FULL else 180)
def test_what_comes_after_the_report_makes_a_new_one_that_names_its_predecessor(
    work: Path, site: Site, lung_ct: Original
) -> None:
    """Silence can be wrong: then the second report is of all of it, and replaces the first."""
    study = lung_ct.copy(work / "scans", "late")
    order = in_z(study.paths)
    Scanner(site.appliance).send(order[:60])
    eventually(lambda: concluded(site, study), SILENCE_S * 3 + SPOKEN_S, "the first part is concluded and delivered")
    first = [row["sop_instance_uid"] for row in results(site, study, "sr")]
    Scanner(site.appliance).send(order[60:])
    eventually(lambda: len(results(site, study, "sr")) == 2, SILENCE_S * 3 + SPOKEN_S, "a second report is built")
    eventually(lambda: concluded(site, study), SPOKEN_S)
    second = next(row["sop_instance_uid"] for row in results(site, study, "sr") if row["sop_instance_uid"] not in first)
    report = next(one.path for one in site.pacs.received() if one.sop_instance_uid == second)
    assert any(text.startswith(f"Read: {SLICES} slices") for text in report_texts(report))
    predecessors = dcmread(report).PredecessorDocumentsSequence
    named = predecessors[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert [named] == first


def in_z(paths: Sequence[Path]) -> list[Path]:
    """From feet to head: so that any run of them looks like a whole stack."""
    return sorted(paths, key=lambda path: dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


def arrived(site: Site, study: Study) -> int:
    return site.appliance.number(
        "SELECT count(*) FROM instance WHERE study_instance_uid=? AND origin='received'", study.study_instance_uid
    )


def results(site: Site, study: Study, kind: str) -> list[sqlite3.Row]:
    return site.appliance.query(
        "SELECT sop_instance_uid FROM instance WHERE study_instance_uid=? AND kind=?", study.study_instance_uid, kind
    )


def published(site: Site, study: Study) -> int:
    return len(results(site, study, "sr")) + len(results(site, study, "sc"))
