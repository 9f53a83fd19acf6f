"""A stack of slices as one volume in Hounsfield units, on disk and mapped, read slice by slice."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.disk import SHORTAGE
from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging.geometry import Slice, Stack
from appliance.imaging.headers import Plane
from appliance.imaging.pixels import Stored, read_frame
from appliance.model import Reason

AIR_HU = -1000
MAX_VOXELS = 2**30
_INT16 = np.iinfo(np.int16)


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


def build(stack: Stack, workdir: Path, check_room: Callable[[int], None] = unlimited) -> Volume:
    """Read every slice once, into `workdir`/volume.int16; before that `check_room` is asked about its bytes.

    Raises CannotAnalyse(UNDECODABLE), CannotAnalyse(NO_ROOM), RuntimeFailed(ENGINE_FAILED), and what `check_room` does.
    """
    layout = stack.slices[0].header.layout
    shape = (len(stack.slices), layout.rows, layout.columns)
    if any(item.header.modality == "CT" and not item.plane.rescaled for item in stack.slices):
        raise CannotAnalyse(Reason.UNDECODABLE, "a slice does not say how its values become Hounsfield units")
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise CannotAnalyse(Reason.UNDECODABLE, f"a volume of {shape} is not read")
    check_room(int(np.prod(shape, dtype=np.int64)) * 2)
    hu = _mapped(workdir / "volume.int16", shape)
    for target, item in zip(hu, stack.slices, strict=True):
        _fill(target, item)
    return Volume(hu=hu, stack=stack)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """A zeroed array in a file whose blocks exist: writing to a hole of a full disk would end the process (SIGBUS)."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * 2)
    except OSError as error:
        if error.errno in SHORTAGE:
            raise CannotAnalyse(Reason.NO_ROOM, f"the volume cannot be written: {error.strerror}") from error
        raise RuntimeFailed(Reason.ENGINE_FAILED, f"the volume cannot be written: {error.strerror}") from error
    return np.memmap(path, np.int16, "r+", shape=shape)


def _fill(target: NDArray[np.int16], item: Slice) -> None:
    stored, padding = read_frame(item.header, item.plane.frame)
    _rescale(stored, item.plane, target)
    if padding is not None:
        target[padding] = AIR_HU


def _rescale(stored: Stored, plane: Plane, target: NDArray[np.int16]) -> None:
    """Modality transformation (PS3.3 C.11.1); beyond int16 it saturates."""
    intercept = int(plane.intercept)
    low, high = int(stored.min()) + intercept, int(stored.max()) + intercept
    if plane.slope == 1 and plane.intercept == intercept and _INT16.min <= low and high <= _INT16.max:
        # Modulo 2**16 the sum is right whatever the sign of the stored type.
        np.add(stored.astype(np.uint16, copy=False), np.uint16(intercept % 2**16), out=target.view(np.uint16))
        return
    hu = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    target[:] = np.clip(np.rint(hu), _INT16.min, _INT16.max)
