"""When an image of a series is compressed: what that saved on the line, against what it took."""

import itertools

import pytest

from appliance.destinations.reencoding_rules import FIRST_REST, LONGEST_REST, Choice
from appliance.ports import Recoded

SIZE = 1_000_000
LINE = 1e6  # bytes a second: half of an image saved is half a second
QUICK = Recoded(size=SIZE // 2, seconds=0.1, cpu_s=0.1)
STALLED = Recoded(size=SIZE // 2, seconds=5.0, cpu_s=0.1)
SLOW = Recoded(size=SIZE // 2, seconds=5.0, cpu_s=5.0)


def due(choice: Choice, made: Recoded, objects: int) -> list[int]:
    """Numbers of those that were compressed, each as `made` says."""
    numbers = []
    for number in range(objects):
        expected = choice.will_be_due(LINE)
        assert choice.is_due(LINE) == expected
        if expected:
            choice.learn(SIZE, made)
            numbers.append(number)
    return numbers


def test_what_pays_is_always_due() -> None:
    assert due(Choice.of("J", SIZE, QUICK), QUICK, 9) == list(range(9))


def test_what_takes_longer_than_it_saves_is_never_tried_again() -> None:
    assert due(Choice.of("J", SIZE, SLOW), SLOW, 1000) == []


def test_after_a_stall_it_is_tried_again_and_judged_by_that() -> None:
    assert due(Choice.of("J", SIZE, STALLED), QUICK, 6) == [FIRST_REST, 3, 4, 5]


def test_one_stall_among_many_costs_nothing_more() -> None:
    choice = Choice.of("J", SIZE, QUICK)
    choice.learn(SIZE, Recoded(size=SIZE // 2, seconds=0.8, cpu_s=0.1))
    assert choice.pays(LINE)


def test_on_a_machine_that_stays_busy_the_tries_grow_rare() -> None:
    tried = due(Choice.of("J", SIZE, STALLED), STALLED, 5000)
    apart = [after - before for before, after in itertools.pairwise(tried)]
    assert apart[:3] == [5, 9, 17]
    assert max(apart) == LONGEST_REST + 1
    assert len(tried) < 20


def test_what_fails_when_it_is_tried_again_rests_again() -> None:
    choice, tried = Choice.of("J", SIZE, STALLED), []
    for number in range(500):
        if choice.is_due(LINE):
            choice.failed(counts=False)
            tried.append(number)
    assert choice.syntax == "J"
    assert [after - before for before, after in itertools.pairwise(tried)][:3] == [5, 9, 17]
    assert len(tried) < 12


def test_what_fails_for_its_own_sake_goes_as_stored_from_then_on() -> None:
    choice = Choice.of("J", SIZE, QUICK)
    choice.failed(counts=True)
    assert choice.syntax == "J"
    choice.failed(counts=True)
    assert choice.syntax == ""


@pytest.mark.parametrize("line", [1e5, 1e7])
def test_a_line_that_changes_is_heeded_at_once(line: float) -> None:
    choice = Choice.of("J", SIZE, QUICK)
    assert choice.pays(line) == (line < LINE)
