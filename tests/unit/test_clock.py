"""Appliance time: goes on across boots, and no wall clock ever moves it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.journal import copies, inbox
from appliance.journal.clock import EARLIEST, Clock
from appliance.journal.store import Journal
from tests.journals import Hands, arrival, count, events, open_journal, receive

Open = Callable[[str], Journal]


@pytest.fixture
def journal_of(tmp_path: Path) -> Iterator[Open]:
    """The journal, as a process of this name has it; closed in the end."""
    with ExitStack() as opened:
        yield lambda process: opened.enter_context(closing(Journal(tmp_path / "j", process)))


def reboot(journal: Journal) -> None:
    """Let the journal believe that what it holds was written in another boot."""
    with journal.write(durable=False) as tx:
        tx.sql("UPDATE meta SET value='another boot' WHERE key='boot_id'")


def test_all_processes_of_a_boot_have_one_clock(journal_of: Open) -> None:
    first, second = journal_of("receive"), journal_of("forward")
    assert first.clock.base_ms == second.clock.base_ms
    assert 0 <= second.clock.tick() - first.clock.tick() < 1000


def test_a_new_boot_goes_on_where_the_last_one_was_seen(journal_of: Open) -> None:
    journal = journal_of("receive")
    with journal.write(durable=False) as tx:
        tx.history("something")
        seen = tx.tick
        tx.sql("UPDATE history SET tick=tick+3600000")
    reboot(journal)

    after = journal_of("receive").clock.tick()
    assert 0 <= after - (seen + 3_600_000) < 5000


def test_a_tick_noted_without_any_event_counts_too(journal_of: Open) -> None:
    journal = journal_of("forward")
    journal.clock = replace(journal.clock, base_ms=journal.clock.base_ms + 50_000_000)
    before = journal.clock.tick()
    copies.note_tick(journal)
    reboot(journal)

    assert 0 <= journal_of("forward").clock.tick() - before < 5000


def test_only_the_first_process_of_a_boot_decides(journal_of: Open) -> None:
    journal = journal_of("receive")
    reboot(journal)
    first = journal_of("receive")
    with first.write(durable=False) as tx:
        tx.history("much later")
        tx.sql("UPDATE history SET tick=tick+999999999")
    assert journal_of("forward").clock.base_ms == first.clock.base_ms


@pytest.mark.parametrize(
    ("now", "implausible"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), True),
        (EARLIEST - timedelta(seconds=1), True),
        (EARLIEST, False),
        (datetime(2031, 7, 1, tzinfo=UTC), False),
    ],
)
def test_an_implausible_wall_clock_is_told(now: datetime, implausible: bool) -> None:
    clock = Clock(base_ms=0, boot_time_ms=lambda: 7, wall_clock=lambda: now)
    assert clock.implausible() is implausible
    assert clock.utc() == now.isoformat(timespec="milliseconds")
    assert clock.tick() == 7


def decisions(path: Path, wall: list[datetime]) -> tuple[list[str], list[int], int]:
    """What becomes of an arrival, its silence and its repeat, under a wall clock that reads these times in turn."""
    hands, times = Hands(), iter(wall)
    with closing(open_journal(path, hands=hands)) as journal:
        journal.clock = replace(journal.clock, wall_clock=lambda: next(times))
        return decided(journal, hands)


def decided(journal: Journal, hands: Hands) -> tuple[list[str], list[int], int]:
    receive(journal, arrival(1))
    closed = []
    for hands.ms in (19_999, 20_000):
        (series,) = inbox.open_series(journal)
        evidence = inbox.evidence_for(series, journal.clock.tick(), 20_000)
        closed.append(inbox.close(journal, [(series, evidence)]) if evidence else 0)
    with journal.write(durable=False) as tx:
        tx.sql("UPDATE delivery SET state='delivered', settled_tick=?", (tx.tick,))
    hands.ms += 60_001
    receive(journal, arrival(1))
    return events(journal), closed, count(journal, "delivery")


@pytest.mark.promise("P12")
def test_no_decision_reads_the_wall_clock(tmp_path: Path) -> None:
    today = datetime(2026, 11, 24, tzinfo=UTC)
    steady = [today] * 9
    jumping = [datetime(1970, 1, 1, tzinfo=UTC), today + timedelta(days=400), today - timedelta(hours=3)] * 3
    expected = (["received", "series_closed", "repeated"], [0, 1], 2)
    assert decisions(tmp_path / "steady", steady) == expected
    assert decisions(tmp_path / "jumping", jumping) == expected
