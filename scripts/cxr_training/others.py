"""What is no chest film: limbs, skulls, bellies, axial CT slices, shapes and noise; and exposures without a patient."""

import numpy as np
from scipy import ndimage

from cxr_training.picture import SIZE, Float, Picture, View, axes, develop


def other(rng: np.random.Generator, slices: list[Float]) -> Picture:
    """`slices` are axial sections (density relative to water) of the CT volumes that training may use."""
    kind = rng.integers(0, 6)
    if kind == 0 and slices:
        image = _axial(rng, slices[rng.integers(len(slices))])
    else:
        image = develop(rng, (_limb, _limb, _skull, _belly, _hand, _shapes)[kind](rng))
    return Picture(image=image, view=View.OTHER)


def empty(rng: np.random.Generator) -> Picture:
    """Noise, the fall of the beam across the field, perhaps a letter or a collimator's edge."""
    x, z = axes()
    level, fall = rng.uniform(0, 1), rng.uniform(0, 0.6) * (rng.random() < 0.6)
    angle = rng.uniform(0, 2 * np.pi)
    image = level + fall * (x * np.cos(angle) + z * np.sin(angle)) / 400
    image = image + rng.choice((0.0, 0.001, 0.01, 0.1)) * rng.standard_normal(x.shape)
    if rng.random() < 0.35:
        at, size = rng.uniform(-150, 150, 2), rng.uniform(5, 18, 2)
        image = image + rng.choice((-1, 1)) * rng.uniform(0.2, 1) * (np.abs(x - at[0]) < size[0]) * (
            np.abs(z - at[1]) < size[1]
        )
    if rng.random() < 0.35:
        field = (np.abs(x - rng.normal(0, 20)) < rng.uniform(90, 200)) & (np.abs(z) < rng.uniform(90, 200))
        image = np.where(field, image, rng.uniform(0, 1))
    return Picture(image=np.asarray(np.clip(image, 0, 1), np.float32), view=View.EMPTY)


def _axial(rng: np.random.Generator, section: Float) -> Float:
    low, wide = rng.choice([[0.0, 1.4], [0.8, 0.5], [0.6, 0.9]])
    image = np.clip((section - low) / wide, 0, 1)
    image = ndimage.zoom(image, SIZE / image.shape[0], order=1)[:SIZE, :SIZE]
    return np.asarray(image, np.float32)


def _limb(rng: np.random.Generator) -> Float:
    x, z = axes()
    angle = rng.uniform(-0.4, 0.4) + rng.choice((0, 0, np.pi / 2))
    x, z = x * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - x * np.sin(angle)
    half = rng.uniform(40, 110) * (1 + rng.uniform(-0.3, 0.3) * z / 230)
    tissue = half * np.sqrt(np.maximum(0, 1 - (x / half) ** 2))
    joint = rng.uniform(-120, 120)
    for bone in range(rng.integers(1, 3)):
        at, size = (bone - 0.3) * rng.uniform(15, 45), rng.uniform(9, 20)
        size = size * (1 + rng.uniform(0.4, 1.4) * np.exp(-(((z - joint) / 35) ** 2)))
        shaft = np.sqrt(np.maximum(0, 1 - ((x - at) / size) ** 2)) * rng.uniform(40, 90)
        tissue = tissue + shaft * (np.abs(z - joint) > 3)
    return np.asarray(tissue, np.float32)


def _skull(rng: np.random.Generator) -> Float:
    x, z = axes()
    radii = rng.uniform(75, 150), rng.uniform(90, 170)
    level = np.sqrt((x / radii[0]) ** 2 + ((z - 20) / radii[1]) ** 2)
    tissue = 150 * np.sqrt(np.maximum(0, 1 - level**2)) + rng.uniform(40, 120) * np.exp(-(((level - 0.95) / 0.06) ** 2))
    for _ in range(rng.integers(2, 8)):
        at, size = rng.uniform(-0.7, 0.7, 2) * radii, rng.uniform(10, 40, 2)
        tissue = tissue + rng.uniform(-60, 60) * (((x - at[0]) / size[0]) ** 2 + ((z - at[1]) / size[1]) ** 2 < 1)
    return np.asarray(np.maximum(tissue, 0), np.float32)


def _belly(rng: np.random.Generator) -> Float:
    x, z = axes()
    half = rng.uniform(130, 200) * (1 + 0.1 * np.sin(z / rng.uniform(60, 150)))
    tissue = rng.uniform(180, 280) * np.sqrt(np.maximum(0, 1 - np.abs(x / half) ** 4))
    tissue = tissue + rng.uniform(20, 60) * (np.abs(x) < 20) * (1 + 0.4 * (np.sin(z / 4.5) > 0.4))
    for side in (-1, 1):
        wing = ((x - side * 90) / 55) ** 2 + ((z + rng.uniform(90, 160)) / 70) ** 2 < 1
        tissue = tissue + rng.uniform(10, 50) * wing
    for _ in range(rng.integers(2, 25)):
        at, size = rng.uniform(-150, 150, 2), rng.uniform(6, 35, 2)
        gas = np.sqrt(np.maximum(0, 1 - ((x - at[0]) / size[0]) ** 2 - ((z - at[1]) / size[1]) ** 2))
        tissue = tissue - rng.uniform(15, 60) * gas
    return np.asarray(np.maximum(tissue, 0), np.float32)


def _hand(rng: np.random.Generator) -> Float:
    x, z = axes()
    tissue = 40 * np.sqrt(np.maximum(0, 1 - (x / 75) ** 2 - ((z + 60) / 90) ** 2))
    for finger in range(5):
        angle, along = (finger - 2) * rng.uniform(0.12, 0.3), rng.uniform(60, 170)
        across = x * np.cos(angle) - (z + 60) * np.sin(angle)
        up = x * np.sin(angle) + (z + 60) * np.cos(angle)
        inside = (up > 0) & (up < along)
        tissue = tissue + inside * (25 * np.sqrt(np.maximum(0, 1 - (across / 14) ** 2)))
        tissue = tissue + inside * (30 * np.sqrt(np.maximum(0, 1 - (across / 6) ** 2))) * (np.sin(up / 9) > -0.85)
    return np.asarray(tissue * rng.uniform(1, 4), np.float32)


def _shapes(rng: np.random.Generator) -> Float:
    """Blobs of every size, so that not just any two dark areas make a chest."""
    x, z = axes()
    tissue = np.full_like(x, 60) + 40 * ndimage.gaussian_filter(rng.standard_normal(x.shape), 8) * 15
    for _ in range(rng.integers(2, 14)):
        at, size = rng.uniform(-220, 220, 2), rng.uniform(15, 150, 2)
        power = rng.choice((2.0, 8.0))
        inside = np.abs((x - at[0]) / size[0]) ** power + np.abs((z - at[1]) / size[1]) ** power < 1
        tissue = tissue + rng.uniform(-80, 80) * inside
    return np.asarray(np.maximum(tissue, 0), np.float32)
