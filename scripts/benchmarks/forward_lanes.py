"""That a dead destination delays another by nothing: one lane's deliveries with a dead lane beside it, and without."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.forward_place import TUNED, Pacs, storescp
from benchmarks.forward_queue import Queue
from benchmarks.forward_senders import destination
from benchmarks.report import Report, quantile
from benchmarks.rig import Appliance, wait_until
from benchmarks.traffic import SteadySender
from benchmarks.wan import ADDRESSES, FAR, NEAR, Shape, Wan

EVERY_S = 0.05
AT_MOST = 1.1
SETTLED_S = 60.0
NOBODY = 104  # a port of the far side: no packet ever gets there


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    rounds: int
    seconds: float  #: of each of the two in a round


FULL, QUICK = Sizes(rounds=7, seconds=20.0), Sizes(rounds=1, seconds=1.0)


def measure(report: Report, sizes: Sizes, wan: Wan, folder: Path) -> None:
    """Two appliances side by side, of which one gets images at a time; A's line swallows every packet."""
    wan.reshape(Shape())
    with ExitStack() as stack:
        alive = stack.enter_context(storescp(wan, NEAR, TUNED, folder / "pacs-lanes"))
        stack.enter_context(wan.inside(NEAR))
        wan.blackhole()
        dead = Pacs(name="dead", host=ADDRESSES[FAR], port=NOBODY, folder=folder)
        only = stack.enter_context(Appliance(folder / "only", {"destinations": [destination("b", alive)]}))
        options = {"destinations": [destination("a", dead), destination("b", alive)]}
        beside = stack.enter_context(Appliance(folder / "beside", options))
        p99s: dict[str, list[float]] = {"B alone": [], "B with A dead": []}
        for number in range(sizes.rounds):
            pairs = [("B alone", only), ("B with A dead", beside)]
            for name, appliance in pairs if number % 2 else reversed(pairs):
                p99s[name].append(quantile(_latencies(appliance, folder, sizes.seconds), 0.99))
        wan.heal()
    _tell(report, p99s["B alone"], p99s["B with A dead"])


def _latencies(appliance: Appliance, folder: Path, seconds: float) -> list[float]:
    """From the record of an image to the record that B has it, in ms."""
    with Queue(appliance) as queue:
        first = queue.last_delivery() + 1
        with SteadySender(appliance.port, folder, EVERY_S) as steady:
            begun = time.monotonic()
            steady.pause(seconds)
            steady.between(begun, time.monotonic())
        wait_until(lambda: not queue.owed_to("b"), SETTLED_S, "B has everything")
        return [1000 * one.seconds for one in queue.delivered_to("b", first)]


def _tell(report: Report, alone: list[float], beside: list[float]) -> None:
    ratios = [with_dead / without for with_dead, without in zip(beside, alone, strict=True)]
    table = "from an image's record to the record that destination B has it, A's line swallowing all"
    report.row(table, "B alone", rounds=len(alone), p99_ms=round(median(alone), 1), ratio=1.0)
    report.row(
        table, "B with A dead", rounds=len(beside), p99_ms=round(median(beside), 1), ratio=round(median(ratios), 2)
    )
    report.goal(f"p99 of lane B with lane A dead, to that without (n={len(ratios)})", AT_MOST, round(median(ratios), 3))
