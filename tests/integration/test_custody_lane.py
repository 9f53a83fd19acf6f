"""A lane that one object, one slow file or one bad name must not stop, and a destination it must not pester."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.errors import DestinationRefused, TransientDeliveryError
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.courier import LARGE
from appliance.stages.forward.ways import LINGER_S
from tests.integration.test_lane import IMAGE, URGENT_SR, Line
from tests.journals import TO_PACS, arrival, open_journal, receive


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with closing(Line(tmp_path, open_journal(tmp_path / "j", "forward"))) as line:
        yield line


def with_backoff(line: Line, asked: list[int], pause_s: float = 0.0) -> None:
    def backoff(failures: int) -> float:
        asked.append(failures)
        return pause_s

    box = Outbox(
        journal=line.journal,
        path=lambda file: line.folder / file,
        log=lambda event, **_: line.logged.append(event),
        changed=lambda: None,
        backoff=backoff,
    )
    line.lane = Lane("pacs", line.pacs, box)
    line.lanes.append(line.lane)


@pytest.mark.promise("P7")
def test_one_object_that_the_destination_may_not_take_stops_no_other(line: Line) -> None:
    """It says "not authorised" of that object only: the lane looks whether it may send at all, and others go first."""
    line.pause_s = 0.05
    line.pacs.fates = {"1": [DestinationRefused("0x0124 not authorised")] * 1000}
    line.owe(URGENT_SR, IMAGE, IMAGE)
    line.steps(6)
    assert {"2", "3"} <= set(line.pacs.got)
    line.lane.note()
    assert [state for state, _, _ in line.deliveries()] == ["queued", "delivered", "delivered"]


def test_a_destination_that_answers_echo_and_refuses_all_else_is_asked_less_and_less(line: Line) -> None:
    asked: list[int] = []
    with_backoff(line, asked)
    line.pacs.down = [DestinationRefused("called AE title not recognised")] * 6
    line.owe(IMAGE)
    line.steps(6)
    assert asked == [3, 4, 5, 6, 7, 8]
    line.drain()
    line.pacs.down = [DestinationRefused("called AE title not recognised")]
    line.owe(IMAGE, sop_class="1.2.840.10008.5.1.4.1.1.4")
    line.lane.step()
    assert asked[-1] == 3


def test_what_was_delivered_is_settled_before_a_large_file_takes_the_line(line: Line) -> None:
    line.owe(URGENT_SR)
    line.lane.step()
    one = arrival(2, size=LARGE + 1)
    (line.folder / one.file).write_bytes(one.sop_instance_uid.encode())
    receive(line.journal, one, owed=(TO_PACS,))
    line.pacs.fates = {"2": [KeyError("killed in the middle of it")]}
    with pytest.raises(KeyError):
        line.lane.step()
    assert [state for state, _, _ in line.deliveries()] == ["delivered", "queued"]


def test_a_name_that_cannot_be_looked_up_is_held_and_the_lane_goes_on(line: Line) -> None:
    receive(line.journal, arrival(1, file="received/" + "9" * 300), owed=(TO_PACS,))
    line.owe(IMAGE)
    line.drain()
    assert [state for state, _, _ in line.deliveries()] == ["held", "delivered"]


def test_no_session_is_kept_open_over_a_long_wait(line: Line) -> None:
    """The other side would close it meanwhile, and the next try be lost on that."""
    asked: list[int] = []
    with_backoff(line, asked, LINGER_S + 0.1)
    line.lane._failures = 5
    line.pacs.fates = {"1": [TransientDeliveryError("0xA700, alive")]}
    line.owe(IMAGE)
    line.lane.step()
    assert line.pacs.open_now == 0
    assert line.pacs.got == ["1"]
