"""A synthetic chest as DICOM: a CT series or a frontal film with a known truth, for the demo and for tests.

The same arguments give the same bytes. It looks like a chest to threshold methods and like nothing to a radiologist:
ellipsoids, tubes and noise. Patient coordinates are DICOM's (LPS, mm): x to the left, y to the back, z to the head.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

Vector = tuple[float, float, float]
Float = NDArray[np.float32]

SIZE = 512
PIXEL_MM = 0.7
FILM_SIZE = 1024
FILM_PIXEL_MM = 0.35
LUNG, TISSUE, BLOOD, BONE, LESION, FAT = -850.0, 40.0, 50.0, 350.0, 40.0, -90.0
NOISE_HU = 18.0
CLINICAL_TIMES = {"StudyDate": "20200101", "StudyTime": "120000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    centre_mm: Vector
    diameter_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What was written. `files` and `sop_instance_uids` go from foot to head."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]
    files: tuple[Path, ...]
    nodules: tuple[Nodule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    centre: Vector
    radii: Vector

    def level(self, x: Float, y: Float, z: float | Float) -> Float:
        """Below 1 inside, 1 on the surface."""
        a, b, c = self.radii
        dx, dy, dz = (x - self.centre[0]) / a, (y - self.centre[1]) / b, (z - self.centre[2]) / c
        return np.asarray(dx * dx + dy * dy + dz * dz, np.float32)

    def thickness(self, x: Float, z: Float) -> Float:
        """Length in mm of a ray along y."""
        flat = self.level(x, np.full_like(x, self.centre[1]), z)
        return np.asarray(2 * self.radii[1] * np.sqrt(np.maximum(0, 1 - flat)), np.float32)


BODY = Ellipsoid(centre=(0, 10, 0), radii=(165, 112, 1e4))
INNER_WALL = Ellipsoid(centre=(0, 8, 0), radii=(142, 92, 1e4))
RIGHT_LUNG = Ellipsoid(centre=(-74, 5, 0), radii=(58, 76, 84))
LEFT_LUNG = Ellipsoid(centre=(74, 5, 0), radii=(56, 76, 84))
DIAPHRAGMS = (
    Ellipsoid(centre=(-74, -5, -98), radii=(62, 82, 58)),
    Ellipsoid(centre=(74, -5, -104), radii=(60, 80, 56)),
)
HEART = Ellipsoid(centre=(16, -28, -28), radii=(44, 42, 44))
AORTA = Ellipsoid(centre=(20, 48, 0), radii=(12, 12, 1e4))
SPINE = Ellipsoid(centre=(0, 74, 0), radii=(20, 17, 1e4))
CARINA_MM = 22.0
TRACHEA_MM = 9.0
HILA = ((-30.0, 12.0, 2.0), (30.0, 12.0, 2.0))
DEFAULT_NODULES = (
    Nodule(centre_mm=(-92, 30, 12), diameter_mm=14),
    Nodule(centre_mm=(88, 34, 30), diameter_mm=9),
    Nodule(centre_mm=(-70, -30, -18), diameter_mm=26),
)


def write_ct(
    folder: Path, seed: int, slices: int = 60, spacing_mm: float = 3.0, nodules: Sequence[Nodule] = DEFAULT_NODULES
) -> Truth:
    """Write a chest CT of axial slices, `folder`/CT0001.dcm ... from head to foot. Raises OSError."""
    rng = np.random.default_rng(seed)
    levels = (np.arange(slices) - (slices - 1) / 2) * spacing_mm
    volume = np.stack([_slice(float(z)) for z in levels])
    for centre, radius in _vessels(rng):
        _paint(volume, levels, Nodule(centre_mm=centre, diameter_mm=2 * radius), BLOOD)
    for nodule in nodules:
        _paint(volume, levels, nodule, LESION)
    series = _Series(seed=seed, modality="CT", sop_class_uid=str(CTImageStorage))
    frame: dict[str, object] = {"FrameOfReferenceUID": series.uid("frame of reference")}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, z in enumerate(levels):
        noise = rng.standard_normal(volume.shape[1:], np.float32) * np.float32(NOISE_HU)
        stored = np.clip(np.rint(volume[index] + noise) + 1024, 0, 4095).astype("<u2")
        files.append(folder / f"CT{slices - index:04d}.dcm")
        series.write(files[-1], slices - index, frame | _ct_elements(float(z), spacing_mm), stored)
    return Truth(
        study_instance_uid=series.uid("study"),
        series_instance_uid=series.uid("series"),
        sop_instance_uids=tuple(series.uid(f"instance {slices - index}") for index in range(slices)),
        files=tuple(files),
        nodules=tuple(nodules),
    )


def write_cr(folder: Path, seed: int) -> Truth:
    """Write a frontal (PA) chest film, `folder`/CR0001.dcm. Raises OSError."""
    rng = np.random.default_rng(seed)
    axis = (np.arange(FILM_SIZE, dtype=np.float32) - (FILM_SIZE - 1) / 2) * np.float32(FILM_PIXEL_MM)
    film = _projection(axis[None, :] + 0 * axis[:, None], -axis[:, None] + 0 * axis[None, :])
    film += rng.standard_normal(film.shape, np.float32) * np.float32(0.006)
    stored = np.clip(np.rint(film * 4095), 0, 4095).astype("<u2")
    series = _Series(seed=seed, modality="CR", sop_class_uid=str(ComputedRadiographyImageStorage))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "CR0001.dcm"
    series.write(file, 1, _cr_elements(), stored)
    return Truth(
        study_instance_uid=series.uid("study"),
        series_instance_uid=series.uid("series"),
        sop_instance_uids=(series.uid("instance 1"),),
        files=(file,),
    )


# What the scanner would see.


def _axes() -> tuple[Float, Float]:
    axis = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * np.float32(PIXEL_MM)
    return np.broadcast_to(axis, (SIZE, SIZE)), np.broadcast_to(axis[:, None], (SIZE, SIZE))


def _slice(z: float) -> Float:
    """One axial slice in HU, without vessels, lesions and noise."""
    x, y = _axes()
    hu = np.full((SIZE, SIZE), -1000, np.float32)
    body, wall = BODY.level(x, y, z), INNER_WALL.level(x, y, z)
    hu[body < 1] = FAT
    hu[wall < 1.15] = TISSUE
    ribs = (wall > 1.0) & (wall < 1.12) & ((z - 0.35 * y + 0.1 * np.abs(x)) % 24 < 9)
    hu[ribs] = BONE
    hu[_lungs(x, y, z)] = LUNG
    hu[AORTA.level(x, y, z) < 1] = BLOOD
    hu[SPINE.level(x, y, z) < 1] = BONE
    for cx, cy, radius in _airways(z):
        hu[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = -1000
    return hu


def _lungs(x: Float, y: Float, z: float) -> NDArray[np.bool_]:
    inside = np.minimum(RIGHT_LUNG.level(x, y, z), LEFT_LUNG.level(x, y, z)) < 1
    for dome in DIAPHRAGMS:
        inside &= dome.level(x, y, z) > 1
    inside &= HEART.level(x, y, z) > 1
    return np.asarray(inside)


def _airways(z: float) -> list[tuple[float, float, float]]:
    """Circles (x, y, radius) of air: the trachea down to the carina, then both main bronchi to the hila."""
    if z > CARINA_MM:
        return [(0.0, 12.0, TRACHEA_MM)]
    part = (CARINA_MM - z) / (CARINA_MM - HILA[0][2])
    return [(part * hilum[0], 12.0, 6.0) for hilum in HILA] if part <= 1 else []


def _vessels(rng: np.random.Generator) -> list[tuple[Vector, float]]:
    """Balls along tapering, wandering tubes from each hilum into its lung."""
    balls = []
    for hilum, lung in zip(HILA, (RIGHT_LUNG, LEFT_LUNG), strict=True):
        for _ in range(16):
            place = np.array(hilum) + rng.normal(0, (2, 6, 10))
            target = np.array(lung.centre) + rng.uniform(-0.95, 0.95, 3) * lung.radii
            heading = (target - place) / np.linalg.norm(target - place)
            radius = float(rng.uniform(1.6, 2.6))
            while radius > 0.7 and np.sum(((place - lung.centre) / lung.radii) ** 2) < 1.4:
                balls.append(((float(place[0]), float(place[1]), float(place[2])), radius))
                heading += rng.normal(0, 0.08, 3)
                heading /= np.linalg.norm(heading)
                place = place + heading * radius
                radius *= 0.965
    return balls


def _paint(volume: Float, levels: NDArray[np.floating[Any]], ball: Nodule, hu: float) -> None:
    """Raise what is less dense than `hu` inside a soft-edged ball; only lung is painted."""
    reach = ball.diameter_mm / 2 + 2
    x, y, z = ball.centre_mm
    middle = (SIZE - 1) / 2
    columns, rows = (
        slice(max(0, int((c - reach) / PIXEL_MM + middle)), int((c + reach) / PIXEL_MM + middle) + 2) for c in (x, y)
    )
    depth = slice(*np.searchsorted(levels, (z - reach, z + reach)))
    part = volume[depth, rows, columns]
    axis = (np.arange(SIZE) - middle) * PIXEL_MM
    squares = (levels[depth][:, None, None] - z) ** 2 + (axis[rows][:, None] - y) ** 2 + (axis[columns] - x) ** 2
    share = np.clip((ball.diameter_mm / 2 - np.sqrt(squares)) / 1.4 + 0.5, 0, 1).astype(np.float32)
    lung = (part > -999) & (part < FAT - 10)
    part[lung] = np.maximum(part, LUNG + share * (hu - LUNG))[lung]


def _projection(x: Float, z: Float) -> Float:
    """Film brightness 0..1 of a ray along y through the same organs, lungs stretched to a full breath."""
    stretch = 1.4
    half = 156 + 18 / (1 + np.exp((105 - z) / 8))  # shoulders above, flanks below
    body = 200 * np.sqrt(np.maximum(0, 1 - (x / half) ** 8))
    flat = z / stretch
    lungs = np.zeros_like(x)
    for lung, dome in zip((RIGHT_LUNG, LEFT_LUNG), DIAPHRAGMS, strict=True):
        lungs += lung.thickness(x, flat) * (dome.level(x, np.full_like(x, dome.centre[1]), flat) > 1)
    heart = HEART.thickness(x, flat)
    lungs = np.maximum(0, lungs - heart)
    spine = 40 * (np.abs(x) < 19)
    ribs = 9 * ((z + 0.002 * x * x) % 30 < 9) * (np.abs(x) < 140)
    tissue = body - 1.1 * lungs + 0.5 * heart + spine + ribs
    film = 0.04 + 0.92 * (1 - np.exp(-0.01 * tissue))
    return np.asarray(np.where(body > 0, film, 0.02), np.float32)


# The files.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    seed: int
    modality: str
    sop_class_uid: str

    def uid(self, what: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) that follows from the seed."""
        name = f"scanside phantom {self.modality} {self.seed} {what}"
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"

    def write(self, file: Path, number: int, elements: dict[str, object], stored: NDArray[np.uint16]) -> None:
        dataset = Dataset()
        for keyword, value in {**self._common(number), **elements}.items():
            setattr(dataset, keyword, value)
        dataset.Rows, dataset.Columns = stored.shape
        dataset.PixelData = stored.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.ImplementationClassUID = UID(self.uid("implementation"))
        dataset.file_meta.ImplementationVersionName = "SCANSIDE_PHANTOM"
        dcmwrite(file, dataset, enforce_file_format=True)

    def _common(self, number: int) -> dict[str, object]:
        return {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": self.sop_class_uid,
            "SOPInstanceUID": self.uid(f"instance {number}"),
            **CLINICAL_TIMES,
            "SeriesDate": CLINICAL_TIMES["StudyDate"],
            "SeriesTime": CLINICAL_TIMES["StudyTime"],
            "ContentDate": CLINICAL_TIMES["StudyDate"],
            "ContentTime": CLINICAL_TIMES["StudyTime"],
            "AccessionNumber": f"PH{self.seed % 10**6:06d}",
            "Modality": self.modality,
            "Manufacturer": "Scanside",
            "ManufacturerModelName": "Phantom",
            "ReferringPhysicianName": "",
            "StudyDescription": "Synthetic chest, no patient",
            "PatientName": "Phantom^Chest",
            "PatientID": f"PHANTOM-{self.seed}",
            "PatientBirthDate": "",
            "PatientSex": "O",
            "BodyPartExamined": "CHEST",
            "StudyInstanceUID": self.uid("study"),
            "SeriesInstanceUID": self.uid("series"),
            "StudyID": "1",
            "SeriesNumber": 1,
            "InstanceNumber": number,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
        }


def _ct_elements(z: float, spacing_mm: float) -> dict[str, object]:
    corner = -(SIZE - 1) / 2 * PIXEL_MM
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SeriesDescription": "Phantom 3.0 B60f",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "AcquisitionNumber": 1,
        "KVP": 120,
        "SliceThickness": spacing_mm,
        "ConvolutionKernel": "B60f",
        "ImagePositionPatient": [corner, corner, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [PIXEL_MM, PIXEL_MM],
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": -600,
        "WindowWidth": 1500,
    }


def _cr_elements() -> dict[str, object]:
    return {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SeriesDescription": "Phantom PA",
        "ViewPosition": "PA",
        "KVP": 125,
        "ImagerPixelSpacing": [FILM_PIXEL_MM, FILM_PIXEL_MM],
        "PatientOrientation": ["L", "F"],
        "WindowCenter": 2048,
        "WindowWidth": 4096,
    }
