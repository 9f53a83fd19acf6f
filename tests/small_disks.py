"""File systems of a few megabytes, for tests that fill them. They need root; with CI set they fail without."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.missing import missing

MB = 1 << 20


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def needs_root() -> None:
    if os.geteuid() != 0:
        missing("small disks are mounted by root")


@contextmanager
def ext4(folder: Path, mib: int) -> Iterator[None]:
    """`folder` is an ext4 of its own, on a file beside it."""
    needs_root()
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(folder.name + ".img")
    with image.open("wb") as file:
        file.truncate(mib * MB)
    run("mkfs.ext4", "-q", "-F", image)
    loop = run("losetup", "--find", "--show", image)
    try:
        with _mounted(folder, "-t", "ext4", loop):
            yield
    finally:
        run("losetup", "--detach", loop)
        image.unlink()


@contextmanager
def memory(folder: Path, mib: int, inodes: int) -> Iterator[None]:
    """`folder` is a tmpfs with so many inodes."""
    needs_root()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes={inodes}", "none"):
        yield


@contextmanager
def _mounted(folder: Path, *what: object) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", *what, folder)
    try:
        yield
    finally:
        run("umount", folder)


def free(folder: Path) -> tuple[int, int]:
    """Bytes and inodes that others than root may still use."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize, room.f_favail
