"""Whose turn it is on the line: results before images, inside an image, too, and no more than the site allows (P7).

An image that waits sends a little now and then: the other side would take silence inside a message for a lost peer.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.errors import TransientDeliveryError
from appliance.model import Delivery
from appliance.ports import LONGEST_PIECE, Turn
from appliance.stages.forward.desk import is_result
from appliance.stages.forward.timetable import Timetable

KEEP_ALIVE_S = 3.0
KEEP_ALIVE_BYTES = 1 << 12
STOP_WITHIN_S = 2.0  # what is nearly through when we are told to stop goes through
PACED_S = 0.1  # of a pace that are sent at a time


@dataclass(slots=True)
class _Under:
    """How many are under way."""

    results: int = 0
    images: int = 0


class Turns:
    """One lane's. Used by all of its couriers."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._changed = threading.Condition()
        self._under = _Under()
        self._stop_at: float | None = None
        self._owing = 0.0  # bytes sent beyond the pace
        self._owing_since = time.monotonic()

    @property
    def images_under_way(self) -> bool:
        return self._under.images > 0

    def images_may_go(self) -> bool:
        return self._timetable.images_may_go()

    @contextmanager
    def turn(self, delivery: Delivery) -> Iterator[Turn]:
        """While it is sent."""
        result = is_result(delivery)
        self._count(result=result, one=1)
        try:
            yield self._result if result else self._image
        finally:
            self._count(result=result, one=-1)

    def stop(self) -> None:
        with self._changed:
            self._stop_at = time.monotonic() + STOP_WITHIN_S
            self._changed.notify_all()

    def _count(self, *, result: bool, one: int) -> None:
        with self._changed:
            if result:
                self._under.results += one
            else:
                self._under.images += one
            self._changed.notify_all()

    def _result(self) -> int:
        """Results wait for nobody; what they take beyond the pace, images give back."""
        with self._changed:
            self._go_on()
            return self._granted(LONGEST_PIECE)

    def _image(self) -> int:
        with self._changed:
            deadline = time.monotonic() + KEEP_ALIVE_S
            while (wait_s := self._wait_s()) > 0:
                self._go_on()
                left = deadline - time.monotonic()
                if left <= 0:
                    return self._granted(KEEP_ALIVE_BYTES)
                self._changed.wait(min(wait_s, left))
            self._go_on()
            return self._granted(LONGEST_PIECE)

    def _wait_s(self) -> float:
        if self._under.results:
            return KEEP_ALIVE_S
        pace = self._pay()
        return self._owing / pace if pace else 0.0

    def _go_on(self) -> None:
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            raise TransientDeliveryError("told to stop")

    def _granted(self, most: int) -> int:
        """What may go now; it counts as sent."""
        pace = self._pay()
        if not pace:
            return most
        granted = min(most, max(KEEP_ALIVE_BYTES, int(pace * PACED_S)))
        self._owing += granted
        return granted

    def _pay(self) -> float:
        """Time pays off what was sent beyond the pace; returns the pace now, bytes per second, 0: none."""
        now = time.monotonic()
        pace = self._timetable.bytes_s()
        self._owing = max(0.0, self._owing - (now - self._owing_since) * pace) if pace else 0.0
        self._owing_since = now
        return pace
