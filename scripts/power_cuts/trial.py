"""What a trial is, and what came of it; and the worker process that carries trials out."""

import ctypes
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from power_cuts import RigError
from power_cuts.disk import is_clean, mounted, own_mounts
from power_cuts.examine import Verdict, examine, start_up
from power_cuts.guest import PR_SET_PDEATHSIG
from power_cuts.inside import configuration
from power_cuts.ledger import Ledger

STATE = "state"  #: folder of the appliance on the guest's disk
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Figures of trials, added up."""

    trials: int = 0
    acked: int = 0
    lost: int = 0
    torn: int = 0
    half_visible: int = 0
    unsound: int = 0  #: journals that failed SQLite's integrity_check
    unclean: int = 0  #: file systems that e2fsck complained about
    starts_failed: int = 0  #: start-ups of ours on what the cut left
    trials_with_loss: int = 0
    most_lost: int = 0  #: in one trial

    def __add__(self, other: "Tally") -> "Tally":
        summed = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__}
        return Tally(**summed | {"most_lost": max(self.most_lost, other.most_lost)})

    @property
    def harm(self) -> int:
        """Everything that must be 0."""
        return self.lost + self.torn + self.half_visible + self.unsound + self.unclean + self.starts_failed


def judge(image: Path, ledger: Ledger, work: Path, *, product: bool) -> tuple[Tally, Verdict]:
    """What is on this image, of one trial. The product must also start on it, twice, and lose nothing by that.

    `acked` is left 0: the caller knows which of the ledger is new.
    """
    starts_failed = 0
    with mounted(image, work / "mount") as where:
        config = configuration(where / STATE, port=0)
        verdict = examine(config, ledger, work)
        for latched in (False, True) if product else ():
            starts_failed += not start_up(config, work / "start.log", latched=latched)
            verdict |= examine(config, ledger, work, swept=True)
    harmed = len(verdict.lost) + len(verdict.torn)
    tally = Tally(
        trials=1,
        lost=len(verdict.lost),
        torn=len(verdict.torn),
        half_visible=len(verdict.half_visible),
        unsound=int(not verdict.sound),
        unclean=int(not is_clean(image)),
        starts_failed=starts_failed,
        trials_with_loss=int(harmed > 0),
        most_lost=harmed,
    )
    return tally, verdict


class Workers:
    """Processes that carry out trials side by side, each with mounts and memory of its own.

    Leaving its `with` waits for the trials under way; nothing of theirs stays behind.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    @classmethod
    @contextmanager
    def of(cls, jobs: int) -> "Iterator[Workers]":
        with tempfile.TemporaryDirectory(prefix="scanside-powercut-") as folder:
            pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (folder, os.getpid()))
            with pool:
                try:
                    yield cls(pool)
                finally:
                    pool.shutdown(cancel_futures=True)

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], broke: Callable[[RigError], None]
    ) -> Iterator[Result]:
        """Results as they come, in no order; `broke` hears of a trial that has none. Raises RigError."""
        futures = [self._pool.submit(work, task) for task in tasks]
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise RigError("a worker ended: may this machine's root make mounts and loop devices?") from error
            except RigError as error:
                broke(error)
            else:
                yield result


def _begin(folder: str, parent: int) -> None:
    """In a new worker: a workplace in memory that is gone with it, and an orderly end when our parent dies."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent waits for what is under way
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise RigError("the rig has ended")
    work = Path(tempfile.mkdtemp(dir=folder))
    own_mounts(work)
    os.chdir(work)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def workplace() -> Path:
    """Of this worker: in memory, seen by nobody else but its guests."""
    return Path.cwd()


def without(ledger: Ledger, verdict: Verdict) -> Ledger:
    """What is still promised: what is lost is counted once."""
    gone = verdict.lost | verdict.torn
    return {uid: digest for uid, digest in ledger.items() if uid not in gone}
