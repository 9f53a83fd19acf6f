"""Disk images on the host: made, mounted as a boot would, examined for the file system's own damage."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from power_cuts import RigError

SIZE = 128 << 20
BLOCK = 4096
DETACH_S = 10.0
CLONE_NEWNS = 0x00020000
MS_PRIVATE, MS_REC = 1 << 18, 1 << 14
_LIBC = ctypes.CDLL(None, use_errno=True)


def own_mounts(work: Path) -> None:
    """From now on what this process mounts is seen by nobody else, and is gone when it ends; `work` is in memory.

    In memory because a guest's flush is an fsync of its image here: the cut spares the host's page cache anyway, and a
    disk under it would only make each cut slower. Raises OSError.
    """
    if _LIBC.unshare(CLONE_NEWNS) or _LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        code = ctypes.get_errno()
        raise OSError(code, f"no mount namespace of our own: {os.strerror(code)}")
    _run("mount", "-t", "tmpfs", "tmpfs", str(work))


def make_ext4(path: Path, size: int = SIZE) -> None:
    """A new, empty, sparse image with an ext4 of default options, and blocks as on a large disk."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)
    _run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), str(path))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy what is not a hole."""
    target.unlink(missing_ok=True)
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        os.truncate(target, size)
        at = 0
        while at < size:
            try:
                start = os.lseek(reading.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            at = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            os.lseek(writing.fileno(), start, os.SEEK_SET)
            while start < at:
                start += os.sendfile(writing.fileno(), reading.fileno(), start, at - start)


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """The image mounted: the kernel replays the file system's journal, as it would at the next boot.

    A loop device of our own, detached before the next use of the file: `mount -o loop` may reuse one whose block cache
    is that of an earlier crash point. Only after `own_mounts`. Raises RigError.
    """
    where.mkdir(exist_ok=True)
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        _run("mount", "-t", "ext4", device, str(where))
        try:
            yield where
        finally:
            _run("umount", str(where))
    finally:
        _run("losetup", "--detach", device)


def is_clean(image: Path) -> bool:
    """Whether e2fsck finds nothing to say, once the file-system journal has been replayed."""
    return subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False).returncode == 0


def is_half_full(folder: Path) -> bool:
    usage = shutil.disk_usage(folder)
    return usage.free * 2 < usage.total


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RigError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise RigError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout
