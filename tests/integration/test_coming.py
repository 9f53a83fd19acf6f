"""What a lane sends next: what the journal says, at any time, though it is asked only now and then."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.journal import outbox
from appliance.journal.outbox import Settlement
from appliance.journal.store import Journal
from appliance.model import Delivery, Owed, Urgency
from appliance.stages.forward.coming import LOOKED_AT, Coming
from appliance.states import Event
from tests.journals import arrival, open_journal, receive


class Compared(Coming):
    """With what the journal says each time."""

    def __init__(self, journal: Journal) -> None:
        super().__init__("pacs", journal)
        self.journal = journal

    def id(self, *skip: int) -> int:
        """Of the next; 0: there is none."""
        found = self.next(set(skip))
        rows = outbox.next_queued(self.journal, "pacs", 1, skip=skip)
        assert found == (rows[0] if rows else None)
        return found.id if found else 0


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "j", "forward")
    yield journal
    journal.close()


def owe(journal: Journal, number: int, urgency: Urgency = Urgency.IMAGE) -> None:
    receive(journal, arrival(number), owed=(Owed(destination="pacs", urgency=urgency),))


def delivered(journal: Journal, delivery: Delivery) -> None:
    done = Settlement(delivery=delivery, event=Event.DELIVER, started_tick=1, attempts=1)
    outbox.settle(journal, [done])


def test_it_is_what_the_journal_says_however_many_are_in_hand(journal: Journal) -> None:
    for number in range(1, 2 * LOOKED_AT + 2):
        owe(journal, number)
    coming, in_hand = Compared(journal), list[int]()
    while one := coming.id(*in_hand):
        in_hand.append(one)
    assert in_hand == list(range(1, 2 * LOOKED_AT + 2))


@pytest.mark.promise("P7")
def test_what_is_more_urgent_and_comes_later_is_seen(journal: Journal) -> None:
    owe(journal, 1)
    owe(journal, 2)
    coming = Compared(journal)
    assert coming.id() == 1
    owe(journal, 3, Urgency.URGENT_SR)
    assert coming.id() == 3


def test_what_another_process_settles_is_not_offered(journal: Journal, tmp_path: Path) -> None:
    owe(journal, 1)
    owe(journal, 2)
    coming = Compared(journal)
    assert coming.id() == 1
    other = open_journal(tmp_path / "j", "cli")
    first = outbox.next_queued(other, "pacs", 1)[0]
    delivered(other, first)
    other.close()
    assert coming.id() == 2


def test_what_was_given_back_is_offered_again(journal: Journal) -> None:
    for number in range(1, 5):
        owe(journal, number)
    coming = Compared(journal)
    assert [coming.id(1, 2), coming.id(1, 2, 3), coming.id(2), coming.id()] == [3, 4, 1, 1]


def test_where_nothing_is_owed_nothing_comes_until_it_does(journal: Journal) -> None:
    coming = Compared(journal)
    assert [coming.id(), coming.id()] == [0, 0]
    owe(journal, 1)
    assert coming.id() == 1


def test_each_thread_sees_for_itself(journal: Journal) -> None:
    owe(journal, 1)
    coming, seen = Compared(journal), list[int]()
    assert coming.id() == 1
    owe(journal, 2, Urgency.RESULT)
    thread = threading.Thread(target=lambda: seen.append(coming.id()))
    thread.start()
    thread.join()
    assert seen == [2]
    assert coming.id() == 2


def test_without_news_the_journal_is_not_asked_again(journal: Journal) -> None:
    for number in range(1, LOOKED_AT + 1):
        owe(journal, number)
    coming, statements = Coming("pacs", journal), list[str]()
    first = coming.next(set())
    journal._reader().set_trace_callback(statements.append)
    assert first is not None
    second = coming.next({first.id})
    assert second is not None
    assert second.id == 2
    assert statements == ["PRAGMA data_version"]
