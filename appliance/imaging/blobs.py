"""From a score volume to candidates, for a model that was trained to answer with a blob of scores for each lesion.

Such a model answers on a coarse grid: a lesion between its elements has several equal peaks, and a large one has high
scores further out than its radius. So a blob is taken whole: one candidate, in its middle.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.imaging.candidates import Candidate, ScoreVolume, ball_window

MOST = 60
APART_MM = 7.0  #: more than the diagonal of the largest element, 4 mm wide, for which a model gives one answer
WINDOW, WINDOW_MM = 2.0, 8.0  #: a blob is looked for within so many radii and so much more
#: A trained score falls from 1 at the centre to 0.4 at the surface: it is above one half within 0.91 radii.
HALF_AT = 0.91
EXTENT = (0.67, 1.15)  #: the model's radius is kept between these shares of what follows from the blob's extent

Mask = NDArray[np.bool_]


def find(volume: ScoreVolume, threshold: float) -> list[Candidate]:
    """Candidates with a score of at least `threshold`, best first, each away from every better one and its blob."""
    places = np.argwhere(volume.score >= threshold)
    scores = volume.score[tuple(places.T)]
    found: list[Candidate] = []
    while scores.size and len(found) < MOST:
        best = places[int(np.argmax(scores))]
        candidate, window, blob = _candidate(volume, (int(best[0]), int(best[1]), int(best[2])))
        found.append(candidate)
        distance = np.linalg.norm((places - candidate.index) * volume.voxel_mm, axis=1)
        far = distance > max(candidate.radius_mm, APART_MM)
        far &= ~_within(places, window, blob) & (places != best).any(axis=1)
        places, scores = places[far], scores[far]
    return found


def _candidate(volume: ScoreVolume, peak: tuple[int, int, int]) -> tuple[Candidate, tuple[slice, ...], Mask]:
    """What a peak stands for: its blob of scores above half of its own, in a window."""
    said, score = float(volume.radius_mm[peak]), float(volume.score[peak])
    window, _ = ball_window(volume.score.shape, peak, volume.voxel_mm, WINDOW * said + WINDOW_MM)
    labels, _ = ndimage.label(volume.score[window] > score / 2)
    blob: Mask = labels == labels[tuple(index - part.start for index, part in zip(peak, window, strict=True))]
    excess = np.where(blob, volume.score[window] - score / 2, 0)
    middle = ndimage.center_of_mass(excess)
    extent = (3 * np.count_nonzero(blob) * float(np.prod(volume.voxel_mm)) / (4 * np.pi)) ** (1 / 3) / HALF_AT
    candidate = Candidate(
        index=tuple(float(part.start + place) for part, place in zip(window, middle, strict=True)),
        radius_mm=float(np.clip(said, EXTENT[0] * extent, EXTENT[1] * extent)),
        score=score,
    )
    return candidate, window, blob


def _within(places: NDArray[np.intp], window: tuple[slice, ...], blob: Mask) -> Mask:
    """Which places lie in the blob."""
    inner = places - [part.start for part in window]
    valid = (inner >= 0).all(axis=1) & (inner < blob.shape).all(axis=1)
    result = np.zeros(len(places), np.bool_)
    result[valid] = blob[tuple(inner[valid].T)]
    return result
