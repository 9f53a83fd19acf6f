"""Stored values of a slice as Hounsfield units: the modality transformation (PS3.3 C.11.1), padding as air."""

import numpy as np
from numpy.typing import NDArray

from appliance.imaging.headers import Plane
from appliance.imaging.pixels import Mask, Stored

AIR_HU = -1000
_INT16 = np.iinfo(np.int16)


def whole_hu(stored: Stored, padding: Mask | None, plane: Plane) -> NDArray[np.int16]:
    """Rounded, (rows, columns); beyond int16 it saturates."""
    hu = _shifted(stored, plane)
    if hu is None:
        rescaled = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
        hu = np.clip(np.rint(rescaled), _INT16.min, _INT16.max).astype(np.int16)
    if padding is not None:
        hu[padding] = AIR_HU
    return hu


def exact_hu(stored: Stored, padding: Mask | None, plane: Plane) -> NDArray[np.float32]:
    """Not rounded, (rows, columns)."""
    hu = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    if padding is not None:
        hu[padding] = AIR_HU
    return hu


def _shifted(stored: Stored, plane: Plane) -> NDArray[np.int16] | None:
    """Where a whole number is to be added, and int16 holds all sums; else None."""
    intercept = int(plane.intercept)
    low, high = int(stored.min()) + intercept, int(stored.max()) + intercept
    if plane.slope != 1 or plane.intercept != intercept or low < _INT16.min or high > _INT16.max:
        return None
    # Modulo 2**16 the sum is right whatever the sign of the stored type.
    return np.add(stored.astype(np.uint16, copy=False), np.uint16(intercept % 2**16)).view(np.int16)
