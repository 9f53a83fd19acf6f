"""Faults for the rig itself: what does not find these finds nothing."""

import time
from collections.abc import Callable, Mapping

from tests.fuzz.targets import BASE_S


def raise_at_a_byte(data: bytes) -> None:
    if data[:1] == b"n" and len(data) > 1 and data[1] > 0x6D:
        raise LookupError(data)


def take_long(_: bytes) -> None:
    until = time.thread_time() + 2 * BASE_S
    while time.thread_time() < until:
        pass


TARGETS: Mapping[str, Callable[[bytes], None]] = {"escapes": raise_at_a_byte, "slow": take_long}
