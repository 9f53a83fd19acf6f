"""Films and volumes as the imaging code reads them, made from small files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.imaging import geometry, volume
from appliance.imaging.film import Film, read_film
from appliance.imaging.headers import read_header
from appliance.imaging.volume import Volume
from tests.slices import ct_slice, film, save

CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}


def write_film(folder: Path, pixels: NDArray[np.float32]) -> Path:
    """A film of 8 bits, of another study than the volumes; pixels are within [0, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = {"StudyInstanceUID": "1.2.5", "SeriesInstanceUID": "1.2.5.1", "SOPInstanceUID": "1.2.5.1.1"}
    values = np.rint(pixels * 255).astype(np.uint8)
    return save(folder / "film.dcm", film(values, WindowCenter=128, WindowWidth=256, **uids))


def read_film_of(folder: Path, rows: int, columns: int) -> Film:
    """A black film."""
    return read_film(read_header(write_film(folder, np.zeros((rows, columns), np.float32))))


def write_volume(folder: Path, hu: NDArray[np.int16], mm: tuple[float, float, float]) -> list[Path]:
    """Axial slices that say how many they are; the first voxel is at (0, 0, 0) mm."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save(
            folder / f"{index:03d}.dcm",
            ct_slice(
                index * mm[0],
                (plane + 1024).astype(np.uint16),
                PixelSpacing=list(mm[1:]),
                ImagePositionPatient=[0, 0, index * mm[0]],
                NumberOfSeriesRelatedInstances=hu.shape[0],
            ),
        )
        for index, plane in enumerate(hu)
    ]


def read_volume_of(folder: Path, shape: tuple[int, int, int], mm: tuple[float, float, float]) -> Volume:
    """A volume of water."""
    paths = write_volume(folder / "slices", np.zeros(shape, np.int16), mm)
    return volume.build(geometry.stack([read_header(path) for path in paths]), folder)
