"""P1, P3 and P12: any process may die at any moment of a real study, and it all ends in the same place.

20 rounds, each a study of 99 slices and one SIGKILL: of receive, analyse, a runtime child, forward or the supervisor,
or of everything at once, at a moment drawn from a printed seed. Rounds overlap: the next study is sent while the last
one is still being read. The scanner sends again what was not acknowledged, and nothing else. SCANSIDE_FULL=1: 200.
"""

import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.dimse.small_pacs import SmallPacs
from tests.acceptance.rig import FULL, Appliance, DataSet, Original, Scanner, Study, data_set, engines, node, settings
from tests.waiting import eventually

ROUNDS = 200 if FULL else 20
TARGETS = ("receive", "analyse", "child", "forward", "supervisor", "all")
RESENDS = frozenset({"forward", "supervisor", "all"})  # whose death makes what was in flight go out again
IN_FLIGHT = 64  # deliveries whose settlement may not be committed yet
SILENCE_S = 2.0
READING_S = 1.5  # about what it takes to read a study and build its results
STRUCK_TWICE = "SELECT count(*) FROM job WHERE attempts>=2 AND state IN ('ready', 'running')"
VERIFIED_S = 90.0
ROUND_S = 60.0
SETTLED_S = 300.0  # twenty studies to read, on processors that others use as well


@dataclass(frozen=True, slots=True)
class Blow:
    """Whom to kill, and when: after so many acknowledged images, and so many seconds after that."""

    target: str
    images: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.target} after {self.images} images + {self.seconds:.2f} s"


