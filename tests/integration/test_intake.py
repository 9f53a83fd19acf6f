"""What came in by the hour, what is held, and how long the disk would do for without any PACS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.attention import attentions
from appliance.cli.situation import Situation, look
from appliance.config import Config
from appliance.journal import intake
from appliance.journal.copies import Keep, Rules, release
from appliance.journal.intake import BESIDE_BYTES, FIRST_HOURS, HOUR_MS, HOURS, Hour, Intake
from appliance.journal.store import Journal
from tests.journals import Hands, arrival, open_journal, receive

FREES_AT_ONCE = Rules(
    keeps={"pacs": Keep(commitment=False, keep_ms=0)}, unowed_keep_ms=0, gone=Keep(commitment=False, keep_ms=0)
)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def journal(tmp_path: Path, hands: Hands) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "j", hands=hands)
    yield journal
    journal.close()


def came(*hours: int) -> Intake:
    """So many instances an hour, each a megabyte with all that it takes."""
    size = (1 << 20) - BESIDE_BYTES
    return Intake(
        held_copies=0, held_bytes=0, hours=tuple(Hour(instances=count, bytes=count * size) for count in hours)
    )


def mb(count: int) -> int:
    return count << 20


def test_hours_are_counted_as_they_pass_also_the_empty_ones(journal: Journal, hands: Hands) -> None:
    assert intake.look(journal).hours == ()
    receive(journal, arrival(1, size=100), arrival(2, size=10))
    receive(journal, arrival(2, size=10))  # a repeat
    hands.ms += 2 * HOUR_MS
    receive(journal, arrival(3, size=1))
    assert intake.look(journal).hours == (Hour(instances=2, bytes=110), Hour(), Hour(instances=1, bytes=1))
    hands.ms += HOUR_MS
    assert intake.look(journal).hours[-1] == Hour()


def test_it_keeps_two_weeks(journal: Journal, hands: Hands) -> None:
    for number in range(HOURS + 30):
        receive(journal, arrival(number))
        hands.ms += HOUR_MS
    rows = journal.query("SELECT count(*) FROM intake")
    assert [row[0] for row in rows] == [HOURS]
    assert len(intake.look(journal).hours) == HOURS


@pytest.mark.promise("P5")
def test_what_is_held_is_known_at_any_time(journal: Journal) -> None:
    receive(journal, arrival(1, size=100), arrival(2, size=10), owed=())
    with journal.write(durable=True) as tx:
        tx.sql("UPDATE series SET state='closed'")
        tx.sql("INSERT INTO cursor VALUES ('assembled', 1000000)")
    assert (intake.look(journal).held_copies, intake.look(journal).held_bytes) == (2, 110)
    assert release(journal, FREES_AT_ONCE, [arrival(1).file]) == [arrival(1).file]
    assert (intake.look(journal).held_copies, intake.look(journal).held_bytes) == (1, 10)


def test_a_rebuilt_journal_takes_no_recovery_for_a_busy_hour(journal: Journal) -> None:
    receive(journal, arrival(1, size=100))
    intake.forget(journal)
    assert intake.look(journal).hours == ()
    assert intake.look(journal).held_bytes == 100


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("hours", "room", "lasts"),
    [
        ([10] * 24, 240, 24),
        ([10] * 24, 5, 0.5),
        ([0] * 12 + [10] * 12, 110, 11),  # the busy half of the day first
        ([0] * 12 + [10] * 12, 120, 24),  # and then a quiet night
        ([0] * 12 + [10] * 12, 360, 72),
        ([1] * 23 + [100], 100, 1),  # the worst hour may come at once
        ([1] * 23 + [100], 111, 12),
        ([10] * 24, 0, 0),
        ([10] * 24, -7, 0),
        ([0] * 24, 10, None),
        ([10] * (FIRST_HOURS - 1), 1000, None),
    ],
)
def test_the_disk_lasts_as_long_as_in_the_busiest_stretch_that_was_seen(
    hours: list[int], room: int, lasts: float | None
) -> None:
    assert came(*hours).lasts_h(mb(room)) == (None if lasts is None else pytest.approx(lasts))


@pytest.mark.promise("P5")
def test_inodes_may_end_before_bytes_do() -> None:
    busy = came(*[10] * 24)
    assert busy.lasts_h(mb(1000), free_inodes=30) == pytest.approx(3)
    assert busy.lasts_h(mb(10), free_inodes=30) == pytest.approx(1)
    assert busy.lasts_h(mb(1000)) == pytest.approx(100)


def seen_by_status(folder: Path, mb_per_hour: int, outage_h: float) -> tuple[Config, Situation]:
    """A box that got so much in each hour of two days."""
    config = Config.model_validate(
        {"state": str(folder), "reserve": {"free_mb": 1, "free_inodes": 0, "outage_h": outage_h}}
    )
    journal = Journal(config.journal_path, "test")
    now = journal.clock.tick() // HOUR_MS
    with journal.write(durable=True) as tx:
        for hour in range(now - 47, now + 1):
            tx.sql("INSERT INTO intake VALUES (?, 1, ?)", (hour, mb(mb_per_hour)))
        tx.sql("UPDATE held SET copies=3, bytes=?", (mb(3),))
    journal.close()
    return config, look(config)


@pytest.mark.promise("P5")
def test_status_tells_how_long_an_outage_the_disk_would_do_for_and_warns_when_that_is_too_short(tmp_path: Path) -> None:
    config, now = seen_by_status(tmp_path, mb_per_hour=1_000_000, outage_h=24)
    assert now.disk.held_bytes == mb(3)
    assert now.disk.lasts_h is not None
    free = now.disk.free_bytes - now.disk.reserve_bytes
    assert now.disk.lasts_h == pytest.approx(free / (mb(1_000_000) + BESIDE_BYTES))
    (warning,) = [need for need in attentions(config, now) if "reserve.outage_h" in need.what]
    assert "24 h are asked for" in warning.what


@pytest.mark.promise("P5")
def test_status_does_not_warn_of_what_is_asked_for(tmp_path: Path) -> None:
    config, now = seen_by_status(tmp_path, mb_per_hour=1_000_000, outage_h=0)
    assert not [need for need in attentions(config, now) if "outage" in need.what]
