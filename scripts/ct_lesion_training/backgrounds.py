"""The lungs that lesions are put into: two real patients and the phantom, on the model's grid.

The known tumours are marked: training counts nothing there, neither as lesion nor as lung, and evaluation on simulated
lesions neither.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance import phantom, scanner
from appliance.imaging import geometry, volume
from appliance.imaging.grid import isotropic
from appliance.imaging.headers import read_header
from appliance.imaging.lungs import lung_hull
from appliance.imaging.volume import Volume

SPACING_MM = 2.0
CLOSE_MM, MIN_ML = 12.0, 100.0  #: as the engine's manifest has it
AROUND_MM = 6.0  #: so much around a known tumour is left out as well

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]  #: pixel columns and rows: column min, row min, column max, row max


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A public CT and where its tumour is: boxes in the image, by z in mm (patient coordinates)."""

    name: str
    archive: str
    boxes: dict[float, Box]
    by: str  #: who says so

    @property
    def z_range(self) -> tuple[float, float]:
        return min(self.boxes), max(self.boxes)


#: Boxes of Lung-PET-CT-Dx by experts; of C3N-00247 one box in one slice by a non-expert, taken as deep as it is wide.
CASES = (
    Case(
        name="C3N-00247",
        archive="C3N-00247_LUNG3mm.tar.xz",
        boxes=dict.fromkeys((-210.0, -195.0, -180.0), (76, 138, 136, 198)),
        by="a non-expert",
    ),
    Case(
        name="Lung_Dx-A0002",
        archive="Lung_Dx-A0002_B40f.tar.xz",
        boxes={
            176.0: (146, 285, 207, 335),
            184.0: (134, 274, 216, 338),
            192.0: (126, 258, 221, 330),
            200.0: (108, 253, 226, 330),
            208.0: (139, 253, 234, 322),
            216.0: (160, 255, 217, 330),
            224.0: (166, 256, 226, 340),
            232.0: (171, 262, 231, 339),
            240.0: (167, 269, 234, 356),
            248.0: (172, 275, 232, 348),
        },
        by="experts",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """HU, lung hull and known tumour (with a margin), all (z, y, x) at SPACING_MM. `thick_mm` is the slice spacing."""

    name: str
    hu: Float
    hull: Mask
    known: Mask
    thick_mm: float


def read_case(case: Case, data: Path, workdir: Path) -> Volume:
    """The public CT as a volume in HU under `workdir`. Raises OSError where the archive is not under `data`/ct."""
    found = scanner.find(data / "ct" / case.archive, workdir)
    stack = geometry.stack([read_header(item.stored.path) for item in found.items])
    return volume.build(stack, workdir)


def tumour(case: Case, source: Volume, around_mm: float = AROUND_MM) -> Mask:
    """Voxels of the source volume in the case's boxes and `around_mm` about them."""
    mask = np.zeros(source.hu.shape, np.bool_)
    low, high = case.z_range
    rows, columns = (around_mm / mm for mm in source.voxel_mm[1:])
    for index in range(len(mask)):
        z = source.stack.to_patient((index, 0, 0))[2]
        if low - source.voxel_mm[0] / 2 - around_mm <= z <= high + source.voxel_mm[0] / 2 + around_mm:
            box = case.boxes[min(case.boxes, key=lambda known: abs(known - z))]
            mask[
                index,
                max(0, round(box[1] - rows)) : round(box[3] + rows),
                max(0, round(box[0] - columns)) : round(box[2] + columns),
            ] = True
    return mask


def real(data: Path, leave_out: str = "") -> list[Background]:
    """The public CTs under `data` but the one named `leave_out`."""
    made = []
    for case in CASES:
        if case.name != leave_out:
            with tempfile.TemporaryDirectory() as folder:
                source = read_case(case, data, Path(folder))
                made.append(_background(case.name, source, tumour(case, source)))
    return made


def phantoms(seeds: tuple[int, ...]) -> list[Background]:
    made = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            truth = phantom.write_ct(Path(folder) / "ct", seed, nodules=())
            source = volume.build(geometry.stack([read_header(path) for path in truth.files]), Path(folder))
            made.append(_background(f"phantom {seed}", source, np.zeros(source.hu.shape, np.bool_)))
    return made


def _background(name: str, source: Volume, known: Mask) -> Background:
    hu, _ = isotropic(np.asarray(source.hu), source.voxel_mm, SPACING_MM)
    marked, _ = isotropic(known.astype(np.int16) * 100, source.voxel_mm, SPACING_MM)
    return Background(
        name=name,
        hu=hu,
        hull=lung_hull(hu, SPACING_MM, CLOSE_MM, MIN_ML),
        known=marked > 1,
        thick_mm=source.voxel_mm[0],
    )
