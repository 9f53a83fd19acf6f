"""What a cut left of the store, held against the ledger: once as found, and again after our own start-up."""

import hashlib
import os
import shutil
import signal
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from appliance.config import Config
from appliance.digest import digest_of
from appliance.dimse.header import part10
from appliance.life import Life
from appliance.wiring import receive
from power_cuts.ledger import Ledger

START_S = 60
LATCH = "the power-cut rig wants a start that proves the disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong; SOP Instance UIDs, and of what is half-visible the files."""

    lost: frozenset[str] = frozenset()  #: acknowledged, and no row or no file
    torn: frozenset[str] = frozenset()  #: acknowledged, and other bytes
    half_visible: frozenset[str] = frozenset()  #: a row without its whole file; after the sweep, a file without a row
    sound: bool = True  #: SQLite's integrity_check

    def __or__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            lost=self.lost | other.lost,
            torn=self.torn | other.torn,
            half_visible=self.half_visible | other.half_visible,
            sound=self.sound and other.sound,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    """Of a data set in a file, in hex; both empty where there is no file, "torn" where it is not even a beginning."""

    sent: str  #: SHA-256, as the ledger has it: none of the product's code took that
    known: str  #: as the journal has it


@dataclass(frozen=True, slots=True)
class _Row:
    sop_instance_uid: str
    digest: str
    file: str


def examine(config: Config, ledger: Ledger, scratch: Path, *, swept: bool = False) -> Verdict:
    """Hold each promise against journal and spool. Reads alone: the journal is looked at in a copy."""
    try:
        rows, sound = _rows(config.journal_path, scratch)
    except sqlite3.DatabaseError:
        return Verdict(lost=frozenset(ledger), sound=False)
    found = {row.file: _bytes(config.spool_dir / row.file) for row in rows}
    held = {row.sop_instance_uid: row for row in rows}
    lost = {uid for uid in ledger if uid not in held or not found[held[uid].file].sent}
    right = {uid: _Bytes(sent=ledger[uid], known=held[uid].digest) for uid in ledger.keys() - lost}
    torn = {uid for uid, content in right.items() if found[held[uid].file] != content}
    half = {row.file for row in rows if row.digest != found[row.file].known and row.sop_instance_uid not in ledger}
    if swept:
        half |= {file for file in _files(config.spool_dir) if file not in found}
    return Verdict(lost=frozenset(lost), torn=frozenset(torn), half_visible=frozenset(half), sound=sound)


def _rows(journal: Path, scratch: Path) -> tuple[list[_Row], bool]:
    """Instances with their files, and whether the database is whole. Raises sqlite3.DatabaseError."""
    if not journal.exists():
        return [], True
    copy = scratch / "journal.sqlite"
    for suffix in ("", "-wal"):
        source, target = Path(f"{journal}{suffix}"), Path(f"{copy}{suffix}")
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)
    with closing(sqlite3.connect(copy)) as db:
        sound = db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name='copy'").fetchone():
            return [], sound
        found = db.execute(
            "SELECT i.sop_instance_uid, hex(i.digest), c.file FROM instance i JOIN copy c ON c.instance=i.id"
        ).fetchall()
    return [_Row(uid, digest.lower(), file) for uid, digest, file in found], sound


def _bytes(path: Path) -> _Bytes:
    try:
        offset = part10(path).data_set_offset
    except FileNotFoundError:
        return _Bytes(sent="", known="")
    except ValueError:
        return _Bytes(sent="torn", known="torn")
    data = path.read_bytes()[offset:]
    return _Bytes(sent=hashlib.sha256(data).hexdigest(), known=digest_of(data).hex())


def _files(spool: Path) -> Iterator[str]:
    """All files of the receive process's area, whatever they are called."""
    for path in (spool / "received").rglob("*"):
        if path.is_file():
            yield str(path.relative_to(spool))


class _OneStart(Life):
    """A life that ends as soon as the start-up is done: the process then stops in order."""

    def ready(self) -> None:
        self.stopping.set()


def start_up(config: Config, log: Path, *, latched: bool = False) -> bool:
    """Run the product's own start on this store, in a process; with `latched` the one that first proves the disk.

    Returns whether it ended well. Sweep, then with `latched` checkpoint and proof too.
    """
    if latched:
        (config.spool_dir / "latched").write_text(LATCH)
    pid = os.fork()
    if pid == 0:
        os._exit(_start(config, log))
    ended_well = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return ended_well and not (config.spool_dir / "latched").exists()


def _start(config: Config, log: Path) -> int:
    signal.alarm(START_S)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    try:
        return receive.run(config, _OneStart())
    except BaseException:  # a forked process must not go on as its parent
        os.write(2, traceback.format_exc().encode())
        return 1
