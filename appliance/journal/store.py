"""Opening the journal, and its transactions.

Writers of all processes queue on one flock, which wakes the next at once; SQLite's own busy handler would poll. Who
dies holding it lets go. Checkpoints never run inside a commit: `checkpoint` is called by the maintenance thread.
"""

import fcntl
import json
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal.clock import Clock, boot_id, boot_time_ms

SCHEMA_VERSION = "4"
BUSY_MS = 10_000
CHECKPOINT_MS = 200  # a checkpoint of all holds all writers up while it waits for readers
_WAL_INDEX = struct.Struct("=14xHI76xI")  # page size, frames, and how many of them are in the database
_FRAME_HEADER = 24
_as_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a line of history is about."""

    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""


NOTHING = Subject()


class Transaction:
    """A write transaction: SQL, and the history that commits with it. `tick` and `at` are one instant for all of it."""

    def __init__(self, connection: sqlite3.Connection, process: str, clock: Clock) -> None:
        self._connection = connection
        self._said: list[tuple[str, tuple[Any, ...]]] = []
        self.tick = clock.tick()
        self.at = clock.utc()
        self.clock_implausible = clock.implausible()
        self._process = process

    def sql(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        self._said.append((statement, parameters))
        return self._connection.execute(statement, parameters)

    def say_again(self) -> None:
        """Do the same again after SQLite has rolled back. Nobody else wrote in between: the caller holds the lock."""
        self._connection.execute("BEGIN IMMEDIATE")
        for statement, parameters in self._said:
            self._connection.execute(statement, parameters)

    def history(self, event: str, subject: Subject = NOTHING, **detail: Any) -> None:
        self.sql(
            "INSERT INTO history (at, tick, process, event, study_instance_uid, series_instance_uid,"
            " sop_instance_uid, detail) VALUES (?,?,?,?,?,?,?,?)",
            (
                self.at,
                self.tick,
                self._process,
                event,
                subject.study_instance_uid,
                subject.series_instance_uid,
                subject.sop_instance_uid,
                _as_json(detail),
            ),
        )


class Journal:
    """One process's way to the journal. Threads may share it: writes take turns, each thread reads for itself."""

    def __init__(self, path: Path, process: str, *, on_full: Callable[[], bool] = lambda: False) -> None:
        """Open, and create if it is not there. `on_full` frees the reserve and says whether it did.

        Raises StoreFailed when it cannot be used, OutOfResources when somebody else keeps it locked.
        """
        self.path = path
        self.process = process
        self._on_full = on_full
        self._failed = ""
        self._durable: bool | None = True  # as `_connect` has it: how the writer commits
        self._closed = False
        self._turn = threading.Lock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock_fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._exclusive(), ExitStack() as undo:
                self._writer = undo.enter_context(closing(_connect(path)))
                _create(self._writer)
                self.clock, self.identity = _clock(self._writer), _identity(self._writer)
                undo.pop_all()
        except (sqlite3.Error, StoreFailed) as error:
            os.close(self._lock_fd)
            raise (_translated(error) if isinstance(error, sqlite3.Error) else error) from error

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Transaction]:
        """One transaction; on return it is committed, and with `durable` it is on disk.

        Raises OutOfResources when the disk is full even without the reserve or somebody else keeps the journal locked
        (nothing was written), StoreFailed when writing failed: then nothing of it is to be trusted, this journal
        writes no more, and the process must latch and end (P1).
        """
        with self._exclusive():
            if self._failed:
                raise StoreFailed(self._failed)
            try:
                if durable is not self._durable:
                    self._durable = None  # unknown, should anything come in between
                    self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                self._writer.execute("BEGIN IMMEDIATE")
                tx = Transaction(self._writer, self.process, self.clock)
                yield tx
                self._commit(tx)
            except sqlite3.Error as error:
                raise self._judged(error) from error
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def _commit(self, tx: Transaction) -> None:
        try:
            self._writer.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if not _is_full(error) or not self._on_full():
                raise
            tx.say_again()
            self._writer.execute("COMMIT")

    def _judged(self, error: sqlite3.Error) -> Exception:
        """What a failed transaction means; full in the middle of one, the next at least shall have the reserve."""
        judged = _translated(error)
        if isinstance(judged, StoreFailed):
            self._failed = str(judged)
        elif isinstance(judged, OutOfResources) and _is_full(error):
            self._on_full()
        return judged

    def query(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """All rows of a read; the read transaction ends with it. Bound every query by LIMIT or an index."""
        try:
            return self._reader().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def one(self, sql: str, *parameters: Any) -> sqlite3.Row | None:
        rows = self.query(sql, *parameters)
        return rows[0] if rows else None

    def version(self) -> int:
        """Another number than before, for this thread, once anybody has written; those of two threads say nothing."""
        return int(self.query("PRAGMA data_version")[0][0])

    def checkpoint(self, *, restart: bool = False, truncate: bool = False) -> bool:
        """Move the WAL into the database, with the others all of it, so that nothing of it is needed any more.

        `restart` keeps the file, to be written over: a commit's sync is much quicker where the file does not grow.
        False: a reader or another checkpoint was in the way. Raises StoreFailed, OutOfResources.
        """
        try:
            with (
                self._exclusive() if restart or truncate else self._reading(),
                closing(_connect(self.path, CHECKPOINT_MS)) as own,
            ):
                mode = "TRUNCATE" if truncate else "RESTART" if restart else "PASSIVE"
                busy, _, _ = own.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            if _is_full(error):
                self._on_full()
            raise _translated(error) from error
        return not busy

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A read transaction, so that no commit of another process can start the WAL anew under a checkpoint.

        SQLite before 3.51.3 may then believe commits copied that are not, and lose them: its "WAL-reset bug"
        (sqlite.org/wal.html). Debian 12 and Ubuntu 24.04 have older ones.
        """
        reader = self._reader()
        reader.execute("BEGIN")
        try:
            reader.execute("SELECT 1 FROM meta").fetchone()
            yield
        finally:
            reader.execute("ROLLBACK")

    def give_back(self, pages: int, keep: int) -> int:
        """Free at most so many unused pages of the file, as long as more than `keep` are unused; returns how many.

        The next checkpoint makes the file shorter. In a transaction of its own, not synced: other writers wait, so ask
        for few pages. Raises StoreFailed, OutOfResources.
        """
        spare = self._unused() - keep
        if spare <= 0:
            return 0
        with self.write(durable=False) as tx:
            before = self._unused(tx)
            tx.sql(f"PRAGMA incremental_vacuum({min(pages, spare)})").fetchall()
            return before - self._unused(tx)

    def _unused(self, tx: Transaction | None = None) -> int:
        rows = tx.sql("PRAGMA freelist_count").fetchall() if tx else self.query("PRAGMA freelist_count")
        return int(rows[0][0])

    def wal_bytes(self) -> int:
        """How much of the WAL is needed, however long its file is: by its index (sqlite.org/walformat.html, 2.1)."""
        try:
            with self.path.with_name(self.path.name + "-shm").open("rb") as index:
                page_size, frames, moved = _WAL_INDEX.unpack(index.read(_WAL_INDEX.size))
        except (FileNotFoundError, struct.error):
            return 0
        return int(frames * (page_size + _FRAME_HEADER)) if moved < frames else 0

    def close(self) -> None:
        """No more reads or writes: to ask for one is a bug and raises sqlite3.ProgrammingError."""
        with self._exclusive():
            self._closed = True
            self._writer.close()
            for connection in self._readers:
                connection.close()
        os.close(self._lock_fd)

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if self._closed:
            raise sqlite3.ProgrammingError("the journal is closed")
        if connection is None:
            connection = self._local.connection = _connect(self.path)
            connection.execute("PRAGMA query_only=1")
            self._readers.append(connection)
        return connection

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._turn:
            if self._closed:
                raise sqlite3.ProgrammingError("the journal is closed")
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)


def _connect(path: Path, busy_ms: int = BUSY_MS) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_ms / 1000)
    with ExitStack() as undo:
        undo.callback(connection.close)
        connection.row_factory = sqlite3.Row
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # later it would do nothing, in a durable transaction
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cache_size=-4096")
        undo.pop_all()
    return connection


def _create(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
        found = dict(connection.execute("SELECT key, value FROM meta").fetchall()).get("schema", "unknown")
        if found != SCHEMA_VERSION:
            raise StoreFailed(
                f"the journal has schema {found}, this version needs {SCHEMA_VERSION}: go back to the version that made"
                " it, or have `scanside recover` make a new one from the spool"
            )
        return
    schema = files("appliance.journal").joinpath("schema.sql").read_text()
    version = f"INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}');"
    connection.executescript(f"BEGIN IMMEDIATE;{schema}{version}COMMIT;")


def _clock(connection: sqlite3.Connection) -> Clock:
    """The clock of this boot: the first process of a boot decides where it goes on from, all others follow."""
    connection.execute("BEGIN IMMEDIATE")
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("boot_id") == boot_id():
        connection.execute("COMMIT")
        return Clock(base_ms=int(meta["boot_base_ms"]))
    last = connection.execute("SELECT tick FROM history ORDER BY id DESC LIMIT 1").fetchone()
    base = max(int(meta.get("last_tick", 0)), last[0] if last else 0) - boot_time_ms()
    for key, value in (("boot_id", boot_id()), ("boot_base_ms", str(base))):
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))
    connection.execute("COMMIT")
    return Clock(base_ms=base)


def _identity(connection: sqlite3.Connection) -> str:
    """A name that this journal has for ever and no other has: by it the spool knows whose files it holds."""
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('journal_id', ?)", (uuid4().hex,))
    row = connection.execute("SELECT value FROM meta WHERE key='journal_id'").fetchone()
    return str(row["value"])


def _is_full(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL


def _translated(error: sqlite3.Error) -> Exception:
    if getattr(error, "sqlite_errorcode", None) is None:
        return error  # a bug of ours (wrong SQL, closed connection): let it show
    if _is_full(error):
        return OutOfResources(f"the journal cannot grow: {error}")
    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OutOfResources(f"another program keeps the journal locked: {error}")
    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE):
        return error
    return StoreFailed(f"the journal failed: {error}")
