"""Simulated lesions for training, on a grid of 2 mm: star-shaped bodies with lobes, spicules and layers.

The evaluation has another generator (holdout.py) with another idea of shape and texture: a model that has only learnt
what this one draws must not look good there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Random = np.random.Generator

SMALLEST_MM, LARGEST_MM = 4.0, 80.0
KINDS = ("solid", "part_solid", "spiculated", "ground_glass")
SHARES = (0.45, 0.2, 0.27, 0.08)
SOFT_HU = -150.0  #: denser surroundings (chest wall, heart) are not thinned by a lesion in them
RIM = 0.6  #: the target falls by this share from a lesion's centre to its surface


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """One lesion drawn over its surroundings: HU, how deep each voxel lies (0 centre, 1 surface), share of change."""

    window: tuple[slice, ...]
    hu: Float
    level: Float
    share: Float
    radius_mm: float


def random_radius(rng: Random) -> float:
    """In mm; uniform in the logarithm."""
    return float(np.exp(rng.uniform(np.log(SMALLEST_MM), np.log(LARGEST_MM))) / 2)


def draw(rng: Random, hu: Float, centre: NDArray[np.float64], radius_mm: float, spacing_mm: float) -> Lesion:
    """A lesion of random kind around `centre` (index z, y, x) of `hu`."""
    kind = str(rng.choice(KINDS, p=SHARES))
    spicule_mm = float(rng.uniform(0.4, 1.2)) * min(radius_mm, 12.0) if kind == "spiculated" else 0.0
    window, offsets = around(hu.shape, centre, radius_mm * 1.5 + spicule_mm + 3, spacing_mm)
    distance, direction, level = _body(rng, offsets, radius_mm)
    edge_mm = float(rng.uniform(0.5, 1.4))
    share = _soft((1 - level) * radius_mm, edge_mm)
    under = hu[window]
    dense = _density(rng, kind, level, under, radius_mm)
    if spicule_mm:
        share = np.maximum(share, _spicules(rng, distance, direction, radius_mm, spicule_mm))
    mixed = under + share * (dense - under)
    hollow = (dense < under) & (under < SOFT_HU)
    return Lesion(
        window=window,
        hu=np.where(hollow, mixed, np.maximum(under, mixed)).astype(np.float32),
        level=level.astype(np.float32),
        share=share.astype(np.float32),
        radius_mm=radius_mm,
    )


def target(level: Float) -> Float:
    """What the model is to answer: 1 at the centre, 1 - RIM at the surface, 0 outside."""
    return np.where(level < 1, 1 - RIM * level**2, 0).astype(np.float32)


def around(
    shape: tuple[int, ...], centre: NDArray[np.float64], reach_mm: float, spacing_mm: float
) -> tuple[tuple[slice, ...], Float]:
    """The part of an array within reach, and its voxels' offsets (3, ...) from the centre in mm."""
    window, offsets = [], []
    for size, middle in zip(shape, centre, strict=True):
        start = min(max(0, int(middle - reach_mm / spacing_mm)), size - 1)
        stop = max(start + 1, min(size, int(middle + reach_mm / spacing_mm) + 2))
        window.append(slice(start, stop))
        offsets.append((np.arange(start, stop) - middle) * spacing_mm)
    return tuple(window), np.stack(np.meshgrid(*offsets, indexing="ij")).astype(np.float32)


def squares(offsets: Float) -> Float:
    """Squared distances of offsets (3, ...)."""
    return np.asarray(np.einsum("i...,i...->...", offsets, offsets), np.float32)


