"""Opening the journal, and its transactions.

Writers of all processes queue on one flock, which wakes the next at once; SQLite's own busy handler would poll. Who
dies holding it lets go. Checkpoints never run inside a commit: `checkpoint` is called by the maintenance thread.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal.clock import Clock, boot_id, boot_time_ms

SCHEMA_VERSION = "1"
BUSY_MS = 10_000


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
        self.sql = connection.execute
        self.tick = clock.tick()
        self.at = clock.utc()
        self.clock_implausible = clock.implausible()
        self._process = process

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
                json.dumps(detail, separators=(",", ":")),
            ),
        )


class Journal:
    """One process's way to the journal. Threads may share it: writes take turns, each thread reads for itself."""

    def __init__(self, path: Path, process: str, *, on_full: Callable[[], bool] = lambda: False) -> None:
        """Open, and create if it is not there. `on_full` frees the reserve and says whether it did."""
        self.path = path
        self.process = process
        self._on_full = on_full
        self._turn = threading.Lock()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock_fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._exclusive():
            self._writer = _connect(path)
            _create(self._writer)
            self.clock = _clock(self._writer)

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Transaction]:
        """One transaction; on return it is committed, and with `durable` it is on disk.

        Raises OutOfResources when the disk is full even without the reserve, StoreFailed when writing failed: then
        nothing of it is to be trusted and the process must latch and end (P1).
        """
        with self._exclusive():
            self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield Transaction(self._writer, self.process, self.clock)
                self._commit()
            except sqlite3.Error as error:
                raise _translated(error) from error
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if not _is_full(error) or not self._writer.in_transaction or not self._on_full():
                raise
            self._writer.execute("COMMIT")

    def query(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """All rows of a read; the read transaction ends with it. Bound every query by LIMIT or an index."""
        try:
            return self._reader().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def one(self, sql: str, *parameters: Any) -> sqlite3.Row | None:
        rows = self.query(sql, *parameters)
        return rows[0] if rows else None

    def checkpoint(self, *, truncate: bool = False) -> int:
        """Move the WAL into the database; returns the WAL's bytes after it. Raises StoreFailed."""
        try:
            with closing(_connect(self.path)) as connection:
                connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})").fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error
        return self.wal_bytes()

    def wal_bytes(self) -> int:
        wal = self.path.with_name(self.path.name + "-wal")
        return wal.stat().st_size if wal.exists() else 0

    def close(self) -> None:
        with self._exclusive():
            self._writer.close()
            for connection in self._readers:
                connection.close()
        os.close(self._lock_fd)

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _connect(self.path)
            connection.execute("PRAGMA query_only=1")
            self._readers.append(connection)
        return connection

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._turn:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect only before the first table
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=-4096")
    return connection


def _create(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
        found = connection.execute("SELECT value FROM meta WHERE key='schema'").fetchone()[0]
        if found != SCHEMA_VERSION:
            raise StoreFailed(f"the journal has schema {found}, this version needs {SCHEMA_VERSION}")
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


def _is_full(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL


def _translated(error: sqlite3.Error) -> Exception:
    if getattr(error, "sqlite_errorcode", None) is None:
        return error  # a bug of ours (wrong SQL, closed connection): let it show
    if _is_full(error):
        return OutOfResources(f"the journal cannot grow: {error}")
    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE):
        return error
    return StoreFailed(f"the journal failed: {error}")
