"""Waiting for a condition in tests: never a fixed sleep, always a deadline."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_S, LAST_S = 0.005, 0.1  # between two looks
COSTS = 4  # times what a look takes: who looks takes processor time from who is waited for
LATE = 0.02  # of the time that was waited so far


def eventually(predicate: Callable[[], T], within_s: float = 5.0, what: str = "") -> T:
    """The first true value of `predicate`; fails the test, naming `what`, when none came in time.

    It looks the more seldom, the more a look costs and the longer it has waited.
    """
    begun = looked = time.monotonic()
    while not (value := predicate()):
        now = time.monotonic()
        if now > begun + within_s:
            raise AssertionError(f"not within {within_s:g} s: {what or predicate}")
        time.sleep(min(LAST_S, max(FIRST_S, COSTS * (now - looked), LATE * (now - begun))))
        looked = time.monotonic()
    return value


def listens_at(port: int) -> bool:
    """Whether something takes connections on this port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
