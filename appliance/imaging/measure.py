"""The size and place of one candidate, measured in the source slices by a local threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.imaging.candidates import ball_window
from appliance.imaging.grid import Grid
from appliance.imaging.volume import Volume

Mask = NDArray[np.bool_]
#: Solid tissue further from the centre than this x radius is held to be something else (a vessel, the wall).
REACH = 1.5
#: Vessels and spicules thinner than this share of the radius are not part of the axes.
THIN = 0.25
#: A hull that holds less than this share of the seed's ball does not bound the lesion.
OUTSIDE = 0.5
ANGLES = np.deg2rad(np.arange(0, 180, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """In source indices (slice, row, column) and mm. The axes are those of the slice with the largest section."""

    key_slice: int
    box: tuple[float, float, float, float]  #: column min, row min, column max, row max: edges of pixels
    centre: tuple[float, float, float]
    long_axis_mm: float
    short_axis_mm: float
    volume_mm3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """Where to measure: centre in source indices, radius, and the hull on its own grid that bounds the lung."""

    centre: tuple[float, ...]
    radius_mm: float
    hull: NDArray[np.float32]
    grid: Grid
    reach: float = REACH


def measure(volume: Volume, seed: Seed, solid_hu: float) -> Measured | None:
    """Measure the solid tissue around the seed that lies in the hull; None where there is none.

    A mass that fell out of the hull for the most part is bounded by the seed's radius instead.
    """
    reach_mm = seed.reach * seed.radius_mm + 2
    window, squares = ball_window(volume.hu.shape, seed.centre, volume.voxel_mm, reach_mm)
    region, own = _in_hull(seed, window), squares <= seed.radius_mm**2
    if np.count_nonzero(region & own) < OUTSIDE * np.count_nonzero(own):
        region |= own
    solid = (volume.hu[window] > solid_hu) & (squares <= reach_mm**2) & region
    if not solid.any():
        return None
    labels, _ = ndimage.label(solid)
    nearest = int(np.argmin(np.where(solid, squares, np.inf)))
    lesion = labels == labels.ravel()[nearest]
    body = _without_thin_parts(lesion, seed.radius_mm * THIN / max(volume.voxel_mm[1:]))
    return _measured(volume, window, lesion, body)


def ball(volume: Volume, seed: Seed) -> Measured:
    """The seed's own ball, for a lesion without an edge that a threshold could find; a voxel at least."""
    window, squares = ball_window(volume.hu.shape, seed.centre, volume.voxel_mm, seed.radius_mm)
    inside = squares <= max(seed.radius_mm**2, float(squares.min()))
    return _measured(volume, window, inside, inside)


def _measured(volume: Volume, window: tuple[slice, ...], lesion: Mask, body: Mask) -> Measured:
    """Of a mask within a window: volume of the lesion, all else of its body."""
    key = int(np.argmax(body.sum(axis=(1, 2))))
    rows, columns = np.nonzero(body[key])
    row, column = (part.start for part in window[1:])
    middle = ndimage.center_of_mass(body)
    long_axis, short_axis = axes(rows, columns, volume.voxel_mm[1:])
    return Measured(
        key_slice=window[0].start + key,
        box=(
            float(column + columns.min()),
            float(row + rows.min()),
            float(column + columns.max() + 1),
            float(row + rows.max() + 1),
        ),
        centre=tuple(part.start + float(m) for part, m in zip(window, middle, strict=True)),
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        volume_mm3=float(np.count_nonzero(lesion)) * float(np.prod(volume.voxel_mm)),
    )


def _in_hull(seed: Seed, window: tuple[slice, ...]) -> Mask:
    """The hull at each source voxel of the window: nearest element, nothing beyond its array."""
    indices = [seed.grid.from_source(axis, np.arange(part.start, part.stop)) for axis, part in enumerate(window)]
    inside = [(index >= 0) & (index < size) for index, size in zip(indices, seed.hull.shape, strict=True)]
    clipped = [np.clip(index, 0, size - 1) for index, size in zip(indices, seed.hull.shape, strict=True)]
    within = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return np.asarray((seed.hull[np.ix_(*clipped)] > 0) & within)


def _without_thin_parts(lesion: Mask, radius_pixels: float) -> Mask:
    """Opening within each slice; the lesion itself where nothing would be left."""
    steps = int(radius_pixels)
    if not steps:
        return lesion
    cross = ndimage.generate_binary_structure(3, 1)
    cross[[0, 2]] = False
    opened: Mask = ndimage.binary_opening(lesion, cross, iterations=steps)
    return opened if opened.any() else lesion


def axes(rows: NDArray[np.intp], columns: NDArray[np.intp], pixel_mm: tuple[float, ...]) -> tuple[float, float]:
    """Largest extent over all directions, and the extent at right angles to it; a pixel counts whole."""
    along = np.outer(rows * pixel_mm[0], np.sin(ANGLES)) + np.outer(columns * pixel_mm[1], np.cos(ANGLES))
    extents = np.ptp(along, axis=0) + (pixel_mm[0] + pixel_mm[1]) / 2
    longest = int(np.argmax(extents))
    return float(extents[longest]), float(extents[(longest + len(ANGLES) // 2) % len(ANGLES)])
