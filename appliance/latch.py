"""The latch: a write or sync has failed, which all processes must see until a start has proved the disk anew (P1).

It is a file in the spool. Where the disk takes nothing any more, not even that (it may be read-only by then), a mark
in memory says the same. That is as much as is needed: what may not be believed after a failed sync are pages that
memory has and the disk has not, and neither they nor the mark outlive a boot.
"""

import os
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory (shm_overview(7)); whose mark it is, is looked at
LONGEST_REASON = 300

_Found = tuple[int, int] | None  # inode and time; None: not set
Instant = tuple[_Found, _Found]  #: of the file, and of the mark in memory


class Latch:
    """The latch of one spool. Used by many processes and threads."""

    def __init__(self, root: Path, memory: Path = MEMORY) -> None:
        """Raises OSError where there is no such folder."""
        found = root.stat()
        self._trusted = frozenset({found.st_uid, 0})
        name = f"scanside-{found.st_dev:x}-{found.st_ino:x}"  # whatever path it is known by
        self._file, self._mark = root / "latched", memory / f"{name}-latched"
        self._lifted = (root / "lifted", memory / f"{name}-lifted")

    def restore(self) -> None:
        """Who lifted it may have died before it was sure: then it must be proved again. Raises OSError."""
        for latch, lifted in zip((self._file, self._mark), self._lifted, strict=True):
            if not os.path.lexists(latch):
                with suppress(FileNotFoundError):
                    lifted.rename(latch)

    def set(self, reason: str) -> None:
        """Best effort, never raises: whoever sets it ends in any case."""
        try:
            self._file.write_text(reason)
        except OSError:
            self._remember(" ".join(reason.split())[:LONGEST_REASON] or "unknown")

    def _remember(self, reason: str) -> None:
        """As a link that leads nowhere: made at once, whole, and without a descriptor, of which there may be none."""
        fresh = self._mark.with_name(f"{self._mark.name}.{os.getpid()}")
        with suppress(OSError, ValueError):
            fresh.symlink_to(reason)
            fresh.replace(self._mark)

    def reason(self) -> str:
        """Why it is set, or ""."""
        try:
            return self._file.read_text() or "unknown"
        except FileNotFoundError:
            return self._remembered()
        except OSError as error:
            return f"the spool cannot be read: {error.strerror}"

    def _remembered(self) -> str:
        try:  # anybody may write into that folder, so that whose it is matters
            return str(self._mark.readlink()) if self._mark.lstat().st_uid in self._trusted else ""
        except OSError:
            return ""

    def instant(self) -> Instant:
        """Tells a latch from one that is set later. Raises OSError."""
        return _found(self._file), _found(self._mark) if self._remembered() else None

    def lift(self, instant: Instant) -> bool:
        """False: it is another latch than that of this instant. Raises OSError."""
        for latch, lifted, then in zip((self._file, self._mark), self._lifted, instant, strict=True):
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


def _found(latch: Path) -> _Found:
    """A mark is a new link each time; a file that is written over has another time, in steps of some milliseconds."""
    try:
        found = latch.lstat()
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
