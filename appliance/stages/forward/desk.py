"""What one destination is owed, what of it is in a courier's hands, and what is sent but not yet noted.

The journal learns only how a delivery was settled. So a killed lane owes again what it had not settled: at least once,
never lost (P3).
"""

import threading
import time
from dataclasses import dataclass

from appliance.errors import OutOfResources
from appliance.journal import outbox
from appliance.journal.outbox import Settlement
from appliance.model import Delivery, Sent, Urgency
from appliance.stages.forward.coming import Coming
from appliance.stages.forward.context import Outbox
from appliance.states import Event

SETTLE_BATCH, SETTLE_AT_MOST = 32, 64
SETTLE_WITHIN_S = 0.05
OLDEST_EVERY = 16  # every so many sends the longest waiting goes first, whatever its urgency


@dataclass(slots=True)
class _Retry:
    """An object the destination could not take just now."""

    failures: int
    not_before: float
    urgency: Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What history is told of an attempt."""

    reason: str  #: or the warning
    started_tick: int
    sent_as: Sent | None = None  #: what went out instead of the object as it is stored


class Desk:
    """One lane's. Used by all of its couriers."""

    def __init__(self, name: str, box: Outbox) -> None:
        self._name, self._box = name, box
        self._coming = Coming(name, box.journal)
        self._lock = threading.Lock()
        self._noting = threading.Lock()
        self._claimed: set[int] = set()
        self._retries: dict[int, _Retry] = {}
        self._unsettled: list[Settlement] = []
        self._unsettled_since = 0.0
        self._picks = 0

    def claim(self, least: Urgency = Urgency.IMAGE) -> Delivery | None:
        """What goes next, and is at least so urgent; then exactly one of `settle`, `put_off` and `give_back` it."""
        with self._lock:
            found = self._find(least)
            if found is not None:
                self._claimed.add(found.id)
                self._picks += least is Urgency.IMAGE
            return found

    def peek(self, least: Urgency) -> Delivery | None:
        """What `claim` would give now."""
        with self._lock:
            return self._find(least)

    def _find(self, least: Urgency) -> Delivery | None:
        now = time.monotonic()
        skip = {settlement.delivery.id for settlement in self._unsettled} | self._claimed
        skip |= {key for key, retry in self._retries.items() if retry.not_before > now}
        found = None
        if least is Urgency.IMAGE and self._picks % OLDEST_EVERY == OLDEST_EVERY - 1:
            found = outbox.oldest_queued(self._box.journal, self._name, skip=skip)
        found = found or self._coming.next(skip)
        return found if found is not None and found.urgency <= least else None

    def coming(self, count: int) -> list[Delivery]:
        """What will go next, by what is known now."""
        return outbox.next_queued(self._box.journal, self._name, count)

    def give_back(self, delivery: Delivery) -> None:
        """It was not tried."""
        with self._lock:
            self._claimed.discard(delivery.id)
            self._picks = 0  # after an outage the most urgent goes first

    def put_off(self, delivery: Delivery) -> None:
        """Try it again later, and others before it: it may be the one that always fails."""
        with self._lock:
            self._claimed.discard(delivery.id)
            new = _Retry(failures=0, not_before=0.0, urgency=delivery.urgency)
            retry = self._retries.setdefault(delivery.id, new)
            retry.failures += 1
            retry.not_before = time.monotonic() + self._box.backoff(retry.failures)

    def retry_all_now(self) -> None:
        """What failed while the line was bad goes at once, most urgent first."""
        with self._lock:
            for retry in self._retries.values():
                retry.not_before = 0.0

    def next_retry_s(self, least: Urgency = Urgency.IMAGE) -> float | None:
        """Seconds until something so urgent that was put off, and is in nobody's hands, is due; None: nothing was."""
        with self._lock:
            waiting = [
                retry.not_before
                for key, retry in self._retries.items()
                if key not in self._claimed and retry.urgency <= least
            ]
        soonest = min(waiting, default=None)
        return None if soonest is None else max(0.01, soonest - time.monotonic())

    def settle(self, delivery: Delivery, event: Event, told: Told) -> bool:
        """It was sent, or refused for good. True: enough has come together to be noted."""
        with self._lock:
            self._claimed.discard(delivery.id)
            retry = self._retries.pop(delivery.id, None)
            if not self._unsettled:
                self._unsettled_since = time.monotonic()
            self._unsettled.append(
                Settlement(
                    delivery=delivery,
                    event=event,
                    reason=told.reason,
                    started_tick=told.started_tick,
                    sent_as=told.sent_as,
                    attempts=delivery.attempts + 1 + (retry.failures if retry else 0),
                )
            )
            return len(self._unsettled) >= SETTLE_BATCH or self._noting_due_s() <= 0

    @property
    def is_behind(self) -> bool:
        """Whether so much is not noted that no more should be sent before: a restart sends it again."""
        return len(self._unsettled) >= SETTLE_AT_MOST

    def noting_due_s(self) -> float | None:
        """Seconds until what was sent must be noted; None: all is."""
        with self._lock:
            return self._noting_due_s() if self._unsettled else None

    def _noting_due_s(self) -> float:
        return self._unsettled_since + SETTLE_WITHIN_S - time.monotonic()

    def note(self) -> bool:
        """Write down what was settled, durably. False: the journal is full; it is kept, and not sent again meanwhile.

        Raises StoreFailed.
        """
        with self._noting:
            with self._lock:
                batch = self._unsettled[:]
                self._unsettled_since = time.monotonic()  # what comes to them meanwhile waits for its own time
            if not batch:
                return True
            try:
                outbox.settle(self._box.journal, batch)
            except OutOfResources as error:
                self._box.log("journal_full", reason=str(error))
                return False
            with self._lock:
                self._unsettled = self._unsettled[len(batch) :]
        self._box.settled()
        return True
