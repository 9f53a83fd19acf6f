"""The spool: what we hold, as plain Part 10 files a technician can copy out by hand.

A file has its final name, a counter, before its first byte; it is written once and never changed. It counts only once
the journal has a row for it: a file without one was never acknowledged and is swept at start. Durable means that the
directory entry is synced, of some files together before they are needed, and then the data. A failed sync is final:
the latch is set, all processes see it, nothing is acknowledged until a start has proved the disk anew (P1).
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.digest import DataSetDigest
from appliance.disk import FOLDER, begin_write_back, make_folder, refusal, sync_folder, wait_for_write_back, write_all
from appliance.errors import OutOfResources, StoreFailed
from appliance.latch import Instant, Latch

FILES_PER_FOLDER = 1000
#: A large object is written back in windows of so many bytes, never more than two of them under way: the sync before
#: its ack is short, and so are those of other associations, which would queue behind all that is under way.
WRITEBACK_EVERY = 1 << 20
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
        """`name`: of a file that is there, empty, its directory entry durable."""
        self.name = name
        self.size = 0
        self._path = folder / name
        self._digest = DataSetDigest()
        self._flushed = self._waited = 0  # bytes that were begun to be written back, and that have been
        self.data_set_offset = len(head)
        self._fd = -1
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            write_all(self._fd, [memoryview(head)])
        except OSError as error:
            if self._fd >= 0:
                self.discard()
            raise refusal(error, f"cannot write {name}") from error

    @property
    def fd(self) -> int:
        """To read back what was written, until `finish` or `discard`."""
        return self._fd

    def check_there(self) -> None:
        """Raises StoreFailed where somebody has removed it meanwhile: there is nothing to acknowledge then."""
        if not os.fstat(self._fd).st_nlink:
            raise StoreFailed(f"{self.name} was removed while it was written")

    @property
    def digest(self) -> bytes:
        """Of the data set so far."""
        return self._digest.digest()

    def write(self, views: Sequence[memoryview]) -> None:
        """Append pieces of the data set. Raises OutOfResources or StoreFailed."""
        try:
            write_all(self._fd, views)
        except OSError as error:
            raise refusal(error, f"cannot write {self.name}") from error
        for view in views:
            self._digest.update(view)
            self.size += len(view)
        if self.size - self._flushed >= WRITEBACK_EVERY:
            self._write_back()

    def _write_back(self) -> None:
        """Begin to write the window that is full, then wait for the one before it."""
        try:
            begin_write_back(self._fd, self._flushed, self.size - self._flushed)
            wait_for_write_back(self._fd, self._waited, self._flushed - self._waited)
        except OSError as error:
            raise StoreFailed(f"cannot write {self.name}: {error.strerror}") from error
        self._waited, self._flushed = self._flushed, self.size

    def seal(self, start: bytes) -> None:
        """Write over the start of the head with what is known only once all data is there. Raises as `write`."""
        try:
            written = os.pwrite(self._fd, start, 0)
        except OSError as error:
            raise refusal(error, f"cannot write {self.name}") from error
        if written != len(start):
            raise StoreFailed(f"cannot write {self.name}: cut short")

    def finish(self) -> None:
        """The data on disk, where its directory entry is already. Raises StoreFailed: final, never retried."""
        try:
            os.fdatasync(self._fd)
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

    def __init__(self, root: Path, area: str, reserve: Reserve, ahead: int = 1) -> None:
        """`ahead`: how many files are made at a time, empty, before they are needed: one sync of their folder."""
        self.root = root
        self._area = area
        self._limits = reserve
        self._reserve_file = root / "reserve"
        self._owner_file = root / "journal-id"
        make_folder(root / area)
        self._latch = Latch(root)
        self.latch_is_safe = self._latch.prepare()  #: it could be set even where the disk takes nothing
        self._latch.restore()
        # Each start begins a new folder: a name is never used twice, not even when all of a folder's files were let go.
        self._next = (_last_folder(root / area) + 1) * FILES_PER_FOLDER
        self._folder = ""  # the newest one that is known to be durable
        self._ahead = ahead
        self._made: deque[str] = deque()

    def path(self, file: str) -> Path:
        return self.root / file

    def begin(self, head: bytes) -> Incoming:
        """Open the next file, its first bytes `head` (preamble and File Meta). One thread at a time."""
        if not self._made:
            self._make_files()
        return Incoming(self.root, self._made.popleft(), head)

    def _affordable(self) -> int:
        """How many files may be made ahead: one that is needed at once, more only out of what the reserve leaves."""
        room = self._room()
        spare = room.f_favail - self._limits.free_inodes if room.f_files else self._ahead
        return max(1, min(self._ahead, spare))

    def _make_files(self) -> None:
        """Make the next files, empty, and their entries durable: each then needs but one sync, of its data."""
        folder = f"{self._area}/{self._next // FILES_PER_FOLDER:06d}"
        if folder != self._folder:
            self._make_folder(folder)
        left = FILES_PER_FOLDER - self._next % FILES_PER_FOLDER
        wanted = min(self._affordable(), left)
        made: list[str] = []
        try:
            while len(made) < wanted:
                name = f"{folder}/{self._next:09d}.dcm"
                self._next += 1
                os.close(os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
                made.append(name)
        except OSError as error:
            if not made:
                raise refusal(error, f"cannot make a file in {folder}") from error
        self._made.extend(made)
        try:
            self._sync(folder)
        except (OutOfResources, StoreFailed):
            self.close()  # their entries may not be durable: none of them is used
            raise

    def close(self) -> None:
        """Take the files away that were made and not needed. One thread at a time, as `begin`."""
        while self._made:
            with suppress(OSError):
                self.path(self._made.popleft()).unlink()

    def _make_folder(self, folder: str) -> None:
        """A new folder is durable before a file in it is."""
        try:
            (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise refusal(error, f"cannot make {folder}") from error
        self._sync(self._area)
        self._folder = folder

    def _sync(self, folder: str) -> None:
        """Raises OutOfResources where it was not begun; a sync that failed is final."""
        try:
            fd = os.open(self.root / folder, FOLDER)
        except OSError as error:
            raise refusal(error, f"cannot sync {folder}") from error
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreFailed(f"cannot sync {folder}: {error.strerror}") from error
        finally:
            os.close(fd)

    def check_room(self) -> None:
        """Raises OutOfResources when something must not be accepted now: latched, or below the reserve (P5).

        Raises StoreFailed when not even that can be told.
        """
        if reason := self.latched():
            raise OutOfResources(f"the store has failed and waits for a restart: {reason}")
        if shortage := self.shortage():
            raise OutOfResources(shortage)

    def shortage(self) -> str:
        """What the reserve lacks, or "". Raises StoreFailed when not even that can be told."""
        room = self._room()
        if room.f_bavail * room.f_frsize < self._limits.free_bytes:
            return f"only {room.f_bavail * room.f_frsize >> 20} MB free, the reserve is more"
        if room.f_files and room.f_favail < self._limits.free_inodes:
            return f"only {room.f_favail} inodes free, the reserve is more"
        return ""

    def check_scratch(self, size: int) -> None:
        """Raises OutOfResources where so many bytes of scratch, beside the spool, would crowd out images (P2, P5).

        Half of what is free above the reserve is for what is received meanwhile. Raises StoreFailed as `shortage`.
        """
        if shortage := self.shortage():
            raise OutOfResources(shortage)
        room = self._room()
        above = room.f_bavail * room.f_frsize - self._limits.free_bytes
        if size > above // 2:
            raise OutOfResources(f"{size >> 20} MB are wanted, half of {above >> 20} MB above the reserve is less")

    def _room(self) -> os.statvfs_result:
        try:
            return os.statvfs(self.root)
        except OSError as error:
            raise StoreFailed(f"cannot see how much room there is: {error.strerror}") from error

    def latch(self, reason: str) -> None:
        """Tell all processes that a write failed, also where the disk takes nothing any more. Never raises."""
        self._latch.set(reason)

    def latched(self) -> str:
        """Why the store is latched, or ""."""
        return self._latch.reason()

    def latched_at(self) -> Instant:
        """Tells a latch from one that is set later. Raises OSError."""
        return self._latch.instant()

    def prove(self, latched_at: Instant) -> None:
        """Write, sync and remove a probe file; then lift the latch, if it is still the one of `latched_at`.

        Raises StoreFailed; so, too, where a process has set another one since: what failed then is not proved.
        """
        probe = self.root / "probe"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                write_all(fd, [memoryview(bytes(4096))])
                os.fsync(fd)
            finally:
                os.close(fd)
            probe.unlink()
            sync_folder(self.root)
            again = not self._latch.lift(latched_at)  # last: a proof that failed half way lifts nothing
        except OSError as error:
            raise StoreFailed(f"the probe write failed: {error.strerror}") from error
        if again:
            raise StoreFailed(f"meanwhile a write failed again: {self.latched()}")

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
        return [file for files in self.walk() for file in files]

    def walk(self) -> Iterator[list[str]]:
        """The files of this area folder by folder, oldest first: there may be millions."""
        area = self.root / self._area
        for folder in sorted(entry.name for entry in os.scandir(area) if entry.is_dir()):
            names = sorted(entry.name for entry in os.scandir(area / folder))
            yield [f"{self._area}/{folder}/{name}" for name in names if name.endswith(".dcm")]

    def tidy(self) -> None:
        """Remove empty folders of this area, not the newest one: the next folder's number follows from it."""
        area = self.root / self._area
        numbers = sorted((entry.name for entry in os.scandir(area) if _FOLDER.fullmatch(entry.name)), key=int)
        for name in numbers[:-1]:
            with suppress(OSError):  # not empty
                (area / name).rmdir()

    def quarantine(self, file: str) -> None:
        """Put a file aside for a person to look at."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        self.path(file).rename(folder / file.replace("/", "-"))

    def has(self, file: str) -> bool:
        """Never raises: what cannot be looked at is not held, and a copy of it that comes is kept."""
        with suppress(OSError):
            return self.path(file).is_file()
        return False

    def remove(self, file: str) -> None:
        self.path(file).unlink(missing_ok=True)


def _last_folder(area: Path) -> int:
    """The highest number of a folder, -1 where there is none. What else lies there is not ours."""
    return max((int(entry.name) for entry in os.scandir(area) if _FOLDER.fullmatch(entry.name)), default=-1)
