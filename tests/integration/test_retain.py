"""Retain: a local copy goes only when nobody needs it any more, and nothing is lost when that is cut short (P4)."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import StoreFailed
from appliance.journal import copies, history, jobs, outbox
from appliance.journal.copies import Keep, Rules
from appliance.journal.jobs import Duty
from appliance.journal.store import Journal, Subject
from appliance.model import Owed, Urgency
from appliance.spool import Reserve, Spool
from appliance.stages import retain
from appliance.stages.retain import RETAIN_EVERY, Retainer, Upkeep
from tests.journals import SERIES, STUDY, TO_PACS, Hands, arrival, count, events, open_journal, receive
from tests.waiting import eventually

KEEP_MS, UNOWED_MS, GONE_MS = 1_000, 5_000, 9_000
TO_ARCHIVE = Owed(destination="archive", urgency=Urgency.IMAGE)
HELD = Owed(destination="", urgency=Urgency.IMAGE, held="unrouted")
RULES = Rules(
    keeps={"pacs": Keep(commitment=False, keep_ms=KEEP_MS), "archive": Keep(commitment=True, keep_ms=KEEP_MS)},
    unowed_keep_ms=UNOWED_MS,
    gone=Keep(commitment=False, keep_ms=GONE_MS),
)


@dataclass
class Store:
    """A spool and its journal, with a clock that is moved by hand."""

    journal: Journal
    spool: Spool
    hands: Hands
    logged: list[str] = field(default_factory=list)
    shortage: str = ""

    def keep(self, *owed: Owed, seen: bool = True) -> str:
        """Receive one more image, owed to these; returns its file. Its series is closed; analyse has seen it."""
        incoming = self.spool.begin(b"head")
        incoming.write([memoryview(incoming.name.encode())])
        incoming.finish()
        number = count(self.journal, "instance") + 1
        receive(self.journal, arrival(number, incoming.name.encode(), file=incoming.name), owed=owed)
        self.sql("UPDATE series SET state='closed'")
        if seen:
            jobs.take_on(self.journal, [], number)
        return incoming.name

    def sql(self, statement: str, *parameters: object) -> None:
        with self.journal.write(durable=True) as tx:
            tx.sql(statement, parameters)

    def settle(self, state: str, destination: str = "pacs") -> None:
        tick = self.journal.clock.tick()
        self.sql("UPDATE delivery SET state=?, settled_tick=? WHERE destination=?", state, tick, destination)

    def retainer(self, remove: Callable[[str], None] | None = None) -> Retainer:
        return Retainer(
            Upkeep(
                journal=self.journal,
                rules=RULES,
                remove=remove or self.spool.remove,
                shortage=lambda: self.shortage,
                keep_reserve=self.spool.keep_reserve,
                log=lambda event, **_: self.logged.append(event),
            )
        )

    def spare(self) -> int:
        """Unused pages of the journal."""
        return int(self.rows("PRAGMA freelist_count")[0][0])

    def released(self) -> int:
        """How many copies retain lets go, now."""
        retainer, gone = self.retainer(), 0
        gone += retainer.release_some()
        while retainer._after_file:
            gone += retainer.release_some()
        assert sorted(self.spool.files()) == [row[0] for row in self.rows("SELECT file FROM copy ORDER BY file")]
        return gone

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.journal.query(sql)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    hands = Hands()
    journal = open_journal(tmp_path / "j", "forward", hands)
    yield Store(
        journal, Spool(tmp_path / "spool", "received", Reserve(free_bytes=1, free_inodes=0, journal_bytes=4096)), hands
    )
    journal.close()


@pytest.mark.promise("P4")
def test_a_copy_goes_after_its_proof_and_the_time_it_is_kept(store: Store) -> None:
    store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS - 1
    assert store.released() == 0
    store.hands.ms += 1
    assert store.released() == 1
    assert (count(store.journal, "copy"), count(store.journal, "instance"), store.spool.files()) == (0, 1, [])
    assert events(store.journal)[-1] == "copies_released"


@pytest.mark.promise("P4")
def test_what_analyse_has_not_seen_yet_stays_but_a_dead_engine_does_not_fill_the_disk(store: Store) -> None:
    store.keep(TO_PACS, seen=False)
    store.settle("delivered")
    store.hands.ms += copies.READ_WITHIN_MS - 1
    assert store.released() == 0
    store.hands.ms += 1
    assert store.released() == 1


@pytest.mark.promise("P4")
@pytest.mark.parametrize("state", ["queued", "held"])
def test_nothing_goes_while_it_is_owed(store: Store, state: str) -> None:
    store.keep(TO_PACS)
    store.settle(state)
    store.hands.ms += 10 * 365 * 86_400_000
    assert store.released() == 0


@pytest.mark.promise("P4")
def test_what_is_unrouted_stays_for_ever(store: Store) -> None:
    store.keep(HELD)
    store.hands.ms += 10 * 365 * 86_400_000
    assert store.released() == 0


@pytest.mark.promise("P4")
def test_every_destination_must_have_it(store: Store) -> None:
    store.keep(TO_PACS, TO_ARCHIVE)
    store.settle("delivered", "pacs")
    store.hands.ms += KEEP_MS
    assert store.released() == 0
    store.settle("committed", "archive")
    assert store.released() == 0
    store.hands.ms += KEEP_MS
    assert store.released() == 1


@pytest.mark.promise("P4")
def test_where_commitment_is_the_proof_success_is_not_enough(store: Store) -> None:
    store.keep(TO_ARCHIVE)
    store.settle("delivered", "archive")
    store.hands.ms += 365 * 86_400_000
    assert store.released() == 0
    store.settle("committed", "archive")
    store.hands.ms += KEEP_MS
    assert store.released() == 1


@pytest.mark.promise("P4")
def test_what_was_delivered_to_a_destination_that_is_gone_goes_after_the_default_time(store: Store) -> None:
    store.keep(Owed(destination="old pacs", urgency=Urgency.IMAGE))
    store.settle("held", "old pacs")
    store.hands.ms += 365 * 86_400_000
    assert store.released() == 0
    store.settle("delivered", "old pacs")
    store.hands.ms += GONE_MS - 1
    assert store.released() == 0
    store.hands.ms += 1
    assert store.released() == 1


@pytest.mark.promise("P4")
def test_a_destination_that_is_gone_still_needs_the_proof_it_was_configured_with(store: Store) -> None:
    commitment, long = Keep(commitment=True, keep_ms=0), Keep(commitment=False, keep_ms=GONE_MS + KEEP_MS)
    copies.remember(store.journal, {"old archive": commitment, "old pacs": commitment})
    copies.remember(store.journal, {"old pacs": long, **RULES.keeps})
    known = copies.remembered(store.journal)
    assert known == {"old archive": commitment, "old pacs": long, **RULES.keeps}
    rules = replace(RULES, keeps=known)
    store.keep(Owed(destination="old archive", urgency=Urgency.IMAGE))
    store.settle("delivered", "old archive")
    store.hands.ms += 365 * 86_400_000
    assert copies.releasable(store.journal, rules, "") == ([], "")
    store.settle("committed", "old archive")
    assert len(copies.releasable(store.journal, rules, "")[0]) == 1


@pytest.mark.promise("P4")
def test_what_a_person_gave_up_goes(store: Store) -> None:
    store.keep(HELD)
    assert outbox.abandon(store.journal, 1, "A. Person", "a test image")
    assert store.released() == 1


def test_what_is_owed_to_nobody_is_kept_for_a_look(store: Store) -> None:
    store.keep()
    store.hands.ms += UNOWED_MS - 1
    assert store.released() == 0
    store.hands.ms += 1
    assert store.released() == 1


@pytest.mark.promise("P4")
def test_nothing_goes_that_a_job_may_read_or_whose_series_is_open(store: Store) -> None:
    store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    store.sql("UPDATE series SET state='open'")
    assert store.released() == 0
    store.sql("UPDATE series SET state='closed'")
    duty = Duty(
        engine="ct@1",
        scope="series",
        study_instance_uid=STUDY,
        series_instance_uid=SERIES,
        sop_instance_uid="",
        subject=SERIES,
        instance_id=1,
        deadline_ms=1,
    )
    jobs.take_on(store.journal, [duty], 1)
    for state in jobs.UNFINISHED:
        store.sql("UPDATE job SET state=?", state)
        assert store.released() == 0
    store.sql("UPDATE job SET state='reported'")
    assert store.released() == 1


@pytest.mark.promise("P4")
def test_what_a_repeat_made_owed_again_in_the_meantime_stays(store: Store) -> None:
    """Between looking and letting go somebody sends the image again: it is owed anew, and this is its only copy."""
    file = store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += 86_400_000
    found, _ = copies.releasable(store.journal, RULES, "")
    assert found == [file]
    (again,) = receive(store.journal, arrival(1, file.encode(), file="received/000009/000009000.dcm"))
    assert again.redundant
    assert copies.release(store.journal, RULES, found) == []
    assert store.rows("SELECT file FROM copy") == [(file,)]
    assert store.spool.has(file)


@pytest.mark.promise("P12")
def test_killed_between_the_journal_and_the_file_it_leaves_a_file_to_sweep(store: Store) -> None:
    class Killed(Exception):
        pass

    def die(file: str) -> None:
        raise Killed(file)

    file = store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    with pytest.raises(Killed):
        store.retainer(die).release_some()
    assert store.spool.files() == [file]
    assert count(store.journal, "copy") == 0  # so the sweep at start finds no row, and removes it


@pytest.mark.promise("P4")
def test_a_release_that_cannot_be_committed_removes_nothing(store: Store) -> None:
    file = store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    store.journal._failed = "the disk has failed"
    with pytest.raises(StoreFailed):
        store.retainer().release_some()
    assert store.spool.files() == [file]


def test_many_are_let_go_in_chunks_and_none_is_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "CHUNK", 3)
    files = [store.keep(TO_PACS) for _ in range(10)]
    store.settle("delivered")
    store.sql("UPDATE delivery SET state='queued' WHERE id IN (2, 7)")
    store.hands.ms += KEEP_MS
    retainer = store.retainer()
    for _ in range(4):  # one walk: an upkeep each
        retainer.step()
    assert store.spool.files() == [files[1], files[6]]
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    for _ in range(RETAIN_EVERY):
        retainer.step()
    assert store.spool.files() == []


def test_upkeep_checkpoints_keeps_the_reserve_and_notes_the_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(retain, "ALARM_BYTES", 2)
    store.keep(TO_PACS)
    store.retainer().step()
    assert store.logged == ["wal_too_large"]
    assert (store.spool.root / "reserve").exists()
    assert store.rows("SELECT value FROM meta WHERE key='last_tick'") == [(str(store.journal.clock.tick()),)]


@pytest.mark.promise("P5")
def test_while_room_is_short_what_may_go_goes_at_once(store: Store) -> None:
    retainer = store.retainer()
    retainer.step()
    store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    retainer.step()
    assert len(store.spool.files()) == 1  # the next walk is due in a minute
    store.shortage = "only 1 MB free"
    store.sql("UPDATE series SET state='open'")  # by a scanner that is refused, and tries again and again
    retainer.step()
    assert store.spool.files() == []


def test_the_journals_file_shrinks_in_small_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "VACUUM_KEEP", 8)
    with store.journal.write(durable=False) as tx:
        for _ in range(400):
            tx.history("padded", padding="x" * 4000)
    store.sql("DELETE FROM history")
    store.journal.checkpoint(truncate=True)
    full, retainer, spare = store.journal.path.stat().st_size, store.retainer(), [store.spare()]
    while spare[-1] > 8:
        retainer.step()
        spare.append(store.spare())
    assert all(before - after <= retain.VACUUM_PAGES for before, after in pairwise(spare))
    assert len(spare) > 400 // retain.VACUUM_PAGES
    store.journal.checkpoint(truncate=True)
    assert store.journal.path.stat().st_size < full // 4
    retainer.step()
    assert store.spare() <= 8
    assert store.rows("PRAGMA integrity_check") == [("ok",)]


def test_it_runs_until_it_is_told_to_stop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "UPKEEP_EVERY_S", 0.01)
    store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS
    stopping = threading.Event()
    thread = threading.Thread(target=store.retainer().run, args=(stopping,), daemon=True)
    thread.start()
    eventually(lambda: not store.spool.files())
    stopping.set()
    thread.join(5.0)
    assert not thread.is_alive()


# What history forgets


@pytest.mark.promise("P11")
def test_lines_of_single_settled_instances_go_after_some_days_and_no_other(store: Store) -> None:
    for _ in range(3):
        store.keep(TO_PACS)
    store.sql("UPDATE delivery SET state='delivered' WHERE id=1")
    store.sql("UPDATE delivery SET state='held' WHERE id=3")
    outbox.abandon(store.journal, 3, "A. Person", "a test image")
    with store.journal.write(durable=True) as tx:
        tx.history("series_closed", Subject(study_instance_uid=STUDY, series_instance_uid=SERIES))
    store.hands.ms += history.KEEP_INSTANCE_LINES_MS
    assert history.prune(store.journal, 0) == (0, 0)
    store.hands.ms += 1
    last, removed = history.prune(store.journal, 0)
    assert removed == 2
    left = ["series_reopened", "received", "series_reopened", "abandoned", "series_closed"]
    assert sorted(events(store.journal)) == sorted(left)
    assert [line.event for line in history.trace(store.journal, STUDY)] == events(store.journal)
    assert events(store.journal, sop_instance_uid=f"{SERIES}.2") == ["received"]
    assert events(store.journal, sop_instance_uid=f"{SERIES}.3") == ["abandoned"]
    assert history.prune(store.journal, last) == (0, 0)
