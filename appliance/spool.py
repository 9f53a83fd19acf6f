"""The spool: what we hold, as plain Part 10 files a technician can copy out by hand.

A file has its final name, a counter, from its first byte; it is written once and never changed. It counts only once
the journal has a row for it: a file without one was never acknowledged and is swept at start. Durable means data
synced, then the directory entry. A failed sync is final: the latch is set, all processes see it, nothing is
acknowledged until a start has proved the disk anew (P1).
"""

import ctypes
import errno
import hashlib
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import OutOfResources, StoreFailed

FILES_PER_FOLDER = 1000
#: Start writing back after so many bytes, so that the sync before the ack of a large object is short.
WRITEBACK_EVERY = 8 << 20
IMPLEMENTATION_CLASS_UID = "2.25.302853816487043146853287641352719014021"
IMPLEMENTATION_VERSION = "SCANSIDE_010"
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
_IOV_MAX = 1024
_FOLDER = re.compile(r"[0-9]{6,}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Below this much free space nothing is accepted; `journal_bytes` is kept back in a file for the journal."""

    free_bytes: int
    free_inodes: int
    journal_bytes: int


class Incoming:
    """One file while it is written. `finish` makes it durable; `discard` forgets it."""

    def __init__(self, folder: Path, name: str, head: bytes) -> None:
        self.name = name
        self.size = 0
        self._path = folder / name
        self._digest = hashlib.sha256()
        self._flushed = 0
        self.data_set_offset = len(head)
        self._fd = -1
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            _write_all(self._fd, [memoryview(head)])
        except OSError as error:
            if self._fd >= 0:
                self.discard()
            raise _refusal(error, f"cannot write {name}") from error

    @property
    def path(self) -> Path:
        return self._path

    @property
    def digest(self) -> bytes:
        """SHA-256 of the data set so far."""
        return self._digest.digest()

    def write(self, views: Sequence[memoryview]) -> None:
        """Append pieces of the data set. Raises OutOfResources or StoreFailed."""
        try:
            _write_all(self._fd, views)
        except OSError as error:
            raise _refusal(error, f"cannot write {self.name}") from error
        for view in views:
            self._digest.update(view)
            self.size += len(view)
        if self.size - self._flushed >= WRITEBACK_EVERY:
            _LIBC.sync_file_range(
                self._fd,
                ctypes.c_int64(self._flushed),
                ctypes.c_int64(self.size - self._flushed),
                _SYNC_FILE_RANGE_WRITE,
            )
            self._flushed = self.size

    def finish(self) -> None:
        """Data, then directory entry, on disk. Raises StoreFailed: final, never retried."""
        try:
            os.fdatasync(self._fd)
            sync_folder(self._path.parent)
        except OSError as error:
            raise StoreFailed(f"cannot sync {self.name}: {error.strerror}") from error
        finally:
            self._close()

    def discard(self) -> None:
        """Never raises: what cannot be removed now has no row and is swept at start."""
        self._close()
        with suppress(OSError):
            self._path.unlink()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Spool:
    """One writer's area of the spool (`area` keeps two writing processes from meeting in one counter)."""

    def __init__(self, root: Path, area: str, reserve: Reserve) -> None:
        self.root = root
        self._area = area
        self._limits = reserve
        self._latch = root / "latched"
        self._reserve_file = root / "reserve"
        self._owner_file = root / "journal-id"
        _make_folder(root / area)
        # Each start begins a new folder: a name is never used twice, not even when all of a folder's files were let go.
        self._next = (_last_folder(root / area) + 1) * FILES_PER_FOLDER
        self._folder = ""  # the newest one that is known to be durable

    def path(self, file: str) -> Path:
        return self.root / file

    def begin(self, head: bytes) -> Incoming:
        """Open the next file, its first bytes `head` (preamble and File Meta). One thread at a time."""
        number = self._next
        self._next += 1
        folder = f"{self._area}/{number // FILES_PER_FOLDER:06d}"
        if folder != self._folder:
            try:
                (self.root / folder).mkdir(exist_ok=True)
                sync_folder(self.root / self._area)
            except OSError as error:
                raise _refusal(error, f"cannot make {folder}") from error
            self._folder = folder
        return Incoming(self.root, f"{folder}/{number:09d}.dcm", head)

    def check_room(self) -> None:
        """Raises OutOfResources when something must not be accepted now: latched, or below the reserve (P5).

        Raises StoreFailed when not even that can be told.
        """
        if reason := self.latched():
            raise OutOfResources(f"the store has failed and waits for a restart: {reason}")
        room = self._room()
        if room.f_bavail * room.f_frsize < self._limits.free_bytes:
            raise OutOfResources(f"only {room.f_bavail * room.f_frsize >> 20} MB free, the reserve is more")
        if room.f_files and room.f_favail < self._limits.free_inodes:
            raise OutOfResources(f"only {room.f_favail} inodes free, the reserve is more")

    def _room(self) -> os.statvfs_result:
        try:
            return os.statvfs(self.root)
        except OSError as error:
            raise StoreFailed(f"cannot see how much room there is: {error.strerror}") from error

    def latch(self, reason: str) -> None:
        """Tell all processes that a write failed. Best effort: the disk may take nothing any more."""
        try:
            self._latch.write_text(reason)
        except OSError:
            return

    def latched(self) -> str:
        """Why the store is latched, or ""."""
        try:
            return self._latch.read_text() or "unknown"
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"the spool cannot be read: {error.strerror}"

    def prove(self) -> None:
        """Write, sync and remove a probe file; then lift the latch. Raises StoreFailed."""
        probe = self.root / "probe"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                _write_all(fd, [memoryview(bytes(4096))])
                os.fsync(fd)
            finally:
                os.close(fd)
            probe.unlink()
            sync_folder(self.root)
            self._latch.unlink(missing_ok=True)  # last: a proof that failed half way must not lift it
        except OSError as error:
            raise StoreFailed(f"the probe write failed: {error.strerror}") from error

    def keep_reserve(self) -> None:
        """Hold back space for the journal, unless that would take what must stay free. To be called now and then."""
        wanted = self._limits.journal_bytes
        room = self._room()
        if room.f_bavail * room.f_frsize < self._limits.free_bytes + wanted:
            return
        try:
            with self._reserve_file.open("ab") as file:
                if os.fstat(file.fileno()).st_size < wanted:
                    os.posix_fallocate(file.fileno(), 0, wanted)
        except OSError:
            self.free_reserve()

    def free_reserve(self) -> bool:
        """Give the space back so that the journal can write its last transitions; says whether there was any."""
        try:
            self._reserve_file.unlink()
        except OSError:
            return False
        return True

    def owner(self) -> str:
        """The identity of the journal that knows these files; "" for a spool that is nobody's yet. Raises OSError."""
        try:
            return self._owner_file.read_text().strip()
        except FileNotFoundError:
            return ""

    def own(self, identity: str) -> None:
        """From now on these files are known to the journal of this identity, durably. Raises OSError."""
        temporary = self._owner_file.with_suffix(f".{os.getpid()}")
        with temporary.open("w") as file:
            file.write(identity)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._owner_file)
        sync_folder(self.root)

    def is_empty(self) -> bool:
        """Whether no area holds any file."""
        return next(self.root.glob("*/*/*.dcm"), None) is None

    def files(self) -> list[str]:
        """All files of this area, oldest first."""
        area = self.root / self._area
        folders = sorted(entry.name for entry in os.scandir(area) if entry.is_dir())
        return [
            f"{self._area}/{folder}/{name}"
            for folder in folders
            for name in sorted(os.listdir(area / folder))
            if name.endswith(".dcm")
        ]

    def quarantine(self, file: str) -> None:
        """Put a file aside for a person to look at."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        self.path(file).rename(folder / file.replace("/", "-"))

    def has(self, file: str) -> bool:
        return self.path(file).is_file()

    def remove(self, file: str) -> None:
        self.path(file).unlink(missing_ok=True)


def file_head(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str, private: bytes = b""
) -> bytes:
    """Preamble and File Meta (PS3.10 7.1). The preamble is zero: nothing a peer sent can be executed from it.

    `private` is for our own eyes (0002,0102): what `recover` must know of a result. File Meta is never sent.
    """
    elements = [
        _element(0x0001, b"OB", b"\x00\x01"),
        _element(0x0002, b"UI", _uid(sop_class_uid)),
        _element(0x0003, b"UI", _uid(sop_instance_uid)),
        _element(0x0010, b"UI", _uid(transfer_syntax_uid)),
        _element(0x0012, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
        _element(0x0013, b"SH", _even(IMPLEMENTATION_VERSION.encode(), b" ")),
        _element(0x0016, b"AE", _even(calling_ae.encode("ascii", "replace"), b" ")),
    ]
    if private:
        elements += [
            _element(0x0100, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
            _element(0x0102, b"OB", _even(private, b" ")),
        ]
    group = b"".join(elements)
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(group))) + group


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """What `file_head` wrote that is nowhere in the data set."""

    calling_ae: str
    private: bytes


def read_file_head(path: Path) -> FileHead:
    """Raises ValueError where the file does not begin as `file_head` writes it."""
    with path.open("rb") as file:
        head = file.read(144)
        if len(head) < 144 or head[128:132] != b"DICM":
            raise ValueError("not a file of the spool")
        group = file.read(min(struct.unpack_from("<I", head, 140)[0], 1 << 16))
    values: dict[int, bytes] = {}
    at = 0
    while at + 8 <= len(group):
        number, vr = struct.unpack_from("<2xH2s", group, at)
        at, length = (at + 12, "<I") if vr == b"OB" else (at + 8, "<H")
        size = struct.unpack_from(length, group, at - struct.calcsize(length))[0]
        values[number] = group[at : at + size].rstrip(b" \0")
        at += size
    return FileHead(calling_ae=values.get(0x0016, b"").decode("ascii", "replace"), private=values.get(0x0102, b""))


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def _uid(text: str) -> bytes:
    return _even(text.encode("ascii"), b"\0")


def _even(value: bytes, pad: bytes) -> bytes:
    return value + pad * (len(value) % 2)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, views: Sequence[memoryview]) -> None:
    rest = [view for view in views if len(view)]
    while rest:
        written = os.writev(fd, rest[:_IOV_MAX])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _last_folder(area: Path) -> int:
    """The highest number of a folder, -1 where there is none. What else lies there is not ours."""
    return max((int(entry.name) for entry in os.scandir(area) if _FOLDER.fullmatch(entry.name)), default=-1)


def _refusal(error: OSError, what: str) -> OutOfResources | StoreFailed:
    """A full disk, quota or table is a shortage and passes; anything else means that the store cannot be trusted."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return OutOfResources(f"{what}: {error.strerror}")
    return StoreFailed(f"{what}: {error.strerror}")
