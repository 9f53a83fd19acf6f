"""How many associations a destination grants beside the lane's first, as far as it has shown."""

import time
from collections.abc import Callable

DENIED_S = 30.0  # after a further association was denied, which costs a round trip; others may have had the place
HARMED_S = 600.0  # after one came to nothing otherwise, or cost the first one
CLASHES, FORGIVEN = 3.0, 0.05  # losses of the first that are too many; what one success takes back of them


class Limits:
    """One lane's. Used by all of its couriers."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._granted = 0  # beside the first, when one more was denied
        self._denied_until = self._harmed_until = 0.0
        self._clashes = 0.0

    @property
    def reached(self) -> bool:
        """Whether one was not to be had, not long ago."""
        return self._now() < max(self._denied_until, self._harmed_until)

    def may_open(self, beside: int) -> bool:
        """Whether to ask for one more than so many that are open beside the first."""
        now = self._now()
        return now >= self._harmed_until and (beside < self._granted or now >= self._denied_until)

    def denied(self, beside: int) -> None:
        """One more than so many was not granted."""
        self._granted, self._denied_until = beside, self._now() + DENIED_S

    def harmed(self) -> None:
        """One was not let in at all, or was of no use, or cost the first: none further is asked for."""
        self._harmed_until = self._now() + HARMED_S

    def first_lost(self) -> bool:
        """The first was lost, beside others. True: again and again, so they cost it."""
        self._clashes += 1
        if self._clashes < CLASHES:
            return False
        self._clashes = 0.0
        self.harmed()
        return True

    def first_through(self) -> None:
        """The first got an object through."""
        self._clashes = max(0.0, self._clashes - FORGIVEN)

    def hope(self) -> None:
        """The destination is back: what it did not grant while it went, it may grant now."""
        self._denied_until = self._harmed_until = 0.0
