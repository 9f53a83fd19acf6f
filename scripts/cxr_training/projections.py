"""Frontal and lateral films projected from real CT volumes: real anatomy, of few people.

Beyond the scanner's circle, and above and below the scan, the body is continued by plain tissue.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.engine_ops import LungHull, Resample
from appliance.imaging import geometry, preprocess, volume
from appliance.imaging.headers import read_header
from cxr_training.picture import FIELD_MM, SIZE, Float, Picture, View, box_of, develop

VOXEL_MM = 4.0
GRID = round(FIELD_MM / VOXEL_MM)


class Patient:
    """One CT on a cube of GRID voxels: `density` relative to water and `lung`, both (z from the feet, y, x)."""

    def __init__(self, files: list[Path], folder: Path) -> None:
        stack = geometry.stack([read_header(path) for path in files])
        source = volume.build(stack, folder)
        steps = (Resample(op="resample", spacing_mm=VOXEL_MM), LungHull(op="lung_hull", output="lung"))
        model = preprocess.run(steps, source.hu, source.voxel_mm)
        hu = np.asarray(model.image, np.float32)
        self.body = _continued(np.clip(hu / 1000 + 1, 0, 2.2))
        self.lung = _centred(np.asarray(model.masks["lung"], np.float32), mode="constant")

    def project(self, rng: np.random.Generator, view: View) -> Picture:
        """A film from the back or from the side, the patient a little turned and bent."""
        turn = rng.uniform(-9, 9) + (90 if view is View.LATERAL else 0)
        body, lung = self._with_outline(rng), self.lung
        body, lung = (ndimage.rotate(v, turn, axes=(1, 2), reshape=False, order=1) for v in (body, lung))
        lean = rng.uniform(-0.2, 0.2)  # the ray falls in from above or from below
        body, lung = _sheared(body, lean), _sheared(lung, lean)
        tissue = _film(body.sum(axis=1) * VOXEL_MM)
        shadow = _film(lung.sum(axis=1) * VOXEL_MM)
        if view is View.LATERAL and rng.random() < 0.5:
            tissue = tissue[:, ::-1]
        lungs = box_of(shadow > 25)
        return Picture(image=develop(rng, tissue), view=view, lungs=lungs)

    def _with_outline(self, rng: np.random.Generator) -> Float:
        """The scanner's circle leaves out skin and shoulders: an ellipse of tissue about the body stands for them."""
        y, x = (np.mgrid[:GRID, :GRID] - (GRID - 1) / 2) * VOXEL_MM
        z = (np.arange(GRID) - (GRID - 1) / 2) * VOXEL_MM
        body = self.body.copy()
        wide, deep = rng.uniform(150, 185), rng.uniform(100, 125)
        shoulders, neck = rng.uniform(0, 50), rng.uniform(0.3, 0.6)
        for index, height in enumerate(z):
            above = np.clip((height - 100) / 40, 0, 1)
            half = (wide + shoulders * np.clip((height - 40) / 50, 0, 1)) * (1 - (1 - neck) * above)
            inside = (x / half) ** 2 + (y / deep) ** 2 < 1
            empty = ndimage.binary_opening(body[index] < 0.1, iterations=3) & (np.hypot(x, y) > 90)
            body[index][inside & empty] = 1.0
            body[index][~inside & (above > 0.5)] = 0
        return body


def _continued(density: Float) -> Float:
    return _centred(density, mode="edge")


def _centred(values: Float, *, mode: str) -> Float:
    """Cut or filled to the cube; `edge` continues the first and last slice, the sides are filled with nothing."""
    for axis, size in enumerate(values.shape):
        spare = GRID - size
        if spare < 0:
            values = np.take(values, np.arange(GRID) - spare // 2, axis=axis)
            continue
        pads = [(0, 0)] * values.ndim
        pads[axis] = (spare // 2, spare - spare // 2)
        values = np.pad(values, pads, mode=mode if axis == 0 else "constant")  # type: ignore[call-overload]
    return np.ascontiguousarray(values, np.float32)


def _sheared(values: Float, slope: float) -> Float:
    matrix = np.array([[1.0, slope, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(
        ndimage.affine_transform(values, matrix, offset=(-slope * (GRID - 1) / 2, 0, 0), order=1, mode="nearest"),
        np.float32,
    )


def _film(sums: NDArray[np.float32]) -> Float:
    """Rows from head to feet, at the size of a picture."""
    return np.asarray(ndimage.zoom(sums[::-1], SIZE / GRID, order=1)[:SIZE, :SIZE], np.float32)
