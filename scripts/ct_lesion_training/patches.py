"""What the network sees in training: pieces of lung, turned and re-exposed, with lesions in them; the wanted answer.

Everything random comes from the generator that is passed in: the same seed gives the same patches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_lesion_training import distractors, lesions
from ct_lesion_training.backgrounds import SPACING_MM, Background

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Random = np.random.Generator

SIZE = 48  #: voxels along each axis
STRIDE = 2  #: voxels of the image per element of the answer
MARGIN = 8  #: voxels from the edge within which no lesion's centre lies
FAIR = 30  #: a lesion weighs as much as so many elements of background, whatever its size
SLICES_MM = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """`hu` (SIZE^3). At SIZE / STRIDE: `score` 0..1, `radius_mm` where score > 0, `weight`, 0 where nothing counts."""

    hu: Float
    score: Float
    radius_mm: Float
    weight: Float


def sample(rng: Random, backgrounds: list[Background], odds: NDArray[np.float64]) -> Patch:
    """One patch of a background that is drawn by `odds`."""
    background = backgrounds[int(rng.choice(len(backgrounds), p=odds / odds.sum()))]
    hu, hull, known = _piece(rng, background)
    hu = _tissue(rng, hu)
    clean = distractors.add(rng, hu, hull & ~known, SPACING_MM)
    made, level, radius, weight = _with_lesions(rng, clean, hull, known)
    made = _sliced(rng, hu, made, background.thick_mm)
    made = _exposed(rng, made)
    inside = level < 1
    score = _pooled(np.where(inside, lesions.target(level), 0))
    counted = ~(_pooled((known & ~inside).astype(np.float32)) > 0)
    return Patch(
        hu=made,
        score=score,
        radius_mm=_pooled(np.where(inside, radius, 0).astype(np.float32)),
        weight=np.where(counted, np.where(score > 0, _pooled(weight), 1), 0).astype(np.float32),
    )


def _piece(rng: Random, background: Background) -> tuple[Float, Mask, Mask]:
    """A patch around some lung voxel: flipped, turned about the long axis of the body, stretched."""
    places = np.argwhere(background.hull[::2, ::2, ::2]) * 2
    centre = places[rng.integers(len(places))] + rng.normal(0, 6, 3)
    angle = rng.normal(0, 0.25)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    flips = np.where(rng.random(3) < (0.3, 0.3, 0.5), -1.0, 1.0)
    stretch = rng.uniform(0.85, 1.2) * rng.uniform(0.93, 1.07, 3)
    matrix = turn @ np.diag(flips / stretch)
    offset = centre - matrix @ np.full(3, (SIZE - 1) / 2)

    both = background.hull.view(np.uint8) | background.known.view(np.uint8) << 1
    marks: NDArray[np.uint8] = ndimage.affine_transform(both, matrix, offset, (SIZE,) * 3, order=0, mode="constant")
    hu: Float = ndimage.affine_transform(background.hu, matrix, offset, (SIZE,) * 3, order=1, mode="nearest")
    return hu, (marks & 1) > 0, (marks & 2) > 0


def _with_lesions(rng: Random, clean: Float, hull: Mask, known: Mask) -> tuple[Float, Float, Float, Float]:
    """The patch with lesions; level, radius and weight of the lesion at each voxel."""
    hu = clean.copy()
    level = np.full(hu.shape, np.inf, np.float32)
    radius, weight = np.zeros(hu.shape, np.float32), np.zeros(hu.shape, np.float32)
    taken: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(int(rng.choice(5, p=(0.12, 0.28, 0.3, 0.2, 0.1)))):
        size = lesions.random_radius(rng)
        centre = _place(rng, clean, hull, size)
        if centre is None or _meets(centre, size, taken, known):
            continue
        taken.append((centre, size))
        lesion = lesions.draw(rng, hu, centre, size, SPACING_MM)
        window = lesion.window
        seen = (hull[window] | (lesion.hu - hu[window] > 50)) & (lesion.level < 1)
        hu[window] = lesion.hu
        count = max(1.0, np.count_nonzero(seen) / STRIDE**3)
        level[window] = np.where(seen, lesion.level, level[window])
        radius[window] = np.where(seen, size, radius[window])
        weight[window] = np.where(seen, np.clip(FAIR / count, 0.02, 10.0), weight[window])
    return hu, level, radius, weight


def _place(rng: Random, hu: Float, hull: Mask, radius_mm: float) -> NDArray[np.float64] | None:
    """Where a lesion may be: in the lung, at its surface, or at a vessel. None where there is no such place."""
    inner = np.zeros_like(hull)
    edge = min(SIZE // 2 - 4, MARGIN + int(radius_mm / SPACING_MM / 2))
    inner[(slice(edge, -edge),) * 3] = True
    kind = rng.random()
    wanted = hull & inner
    inward = np.zeros(3)
    if kind < 0.35:
        wanted &= ~ndimage.binary_erosion(hull, iterations=2, border_value=1)
    elif kind < 0.6:
        vessels = ndimage.binary_erosion(hull, iterations=2) & (hu > -450) & inner
        wanted = vessels if vessels.any() else wanted
    places = np.argwhere(wanted)
    if not len(places):
        return None
    centre = places[rng.integers(len(places))].astype(float)
    if kind < 0.35:
        inward = _inward(hull, centre) * rng.uniform(-0.15, 0.9) * radius_mm / SPACING_MM
    centre = centre + inward + rng.uniform(-0.5, 0.5, 3)
    if not (hull & inner)[tuple(np.clip(np.rint(centre), 0, SIZE - 1).astype(int))] and kind >= 0.35:
        return None
    return centre if _aerated(hull, centre, radius_mm) else None


def _inward(hull: Mask, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vector from a place on the hull's surface towards the lung around it."""
    window, offsets = lesions.around(hull.shape, centre, 12, SPACING_MM)
    if not hull[window].any():
        return np.zeros(3)
    mean = offsets[:, hull[window]].mean(1)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-3), np.float64)


