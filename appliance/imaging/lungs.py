"""Where the lungs are in a chest CT, hulls closed: coarse, threshold and morphology, no learning.

Air inside the body is lung where it is large; the central airways are taken out; each lung is closed by itself, so
that lesions on its surface and vessels in it stay inside while the mediastinum stays out. Lesions wider than twice
`close_mm` on the chest wall fall out of the hull.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.errors import CannotAnalyse
from appliance.imaging.grid import Float, block_mean, enlarge
from appliance.model import Reason

COARSE_MM = 4.0
LUNG_HU = -450.0  #: below it: air or lung
LUMEN_HU = -930.0  #: below it, near the midline and not part of a wide space: trachea and main bronchi
CORE_MM = 28.0  #: a space narrower than this is no lung core: the trachea is up to 25 mm wide
REACH_MM = 36.0  #: what this cube around a core voxel covers belongs to the lung
MIDLINE_MM = 36.0

Mask = NDArray[np.bool_]


def lung_hull(hu: Float, spacing_mm: float, close_mm: float, min_ml: float) -> Mask:
    """Mask of both hulls on the grid of `hu` (z, y, x; isotropic, x along the patient's left-right axis).

    Raises CannotAnalyse(UNSUITABLE) where there is no lung.
    """
    factor = max(1, round(COARSE_MM / spacing_mm))
    coarse_mm = factor * spacing_mm
    coarse = block_mean(hu, factor)
    air = _inner_air(coarse, min_ml * 1000 / coarse_mm**3)
    box = ndimage.find_objects(air.view(np.uint8))
    if not box:
        raise CannotAnalyse(Reason.UNSUITABLE, "no lung in the field of view")
    pad = round(close_mm / coarse_mm) + 1
    window = tuple(
        slice(max(0, part.start - pad), min(size, part.stop + pad))
        for part, size in zip(box[0], air.shape, strict=True)
    )
    hull = np.zeros_like(air)
    hull[window] = _hulls(air[window], coarse[window], coarse_mm, pad - 1)
    return enlarge(hull, factor, hu.shape)


def _inner_air(coarse: Float, min_voxels: float) -> Mask:
    """Air that does not touch the sides of the volume (the outside does), in components of at least `min_voxels`."""
    labels, _ = ndimage.label(coarse < LUNG_HU)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for side in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        sizes[np.unique(side)] = 0
    keep: Mask = (sizes >= min_voxels)[labels]
    return keep


def _hulls(air: Mask, coarse: Float, mm: float, iterations: int) -> Mask:
    core = _cube(ndimage.minimum_filter1d, air, round(CORE_MM / mm))
    wide = _cube(ndimage.maximum_filter1d, core, round(REACH_MM / mm)) & air
    middle = _midline(core)
    columns = np.arange(air.shape[2])
    near = np.abs(columns - middle) < MIDLINE_MM / mm
    lumen = air & ~wide & near & (coarse < LUMEN_HU)
    lungs = air & ~(_cube(ndimage.maximum_filter1d, lumen, 3) & ~wide)
    hull = np.zeros_like(air)
    for side in (slice(0, round(middle)), slice(round(middle), None)):
        hull[:, :, side] = _closed(lungs[:, :, side], iterations)
    return hull


def _cube(filter1d: object, mask: Mask, size: int) -> Mask:
    result = mask.view(np.uint8)
    for axis in range(3):
        result = filter1d(result, size, axis, mode="constant", cval=0)  # type: ignore[operator]
    return result.view(np.bool_)


def _midline(core: Mask) -> float:
    """Column half-way between the centres of the two largest cores; the middle of the box where they are one."""
    labels, count = ndimage.label(core)
    if count >= 2:
        largest = np.argsort(np.bincount(labels.ravel())[1:])[-2:] + 1
        one, other = (float(np.mean(np.nonzero(labels == label)[2])) for label in largest)
        if abs(one - other) > core.shape[2] / 4:
            return (one + other) / 2
    return float(core.shape[2]) / 2


def _closed(mask: Mask, iterations: int) -> Mask:
    """Morphological closing with cross and cube in turn, an octagon-like ball; holes are filled."""
    cross, cube = ndimage.generate_binary_structure(3, 1), ndimage.generate_binary_structure(3, 3)
    padded = np.pad(mask, iterations)
    for step in range(iterations):
        padded = ndimage.binary_dilation(padded, cube if step % 2 else cross)
    for step in range(iterations):
        padded = ndimage.binary_erosion(padded, cube if step % 2 else cross)
    inner = slice(iterations, -iterations or None)
    closed: Mask = ndimage.binary_fill_holes(padded[inner, inner, inner])
    return closed
