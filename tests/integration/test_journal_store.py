"""The journal's transactions: between processes, on a full disk, on a failing one, beside readers."""

import json
import signal
import sqlite3
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal.store import Journal, Subject, Transaction
from tests.journals import ClosedLater, count, events
from tests.tracing import environment, on_small_disk, python, traced

AT_ONCE_S = 2.0


class ChangedMind(Exception):
    pass


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "j", "test")
    yield journal
    journal.close()


def script(folder: Path, text: str) -> Path:
    head = "import sys, os\nfrom pathlib import Path\nfrom appliance.journal.store import Journal\n"
    file = folder / "script.py"
    file.write_text(head + textwrap.dedent(text))
    return file


def write(journal: Journal, event: str, *, durable: bool = False) -> None:
    with journal.write(durable=durable) as tx:
        tx.history(event)


def test_a_write_and_its_history_commit_together_or_not_at_all(journal: Journal) -> None:
    def move(tx: Transaction) -> None:
        tx.sql("INSERT INTO cursor VALUES ('here', 1)")
        tx.history("moved", Subject(study_instance_uid="1.2"), to=1)

    with suppress(ChangedMind), journal.write(durable=True) as tx:
        move(tx)
        raise ChangedMind
    assert (count(journal, "cursor"), events(journal)) == (0, [])

    with journal.write(durable=True) as tx:
        move(tx)
    (row,) = journal.query("SELECT * FROM history")
    assert (row["tick"], row["at"], row["process"]) == (tx.tick, tx.at, "test")
    assert (row["study_instance_uid"], json.loads(row["detail"])) == ("1.2", {"to": 1})


@pytest.mark.promise("P1")
def test_only_a_durable_transaction_waits_for_the_disk(tmp_path: Path, closed_later: ClosedLater) -> None:
    journal = tmp_path / "j"
    closed_later(Journal(journal, "test"))  # not before: that would move the WAL
    file = script(
        tmp_path,
        """
        journal = Journal(Path(sys.argv[1]), "test")
        for durable in (True, False, False, True, False, True):
            with journal.write(durable=durable) as tx:
                tx.history("x")
            os.write(1, b"durable" if durable else b"quick")
        os._exit(0)
        """,
    )
    run = traced(tmp_path, python(file, journal), calls="fdatasync,fsync,write")
    after_first = run.calls[next(n for n, call in enumerate(run.calls) if '"durable"' in call) + 1 :]
    steps = ["sync" if "sync(" in call else "told" for call in after_first if "j-wal" in call or "write(1<" in call]
    assert steps == ["told", "told", "sync", "told", "told", "sync", "told"]


def test_opening_and_reading_write_nothing(tmp_path: Path, journal: Journal) -> None:
    write(journal, "there", durable=True)
    file = script(
        tmp_path,
        """
        journal = Journal(Path(sys.argv[1]), "test")
        print(len(journal.query("SELECT * FROM history")), flush=True)
        os._exit(0)
        """,
    )
    run = traced(tmp_path, python(file, journal.path), calls="fdatasync,fsync,pwrite64")
    assert run.output.split() == ["1"]
    assert [call for call in run.calls if "sync(" in call or "j-wal" in call] == []


