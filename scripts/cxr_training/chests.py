"""Drawn chests: frontal and lateral films of random people made of ellipses, bands and noise.

They only have to hold what tells a good film from a bad one: where lungs, heart, diaphragm, spine, shoulders and
flanks lie, in more shapes than there are real films here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cxr_training.picture import SIZE, Float, Picture, View, axes, box_of, develop

Mask = NDArray[np.bool_]


def _dome(x: Float, z: Float, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Float:
    """1 in the middle of a (super)ellipse, 0 on and beyond its edge: the thickness of a ball."""
    level = np.abs((x - centre[0]) / radii[0]) ** power + np.abs((z - centre[1]) / radii[1]) ** power
    return np.asarray(np.sqrt(np.maximum(0, 1 - level)), np.float32)


def _step(values: NDArray[np.floating[Any]], softness_mm: float) -> Float:
    """0 below nought, 1 above it."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values / softness_mm, -30, 30))), np.float32)


def _clouds(rng: np.random.Generator, sigma: float) -> Float:
    noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)).astype(np.float32), sigma)
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def frontal(rng: np.random.Generator) -> Picture:
    x, z = axes()
    x = (x + np.float32(rng.normal(0, 6)) * (z / 200)).astype(np.float32)  # nobody stands quite straight
    half = float(rng.uniform(105, 150))  # of both lungs together
    top = float(rng.uniform(70, 125))
    bottom = top - half * rng.uniform(1.35, 2.15)
    air, mask = _lungs(rng, x, z, half, (top, bottom))
    heart = _heart(rng, x, z, half, bottom)
    tissue = _torso(rng, x, z, half, (top, bottom))
    depth = rng.uniform(90, 150)
    air = np.maximum(0, air * depth - 0.8 * heart)
    air = air * (1 + 0.07 * _clouds(rng, 2.5) + 0.05 * _clouds(rng, 0.9)) - _opacities(rng, x, z, half) * mask
    tissue = (
        tissue - np.maximum(air, 0) + 0.35 * heart + _bones(rng, x, z, half, (top, bottom)) + _extras(rng, x, z, half)
    )
    tissue += _belly_gas(rng, x, z, half, bottom)
    return Picture(image=develop(rng, np.maximum(tissue, 0)), view=View.FRONTAL, lungs=box_of(mask))


def _lungs(rng: np.random.Generator, x: Float, z: Float, half: float, ends: tuple[float, float]) -> tuple[Float, Mask]:
    """Relative thickness 0..1 of lung, and where there is some."""
    top, bottom = ends
    shape, tilt = rng.uniform(2.2, 3.4), rng.uniform(0.05, 0.18)
    inner = float(rng.uniform(0.12, 0.26)) * half
    air = np.zeros_like(x)
    for side in (-1, 1):
        apex = top - rng.uniform(0, 10)
        base = bottom + rng.uniform(0, 22) + (rng.uniform(-8, 14) if side < 0 else rng.uniform(-14, 8))
        middle, radius = (half + inner) / 2, (half - inner) / 2
        height = apex - base
        down = np.clip((apex - z) / height, 0, 1.3)
        along = side * x - middle - tilt * half * (down - 0.6) * 0.5
        wide = radius * (0.62 + 0.38 * np.clip(down / rng.uniform(0.45, 0.7), 0, 1))
        body = np.maximum(0, 1 - np.abs(along / wide) ** shape - np.clip((0.22 - down) / 0.22, 0, 2) ** 2)
        dome = base + rng.uniform(22, 50) * np.sqrt(np.maximum(0, 1 - ((along + 0.15 * radius) / (1.15 * radius)) ** 2))
        lung = np.sqrt(body) * _step(z - dome, 3.0) * (z < apex)
        air += lung.astype(np.float32)
    return air, np.asarray(air > 0.22)


def _heart(rng: np.random.Generator, x: Float, z: Float, half: float, bottom: float) -> Float:
    """Millimetres of heart and great vessels; the heart lies to the patient's left."""
    size = half * rng.uniform(0.36, 0.6)
    shift = half * rng.uniform(0.1, 0.24)
    heart = 90 * _dome(
        x + 0.25 * (z - bottom),
        z,
        (shift, bottom + size * rng.uniform(0.55, 0.8)),
        (size, size * rng.uniform(0.75, 1.05)),
    )
    arch = bottom + half * rng.uniform(1.05, 1.35)
    vessels = 50 * _dome(x, z, (half * rng.uniform(0.1, 0.2), arch), (rng.uniform(16, 28), rng.uniform(16, 30)))
    column = half * rng.uniform(0.14, 0.24)
    mediastinum = 70 * np.sqrt(np.maximum(0, 1 - (x / column) ** 2)).astype(np.float32)
    hila = sum(
        rng.uniform(15, 40) * _dome(x, z, (side * half * 0.3, arch - half * 0.35), (half * 0.13, half * 0.28))
        for side in (-1, 1)
    )
    return np.asarray(heart + vessels + mediastinum + hila, np.float32)


