"""A stack of slices as one volume in Hounsfield units, on disk and mapped, read slice by slice."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from appliance.errors import CannotAnalyse
from appliance.imaging.geometry import Stack
from appliance.imaging.reading import IN_PROCESS, ImageReader, unwritable
from appliance.model import Reason

MAX_VOXELS = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """`hu` is int16 (slices, rows, columns), mapped from a file of the work folder; slices run along the normal."""

    hu: NDArray[np.int16]
    stack: Stack

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Spacing between slices, rows and columns."""
        return (self.stack.spacing, *self.stack.slices[0].plane.pixel_spacing)


def unlimited(size: int) -> None:
    """A `check_room` that lets everything be written."""


def build(
    stack: Stack,
    workdir: Path,
    check_room: Callable[[int], None] = unlimited,
    reader: ImageReader = IN_PROCESS,
) -> Volume:
    """Read every slice once, into `workdir`/volume.int16; before that `check_room` is asked about its bytes.

    Raises CannotAnalyse(UNDECODABLE), CannotAnalyse(NO_ROOM), RuntimeFailed(ENGINE_FAILED), and what `check_room` does.
    """
    layout = stack.slices[0].header.layout
    shape = (len(stack.slices), layout.rows, layout.columns)
    if any(item.header.modality == "CT" and not item.plane.rescaled for item in stack.slices):
        raise CannotAnalyse(Reason.UNDECODABLE, "a slice does not say how its values become Hounsfield units")
    size = prod(shape) * 2
    if not 0 < size <= MAX_VOXELS * 2:
        raise CannotAnalyse(Reason.UNDECODABLE, f"a volume of {shape} is not read")
    check_room(size)
    path = workdir / "volume.int16"
    with _allocated(path, size) as file:
        for number, item in enumerate(stack.slices):
            reader.write_hu(item.header, item.plane, file.fileno(), number * (size // shape[0]))
    return Volume(hu=np.memmap(path, np.int16, "r", shape=shape), stack=stack)


@contextmanager
def _allocated(path: Path, size: int) -> Iterator[BinaryIO]:
    """A zeroed file whose blocks exist, so that a full disk is found out now and not half-way."""
    try:
        file = path.open("w+b", buffering=0)
    except OSError as error:
        raise unwritable(error) from error
    with file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise unwritable(error) from error
        yield file
