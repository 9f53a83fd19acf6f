"""Sensitivity against false positives per scan, with bootstrap intervals over scans."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ct_lesion_training.holdout import SIZES, Planted

FALSE_PER_SCAN = (1.0, 2.0, 4.0, 8.0)
RESAMPLED = 1000
LEAST_HIT_MM = 4.0  #: a candidate this near is a hit, however small the lesion is


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A finding's score and centre in source indices (slice, row, column)."""

    score: float
    centre: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """For each lesion the best score of a candidate on it (0: none), and the scores of the candidates on none."""

    lesions: tuple[Planted, ...]
    hits: tuple[float, ...]
    false: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """At one number of false positives per scan; `low` and `high` bound the middle 95 % of the resampled scans."""

    value: float
    low: float
    high: float
    threshold: float


def scored(lesions: Sequence[Planted], candidates: Sequence[Candidate], voxel_mm: Sequence[float]) -> Scan:
    """A candidate is a hit where its centre lies within the lesion's radius; another on the same counts nothing."""
    hits = [0.0] * len(lesions)
    false = []
    for candidate in candidates:
        on = [
            index
            for index, lesion in enumerate(lesions)
            if np.linalg.norm(np.subtract(candidate.centre, lesion.centre) * voxel_mm)
            <= max(lesion.diameter_mm / 2, LEAST_HIT_MM)
        ]
        for index in on:
            hits[index] = max(hits[index], candidate.score)
        if not on:
            false.append(candidate.score)
    return Scan(lesions=tuple(lesions), hits=tuple(hits), false=tuple(false))


def sensitivity(scans: Sequence[Scan], false_per_scan: float, size: tuple[float, float] | None = None) -> Sensitivity:
    """Of all lesions, or of those of a size in mm. NaN where there are none."""
    rng = np.random.default_rng(7)
    threshold = _threshold(scans, false_per_scan)
    drawn = []
    for _ in range(RESAMPLED):
        again = [scans[index] for index in rng.integers(len(scans), size=len(scans))]
        drawn.append(_found(again, _threshold(again, false_per_scan), size))
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if not np.isnan(drawn).all() else (np.nan, np.nan)
    value = _found(scans, threshold, size)
    return Sensitivity(value=value, low=float(low), high=float(high), threshold=threshold)


def count(scans: Sequence[Scan], size: tuple[float, float] | None) -> int:
    return sum(_of_size(lesion, size) for scan in scans for lesion in scan.lesions)


def table(scans: Sequence[Scan]) -> list[list[str]]:
    """Rows of a table: lesions (with their number), then sensitivity at each of FALSE_PER_SCAN."""
    rows = []
    for size in (None, *SIZES):
        name = "all" if size is None else f"{size[0]:.0f} to {size[1]:.0f} mm"
        cells = [sensitivity(scans, false, size) for false in FALSE_PER_SCAN]
        rows.append([f"{name} ({count(scans, size)})", *(_text(cell) for cell in cells)])
    return rows


def _text(cell: Sensitivity) -> str:
    return "-" if np.isnan(cell.value) else f"{cell.value:.2f} ({cell.low:.2f} to {cell.high:.2f})"


def _threshold(scans: Sequence[Scan], false_per_scan: float) -> float:
    """Just above the score of the first false positive too many; 0 where there are not that many."""
    false = sorted((score for scan in scans for score in scan.false), reverse=True)
    allowed = int(false_per_scan * len(scans))
    return false[allowed] + 1e-6 if len(false) > allowed else 1e-6


def _found(scans: Sequence[Scan], threshold: float, size: tuple[float, float] | None) -> float:
    hits = [
        hit >= threshold
        for scan in scans
        for lesion, hit in zip(scan.lesions, scan.hits, strict=True)
        if _of_size(lesion, size)
    ]
    return float(np.mean(hits)) if hits else float("nan")


def _of_size(lesion: Planted, size: tuple[float, float] | None) -> bool:
    return size is None or size[0] <= lesion.diameter_mm < size[1]
