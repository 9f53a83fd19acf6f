"""A bulk data set lets commits pass, and is never held up for long."""

import threading
import time

import pytest

from appliance.errors import StoreFailed
from appliance.stages.receive.courtesy import LONGEST_PAUSE_S, Courtesy


def test_nobody_commits_nobody_waits() -> None:
    begun = time.monotonic()
    Courtesy().let_pass()
    assert time.monotonic() - begun < LONGEST_PAUSE_S


def test_it_goes_on_as_soon_as_the_last_commit_has_ended() -> None:
    courtesy, passed = Courtesy(), threading.Event()

    def pass_by() -> None:
        courtesy.let_pass()
        passed.set()

    with courtesy.committing():
        bulk = threading.Thread(target=pass_by)
        bulk.start()
    assert passed.wait(5.0)
    bulk.join()


def test_it_gets_on_beside_a_commit_that_never_ends() -> None:
    courtesy = Courtesy()
    with courtesy.committing():
        begun = time.monotonic()
        courtesy.let_pass()
        assert time.monotonic() - begun >= LONGEST_PAUSE_S


def test_a_commit_that_failed_holds_nobody_up() -> None:
    courtesy = Courtesy()
    with pytest.raises(StoreFailed), courtesy.committing():
        raise StoreFailed("as if")
    begun = time.monotonic()
    courtesy.let_pass()
    assert time.monotonic() - begun < LONGEST_PAUSE_S