def _torso(rng: np.random.Generator, x: Float, z: Float, half: float, ends: tuple[float, float]) -> Float:
    """Millimetres of tissue of trunk, neck, shoulders and, perhaps, hanging arms."""
    top, _ = ends
    flank = half * rng.uniform(1.1, 1.4)
    shoulder, neck = half * rng.uniform(1.45, 1.9), half * rng.uniform(0.36, 0.5)
    shoulders_at = top + rng.uniform(-15, 30)
    rise = _step(z - (shoulders_at - rng.uniform(50, 95)), rng.uniform(8, 22))
    width = flank + (shoulder - flank) * rise
    slope = np.clip((z - shoulders_at) / rng.uniform(25, 60), 0, 1)
    width = width + (neck - width) * slope
    thick = rng.uniform(170, 270) * (1 - 0.35 * rise * rng.uniform(0.4, 1))
    body = thick * np.sqrt(np.maximum(0, 1 - np.abs(x / width) ** rng.uniform(3, 7)))
    if rng.random() < 0.5:  # arms beside the trunk
        gap, arm = flank + rng.uniform(5, 45), rng.uniform(30, 45)
        for side in (-1, 1):
            level = ((side * x - gap - arm - rng.uniform(-0.2, 0.3) * (z - top)) / arm) ** 2
            limb = rng.uniform(70, 100) * np.sqrt(np.maximum(0, 1 - level)) * (z < shoulders_at)
            body = np.maximum(body, limb)
    return np.asarray(body, np.float32)


def _bones(rng: np.random.Generator, x: Float, z: Float, half: float, ends: tuple[float, float]) -> Float:
    """Millimetres of water that bone adds: spine, ribs, clavicles, shoulder blades."""
    top, _ = ends
    bones = rng.uniform(20, 60) * _step(rng.uniform(14, 20) - np.abs(x), 1.5)
    bones = bones + 6 * (np.sin(z / rng.uniform(3.4, 4.4)) > 0.3) * (np.abs(x) < 17)
    pitch, strong = rng.uniform(20, 27), rng.uniform(6, 18)
    inside = _step(1.03 * half - np.abs(x), 3.0) * (z < top + 12)
    for sense, share in ((1, 1.0), (-1, 0.6)):
        curve = z + sense * (0.0022 * x * x - rng.uniform(0.05, 0.3) * np.abs(x))
        bones = bones + share * strong * (np.cos(2 * np.pi * curve / pitch) > 0.35) * inside
    for side in (-1, 1):
        line = z - (top - rng.uniform(5, 30)) - rng.uniform(0.05, 0.35) * (side * x - 20)
        bones = bones + rng.uniform(15, 30) * (np.abs(line) < 5) * (side * x > 12) * (side * x < half * 1.25)
        bones = bones + rng.uniform(8, 25) * (
            _dome(x, z, (side * half * rng.uniform(1.0, 1.25), top - 50), (half * 0.28, 55)) > 0
        )
    return np.asarray(ndimage.gaussian_filter(bones, 0.7), np.float32)


def _opacities(rng: np.random.Generator, x: Float, z: Float, half: float) -> Float:
    """Millimetres of fluid or mass in the lungs: most people here are ill."""
    found = np.zeros_like(x)
    if rng.random() < 0.5:
        return found
    for _ in range(rng.integers(1, 8)):
        size = half * rng.uniform(0.05, 0.35)
        centre = (float(rng.uniform(-half, half)), float(rng.uniform(-half, half * 0.7)))
        found += rng.uniform(15, 90) * _dome(x, z, centre, (size, size * rng.uniform(0.6, 1.6)))
    if rng.random() < 0.25:  # an effusion: one side white from below
        side = rng.choice((-1, 1))
        found += 110 * _step(-z + rng.uniform(-60, 0) + 0.25 * (side * x - half / 2), 8.0) * (side * x > 0)
    return found


