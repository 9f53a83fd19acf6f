"""What a site allows at which hour of its day: how much a destination's line may carry, and when images go at all.

The one thing here that looks at the clock on the wall; while that is implausible, nothing is limited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LocalMinute = Callable[[], int | None]  #: minutes since local midnight; None: the clock is implausible


def no_clock() -> int | None:
    """A LocalMinute of a box that has none."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """From one minute of the day to another, over midnight if need be."""

    first: int
    end: int

    def __contains__(self, minute: int) -> bool:
        if self.first <= self.end:
            return self.first <= minute < self.end
        return minute >= self.first or minute < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """In these hours the line carries at most so much."""

    hours: Hours
    bytes_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Of one destination. Where hours of two paces overlap, the first holds."""

    minute: LocalMinute = no_clock
    paced: Sequence[Paced] = ()
    images: Hours | None = None  #: None: at any time

    def bytes_s(self) -> float:
        """The pace now; 0: none."""
        if not self.paced or (minute := self.minute()) is None:
            return 0.0
        return next((one.bytes_s for one in self.paced if minute in one.hours), 0.0)

    def images_may_go(self) -> bool:
        if self.images is None or (minute := self.minute()) is None:
            return True
        return minute in self.images
