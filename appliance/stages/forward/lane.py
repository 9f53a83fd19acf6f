"""Forward: a lane per destination, independent of all others, most urgent first, for ever (P7).

A lane keeps in memory what it has claimed and when it tries again; the journal learns only how a delivery was settled.
So a killed lane owes again what it had not settled: at least once, never lost (P3).
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from appliance.backoff import backoff_s
from appliance.errors import DestinationRefused, ObjectRefused, OutOfResources, TransientDeliveryError
from appliance.journal import outbox
from appliance.journal.outbox import Settlement
from appliance.journal.store import Journal
from appliance.model import Delivery
from appliance.ports import Destination, Session
from appliance.states import Event
from appliance.wakeup import SLOW_POLL_S

SETTLE_BATCH = 64
SETTLE_WITHIN_S = 0.05
LINGER_S = 1.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0
PROPOSE = 100  # deliveries looked at for the presentation contexts of a session
LARGE = 4 << 20  # bytes that may take long to send: what was delivered before is settled first
OLDEST_EVERY = 16  # every so many sends the longest waiting goes first, whatever its urgency
BACKOFF = partial(backoff_s, first_s=FIRST_RETRY_S, last_s=LAST_RETRY_S)

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """What a lane works with."""

    journal: Journal
    path: Callable[[str], Path]  #: spool file name -> path
    log: Log
    changed: Callable[[], None]  #: a lane's state is other than before
    backoff: Callable[[int], float] = BACKOFF  #: failures in a row -> seconds to wait
    settled: Callable[[], None] = lambda: None  #: deliveries have been settled


@dataclass(slots=True)
class _Retry:
    """An object the destination could not take just now."""

    failures: int
    not_before: float


@dataclass(slots=True)
class _Way:
    """The session a lane holds open, with the presentation contexts it proposed."""

    session: Session
    stack: ExitStack
    proposed: frozenset[tuple[str, str]]
    used_at: float = field(default_factory=time.monotonic)


class Lane:
    """Everything owed to one destination, sent by one thread."""

    def __init__(self, name: str, destination: Destination, box: Outbox) -> None:
        self.name = name
        self.state = "idle"  #: idle | sending | backing off | suspended
        self.reason = ""  #: of the state, in words
        self._destination, self._box = destination, box
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._retries: dict[int, _Retry] = {}
        self._unsettled: list[Settlement] = []
        self._unsettled_since = 0.0
        self._failures = 0
        self._suspended = 0  # waits of a suspended lane since the destination last took something
        self._sends = 0
        self._was_unreachable = False
        self._way: _Way | None = None

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed: then the process must end."""
        try:
            while not self._stopping.is_set():
                try:
                    wait_s = self.step()
                except OutOfResources as error:
                    self._box.log("journal_full", reason=str(error))
                    wait_s = self._hold_back(self._box.backoff(1))
                if wait_s > 0 and not self._stopping.is_set():
                    self._wait(wait_s)
            self._flush()  # what was delivered need not be sent again after a restart
        finally:
            self._close()

    def step(self) -> float:
        """Send at most one object; returns how long there is nothing to do, 0: go on at once."""
        delivery = self._next()
        if delivery is None:
            return self._rest()
        if not self._is_there(delivery):
            self._settle(delivery, Event.REFUSE, outbox.COPY_MISSING, self._box.journal.clock.tick())
            return 0.0
        try:
            self._send(delivery, self._open_for(delivery))
        except TransientDeliveryError as error:
            return self._transient(delivery, error) if self._way is not None else self._unreachable(error)
        except DestinationRefused as error:
            return self._suspend(delivery, error)
        return 0.0

    def _is_there(self, delivery: Delivery) -> bool:
        with suppress(OSError):  # what cannot even be looked at cannot be sent
            return bool(delivery.file) and self._box.path(delivery.file).is_file()
        return False

    def _next(self) -> Delivery | None:
        now = time.monotonic()
        claimed = {settlement.delivery.id for settlement in self._unsettled}
        skip = claimed | {key for key, retry in self._retries.items() if retry.not_before > now}
        self._sends += 1
        if self._sends % OLDEST_EVERY == 0:
            oldest = outbox.oldest_queued(self._box.journal, self.name, skip=skip)
            if oldest is not None:
                return oldest
        found = outbox.next_queued(self._box.journal, self.name, 1, skip=skip)
        return found[0] if found else None

    def _rest(self) -> float:
        """Nothing to send: settle, and after a while close the session."""
        if self._more_comes_soon():
            return 0.0
        self._flush()
        self._turn("idle", "")
        waits = [SLOW_POLL_S]
        if self._retries:
            soonest = min(retry.not_before for retry in self._retries.values())
            waits.append(max(0.01, soonest - time.monotonic()))
        if self._way is not None:
            left = self._way.used_at + LINGER_S - time.monotonic()
            if left <= 0:
                self._close()
            else:
                waits.append(left)
        return min(waits)

    def _more_comes_soon(self) -> bool:
        """Whether new work comes while what was sent may still wait to be settled: a lane that keeps up with a scanner
        would otherwise sync the journal once an image, and hold up every acknowledgement.
        """
        left = self._unsettled_since + SETTLE_WITHIN_S - time.monotonic()
        if not self._unsettled or left <= 0 or not self._wake.wait(left):
            return False
        self._wake.clear()
        return not self._stopping.is_set()

    def _send(self, delivery: Delivery, way: _Way) -> None:
        if delivery.size > LARGE:
            self._flush()
        started = self._box.journal.clock.tick()
        self._turn("sending", "")
        try:
            warning = way.session.send(delivery, self._box.path(delivery.file))
        except ObjectRefused as error:
            self._settle(delivery, Event.REFUSE, str(error), started)
        else:
            self._settle(delivery, Event.DELIVER, warning, started)
        way.used_at = time.monotonic()
        self._failures = self._suspended = 0

    def _open_for(self, delivery: Delivery) -> _Way:
        """The open session if it proposed what this delivery needs, else a new one for what comes next."""
        need = (delivery.sop_class_uid, delivery.transfer_syntax_uid)
        if self._way is not None and self._way.session.alive and need in self._way.proposed:
            return self._way
        self._flush()  # opening may take as long as the time-out
        self._close()
        coming = [delivery, *outbox.next_queued(self._box.journal, self.name, PROPOSE)]
        stack = ExitStack()
        session = stack.enter_context(self._destination.open(coming))
        proposed = frozenset((item.sop_class_uid, item.transfer_syntax_uid) for item in coming)
        self._way = _Way(session=session, stack=stack, proposed=proposed)
        if self._was_unreachable:  # what failed while the line was bad goes at once, most urgent first
            self._was_unreachable = False
            for retry in self._retries.values():
                retry.not_before = 0.0
        return self._way

    def _unreachable(self, error: TransientDeliveryError) -> float:
        """No way to the destination: that is no object's fault, so none of them is put back behind the others."""
        self._was_unreachable = True
        self._failures += 1
        self._flush()
        self._turn("backing off", str(error))
        self._box.log("destination_unreachable", destination=self.name, reason=str(error))
        return self._hold_back(self._box.backoff(self._failures))

    def _transient(self, delivery: Delivery, error: TransientDeliveryError) -> float:
        self._failures += 1
        self._flush()
        alive = self._way is not None and self._way.session.alive
        wait_s = 0.0 if alive and self._failures < 3 else self._box.backoff(self._failures)
        if not alive or wait_s > LINGER_S:
            self._close()
        self._turn("backing off" if wait_s else "sending", str(error))
        self._box.log("delivery_failed", destination=self.name, delivery=delivery.id, reason=str(error))
        self._hold_back(wait_s)
        self._put_off(delivery)
        return 0.0

    def _put_off(self, delivery: Delivery) -> None:
        """Try it again later, and others before it: it may be the one that always fails."""
        retry = self._retries.setdefault(delivery.id, _Retry(failures=0, not_before=0.0))
        retry.failures += 1
        retry.not_before = time.monotonic() + self._box.backoff(retry.failures)

    def _suspend(self, delivery: Delivery, error: DestinationRefused) -> float:
        """The destination wants nothing from us: ask now and then, touch no delivery."""
        said_of_one = self._way is not None  # it let us in, and may have meant just this object
        self._flush()
        self._close()
        self._turn("suspended", str(error))
        self._box.log("lane_suspended", destination=self.name, reason=str(error))
        while not self._stopping.is_set():
            self._suspended += 1
            self._hold_back(self._box.backoff(self._suspended + 2))
            if self._stopping.is_set():
                break
            try:
                self._destination.probe()
            except (TransientDeliveryError, DestinationRefused) as still:
                self._turn("suspended", str(still))
            else:
                self._box.log("lane_resumed", destination=self.name)
                break
        if said_of_one:
            self._put_off(delivery)
        return 0.0

    def _hold_back(self, seconds: float) -> float:
        """Wait without being woken by new work: more work does not make the destination well."""
        if seconds > 0:
            self._stopping.wait(seconds)
        return 0.0

    def _settle(self, delivery: Delivery, event: Event, reason: str, started: int) -> None:
        retry = self._retries.pop(delivery.id, None)
        if not self._unsettled:
            self._unsettled_since = time.monotonic()
        self._unsettled.append(
            Settlement(
                delivery=delivery,
                event=event,
                reason=reason,
                started_tick=started,
                attempts=delivery.attempts + 1 + (retry.failures if retry else 0),
            )
        )
        if len(self._unsettled) >= SETTLE_BATCH or time.monotonic() - self._unsettled_since >= SETTLE_WITHIN_S:
            self._flush()

    def _flush(self) -> None:
        if not self._unsettled:
            return
        try:
            outbox.settle(self._box.journal, self._unsettled)
        except OutOfResources as error:
            # Sent but not noted: kept, so that it is not sent again while this process lives.
            self._box.log("journal_full", reason=str(error))
            self._hold_back(self._box.backoff(1))
            return
        self._unsettled = []
        self._box.settled()

    def _wait(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _turn(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._box.changed()

    def _close(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            way.stack.close()
