"""Acknowledgements while engines run and lanes send, beside the same ones from a box that only receives.

Two appliances side by side, of which one gets traffic at a time: rounds alternate, so that whatever else the machine
does meets both.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from appliance.journal.store import Journal
from benchmarks.large import EVERY_S, Compared, tell_compared
from benchmarks.report import Report
from benchmarks.rig import Appliance, check_engines, idle, pacs, reported, scanner, storescp, wait_until
from benchmarks.studies import ct_case, fresh_copy
from benchmarks.traffic import Ack, SteadySender

ENGINES = ("ct-lesion", "cxr-acquisition")
FINISHED_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    rounds: int
    studies: int  #: CT studies at a time, for the engine
    alone_s: float


def measure(report: Report, sizes: Sizes, data: Path, folder: Path) -> None:
    case = ct_case(data, folder / "case")
    engines = [{"id": engine, "mode": "publish"} for engine in ENGINES]
    rounds: list[Compared] = []
    with ExitStack() as stack:
        port = stack.enter_context(storescp(None))
        only = stack.enter_context(Appliance(folder / "only", {}))
        every = stack.enter_context(Appliance(folder / "every", {"engines": engines, "destinations": [pacs(port)]}))
        check_engines(every)
        journal = stack.enter_context(closing(every.journal()))
        for number in range(sizes.rounds):
            studies = folder / f"round-{number}"
            studies.mkdir()
            uids = [fresh_copy(case, studies / str(study), stated_count=True) for study in range(sizes.studies)]
            beside = _beside(every, journal, studies, uids)
            rounds.append(Compared(alone=_alone(only, folder, sizes.alone_s), beside=beside))
            shutil.rmtree(studies)
    tell_compared(report, "busy engines and lanes", rounds)


def _beside(appliance: Appliance, journal: Journal, studies: Path, uids: Sequence[str]) -> list[Ack]:
    """From the moment the studies are in until their reports are out."""
    with SteadySender(appliance.port, studies, EVERY_S) as steady:
        scanner(appliance.port, studies)
        begun = time.monotonic()
        wait_until(lambda: all(reported(journal, uid) for uid in uids), FINISHED_S, "the studies are reported")
        acks = steady.between(begun, time.monotonic())
    idle(journal)
    return acks


def _alone(appliance: Appliance, folder: Path, seconds: float) -> list[Ack]:
    with SteadySender(appliance.port, folder, EVERY_S) as steady:
        begun = time.monotonic()
        steady.pause(seconds)
        return steady.between(begun, time.monotonic())
