"""How many associations a line is worth, by measurement: more stay where the line carries more with them.

With a long round trip one association waits more than it sends; on a thin line a second one only splits it. What was
right at night may be wrong by day: now and then fewer are tried, or more.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_LOOK = 2  # objects
LONG_WAY_S = 0.02  # round trip
LONG_OBJECT = 10  # round trips: of an object that takes longer alone, waiting for its answer is not what takes long
LOOK_S, TRIAL_S = 0.5, 1.0  # of steady sending, at least
START_S = 2.0  # of sending after a rest, in which slow start hides what the line can do: beside it all looks better
OBJECTS_EACH = 4  # at least, by each association
GAIN = 1.1  # more are worth it from here; so are fewer, unless they lose as much
TRY_AGAIN_S = 300.0
REFUSED_S = 600.0  # a PACS that granted no more is not asked again before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What was measured before a trial."""

    wanted: int
    bytes_s: float


class Gauge:
    """One lane's. Used by all of its couriers."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._lock = threading.Lock()
        self._trial: _Before | None = None
        self._upward = True
        self._not_before = 0.0  # of the next trial
        self.wanted = 1  #: associations that send images; of those that do already, the rest waits
        self.bytes_s = 0.0  #: what the line carries with all of them; 0: not measured yet
        self._guessed = most == 1
        self._since = self._now()  # when it began to send
        self._begin()

    def _begin(self) -> None:
        self._began, self._objects, self._bytes = self._now(), 0, 0

    def rest(self) -> None:
        """There is nothing to send: what follows says nothing of what was, and a trial has shown nothing."""
        with self._lock:
            if self._trial is not None:
                self.wanted, self._trial = self._trial.wanted, None
            self._begin()
            self._since = self._began

    def starts(self, round_trip_s: float) -> None:
        """The first object goes. Over a long way all are opened at once: soon it is known what they bring."""
        with self._lock:
            if not self._guessed and not self._objects and round_trip_s >= LONG_WAY_S:
                self.wanted = self._most

    def is_sending(self, seconds: float, round_trip_s: float, *, held_back: bool | None) -> None:
        """An object has been under way for so long, beside the others. On a thin line they only hinder each other,
        but for those that something else holds back; None: it is not known whether.
        """
        with self._lock:
            if self._guessed or self.wanted == 1 or held_back is None or not self._is_long(seconds, round_trip_s):
                return
            self._guessed = True
            self.wanted, self._not_before = (self._most, 0.0) if held_back else (1, self._now() + TRY_AGAIN_S)
            self._begin()

    def refused(self) -> None:
        """The destination granted no further association."""
        with self._lock:
            self.wanted, self._trial, self._upward, self._not_before = 1, None, True, self._now() + REFUSED_S
            self._guessed = True
            self._begin()

    def hope(self) -> None:
        """It may grant them now."""
        with self._lock:
            self._upward, self._not_before = True, 0.0

    def sent(self, size: int, seconds: float, round_trip_s: float) -> None:
        """One image went through. A result is no measure: it has the line for itself, and is small."""
        with self._lock:
            self._objects += 1
            self._bytes += size
            if not self._guessed and self._objects == FIRST_LOOK:
                self._guess(seconds, round_trip_s)
                return
            steady_s = self._now() - self._began
            if steady_s >= (TRIAL_S if self._trial else LOOK_S) and self._objects >= OBJECTS_EACH * self.wanted:
                self.bytes_s = self._bytes / steady_s
                self._judge()
                self._begin()

    def _is_long(self, seconds: float, round_trip_s: float) -> bool:
        return seconds > max(LONG_OBJECT * self.wanted * round_trip_s, LOOK_S)

    def _guess(self, seconds: float, round_trip_s: float) -> None:
        """An answer takes a round trip at least: so many others could send meanwhile. Not to be told where they do:
        then it is only known that the line is not thin, if the object was quick.
        """
        if self.wanted > 1:
            self._guessed = not self._is_long(seconds, round_trip_s)
            return
        self._guessed = True
        sending_s = max(seconds - round_trip_s, seconds / self._most, 1e-6)
        self.wanted = min(self._most, 1 + int(round_trip_s / sending_s + 0.5))
        self._begin()

    def _judge(self) -> None:
        now, before, self._trial = self._now(), self._trial, None
        if before is not None:
            enough = before.bytes_s * GAIN if self._upward else before.bytes_s / GAIN
            if self.bytes_s < enough:
                self.wanted, self.bytes_s = before.wanted, before.bytes_s
                self._not_before = now + TRY_AGAIN_S
                self._upward = not self._upward
                return
        if now >= self._not_before and self._began - self._since >= START_S:
            self._try(now)

    def _try(self, now: float) -> None:
        wanted = min(self._most, self.wanted * 2) if self._upward else max(1, self.wanted // 2)
        if wanted == self.wanted:
            self._upward, self._not_before = not self._upward, now + TRY_AGAIN_S
            return
        self._trial = _Before(wanted=self.wanted, bytes_s=self.bytes_s)
        self.wanted = wanted
