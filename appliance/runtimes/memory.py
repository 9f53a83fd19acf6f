"""Arrays in memory files that have no name, so that none can be left behind (memfd_create(2)).

Neither side can shrink one under the other's feet, and this side never maps one: it reads and writes, so that a
shortage is an OSError here and not a SIGBUS.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from appliance.ports import Array
from appliance.runtimes.child import ALIGNMENT, MAX_WRITE, octets, write_array

__all__ = ["layout", "memory_file", "open_memory", "read_array", "write_array", "write_nothing"]

_NOTHING = memoryview(b"\xff" * (1 << 16))  # as floats of any size: NaN


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of so many bytes go, aligned, one behind the other; and the size of it all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def open_memory(size: int) -> int:
    """A descriptor of a memory file of fixed size, zeroed; to be closed. Raises OSError."""
    fd = os.memfd_create("scanside", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, max(size, 1))  # nothing cannot be mapped
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def memory_file(size: int) -> Iterator[int]:
    """As `open_memory`; closed at the end."""
    fd = open_memory(size)
    try:
        yield fd
    finally:
        os.close(fd)


def write_nothing(fd: int, room: range) -> None:
    offset = room.start
    while offset < room.stop:
        offset += os.pwrite(fd, _NOTHING[: room.stop - offset], offset)


def read_array(fd: int, offset: int, dtype: str, shape: Sequence[int]) -> Array:
    array: Array = np.empty(shape, dtype)
    done = os.preadv(fd, [array.data], offset) if array.nbytes <= MAX_WRITE else 0
    while done < array.nbytes:
        done += os.preadv(fd, [octets(array)[done : done + MAX_WRITE].data], offset + done)
    return array
