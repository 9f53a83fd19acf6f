"""Bytes that must be on the disk: how they get there, and what it means when the system says no.

Knows no spool and no journal. A folder is synced through a descriptor of its own; whoever syncs, judges the error:
a failed sync is final (P1), whatever its number says.
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import OutOfResources, StoreFailed

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: What passes by itself: a full disk, quota or table, no memory.
SHORTAGE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_WRITE, _WAIT_FOR = 2, 4 | 1  # sync_file_range(2): begin to write; wait for what is under way
_LIBC = ctypes.CDLL(None, use_errno=True)
_IOV_MAX = 1024


def refusal(error: OSError, what: str) -> OutOfResources | StoreFailed:
    """A shortage passes; anything else means that the store cannot be trusted. Not for a sync that failed."""
    kind = OutOfResources if error.errno in SHORTAGE else StoreFailed
    return kind(f"{what}: {error.strerror}")


def write_all(fd: int, views: Sequence[memoryview]) -> None:
    rest = [view for view in views if len(view)]
    while rest:
        written = os.writev(fd, rest[:_IOV_MAX])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def begin_write_back(fd: int, start: int, size: int) -> None:
    _sync_range(fd, start, size, _WRITE)


def wait_for_write_back(fd: int, start: int, size: int) -> None:
    """Raises OSError where it failed: the sync of this descriptor would not tell it again."""
    _sync_range(fd, start, size, _WAIT_FOR)


def _sync_range(fd: int, start: int, size: int, flags: int) -> None:
    """See sync_file_range(2); no bytes would mean "to the end of the file"."""
    if size and _LIBC.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(size), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        if code != errno.ENOSYS:
            raise OSError(code, os.strerror(code))


def forget_pages(file: Path) -> None:
    """Have the next read come from the disk. Raises OSError where what memory has cannot even be written now."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # pages that are still to be written are not forgotten
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
