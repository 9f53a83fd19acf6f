"""From a score volume to candidates: peaks, thinned out, and those that run on into something larger marked down."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.imaging.grid import Float

MAX_PEAKS = 60
SHELL_MM = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`index` (z, y, x; fractions allowed) on the model's grid; `score` after marking down."""

    index: tuple[float, ...]
    radius_mm: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreVolume:
    """What the model said, and what it was given; all of one shape (z, y, x)."""

    score: Float
    radius_mm: Float
    hu: Float
    mask: Float
    voxel_mm: tuple[float, ...]


def find(volume: ScoreVolume, threshold: float, solid_hu: float) -> list[Candidate]:
    """Candidates with a score of at least `threshold`, best first."""
    found = []
    for index in _peaks(volume, threshold):
        radius = float(volume.radius_mm[index])
        score = float(volume.score[index]) * _isolation(volume, index, radius, solid_hu) ** 2
        if score >= threshold:
            found.append(Candidate(index=index, radius_mm=radius, score=score))
    return sorted(found, key=lambda item: (-item.score, item.index))


def _peaks(volume: ScoreVolume, threshold: float) -> list[tuple[int, int, int]]:
    """Voxels above the threshold, best first, each at least a radius away from every better one."""
    places = np.argwhere(volume.score >= threshold)
    scores = volume.score[tuple(places.T)]
    radii = volume.radius_mm[tuple(places.T)]
    peaks: list[tuple[int, int, int]] = []
    while scores.size and len(peaks) < MAX_PEAKS:
        best = int(np.argmax(scores))
        z, y, x = (int(value) for value in places[best])
        peaks.append((z, y, x))
        distance = np.linalg.norm((places - places[best]) * volume.voxel_mm, axis=1)
        far = distance > np.maximum(radii, radii[best])
        places, scores, radii = places[far], scores[far], radii[far]
    return peaks


def _isolation(volume: ScoreVolume, index: tuple[int, int, int], radius_mm: float, solid_hu: float) -> float:
    """1 less the share of a sphere of twice the radius that solid tissue connected to the centre passes through.

    A nodule with a vessel stays near 1; a bulge of the hilum or the heart does not.
    """
    reach_mm = 2 * radius_mm + SHELL_MM
    window, squares = ball_window(volume.hu.shape, index, volume.voxel_mm, reach_mm)
    inside = squares <= reach_mm**2
    labels, _ = ndimage.label((volume.hu[window] > solid_hu) & (volume.mask[window] > 0) & inside)
    own = labels[tuple(i - part.start for i, part in zip(index, window, strict=True))]
    shell = inside & (squares > (reach_mm - SHELL_MM) ** 2)
    if not own:
        return 1.0
    return 1 - float(np.count_nonzero(shell & (labels == own)) / np.count_nonzero(shell))


def ball_window(
    shape: tuple[int, ...], centre: tuple[float, ...], voxel_mm: tuple[float, ...], reach_mm: float
) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """The part of an array around `centre` (index, fractions allowed), and each element's squared distance in mm."""
    window, parts = [], []
    for axis, (size, middle, mm) in enumerate(zip(shape, centre, voxel_mm, strict=True)):
        start = min(max(0, int(np.floor(middle - reach_mm / mm))), size - 1)
        stop = max(start + 1, min(size, int(np.ceil(middle + reach_mm / mm)) + 1))
        window.append(slice(start, stop))
        shape_of_axis = [-1 if a == axis else 1 for a in range(len(shape))]
        parts.append((((np.arange(start, stop) - middle) * mm) ** 2).reshape(shape_of_axis))
    return tuple(window), np.asarray(sum(parts), np.float64)
