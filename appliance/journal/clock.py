"""Appliance time: milliseconds this box has been powered and known, counted across boots.

No decision reads the wall clock, which on a Jetson starts in 1970 and jumps when the network comes. Within a boot a
tick follows CLOCK_BOOTTIME; a new boot goes on from the last tick on record. Time spent powered off does not count,
so keep-times err towards keeping. UTC is a label for people.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

#: A wall clock before this is implausible: this code did not exist.
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)


def boot_time_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wall_clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """`base_ms` is what the journal adds to the boot-time clock in this boot."""

    base_ms: int
    boot_time_ms: Callable[[], int] = boot_time_ms
    wall_clock: Callable[[], datetime] = wall_clock

    def tick(self) -> int:
        return self.base_ms + self.boot_time_ms()

    def utc(self) -> str:
        return self.wall_clock().isoformat(timespec="milliseconds")

    def implausible(self) -> bool:
        return self.wall_clock() < EARLIEST
