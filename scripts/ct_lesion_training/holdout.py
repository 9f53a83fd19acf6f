"""Simulated lesions for evaluation, drawn in the source slices: clusters of blobs, cut at a level of their sum.

On purpose it shares nothing with lesions.py: another idea of shape (an iso-surface of a noisy field, not a star),
of spicules (wandering strands), of texture (fractal noise) and of slices (drawn finely, then averaged).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_lesion_training.backgrounds import SPACING_MM

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Random = np.random.Generator

KINDS = ("solid", "part solid", "spiculated")
PLACES = ("free", "wall", "vessel")
#: Diameters in mm, one lesion of each in a scan.
SIZES = ((4.0, 6.0), (6.0, 10.0), (10.0, 20.0), (20.0, 40.0), (40.0, 80.0))
FINE_MM = 0.8  #: slices thicker than this are the mean of finer ones
TRIES = 400
KEPT_APART_MM = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A lesion; `centre` in source indices (slice, row, column)."""

    centre: tuple[float, float, float]
    diameter_mm: float
    kind: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A scan to plant in: HU of the source, and hull and known tumour on the source grid at half its slices' size."""

    hu: NDArray[np.int16]
    voxel_mm: tuple[float, float, float]
    hull: Mask  #: on a grid of SPACING_MM
    known: Mask  #: on a grid of SPACING_MM
    origin: tuple[float, ...]  #: source index of that grid's first element
    step: tuple[float, ...]  #: source indices per element


def plant(rng: Random, ground: Ground) -> tuple[NDArray[np.int16], tuple[Planted, ...]]:
    """A copy of the scan with one lesion of each size; a size that finds no room is left out."""
    hu = ground.hu.astype(np.float32)
    planted: list[Planted] = []
    for low, high in reversed(SIZES):
        diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        kind = str(rng.choice(KINDS))
        for place in rng.permutation(PLACES):
            centre = _free_place(rng, ground, diameter / 2, place, planted)
            if centre is not None:
                planted.append(Planted(centre=centre, diameter_mm=diameter, kind=kind, place=str(place)))
                _draw(rng, hu, ground.voxel_mm, planted[-1])
                break
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), tuple(planted)


def _free_place(
    rng: Random, ground: Ground, radius_mm: float, place: str, planted: list[Planted]
) -> tuple[float, float, float] | None:
    """A centre in source indices: mostly in lung, and away from what is there already."""
    shell = ground.hull & ~ndimage.binary_erosion(ground.hull, iterations=2)
    choices = np.argwhere(shell if place == "wall" else ground.hull)
    depth = ndimage.distance_transform_edt(ground.hull) * SPACING_MM if place == "free" else None
    for _ in range(TRIES):
        index = choices[rng.integers(len(choices))]
        if depth is not None and depth[tuple(index)] < 1.2 * min(radius_mm, 14):
            continue
        source = np.asarray(ground.origin) + index * np.asarray(ground.step)
        if place == "vessel" and ground.hu[tuple(np.rint(source).astype(int))] < -350:
            continue
        inside, known = _ball_shares(ground, index, radius_mm)
        near = any(
            np.linalg.norm((source - other.centre) * ground.voxel_mm)
            < radius_mm + other.diameter_mm / 2 + KEPT_APART_MM
            for other in planted
        )
        if inside > 0.5 and not known and not near:
            return (float(source[0]), float(source[1]), float(source[2]))
    return None


def _ball_shares(ground: Ground, index: NDArray[np.intp], radius_mm: float) -> tuple[float, bool]:
    """Share of a ball that is lung, and whether it meets the known tumour."""
    reach = int(radius_mm / SPACING_MM) + 1
    axes = np.ogrid[tuple(slice(i - reach, i + reach + 1) for i in index)]
    squares = sum((axis - i) ** 2 for axis, i in zip(axes, index, strict=True)) * SPACING_MM**2
    places = np.argwhere(squares <= (radius_mm + 2) ** 2) + index - reach
    valid = (places >= 0).all(1) & (places < ground.hull.shape).all(1)
    z, y, x = places[valid].T
    return float(ground.hull[z, y, x].sum() / len(places)), bool(ground.known[z, y, x].any())


