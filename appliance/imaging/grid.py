"""Arrays on a regular grid that know where their elements lie in the source image, and how to resample them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Element `i` of axis `a` lies at source index `origin[a] + i * step[a]` and is `spacing_mm[a]` wide."""

    origin: tuple[float, ...]
    step: tuple[float, ...]
    spacing_mm: tuple[float, ...]

    def to_source(self, index: Sequence[float]) -> tuple[float, ...]:
        return tuple(o + i * s for o, i, s in zip(self.origin, index, self.step, strict=True))

    def from_source(self, axis: int, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """The nearest element of this grid for each source index of one axis; may lie outside the array."""
        return np.asarray(np.rint((indices - self.origin[axis]) / self.step[axis]), np.intp)

    def edges_to_source(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where edges lie in the source, axes last: element `i` is from edge `i` to `i + 1`, here as there."""
        return np.asarray(np.array(self.origin) + (edges - 0.5) * self.step + 0.5, np.float64)

    def within(self, shape: Sequence[int], source: Sequence[int]) -> tuple[slice, ...]:
        """The part of an array of this shape whose elements have their centres in a source of that shape."""
        window = []
        for axis, (size, length) in enumerate(zip(shape, source, strict=True)):
            centres = self.origin[axis] + np.arange(size) * self.step[axis]
            inside = np.flatnonzero((centres >= -0.5) & (centres <= length - 0.5))
            window.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        return tuple(window)

    def cut(self, start: Sequence[int]) -> "Grid":
        """The grid of the array that begins at element `start`."""
        return Grid(origin=self.to_source(start), step=self.step, spacing_mm=self.spacing_mm)


def identity(spacing_mm: tuple[float, ...]) -> Grid:
    return Grid(origin=(0.0,) * len(spacing_mm), step=(1.0,) * len(spacing_mm), spacing_mm=spacing_mm)


def isotropic(volume: NDArray[np.int16], voxel_mm: Sequence[float], spacing_mm: float) -> tuple[Float, Grid]:
    """Block means by the largest whole factor, then linear interpolation: float32 (z, y, x) at `spacing_mm`.

    Goes through the volume slice by slice: a full-size float copy of it is never made.
    """
    factors = [max(1, min(size, int(spacing_mm / mm))) for size, mm in zip(volume.shape, voxel_mm, strict=True)]
    counts = [size // factor for size, factor in zip(volume.shape, factors, strict=True)]
    places = [
        np.arange(int((count - 1) * factor * mm / spacing_mm) + 1) * (spacing_mm / (factor * mm))
        for count, factor, mm in zip(counts, factors, voxel_mm, strict=True)
    ]
    planes = np.stack([_at(_at(block, 0, places[1]), 1, places[2]) for block in _blocks(volume, factors)])
    resampled = _at(planes, 0, places[0])
    grid = Grid(
        origin=tuple((factor - 1) / 2 for factor in factors),
        step=tuple(spacing_mm / mm for mm in voxel_mm),
        spacing_mm=(spacing_mm,) * 3,
    )
    return resampled, grid


def _blocks(volume: NDArray[np.int16], factors: Sequence[int]) -> Iterator[Float]:
    """Means over blocks of slices, rows and columns, one plane of blocks after the other."""
    deep, high, wide = factors
    rows, columns = volume.shape[1] // high * high, volume.shape[2] // wide * wide
    scale = np.float32(1 / (deep * high * wide))
    for first in range(0, volume.shape[0] // deep * deep, deep):
        total = np.zeros((rows // high, columns // wide), np.int32)
        for plane in volume[first : first + deep]:
            for row in range(high):
                for column in range(wide):
                    total += plane[row:rows:high, column:columns:wide]
        yield total * scale


def _at(array: Float, axis: int, places: NDArray[np.float64]) -> Float:
    """Linear interpolation along one axis at fractional indices; beyond the ends the end counts.

    Not a product with a matrix of weights: that would wake BLAS threads for each slice, which stall on a busy machine.
    """
    last = array.shape[axis] - 1
    places = np.clip(places, 0, last)
    low = places.astype(np.intp)
    fraction = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    below, above = array.take(low, axis), array.take(np.minimum(low + 1, last), axis)
    return np.asarray(below + (above - below) * fraction, np.float32)


def block_mean(array: Float, factor: int) -> Float:
    """Means over cubes of `factor` elements; incomplete cubes at the ends are left out."""
    depth, rows, columns = (size // factor for size in array.shape)
    array = array[: depth * factor, : rows * factor, : columns * factor]
    total = np.zeros((depth, rows, columns), np.float32)
    for z in range(factor):
        for y in range(factor):
            for x in range(factor):
                total += array[z::factor, y::factor, x::factor]
    return np.asarray(total / np.float32(factor**3), np.float32)


def enlarge(mask: NDArray[np.bool_], factor: int, shape: Sequence[int]) -> NDArray[np.bool_]:
    """A mask of block_mean's grid on the fine grid of `shape`: linear between block centres, cut at one half."""
    smooth = mask.astype(np.float32)
    for axis, size in enumerate(shape):
        smooth = _at(smooth, axis, (np.arange(size) - (factor - 1) / 2) / factor)
    return smooth > 0.5