def blows(seed: int, slices: int) -> list[Blow]:
    """Every target equally often; at a moment within the send, or (those that read it) half of the time after it."""
    draw = random.Random(seed)
    targets = [TARGETS[n % len(TARGETS)] for n in range(ROUNDS)]
    draw.shuffle(targets)
    found = []
    for target in targets:
        reads = target in ("analyse", "child") and draw.random() < 0.5
        found.append(
            Blow(
                target=target,
                images=slices if reads else draw.randrange(1, slices),
                seconds=draw.uniform(0, SILENCE_S + READING_S) if reads else draw.uniform(0, 0.05),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Sent:
    """What is left of a study when its files are gone."""

    study_instance_uid: str
    hashes: dict[str, str]


def strike(appliance: Appliance, target: str) -> None:
    if target == "all":
        appliance.kill()
    elif target == "supervisor":
        appliance.kill_supervisor()
    elif (process := appliance.process(target)) is not None:
        process.kill()
    if not appliance.running:
        appliance.start(wait=False)


def play(appliance: Appliance, study: Study, blow: Blow) -> Sent:
    """One round: send, strike, and go on sending until all is acknowledged."""
    scanner = Scanner(appliance)
    sending = threading.Thread(target=scanner.insist, args=(study.paths, ROUND_S), daemon=True)
    sending.start()
    eventually(lambda: len(scanner.acknowledged) >= blow.images, ROUND_S, f"{blow.images} images are acknowledged")
    time.sleep(blow.seconds)
    # A job that has brought analyse down three times is given up, as it should be: no study is struck so often here.
    eventually(lambda: not appliance.number(STRUCK_TWICE), ROUND_S)
    strike(appliance, blow.target)
    sending.join(ROUND_S)
    wanted = study.hashes()
    assert scanner.acknowledged == wanted.keys(), f"{blow}: the scanner was not told Success for everything"
    assert not scanner.refused
    return Sent(study.study_instance_uid, wanted)


def all_settled(appliance: Appliance, studies: int) -> bool:
    """Whether every study is reported, and nothing is owed or open any more."""
    return (
        not appliance.owed()
        and not appliance.number("SELECT count(*) FROM series WHERE state='open'")
        and not appliance.number("SELECT count(*) FROM job WHERE state NOT IN ('reported', 'superseded')")
        and appliance.number("SELECT count(DISTINCT study_instance_uid) FROM job WHERE state='reported'") == studies
    )


def assert_one_of_each(appliance: Appliance, sent: list[Sent]) -> None:
    """One SR and one SC per study, of all slices; in the journal, which says what was ever built."""
    outcomes = [json.loads(row["outcome"]) for row in appliance.query("SELECT outcome FROM job WHERE state='reported'")]
    assert [(one["reason"], one["detail"]) for one in outcomes if one["extent"] is None] == []
    assert {one["extent"]["instances"] for one in outcomes} == {len(sent[0].hashes)}
    rows = appliance.query(
        "SELECT study_instance_uid, kind, count(*) AS built FROM instance WHERE origin='result' GROUP BY 1, 2"
    )
    built = {(row["study_instance_uid"], row["kind"]): row["built"] for row in rows}
    assert built == {(one.study_instance_uid, kind): 1 for one in sent for kind in ("sr", "sc")}


def assert_nothing_left_over(appliance: Appliance) -> None:
    """Neither of the dead: a torn journal, files that nobody knows, or half-made volumes."""
    assert [row[0] for row in appliance.query("PRAGMA integrity_check")] == ["ok"]
    known = {row["file"] for row in appliance.query("SELECT file FROM copy")}
    spool = appliance.state / "spool"
    appliance.stop()
    appliance.start()  # whatever a kill left behind is swept by now
    assert {str(path.relative_to(spool)) for path in spool.rglob("*.dcm")} <= known
    assert not list((appliance.state / "work").iterdir())


def assert_all_there(stores: list[DataSet], sent: list[Sent]) -> int:
    """Everything acknowledged is at the PACS, each time with the same bytes; returns how many C-STOREs were repeats."""
    versions: dict[str, set[str]] = {}
    for store in stores:
        versions.setdefault(store.sop_instance_uid, set()).add(store.sha256)
    wanted = {uid: {sha} for one in sent for uid, sha in one.hashes.items()}
    assert {uid: versions.get(uid) for uid in wanted} == wanted
    assert all(len(shas) == 1 for shas in versions.values()), "a result was sent with other bytes"
    assert len(versions) == len(wanted) + 2 * len(sent)
    return len(stores) - len(versions)


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P12")
@pytest.mark.timeout(7200 if FULL else 800)
def test_whoever_is_killed_whenever_everything_arrives_and_each_study_is_reported_once(
    work: Path, lung_ct: Original, figure: Callable[[str], None]
) -> None:
    seed = int(os.environ.get("SCANSIDE_SEED", time.time_ns() % 1_000_000))
    plan = blows(seed, len(lung_ct))
    sys.stdout.write("\n".join([f"SCANSIDE_SEED={seed}", *map(str, plan), ""]))
    sent: list[Sent] = []
    with SmallPacs(work / "pacs") as pacs:
        config = settings(
            node("pacs", pacs.port, accept_reference=True, keep_h=0),
            engines=engines("publish"),
            series={"silence_s": {"CT": SILENCE_S}},
        )
        with Appliance(work / "appliance", config) as appliance:
            eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
            for number, blow in enumerate(plan):
                sent.append(play(appliance, lung_ct.copy(work / "scans", str(number)), blow))
                shutil.rmtree(work / "scans")
            eventually(lambda: all_settled(appliance, ROUNDS), SETTLED_S, "everything is settled")
            assert_one_of_each(appliance, sent)
            assert_nothing_left_over(appliance)
        stores = [data_set(path) for path in (work / "pacs").iterdir()]
    resends = assert_all_there(stores, sent)
    kills = Counter(blow.target for blow in plan)
    allowed = IN_FLIGHT * sum(kills[target] for target in RESENDS)
    assert resends <= allowed
    figure(
        f"kills: {ROUNDS} of {ROUNDS} rounds with {sum(len(one.hashes) for one in sent)} images ended alike"
        f" ({dict(kills)}, seed {seed}); {resends} C-STOREs repeated (goal: at most {allowed})"
    )
