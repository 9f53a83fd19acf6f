"""What is no lesion, drawn into lungs so that the model learns to leave it alone: vessels, bands, fluid, haze."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Random = np.random.Generator

EDGE = 0.8  #: voxels from none to all of a drawn tube


def add(rng: Random, hu: Float, hull: Mask, spacing_mm: float) -> Float:
    """A copy of `hu` with some of them, or none."""
    made = hu
    if rng.random() < 0.25:
        made = haze(rng, made, hull)
    if rng.random() < 0.06:
        made = fluid(rng, made, hull, spacing_mm)
    for _ in range(int(rng.integers(0, 4))):
        made = vessel(rng, made, hull, spacing_mm)
    if rng.random() < 0.2:
        made = band(rng, made, hull, spacing_mm)
    return made


def vessel(rng: Random, hu: Float, hull: Mask, spacing_mm: float) -> Float:
    """A bent, tapering, forked tube."""
    places = np.argwhere(hull)
    if not len(places):
        return hu
    made = hu.copy()
    density = float(rng.uniform(0, 220))
    branches = [(places[rng.integers(len(places))].astype(float), _unit(rng), float(rng.uniform(1.0, 5.0)))]
    left = 90
    while branches and left:
        place, heading, radius = branches.pop()
        while radius > 0.8 and left and _inside(place, hull):
            _ball(made, hull, (place, radius / spacing_mm), density)
            heading = heading + rng.normal(0, 0.12, 3)
            heading /= np.linalg.norm(heading)
            place = place + heading * max(radius, 1.5) / spacing_mm
            radius *= float(rng.uniform(0.95, 1.0))
            left -= 1
            if rng.random() < 0.06:
                branches.append((place, heading + 0.7 * _unit(rng), 0.75 * radius))
    return made


def band(rng: Random, hu: Float, hull: Mask, spacing_mm: float) -> Float:
    """A thin plate: a fissure, a scar, a strip of lung without air."""
    places = np.argwhere(hull)
    if not len(places):
        return hu
    middle, normal = places[rng.integers(len(places))], _unit(rng)
    z, y, x = (
        (axis - place) * spacing_mm
        for axis, place in zip(np.ogrid[tuple(slice(size) for size in hu.shape)], middle, strict=True)
    )
    across = (normal[0] * z + normal[1] * y) + normal[2] * x
    beyond = z * z + y * y + x * x > rng.uniform(12, 45) ** 2
    share = np.clip((rng.uniform(1, 3) - np.abs(across)) / 1.5 + 0.5, 0, 1) * hull * ~beyond
    return np.asarray(np.maximum(hu, hu + share.astype(np.float32) * (np.float32(rng.uniform(-500, 30)) - hu)))


def fluid(rng: Random, hu: Float, hull: Mask, spacing_mm: float) -> Float:
    """Soft tissue in all lung beyond a plane at the back (y grows to the back) or below, as of an effusion."""
    places = np.argwhere(hull)
    if not len(places):
        return hu
    normal = np.array([rng.normal(0, 0.4), 1.0, rng.normal(0, 0.3)])
    normal /= np.linalg.norm(normal)
    depths = places @ normal
    from_depth = np.quantile(depths, rng.uniform(0.6, 0.95))
    z, y, x = np.ogrid[tuple(slice(size) for size in hu.shape)]
    beyond = ((normal[0] * z + normal[1] * y + normal[2] * x) - from_depth) * spacing_mm
    lung = ndimage.binary_dilation(hull, iterations=2) & (hu < -100)
    share = (np.clip(beyond / 3 + 0.5, 0, 1) * lung).astype(np.float32)
    return np.asarray(np.maximum(hu, hu + share * (np.float32(rng.uniform(0, 50)) - hu)))


def haze(rng: Random, hu: Float, hull: Mask) -> Float:
    """Lung that is denser or emptier over wide stretches."""
    field = rng.normal(0, 1, (5, 5, 5))
    for axis, size in enumerate(hu.shape):
        places = np.linspace(0, 4, size)
        low = np.minimum(places.astype(int), 3)
        share = (places - low).reshape([-1 if a == axis else 1 for a in range(3)])
        field = field.take(low, axis) * (1 - share) + field.take(low + 1, axis) * share
    change = np.float32(rng.uniform(20, 130)) * field + np.float32(rng.uniform(-60, 60))
    return np.where(hull & (hu < -500), np.clip(hu + change, -1000, -450), hu).astype(np.float32)


def _ball(hu: Float, hull: Mask, ball: tuple[NDArray[np.float64], float], density: float) -> None:
    """A soft-edged ball (centre and radius in voxels) within the lung."""
    place, radius = ball
    window = tuple(
        slice(max(0, int(p - radius - 1)), min(size, int(p + radius + 1) + 2))
        for p, size in zip(place, hu.shape, strict=True)
    )
    z, y, x = (np.arange(part.start, part.stop) - p for part, p in zip(window, place, strict=True))
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    share = (np.clip((radius - distance) / EDGE + 0.5, 0, 1) * hull[window]).astype(np.float32)
    hu[window] = np.maximum(hu[window], hu[window] + share * (np.float32(density) - hu[window]))


def _inside(place: NDArray[np.float64], hull: Mask) -> bool:
    index = np.rint(place).astype(int)
    return bool((index >= 0).all() and (index < hull.shape).all() and hull[tuple(index)])


def _unit(rng: Random) -> NDArray[np.float64]:
    vector = rng.normal(0, 1, 3)
    return np.asarray(vector / np.linalg.norm(vector))