def _aerated(hull: Mask, centre: NDArray[np.float64], radius_mm: float) -> bool:
    """Whether a fair part of the lesion lies in the lung."""
    window, offsets = lesions.around(hull.shape, centre, radius_mm, SPACING_MM)
    inside = lesions.squares(offsets) <= radius_mm**2
    return bool(np.count_nonzero(hull[window] & inside) > 0.4 * max(1, int(np.count_nonzero(inside))))


def _meets(
    centre: NDArray[np.float64], radius_mm: float, taken: list[tuple[NDArray[np.float64], float]], known: Mask
) -> bool:
    """Whether a lesion would run into another, or into the known tumour."""
    if any(np.linalg.norm(centre - other) * SPACING_MM < 1.15 * (radius_mm + size) + 4 for other, size in taken):
        return True
    window, offsets = lesions.around(known.shape, centre, radius_mm, SPACING_MM)
    return bool((known[window] & (lesions.squares(offsets) <= radius_mm**2)).any())


def _tissue(rng: Random, hu: Float) -> Float:
    """Another patient: emptier or fuller lungs, more or less contrast in the vessels."""
    lung = np.clip((-500 - hu) / 200, 0, 1)
    soft = np.clip((hu + 20) / 60, 0, 1) * np.clip((400 - hu) / 100, 0, 1)
    made = hu + lung * np.float32(rng.uniform(-70, 90))
    if rng.random() < 0.5:
        made = (
            made + soft * np.float32(rng.uniform(-30, 30)) + np.maximum(hu - 60, 0) * np.float32(rng.uniform(-0.6, 1))
        )
    return np.asarray(made, np.float32)


def _sliced(rng: Random, without: Float, image: Float, thick_mm: float) -> Float:
    """As if read from slices at least as thick as those that the background was read from."""
    thicker = [mm for mm in SLICES_MM if mm > thick_mm]
    if thicker and rng.random() < 0.4:
        return _through(_slices(rng, float(rng.choice(thicker))), image)
    return without + _through(_slices(rng, thick_mm), image - without) if thick_mm > SPACING_MM else image


def _slices(rng: Random, thick_mm: float) -> Float:
    """Matrix (SIZE, SIZE): means over slices of `thick_mm`, then linear interpolation between their centres."""
    step = thick_mm / SPACING_MM
    centres = np.arange(rng.uniform(-step, 0), SIZE + step, step)
    z = np.arange(SIZE)
    means = np.clip(step / 2 + 0.5 - np.abs(z - centres[:, None]), 0, 1)
    means /= np.maximum(means.sum(1, keepdims=True), 1e-6)
    between = np.maximum(0, 1 - np.abs(z[:, None] - centres) / step)
    between[:, means.sum(1) < 0.5] = 0
    between /= np.maximum(between.sum(1, keepdims=True), 1e-6)
    return np.asarray(between @ means, np.float32)


def _through(matrix: Float, image: Float) -> Float:
    return np.asarray(np.tensordot(matrix, image, 1), np.float32)


def _exposed(rng: Random, hu: Float) -> Float:
    """Another scanner: kernel, noise, calibration, and whole HU within 12 bits."""
    made = hu
    kernel = rng.random()
    if kernel < 0.35:
        made = ndimage.gaussian_filter(made, (0.3, *(rng.uniform(0.3, 0.9),) * 2))
    elif kernel < 0.6:
        made = made + np.float32(rng.uniform(0.2, 0.8)) * (made - ndimage.gaussian_filter(made, (0.1, 0.8, 0.8)))
    if rng.random() < 0.7:
        noise = rng.standard_normal(made.shape, np.float32) * np.float32(abs(rng.normal(0, 28)))
        if rng.random() < 0.5:
            noise = 1.6 * ndimage.gaussian_filter(noise, (0, 0.6, 0.6))
        made = made + noise
    made = (made + 1000) * np.float32(rng.normal(1, 0.025)) - 1000 + np.float32(rng.normal(0, 12))
    return np.clip(made, -1024, 3071).astype(np.float32)


def _pooled(array: Float) -> Float:
    """Largest of each cube of STRIDE^3."""
    for axis in range(3):
        array = np.maximum(array.take(range(0, SIZE, STRIDE), axis), array.take(range(1, SIZE, STRIDE), axis))
    return array
