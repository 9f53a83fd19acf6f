"""The memory through which the arrays of a run go to a child, and those that it makes come back.

To make one, map it and let it go takes longer than the network of a small engine. So one of moderate size stays, for
runs on arrays of the same kinds: the patches of a scan, the next film. What was checked of the one run holds for the
next: the kinds of the inputs, and where the outputs are. No other child is given it.
"""

import os
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from appliance.errors import RuntimeFailed
from appliance.model import Reason
from appliance.ports import Array
from appliance.runtimes.channel import ArraySpec
from appliance.runtimes.memory import layout, open_memory, read_array, write_array, write_nothing

LASTING_BYTES = 16 << 20  # with more the network takes so much longer that it does not matter, and others may need it

Kinds = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]  #: name, dtype and shape of each array
Place = tuple[str, int, str, tuple[int, ...]]  #: name, offset, dtype and shape of an array


def kinds_of(arrays: Mapping[str, Array]) -> Kinds:
    return tuple((name, array.dtype, array.shape) for name, array in arrays.items())


def places_of(specs: Sequence[ArraySpec], offsets: Sequence[int], room: range) -> list[Place]:
    """Raises RuntimeFailed where one would not lie within these bytes."""
    if len(offsets) != len(specs) or any(
        at < room.start or at + s.size > room.stop for s, at in zip(specs, offsets, strict=True)
    ):
        raise RuntimeFailed(Reason.ENGINE_FAILED, "the outputs are not where they should be")
    return [(s.name, at, s.dtype, s.shape) for s, at in zip(specs, offsets, strict=True)]


def read_places(fd: int, places: Sequence[Place]) -> dict[str, Array]:
    """Copies, out of the child's reach. Raises OSError, MemoryError, RuntimeFailed."""
    try:
        return {name: read_array(fd, at, dtype, shape) for name, at, dtype, shape in places}
    except ValueError as error:  # a length of 0 makes the size 0, however large the others are
        raise RuntimeFailed(Reason.ENGINE_FAILED, f"the outputs have no shape of an array: {error}") from error


class Passage:
    """Whoever makes one calls `close` in the end."""

    def __init__(self, kinds: Kinds, room: int) -> None:
        """`kinds`: of the inputs; `room`: bytes for outputs. Raises OSError."""
        self.kinds = kinds
        self._offsets, end = layout([prod(shape) * dtype.itemsize for _, dtype, shape in kinds])
        self.room = range(end, end + room)
        self.lasts = end + room <= LASTING_BYTES
        self.outputs: list[Place] = []  #: where the last run left them
        self._file = os.fdopen(open_memory(end + room), "r+b", buffering=0)

    @property
    def fd(self) -> int:
        """Raises RuntimeFailed once it is closed, as by another thread at the end: the number may be another file's."""
        try:
            return self._file.fileno()
        except ValueError as error:
            raise RuntimeFailed(Reason.ENGINE_FAILED, "the memory to pass arrays through is closed") from error

    def fill(self, inputs: Mapping[str, Array]) -> None:
        """With arrays of the same kinds. Nothing is left of the last outputs, which may be another patient's: a child
        that says it ran and did not leaves values that are no numbers.
        """
        write_nothing(self.fd, self.room)
        for array, offset in zip(inputs.values(), self._offsets, strict=True):
            write_array(self.fd, offset, array)

    def request(self, deadline_s: float) -> dict[str, Any]:
        """What comes with it the first time; after that it is `again`."""
        inputs = [
            {"name": name, "dtype": dtype.name, "shape": shape, "offset": offset}
            for (name, dtype, shape), offset in zip(self.kinds, self._offsets, strict=True)
        ]
        room = [self.room.start, len(self.room)]
        return {"do": "infer", "inputs": inputs, "room": room, "keep": self.lasts, "deadline_s": deadline_s}

    def close(self) -> None:
        self._file.close()
