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
    """A film of 8 bits; pixels are within [0, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    return save(folder / "film.dcm", film(np.rint(pixels * 255).astype(np.uint8), WindowCenter=128, WindowWidth=256))


def read_film_of(folder: Path, rows: int, columns: int) -> Film:
    """A black film."""
    return read_film(read_header(write_film(folder, np.zeros((rows, columns), np.float32))))


def write_volume(folder: Path, hu: NDArray[np.int16], mm: tuple[float, float, float]) -> list[Path]:
    """Axial slices; the first voxel is at (0, 0, 0) mm."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save(
            folder / f"{index:03d}.dcm",
            ct_slice(
                index * mm[0],
                (plane + 1024).astype(np.uint16),
                PixelSpacing=list(mm[1:]),
                ImagePositionPatient=[0, 0, index * mm[0]],
            ),
        )
        for index, plane in enumerate(hu)
    ]


def read_volume_of(folder: Path, shape: tuple[int, int, int], mm: tuple[float, float, float]) -> Volume:
    """A volume of water."""
    paths = write_volume(folder / "slices", np.zeros(shape, np.int16), mm)
    return volume.build(geometry.stack([read_header(path) for path in paths]), folder)
