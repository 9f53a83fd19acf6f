"""A whole run: the product's cuts, the controls, the replay, the failing disk, in this order, with a progress bar."""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from power_cuts import RigError
from power_cuts.controls import CONTROLS, Alteration
from power_cuts.cuts import Life, live
from power_cuts.failing import Fault, fail
from power_cuts.inside_failing import DROP, ERROR
from power_cuts.replay import Order, Recording, record, replay, stretches
from power_cuts.report import Report
from power_cuts.trial import Tally, Workers

KEPT_FOR = 10  # cuts on one disk, at most; then a new one, for what is on it is all read again after each
CONTROL_CUTS = 12  # at most, of a control that must lose once
OBSERVED_CUTS = 8
PIECES = 40  # of a replay: so often the progress bar moves
LINES = 10  # of progress, of each kind of work, where there is no terminal
MOST_BROKEN = 5  # trials
POINTS_PER_IMAGE = 20  # at least
FEWEST_IMAGES = 12  # that a recording needs for the WAL to be overwritten in place at its end

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    seed: str
    cuts: int
    kept_cuts: int = 0  #: of them, so many on disks that are used again
    controls: bool = True
    observations: bool = False  #: controls' twins, of which nothing is expected
    points: int = 0  #: crash points to replay, in order and again reordered
    faults: int = 0  #: disks that fail
    jobs: int = 1


class Run:
    """Carries a plan out and fills a report. Raises RigError."""

    def __init__(self, plan: Plan, workers: Workers, progress: Progress) -> None:
        self._plan, self._workers, self._progress = plan, workers, progress
        self._rng = random.Random(plan.seed)  # noqa: S311 - no secret
        self._broken = 0
        self.report = Report()

    def all(self) -> Report:
        plan = self._plan
        if plan.cuts:
            self._cuts()
        if plan.controls:
            self._controls()
        if plan.observations:
            self._observations()
        if plan.points:
            self._replays()
        if plan.faults:
            self._faults()
        self.report.sound(self._broken)
        return self.report

    def _cuts(self) -> None:
        fresh = self._plan.cuts - self._plan.kept_cuts
        if fresh:
            lives = [Life(seed=f"{self._plan.seed}/fresh/{number}") for number in range(fresh)]
            self.report.product("power cuts, a new disk each", self._lived("cuts", lives))
        if self._plan.kept_cuts:
            disks = max(self._plan.jobs, -(-self._plan.kept_cuts // KEPT_FOR))
            sizes = [len(range(disk, self._plan.kept_cuts, disks)) for disk in range(disks)]
            lives = [Life(seed=f"{self._plan.seed}/kept/{n}", cuts=cuts) for n, cuts in enumerate(sizes) if cuts]
            self.report.product("power cuts, disks used again", self._lived("cuts, disks used again", lives))

    def _lived(self, name: str, lives: Sequence[Life]) -> Tally:
        return sum(self._through(name, live, lives), Tally())

    def _controls(self) -> None:
        for alteration in CONTROLS:
            total = Tally()
            for number in range(0, CONTROL_CUTS, self._plan.jobs):
                if total.trials_with_loss:
                    break
                lives = [self._slow(alteration, number + job) for job in range(self._plan.jobs)]
                total += self._lived(f"control: {alteration}", lives)
            self.report.control(f"power cuts, {alteration}", total)

    def _slow(self, alteration: Alteration, number: int) -> Life:
        """Cut late enough for the WAL to be overwritten in place, mostly between the images of a slow scanner."""
        return Life(
            seed=f"{self._plan.seed}/{alteration}/{number}",
            alteration=alteration,
            associations=1,
            pause_ms=60.0,
            sending_s=(1.0, 2.5),
        )

    def _observations(self) -> None:
        for alteration in (Alteration.RENAME_AND_FOLDER_SYNC, Alteration.FINAL_NAMES_NO_FOLDER_SYNC):
            lives = [self._slow(alteration, number) for number in range(OBSERVED_CUTS)]
            self.report.observed(f"power cuts, {alteration}", self._lived(f"observed: {alteration}", lives))

    def _replays(self) -> None:
        images = max(FEWEST_IMAGES, -(-self._plan.points // POINTS_PER_IMAGE))
        with tempfile.TemporaryDirectory(prefix="scanside-recording-") as folder:
            orders = [
                Order(folder=Path(tempfile.mkdtemp(dir=folder)), images=images, alteration=alteration)
                for alteration in (Alteration.NONE, Alteration.RENAME_NO_FOLDER_SYNC)
            ]
            for recording in self._through("recordings", record, orders):
                self._replay(recording, "in order", "")
                self._replay(recording, "reordered", self._plan.seed)

    def _replay(self, recording: Recording, name: str, seed: str) -> None:
        pieces = list(stretches(recording, self._plan.points, seed, PIECES))
        tally = sum(self._through(f"replay {name}: {recording.alteration}", replay, pieces), Tally())
        title, acked = f"crash points {name}", len(recording.ledger)
        if recording.alteration is Alteration.NONE:
            self.report.replayed(title, tally, recorded=acked, wanted=self._plan.points)
        else:
            self.report.control(f"{title}, {recording.alteration}", tally, acked)

    def _faults(self) -> None:
        kinds = [ERROR] * self._plan.faults + [DROP]
        faults = [Fault(kind=kind, after=self._rng.randint(1, 40)) for kind in kinds]
        found = self._through("failing disks", fail, faults)
        honest = [course for kind, _, course in found if kind == ERROR]
        self.report.product("failing disks (error_writes)", sum((t for kind, t, _ in found if kind == ERROR), Tally()))
        self.report.none(
            "failing disks: acknowledged after the first refusal", sum(course.false_acks for course in honest)
        )
        self.report.none("failing disks: did not end as latched", sum(not course.ended_latched for course in honest))
        self.report.none("failing disks: nothing acknowledged once whole", sum(not c.acked_after for c in honest))
        self.report.at_least("failing disks: refusals", self._plan.faults, sum(course.refused for course in honest))
        self.report.control("a disk that lies (drop_writes)", sum((t for kind, t, _ in found if kind == DROP), Tally()))

    def _through(self, name: str, work: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """All results, with a bar for each kind of work, or a line now and then where there is no terminal."""
        bar = self._progress.add_task(name, total=len(tasks))
        told_every = -(-len(tasks) // LINES)
        results = []
        for result in self._workers.run(work, tasks, self._broke):
            results.append(result)
            self._progress.advance(bar)
            if not self._progress.console.is_terminal and len(results) % told_every == 0:
                self._progress.console.print(f"{name}: {len(results)} of {len(tasks)}", soft_wrap=True)
        return results

    def _broke(self, error: RigError) -> None:
        """A trial without a result proves nothing; a few must not end a run of hours, and are told at its end."""
        self._progress.console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        self._broken += 1
        if self._broken > MOST_BROKEN:
            raise error


def carry_out(plan: Plan) -> Report:
    """Run it all. Raises RigError."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        Workers.of(plan.jobs) as workers,
    ):
        return Run(plan, workers, progress).all()