def _body(rng: Random, offsets: Float, radius_mm: float) -> tuple[Float, Float, Float]:
    """Distance in mm, direction, and level of each voxel: an ellipsoid whose radius varies with the direction."""
    ratios = np.exp(rng.normal(0, 0.16, 3))
    ratios /= np.prod(ratios) ** (1 / 3)
    turned = np.einsum("ij,j...->i...", (rotation(rng) / ratios[:, None]).astype(np.float32), offsets)
    distance = np.sqrt(squares(turned)) + np.float32(1e-3)
    direction = turned / distance
    lobes = int(rng.integers(4, 14))
    sizes = rng.normal(0, 1, lobes) * rng.uniform(0, 0.22)
    swell = np.ones(distance.shape, np.float32)
    for size, sharp, pole in zip(sizes, rng.uniform(1.5, 10, lobes), _directions(rng, lobes), strict=True):
        swell += np.float32(size) * np.exp(sharp * (np.tensordot(pole, direction, 1) - 1)).astype(np.float32)
    return distance, direction, distance / (radius_mm * np.clip(swell, 0.6, 1.5))


def _density(rng: Random, kind: str, level: Float, under: Float, radius_mm: float) -> Float:
    """HU of the lesion itself."""
    solid = rng.uniform(-20, 70) + (rng.uniform(20, 90) if rng.random() < 0.3 else 0)
    dense = np.full(level.shape, solid, np.float32) + np.float32(rng.uniform(0, 35)) * _grain(rng, level.shape)
    if kind in {"part_solid", "ground_glass"}:
        veil = under + np.float32(rng.uniform(0.3, 0.6)) * (dense - under)
        core = float(rng.uniform(0.35, 0.75)) if kind == "part_solid" else 0.0
        inner = _soft((core - level) * radius_mm, 1.0) if core else np.zeros_like(level)
        return np.asarray(veil + inner * (dense - veil), np.float32)
    chance = rng.random()
    if chance < 0.08 and radius_mm > 7:
        hole = _soft((rng.uniform(0.3, 0.65) - level) * radius_mm, 1.0)
        dense = dense + hole * (np.float32(rng.uniform(-950, -700)) - dense)
    elif chance < 0.16 and radius_mm > 12:
        dead = _soft((rng.uniform(0.4, 0.75) - level) * radius_mm, 3.0)
        dense = dense - dead * np.float32(rng.uniform(10, 50))
    elif chance < 0.22:
        chalk = _soft((rng.uniform(0.2, 0.9) - level) * radius_mm, 1.0)
        dense = dense + chalk * np.float32(rng.uniform(80, 450))
    return np.asarray(dense, np.float32)


def _spicules(rng: Random, distance: Float, direction: Float, radius_mm: float, length_mm: float) -> Float:
    """Share of thin, tapering rays from the surface."""
    share = np.zeros(distance.shape, np.float32)
    count = int(rng.integers(8, 30))
    for pole, length in zip(_directions(rng, count), length_mm * rng.uniform(0.4, 1.0, count), strict=True):
        along = np.tensordot(pole, direction, 1)
        beside = distance * np.sqrt(np.maximum(0, 1 - along**2))
        taper = 1 - (distance - 0.8 * radius_mm) / (0.2 * radius_mm + length)
        width = np.float32(rng.uniform(0.8, 1.8)) * np.clip(taper, 0, 1)
        ray = np.where(along > 0, np.clip((width - beside) / 1.2 + 0.5, 0, 1) * (taper > 0), 0)
        share = np.maximum(share, ray * np.float32(rng.uniform(0.4, 0.95)))
    return share


def _soft(inside_mm: Float, edge_mm: float) -> Float:
    return np.asarray(1 / (1 + np.exp(np.clip(-inside_mm / (edge_mm / 2), -30, 30))), np.float32)


def _grain(rng: Random, shape: tuple[int, ...]) -> Float:
    """Noise that is smooth over about two voxels, of standard deviation 1."""
    noise = ndimage.uniform_filter(rng.standard_normal(shape, np.float32), 3, mode="nearest")
    return np.asarray(noise / max(float(noise.std()), 1e-3), np.float32)


def _directions(rng: Random, count: int) -> Float:
    vectors = rng.normal(0, 1, (count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def rotation(rng: Random) -> NDArray[np.float64]:
    """A random rotation matrix."""
    matrix, upper = np.linalg.qr(rng.normal(0, 1, (3, 3)))
    return np.asarray(matrix * np.sign(np.diag(upper)))
