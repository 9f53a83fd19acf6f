"""The latch: a write or sync has failed, which all processes must see until a start has proved the disk anew (P1).

It is a file in the spool. Where the disk takes nothing any more, not even that (it may be read-only by then, or hang),
a mark in memory says the same, set first. What may not be believed after a failed sync are pages that memory has and
the disk has not; they do not outlive a boot, and the mark need not. In a container it must outlive the container: share
the host's /dev/shm with it, or mount a tmpfs of the host there.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory (shm_overview(7)); we use a folder of our own in it
LONGEST_REASON = 300

_Found = tuple[int, int] | None  # inode and time; None: not set
Instant = tuple[_Found, _Found]  #: of the file, and of the mark in memory


class Latch:
    """The latch of one spool. Used by many processes and threads."""

    def __init__(self, root: Path, memory: Path = MEMORY) -> None:
        """Raises OSError where there is no such folder."""
        found = root.stat()
        self._owner = found.st_uid
        self._folder = memory / f"scanside-{found.st_uid}"
        name = f"{found.st_dev:x}-{found.st_ino:x}"  # whatever path it is known by
        self._file, self._mark = root / "latched", self._folder / f"{name}-latched"
        self._lifted = (root / "lifted", self._folder / f"{name}-lifted")
        self._place = str(self._file)
        self._others = [str(path) for path in (self._mark, *self._lifted)]

    def prepare(self) -> bool:
        """Make the folder for the mark, which nobody else may write into. False: there can be no mark."""
        with suppress(OSError):
            self._folder.mkdir(mode=0o700)
            if os.geteuid() != self._owner:
                os.chown(self._folder, self._owner, -1)
        return self._is_ours()

    def _is_ours(self) -> bool:
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == self._owner and not found.st_mode & 0o077

    def _pairs(self) -> list[tuple[Path, Path]]:
        """Latch, and what it is moved to before it is lifted; in memory only where that is ours alone."""
        pairs = list(zip((self._file, self._mark), self._lifted, strict=True))
        return pairs if self._is_ours() else pairs[:1]

    def restore(self) -> None:
        """Who lifted it may have died before it was sure: then it must be proved again. Raises OSError."""
        for latch, lifted in self._pairs():
            if not os.path.lexists(latch):
                with suppress(FileNotFoundError):
                    lifted.rename(latch)

    def set(self, reason: str) -> None:
        """Best effort, never raises: whoever sets it ends in any case.

        In memory first, since a disk may hang instead of failing; where the file is there, it is enough.
        """
        words = " ".join(reason.split()).encode("ascii", "backslashreplace").decode()[:LONGEST_REASON] or "unknown"
        if self.prepare():
            self._remember(words)
        with suppress(OSError):
            self._file.write_text(words)
            self._mark.unlink(missing_ok=True)

    def _remember(self, reason: str) -> None:
        """As a link that leads nowhere: made at once, whole, and without a descriptor, of which there may be none."""
        fresh = self._mark.with_name(f"{self._mark.name}.{os.getpid()}")
        with suppress(OSError, ValueError):
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(reason)
            fresh.replace(self._mark)

    def reason(self) -> str:
        """Why it is set, or "". Asked for each image: four names that are not there are all it takes then."""
        try:
            if _found(self._place):
                return self._file.read_text(errors="replace") or "unknown"
        except FileNotFoundError:
            pass  # lifted in between
        except OSError as error:
            return f"the spool cannot be read: {error.strerror}"
        if any(os.access(path, os.F_OK, follow_symlinks=False) for path in self._others):
            return self._remembered() or self._being_lifted()
        return ""

    def _being_lifted(self) -> str:
        """Between two renames a later latch may be out of sight."""
        return "it is being lifted" if any(os.path.lexists(lifted) for _, lifted in self._pairs()) else ""

    def _remembered(self) -> str:
        try:
            return str(self._mark.readlink()) if self._is_ours() else ""
        except OSError:
            return ""

    def instant(self) -> Instant:
        """Tells a latch from one that is set later. Raises OSError."""
        return _found(self._file), _found(self._mark) if self._remembered() else None

    def lift(self, instant: Instant) -> bool:
        """False: it is another latch than that of this instant. Raises OSError."""
        for (latch, lifted), then in zip(self._pairs(), instant, strict=False):
            if then and not _lift(latch, lifted, then):
                return False
        return not self.reason()


def latched(root: Path) -> str:
    """Why the spool at `root` is latched, or ""; one that is not there is not."""
    try:
        return Latch(root).reason()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"the spool cannot be read: {error.strerror}"


def _found(latch: Path | str) -> _Found:
    """A mark is a new link each time; a file that is written over has another time, in steps of some milliseconds."""
    try:
        found = os.lstat(latch)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _lift(latch: Path, lifted: Path, then: _Found) -> bool:
    """Moved away first: one that is set from then on is a new file, and stays."""
    try:
        latch.rename(lifted)
    except FileNotFoundError:  # a person was quicker
        return True
    if _found(lifted) != then:
        lifted.rename(latch)
        return False
    lifted.unlink()
    return True