def _draw(rng: Random, hu: Float, voxel_mm: tuple[float, float, float], lesion: Planted) -> None:
    radius = lesion.diameter_mm / 2
    parts = max(1, round(voxel_mm[0] / FINE_MM))
    reach = radius * 1.9 + 4
    window = tuple(
        slice(max(0, int(c - reach / mm)), min(size, int(c + reach / mm) + 2))
        for c, mm, size in zip(lesion.centre, voxel_mm, hu.shape, strict=True)
    )
    fine_mm = (voxel_mm[0] / parts, *voxel_mm[1:])
    starts = (window[0].start * parts, window[1].start, window[2].start)
    middle = (lesion.centre[0] * parts + (parts - 1) / 2, *lesion.centre[1:])
    shape = ((window[0].stop - window[0].start) * parts, *(part.stop - part.start for part in window[1:]))
    axes = [
        ((np.arange(size) + start - c) * mm).astype(np.float32)
        for size, start, c, mm in zip(shape, starts, middle, fine_mm, strict=True)
    ]
    field = _field(rng, axes, radius, shape)
    body, core = _cuts(field, radius, fine_mm)
    if lesion.kind == "spiculated":
        body |= _strands(rng, axes, body, radius, fine_mm)
    sigma = [rng.uniform(0.35, 0.6) / mm for mm in fine_mm]
    share = _averaged(ndimage.gaussian_filter(body.astype(np.float32), sigma), parts)
    under = hu[window]
    dense = np.float32(rng.uniform(0, 60)) + np.float32(rng.uniform(4, 18)) * _fractal(rng, under.shape)
    dense += rng.standard_normal(under.shape, np.float32) * np.float32(rng.uniform(8, 30))
    if lesion.kind == "part solid":
        veil = under + np.float32(rng.uniform(0.35, 0.5)) * (dense - under)
        inner = _averaged(ndimage.gaussian_filter(core.astype(np.float32), sigma), parts)
        dense = veil + inner * (dense - veil)
    hu[window] = np.maximum(under, under + share * (dense - under))


def _field(rng: Random, axes: list[Float], radius: float, shape: tuple[int, ...]) -> Float:
    """Sum of anisotropic blobs near the centre, disturbed by fractal noise."""
    field = np.zeros(shape, np.float32)
    for number in range(int(rng.integers(2, 7))):
        place = rng.normal(0, 0.32 * radius, 3) if number else np.zeros(3)
        widths = radius * rng.uniform(0.4, 0.85, 3)
        squares = [((axis - p) / w) ** 2 for axis, p, w in zip(axes, place, widths, strict=True)]
        total = squares[0][:, None, None] + squares[1][:, None] + squares[2]
        field += np.float32(rng.uniform(0.5, 1.0)) * np.exp(-total / 2).astype(np.float32)
    return field * (1 + np.float32(rng.uniform(0.05, 0.3)) * _fractal(rng, shape))


def _cuts(field: Float, radius: float, fine_mm: tuple[float, ...]) -> tuple[Mask, Mask]:
    """The body, of the volume of a ball of this radius, and a core of about a quarter of it."""
    count = min(field.size - 1, max(1, round(4 / 3 * np.pi * radius**3 / float(np.prod(fine_mm)))))
    ordered = np.partition(field.ravel(), [field.size - count, field.size - max(1, count // 4)])
    return field > ordered[field.size - count], field > ordered[field.size - max(1, count // 4)]


def _strands(rng: Random, axes: list[Float], body: Mask, radius: float, fine_mm: tuple[float, ...]) -> Mask:
    """Thin paths that wander outward from near the surface."""
    strands = np.zeros_like(body)
    for _ in range(int(rng.integers(10, 26))):
        heading = rng.normal(0, 1, 3)
        heading /= np.linalg.norm(heading)
        place = heading * 0.8 * radius
        for _ in range(int(rng.uniform(0.4, 1.0) * min(radius, 14) / 0.5)):
            index = [int(np.searchsorted(axis, p)) for axis, p in zip(axes, place, strict=True)]
            around = tuple(
                slice(max(0, i - r), i + r + 1) for i, r in zip(index, (round(0.6 / mm) for mm in fine_mm), strict=True)
            )
            strands[around] = True
            heading = heading + rng.normal(0, 0.15, 3)
            heading /= np.linalg.norm(heading)
            place = place + 0.5 * heading
    return strands


def _fractal(rng: Random, shape: tuple[int, ...]) -> Float:
    """Three octaves of smooth noise, standard deviation about 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(3):
        knots = np.minimum(np.array(shape), 4 * 2**octave)
        coarse = rng.standard_normal(knots).astype(np.float32)
        total += ndimage.zoom(coarse, np.array(shape) / knots, order=1, grid_mode=True, mode="nearest") / 2**octave
    return np.asarray(total / max(float(total.std()), 1e-3), np.float32)


def _averaged(fine: Float, parts: int) -> Float:
    return np.asarray(fine.reshape(-1, parts, *fine.shape[1:]).mean(1), np.float32)