@pytest.mark.promise("P12")
def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path, closed_later: ClosedLater) -> None:
    file = script(
        tmp_path,
        """
        journal = Journal(Path(sys.argv[1]), sys.argv[2])
        sys.stdin.read()
        for number in range(200):
            with journal.write(durable=True) as tx:
                tx.history("written", number=number)
                tx.sql("INSERT INTO cursor VALUES ('sum', 1) ON CONFLICT DO UPDATE SET value=value+1")
        """,
    )
    writers = [
        subprocess.Popen(python(file, tmp_path / "j", name), env=environment(), stdin=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for writer in writers:
        writer.communicate(b"")
    journal = closed_later(Journal(tmp_path / "j", "test"))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [row[0] for row in journal.query("SELECT value FROM cursor")] == [400]
    for name in ("one", "two"):
        rows = journal.query("SELECT detail FROM history WHERE process=? ORDER BY id", name)
        assert [json.loads(row["detail"])["number"] for row in rows] == list(range(200))
    ticks = [row["tick"] for row in journal.query("SELECT tick FROM history ORDER BY id")]
    assert ticks == sorted(ticks)


@pytest.mark.promise("P12")
def test_a_writer_that_is_killed_lets_the_next_one_in_at_once(tmp_path: Path, closed_later: ClosedLater) -> None:
    file = script(
        tmp_path,
        """
        journal = Journal(Path(sys.argv[1]), "victim")
        with journal.write(durable=True) as tx:
            tx.history("never")
            os.write(1, b"inside")
            sys.stdin.read()
        """,
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(python(file, tmp_path / "j"), env=environment(), stdin=pipe, stdout=pipe) as victim:
        assert victim.stdout is not None
        assert victim.stdout.read(6) == b"inside"
        done = threading.Event()

        def next_writer() -> None:
            journal = closed_later(Journal(tmp_path / "j", "next"))
            write(journal, "at last")
            done.set()

        waiting = threading.Thread(target=next_writer, daemon=True)
        waiting.start()
        assert not done.wait(0.1)
        victim.send_signal(signal.SIGKILL)
        assert done.wait(AT_ONCE_S)
    assert events(closed_later(Journal(tmp_path / "j", "test"))) == ["at last"]


@pytest.mark.promise("P5")
def test_a_full_disk_gets_the_reserve_and_the_transition_is_written(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        """
        from appliance.errors import OutOfResources
        from appliance.spool import Reserve, Spool
        spool = Spool(Path(sys.argv[1]), "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=200_000))
        journal = Journal(Path(sys.argv[1]) / "j", "test", on_full=spool.free_reserve)
        filler = Path(sys.argv[1]) / "filler"
        filler.write_bytes(bytes(100_000))
        spool.keep_reserve()
        assert (spool.root / "reserve").stat().st_size == 200_000
        written = freed_at = 0
        try:
            while True:
                with journal.write(durable=True) as tx:
                    tx.history("written", number=written, padding="x" * 2000)
                written += 1
                if not freed_at and not (spool.root / "reserve").exists():
                    freed_at = written
        except OutOfResources as error:
            told = str(error)
        assert [row[0] for row in journal.query("SELECT count(*) FROM history")] == [written]
        filler.unlink()
        with journal.write(durable=True) as tx:
            tx.history("room again")
        print("freed at", freed_at, "of", written, told)
        """,
    )
    words = on_small_disk(tmp_path / "room", 900, python(file, tmp_path / "room")).split()
    freed_at, written = int(words[2]), int(words[4])
    assert 0 < freed_at < written, words
    assert "grow:" in words


@pytest.mark.promise("P5")
def test_full_in_the_middle_of_a_transaction_frees_the_reserve_for_the_next(
    tmp_path: Path, closed_later: ClosedLater
) -> None:
    freed: list[bool] = []

    def on_full() -> bool:
        freed.append(True)
        full._writer.execute("PRAGMA max_page_count=1000000")
        return True

    full = closed_later(Journal(tmp_path / "j", "test", on_full=on_full))
    full._writer.execute("PRAGMA max_page_count=1")  # no bigger than it is now
    with pytest.raises(OutOfResources, match="cannot grow"), full.write(durable=True) as tx:
        tx.history("long", padding="x" * 20_000)
    assert (freed, events(full)) == ([True], [])
    write(full, "next", durable=True)
    assert events(full) == ["next"]


@pytest.mark.promise("P1")
def test_a_failed_sync_is_final_for_this_journal(tmp_path: Path, closed_later: ClosedLater) -> None:
    journal = closed_later(Journal(tmp_path / "j", "test"))
    write(journal, "before", durable=True)
    file = script(
        tmp_path,
        """
        from appliance.errors import StoreFailed
        journal = Journal(Path(sys.argv[1]), "test")
        for _ in range(3):
            try:
                with journal.write(durable=True) as tx:
                    tx.history("acknowledged?")
            except StoreFailed as error:
                os.write(1, b"%s\\n" % str(error).encode())
            else:
                os.write(1, b"written\\n")
        os._exit(0)
        """,
    )
    # Only the first sync fails, as the kernel tells of an error once: the later ones must not count as good.
    run = traced(tmp_path, python(file, tmp_path / "j"), calls="fdatasync", inject="fdatasync:error=EIO:when=1")
    assert run.output.splitlines() == ["the journal failed: disk I/O error"] * 3
    assert events(journal) == ["before"]


def test_what_is_no_journal_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"this is no database at all, whatever its name says" * 100)
    with pytest.raises(StoreFailed, match="not a database"):
        Journal(tmp_path / "j", "test")


def test_another_schema_is_refused_and_named(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "test").close()
    with closing(sqlite3.connect(tmp_path / "j")) as other, other:
        other.execute("UPDATE meta SET value='99' WHERE key='schema'")
    with pytest.raises(StoreFailed, match="schema 99, this version needs 4"):
        Journal(tmp_path / "j", "test")


def test_who_cannot_be_opened_holds_nobody_up(tmp_path: Path, closed_later: ClosedLater) -> None:
    (tmp_path / "j").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreFailed):
        Journal(tmp_path / "j", "test")
    (tmp_path / "j").unlink()
    write(closed_later(Journal(tmp_path / "j", "test")), "made anew")


def test_a_reader_holds_no_writer_up(tmp_path: Path, journal: Journal) -> None:
    write(journal, "before")
    with closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM history").fetchone() == (1,)
        done = threading.Event()

        def writes() -> None:
            for _ in range(20):
                write(journal, "beside", durable=True)
            journal.checkpoint()
            done.set()

        threading.Thread(target=writes, daemon=True).start()
        assert done.wait(AT_ONCE_S * 2)
        assert reader.execute("SELECT count(*) FROM history").fetchone() == (1,)  # its own moment
    assert count(journal, "history") == 21


def test_a_journal_locked_by_another_program_is_a_shortage_and_passes(tmp_path: Path, journal: Journal) -> None:
    journal._writer.execute("PRAGMA busy_timeout=20")
    with closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutOfResources, match="another program"):
            write(journal, "while it is locked", durable=True)
        other.execute("ROLLBACK")
    write(journal, "after", durable=True)
    assert events(journal) == ["after"]