def _extras(rng: np.random.Generator, x: Float, z: Float, half: float) -> Float:
    """Breasts, letters, leads and implants."""
    more = np.zeros_like(x)
    if rng.random() < 0.4:
        size, drop = half * rng.uniform(0.35, 0.6), -rng.uniform(0.1, 0.7) * half
        for side in (-1, 1):
            more += rng.uniform(15, 60) * _dome(x, z, (side * half * rng.uniform(0.5, 0.75), drop), (size, size), 2.5)
    if rng.random() < 0.3:
        for _ in range(rng.integers(1, 4)):
            at, angle = rng.uniform(-half, half, 2), rng.uniform(0, np.pi)
            line = (x - at[0]) * np.sin(angle) + (z - at[1]) * np.cos(angle) + 0.002 * (x - at[0]) ** 2 * rng.normal()
            more += rng.uniform(20, 60) * (np.abs(line) < 2.5)
    if rng.random() < 0.15:
        more += rng.uniform(60, 150) * (_dome(x, z, (rng.choice((-1, 1)) * half * 0.6, half * 0.5), (24, 20)) > 0)
    return more


def _belly_gas(rng: np.random.Generator, x: Float, z: Float, half: float, bottom: float) -> Float:
    """Negative mm: the stomach's bubble below the left dome, bowel gas."""
    gas = np.zeros_like(x)
    if rng.random() < 0.6:
        gas -= rng.uniform(30, 80) * _dome(
            x, z, (half * rng.uniform(0.35, 0.7), bottom - 5), (half * 0.22, half * 0.15)
        )
    for _ in range(rng.integers(0, 5)):
        at = (float(rng.uniform(-half, half)), float(bottom - rng.uniform(40, 150)))
        gas -= rng.uniform(20, 60) * _dome(x, z, at, (rng.uniform(10, 30), rng.uniform(10, 25)))
    return gas


def lateral(rng: np.random.Generator) -> Picture:
    """From the side, facing the film's right or left: one lung over the other, spine behind, sternum before."""
    x, z = axes()
    x = x * np.float32(rng.choice((-1, 1)))  # x to the front
    deep = float(rng.uniform(85, 130))  # half of the chest's depth
    top, bottom = float(rng.uniform(80, 120)), float(rng.uniform(-140, -90))
    lean = (z - bottom) / (top - bottom)
    x = x + np.float32(rng.uniform(0, 25)) * (lean - 0.5)
    width = deep * np.clip(1.12 - 0.45 * np.clip(lean - 0.4, 0, 1) ** 1.3, 0.4, 2)
    tissue = rng.uniform(260, 360) * np.sqrt(np.maximum(0, 1 - np.abs(x / (width * 1.22)) ** 4))
    lung = np.sqrt(np.maximum(0, 1 - np.abs((x + 6) / (width * 0.95)) ** 3)) * _step(top + 15 - z, 10.0)
    for _ in range(2):
        floor = bottom + rng.uniform(20, 55) - rng.uniform(0.15, 0.5) * np.maximum(0, -x) ** 1.1
        floor = floor - 0.002 * np.maximum(0, x - 20) ** 2
        lung = lung * (0.5 + 0.5 * _step(z - floor, 3.0))
    lung = lung * _step(z - bottom, 5.0)
    heart = rng.uniform(90, 140) * _dome(
        x - 0.3 * (z - bottom), z, (deep * rng.uniform(0.2, 0.4), bottom + deep * 0.75), (deep * 0.55, deep * 0.7)
    )
    air = np.maximum(0, lung * rng.uniform(190, 260) - heart) * (
        1 + 0.08 * _clouds(rng, 2.5) + 0.05 * _clouds(rng, 0.9)
    )
    spine_at = -deep * rng.uniform(0.6, 0.8) - 0.0012 * (z + 20) ** 2 + 25 * np.clip(lean - 0.6, 0, 1)
    tissue = tissue - air + rng.uniform(30, 70) * (np.abs(x - spine_at) < 17) * (1 + 0.3 * (np.sin(z / 4) > 0.5))
    tissue = tissue + rng.uniform(20, 50) * (np.abs(x - width * 0.98) < 5) * (z < top - 30) * (z > bottom + 60)
    shoulders = rng.uniform(40, 200) * _step(z - (top - rng.uniform(-15, 45)), 14.0)
    tissue = tissue + shoulders * (np.abs(x) < deep * rng.uniform(0.8, 1.6))
    rib = (np.cos(2 * np.pi * (z + rng.uniform(0.3, 0.7) * x) / rng.uniform(20, 27)) > 0.4) * rng.uniform(4, 14)
    tissue = tissue + rib * (lung > 0.1)
    return Picture(image=develop(rng, np.maximum(np.asarray(tissue, np.float32), 0)), view=View.LATERAL)
