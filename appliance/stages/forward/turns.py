"""Whose turn it is on the line: the more urgent first, in mid-file, too, and no more than the site allows (P7).

What waits sends a little now and then: the other side would take silence inside a message for a lost peer. While the
more urgent one only waits for its answer, the line is free again.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from appliance.errors import TransientDeliveryError
from appliance.model import Delivery, Urgency
from appliance.ports import Turn
from appliance.stages.forward.timetable import Timetable

KEEP_ALIVE_S = 3.0
KEEP_ALIVE_BYTES = 1 << 12
STOP_WITHIN_S = 2.0  # what is nearly through when we are told to stop goes through
PACED_S = 0.1  # of a pace that are sent at a time
LINE_TAKEN_S = 1.0  # by a piece that takes long; then its sender waits for something else
LONG_S = 0.02  # by the goodput; what is quicker is gone before anything else could be in its way
OPENING_S = 1.0  # a PACS may take its time to let us in
UNKNOWN_TAKES_S = 0.3  # where nothing is known of the line


@dataclass(slots=True, kw_only=True)
class _Image:
    """One that is under way."""

    delivery: Delivery
    until: float  #: time when it is through with what was granted
    asks: bool = False  #: for more


class Turns:
    """One lane's. Used by all of its couriers."""

    def __init__(
        self,
        timetable: Timetable,
        at_once: Callable[[], int] = lambda: 1 << 30,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`at_once`: how many images may share the line now; of one urgency, those that began last wait."""
        self._timetable, self._at_once, self._now = timetable, at_once, now
        self._changed = threading.Condition()
        self._under_way: Counter[int] = Counter()  # by class
        self._images: list[_Image] = []  # in the order in which they began
        self._taken_until: dict[int, float] = {}
        self._stop_at: float | None = None
        self._line_bytes_s = 0.0  # as far as it is known; of one association
        self._owing = 0.0  # bytes sent beyond the pace
        self._owing_since = now()

    def less_urgent_under_way(self, urgency: Urgency) -> bool:
        """Whether something is that would let this pass."""
        with self._changed:
            return any(count and level > urgency for level, count in self._under_way.items())

    def images_may_go(self) -> bool:
        return self._timetable.images_may_go()

    @contextmanager
    def comes(self, delivery: Delivery) -> Iterator[None]:
        """While an association for it is opened, and until it has its turn: what is less urgent stops meanwhile, for
        OPENING_S at most, or each of its round trips would have to pass what is on the line.
        """
        level = _level(delivery.urgency)
        with self._changed:
            self._under_way[level] += 1
            self._taken_until[level] = max(self._taken_until.get(level, 0.0), self._now() + OPENING_S)
        try:
            yield
        finally:
            with self._changed:
                self._under_way[level] -= 1
                self._changed.notify_all()

    @contextmanager
    def turn(self, delivery: Delivery, bytes_s: Callable[[], float] = lambda: 0.0) -> Iterator[Turn]:
        """While it is sent; `bytes_s` is its association's goodput as far as it is known, 0: not yet."""
        level = _level(delivery.urgency)
        with self._changed:
            self._under_way[level] += 1
            self._taken_until[level] = until = self._now() + UNKNOWN_TAKES_S
            self._images += [_Image(delivery=delivery, until=until)] if level == Urgency.URGENT_IMAGE else []
        try:
            yield partial(self._grant, delivery, bytes_s)
        finally:
            with self._changed:
                self._under_way[level] -= 1
                self._images = [one for one in self._images if one.delivery is not delivery]
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            if self._stop_at is None:
                self._stop_at = self._now() + STOP_WITHIN_S
            self._changed.notify_all()

    def _grant(self, delivery: Delivery, bytes_s: Callable[[], float], wanted: int) -> int:
        level = _level(delivery.urgency)
        with self._changed:
            self._asks(delivery, True)
            deadline = self._now() + KEEP_ALIVE_S
            while (wait_s := self._wait_s(delivery)) > 0:
                self._go_on()
                left = deadline - self._now()
                if left <= 0:
                    wanted = min(wanted, KEEP_ALIVE_BYTES)
                    break
                self._changed.wait(min(wait_s, left))
            self._go_on()
            granted = self._take(level, bytes_s(), wanted)
            self._asks(delivery, False)
            return granted

    def _asks(self, delivery: Delivery, asks: bool) -> None:
        for one in self._images:
            if one.delivery is delivery:
                one.asks, one.until = asks, self._now() + LINE_TAKEN_S

    def _wait_s(self, delivery: Delivery) -> float:
        """How long at least it waits: for a more urgent class, and an image for earlier ones and for the pace, too."""
        now, level = self._now(), _level(delivery.urgency)
        until = [self._taken_until[other] for other, count in self._under_way.items() if count and other < level]
        if (taken_s := max(until, default=now) - now) > 0:
            return taken_s
        if level == Urgency.URGENT_IMAGE and not self._is_among_the_first(delivery, now):
            return LINE_TAKEN_S
        pace = self._pay()
        return self._owing / pace if pace and level == Urgency.URGENT_IMAGE else 0.0

    def _is_among_the_first(self, delivery: Delivery, now: float) -> bool:
        """An image that only waits for its answer leaves the line to others."""
        sending = [one.delivery for one in self._images if one.asks or one.until > now or one.delivery is delivery]
        sending.sort(key=lambda one: one.urgency)
        return any(one is delivery for one in sending[: self._at_once()])

    def _go_on(self) -> None:
        if self._stop_at is not None and self._now() > self._stop_at:
            raise TransientDeliveryError("told to stop")

    def _take(self, level: int, bytes_s: float, wanted: int) -> int:
        """What may go now. Results wait for no pace; what they take beyond it, images give back."""
        pace = self._pay()
        granted = min(wanted, max(KEEP_ALIVE_BYTES, int(pace * PACED_S))) if pace else wanted
        self._owing += granted if pace else 0
        self._line_bytes_s = bytes_s or self._line_bytes_s  # a new association learns from the others
        self._taken_until[level] = self._now() + self._takes_s(granted)
        return granted

    def _takes_s(self, granted: int) -> float:
        if not self._line_bytes_s:
            return UNKNOWN_TAKES_S
        seconds = granted / self._line_bytes_s
        return LINE_TAKEN_S if seconds > LONG_S else seconds

    def _pay(self) -> float:
        """Time pays off what was sent beyond the pace; returns the pace now, bytes per second, 0: none."""
        now = self._now()
        pace = self._timetable.bytes_s()
        self._owing = max(0.0, self._owing - (now - self._owing_since) * pace) if pace else 0.0
        self._owing_since = now
        return pace


def _level(urgency: Urgency) -> int:
    """Images are one class inside a file, whatever their order."""
    return min(urgency, Urgency.URGENT_IMAGE)
