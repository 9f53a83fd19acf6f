"""Arrays in memory files that have no name, so that none can be left behind (memfd_create(2)).

Neither side can shrink one under the other's feet, and this side never maps one: it reads and writes, so that a
shortage is an OSError here and not a SIGBUS.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from appliance.ports import Array
from appliance.runtimes.child import ALIGNMENT

_MAX_WRITE = 1 << 30


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of so many bytes go, aligned, one behind the other; and the size of it all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


@contextmanager
def memory_file(size: int) -> Iterator[int]:
    """A descriptor of a memory file of fixed size, zeroed; closed at the end."""
    fd = os.memfd_create("scanside", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, max(size, 1))  # nothing cannot be mapped
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield fd
    finally:
        os.close(fd)


def write_array(fd: int, offset: int, array: Array) -> None:
    octets = _octets(np.ascontiguousarray(array))
    done = 0
    while done < octets.size:
        done += os.pwrite(fd, octets[done : done + _MAX_WRITE].data, offset + done)


def read_array(fd: int, offset: int, dtype: str, shape: Sequence[int]) -> Array:
    array: Array = np.empty(shape, dtype)
    octets = _octets(array)
    done = 0
    while done < octets.size:
        done += os.preadv(fd, [octets[done : done + _MAX_WRITE].data], offset + done)
    return array


def _octets(array: Array) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