@pytest.mark.promise("P1")
def test_a_truncating_checkpoint_says_whether_it_could(tmp_path: Path, journal: Journal) -> None:
    write(journal, "one")
    with closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM history").fetchone()
        write(journal, "two")
        assert not journal.checkpoint(truncate=True)
        assert journal.wal_bytes() > 0
    assert journal.checkpoint(truncate=True)
    assert journal.wal_bytes() == 0
    assert events(journal) == ["one", "two"]


def test_a_wal_started_anew_keeps_its_file_and_is_written_over(tmp_path: Path, journal: Journal) -> None:
    for number in range(20):
        write(journal, f"before {number}")
    long = journal.wal_bytes()
    size = (tmp_path / "j-wal").stat().st_size
    assert 0 < size - long < 100  # the file's own header
    assert journal.checkpoint(restart=True)
    assert journal.wal_bytes() == 0
    write(journal, "after")
    assert 0 < journal.wal_bytes() < long
    assert (tmp_path / "j-wal").stat().st_size == size
    with closing(Journal(tmp_path / "j", "another")) as other:
        assert len(events(other)) == 21


def test_after_close_every_use_is_a_mistake_that_shows(journal: Journal, tmp_path: Path) -> None:
    other = Journal(tmp_path / "j", "other")
    other.query("SELECT 1")
    other.close()
    for use in (lambda: other.query("SELECT 1"), lambda: write(other, "late"), other.close):
        with pytest.raises(sqlite3.ProgrammingError):
            use()
    write(journal, "the others go on")


def test_each_thread_reads_for_itself_and_sees_what_is_committed(journal: Journal) -> None:
    write(journal, "one")
    seen: list[list[str]] = []
    for _ in range(3):
        reader = threading.Thread(target=lambda: seen.append(events(journal)))
        reader.start()
        reader.join()
    assert seen == [["one"]] * 3


def test_it_can_shrink_and_keeps_its_name(tmp_path: Path, journal: Journal, closed_later: ClosedLater) -> None:
    assert [tuple(row) for row in journal.query("PRAGMA auto_vacuum")] == [(2,)]
    assert [tuple(row) for row in journal.query("PRAGMA journal_mode")] == [("wal",)]
    assert closed_later(Journal(tmp_path / "j", "other")).identity == journal.identity
    assert closed_later(Journal(tmp_path / "another", "other")).identity != journal.identity
