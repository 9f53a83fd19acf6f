"""When silence is evidence that a series is complete, and when it is not (P6), with a clock that is moved by hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.journal import inbox
from appliance.journal.store import Journal
from appliance.spool import Reserve, Spool
from appliance.stages.receive.closer import Closer
from appliance.stages.receive.context import Inbox
from appliance.stages.receive.traffic import Traffic
from tests.journals import Hands, arrival, open_journal, receive

SILENCE_MS = 1_000
pytestmark = pytest.mark.promise("P6")


@dataclass
class Desk:
    """A closer with one open series of CT01's, whose last image came now."""

    closer: Closer
    traffic: Traffic
    journal: Journal
    hands: Hands

    def closes_after(self, ms: int) -> bool:
        """Whether the series is closed at that time from now, and not a millisecond earlier."""
        self.hands.ms += ms - 1
        self.closer.step()
        assert inbox.open_series(self.journal), f"closed before {ms} ms"
        self.hands.ms += 1
        self.closer.step()
        return not inbox.open_series(self.journal)

    def release(self) -> None:
        inbox.association_ended(self.journal, "CT01", in_order=True, others_open=False)

    @property
    def tick(self) -> int:
        return self.journal.clock.tick()


def closer_of(journal: Journal, traffic: Traffic, spool: Spool) -> Closer:
    box = Inbox(
        journal=journal,
        spool=spool,
        routes=lambda _: (),
        ring=lambda *_: None,
        silence_ms=lambda _: SILENCE_MS,
        max_in_flight=8,
        fatal=lambda: None,
        log=lambda *_, **__: None,
    )
    return Closer(box, traffic)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    hands, traffic = Hands(), Traffic()
    journal = open_journal(tmp_path / "journal", "receive", hands)
    spool = Spool(tmp_path / "spool", "received", Reserve(free_bytes=1, free_inodes=0, journal_bytes=0))
    receive(journal, arrival(1))
    yield Desk(closer_of(journal, traffic, spool), traffic, journal, hands)
    journal.close()


def test_silence_closes_a_series(desk: Desk) -> None:
    assert desk.closes_after(SILENCE_MS)


def test_a_sender_in_the_middle_of_a_data_set_is_not_silent(desk: Desk) -> None:
    desk.hands.ms += 10
    desk.traffic.begin("its next image", "CT01", desk.tick)
    desk.hands.ms += 50 * SILENCE_MS
    assert desk.closer.step() == SILENCE_MS / 1000
    assert inbox.open_series(desk.journal)
    receive(desk.journal, arrival(2))
    desk.traffic.arrived("its next image")
    assert desk.closes_after(SILENCE_MS)


@pytest.mark.parametrize(("calling_ae", "begun_ms"), [("CT02", 10), ("CT01", SILENCE_MS + 10)])
def test_another_senders_image_and_one_that_began_after_the_silence_hold_nothing_up(
    desk: Desk, calling_ae: str, begun_ms: int
) -> None:
    """Of a sender that goes on to its next series at once, the last one is not held open for ever."""
    desk.hands.ms += begun_ms
    desk.traffic.begin("an image", calling_ae, desk.tick)
    desk.hands.ms += SILENCE_MS
    desk.closer.step()
    assert not inbox.open_series(desk.journal)


@pytest.mark.parametrize("begun", [True, False])
def test_who_was_cut_off_or_turned_away_is_waited_for_longer(desk: Desk, begun: bool) -> None:
    """Broken off in the middle, or refused for lack of room before it began: it will come again."""
    desk.hands.ms += 10
    if begun:
        desk.traffic.begin("an image", "CT01", desk.tick)
        desk.hands.ms += 5 * SILENCE_MS
    desk.traffic.failed("an image", "CT01", desk.tick)
    assert desk.closes_after(inbox.INTERRUPTED_FACTOR * SILENCE_MS)


def test_a_process_that_was_not_there_has_heard_no_silence(desk: Desk) -> None:
    """Receive starts anew, long after the last image, whose association was not released."""
    desk.hands.ms += 100 * SILENCE_MS
    spool = Spool(
        desk.journal.path.with_name("again"), "received", Reserve(free_bytes=1, free_inodes=0, journal_bytes=0)
    )
    desk.closer = closer_of(desk.journal, Traffic(), spool)
    assert desk.closes_after(inbox.INTERRUPTED_FACTOR * SILENCE_MS)


def test_who_had_released_before_the_process_ended_is_not_waited_for_longer(desk: Desk) -> None:
    desk.release()
    desk.hands.ms += 100 * SILENCE_MS
    spool = Spool(
        desk.journal.path.with_name("again"), "received", Reserve(free_bytes=1, free_inodes=0, journal_bytes=0)
    )
    desk.closer = closer_of(desk.journal, Traffic(), spool)
    assert desk.closes_after(SILENCE_MS)
