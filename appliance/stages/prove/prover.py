"""What all provers are: one thread a destination, so that one that is switched off holds up nobody else's.

When to try again is known in memory only: after a start all is due, jittered. What was asked is in the journal.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from appliance.backoff import backoff_s
from appliance.errors import DeliveryError, DestinationRefused, OutOfResources
from appliance.journal import proofs
from appliance.journal.proof_outcomes import Outcome
from appliance.journal.store import Journal
from appliance.wakeup import SLOW_POLL_S

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
LOOK_AGAIN_S = 0.1  # whatever wakes a prover meanwhile counts once
PRUNE_EVERY_S = 600.0
BACKOFF = partial(backoff_s, first_s=FIRST_RETRY_S, last_s=LAST_RETRY_S)

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a prover works with."""

    journal: Journal
    log: Log
    changed: Callable[[], None]  #: a prover's state is other than before
    settled: Callable[[], None]  #: deliveries have been committed
    queued: Callable[[], None]  #: deliveries have been queued again
    backoff: Callable[[int], float] = BACKOFF  #: failures in a row -> seconds to wait
    quiet_s: float = 3.0  #: without a delivery, after which it is asked
    listen_s: float = 5.0  #: for a report on the association that it was asked on


class Prover(ABC):
    """Everything that one destination must prove. Subclasses know how it is asked."""

    def __init__(self, name: str, timeout_ms: int, desk: Desk) -> None:
        """`timeout_ms`: of appliance time, for which an answer is awaited."""
        self.name = name
        self.state = "idle"  #: idle | asking | backing off | refused: it does not do what would be proof
        self.reason = ""  #: of the state, in words
        self._timeout_ms, self._desk = timeout_ms, desk
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._failures = 0
        self._not_before = 0.0
        self._prune_at = 0.0
        self._begun = False

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed: then the process must end."""
        while not self._begun and not self._stopping.is_set():
            self._stopping.wait(self._insisting(self._begin))
        self._not_before = time.monotonic() + self._desk.backoff(1)  # after a power cut many start at once
        while not self._stopping.is_set():
            wait_s = self._insisting(self.step)
            self._stopping.wait(LOOK_AGAIN_S)
            self._wake.wait(max(0.0, wait_s - LOOK_AGAIN_S))
            self._wake.clear()

    @abstractmethod
    def step(self) -> float:
        """Ask once at most; returns for how long there is nothing to do, 0: go on."""

    def _begin(self) -> float:
        """Look after what was delivered before the destination had to prove it."""
        journal, after = self._desk.journal, ""
        proofs.need(journal, [self.name], [])
        while not self._stopping.is_set() and not proofs.is_walked(journal, self.name):
            after = proofs.walk(journal, self.name, after)
        self._begun = True
        return 0.0

    def _insisting(self, work: Callable[[], float]) -> float:
        """Do it; a full journal passes."""
        try:
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + PRUNE_EVERY_S
                proofs.prune(self._desk.journal, self.name)
            return work()
        except OutOfResources as error:
            self._desk.log("journal_full", reason=str(error))
            return self._desk.backoff(1)

    def _left_s(self) -> float:
        """Until the destination may be asked again."""
        return min(self._not_before - time.monotonic(), SLOW_POLL_S)

    def _put_off(self, error: DeliveryError) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + self._desk.backoff(self._failures)
        self._desk.log("proof_not_asked", destination=self.name, reason=str(error))
        self._turn("refused" if isinstance(error, DestinationRefused) else "backing off", str(error))

    def _went_well(self) -> None:
        self._failures, self._not_before = 0, 0.0
        self._turn("idle", "")

    def _tell(self, outcome: Outcome) -> None:
        """What follows from an answer is done: say so, and wake whom it concerns."""
        if outcome == Outcome():
            return
        self._desk.log(
            "proof_answered",
            destination=self.name,
            committed=outcome.committed,
            queued=outcome.queued,
            asked_again=outcome.asked_again,
            held=outcome.held,
        )
        if outcome.committed or outcome.held:
            self._desk.settled()
        if outcome.queued:
            self._desk.queued()

    def _turn(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._desk.changed()
