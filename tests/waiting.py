"""Waiting for a condition in tests: never a fixed sleep, always a deadline."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], within_s: float = 5.0, what: str = "") -> T:
    """The first true value of `predicate`; fails the test, naming `what`, when none came in time."""
    until = time.monotonic() + within_s
    while not (value := predicate()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s:g} s: {what or predicate}")
        time.sleep(0.005)
    return value


def listens_at(port: int) -> bool:
    """Whether something takes connections on this port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
