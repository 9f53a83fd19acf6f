"""Synthetic CT and CR images to send: the same pixels and UIDs each time, there is no patient behind them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid

CT_SIZE = 512
CR_ROWS, CR_COLUMNS = 2500, 2048
SEED = 7
NOISES = 8  # different noise images; slices take turns

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Files of one kind, and the same files dealt out to so many folders."""

    modality: str
    files: Sequence[Path]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def dealt(self, folder: Path, count: int) -> list[Path]:
        """`count` folders with links to the files: a sender each."""
        folders = [folder / f"{self.modality}-{len(self.files)}-{count}" / str(number) for number in range(count)]
        for place in folders:
            place.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(self.files):
            link = folders[number % count] / file.name
            if not link.exists():
                os.link(file, link)
        return folders


def make_ct(folder: Path, count: int) -> Images:
    return _make(folder, "CT", CTImageStorage, _ct_slices(count))


def make_cr(folder: Path, count: int) -> Images:
    return _make(folder, "CR", ComputedRadiographyImageStorage, _cr_images(count))


def _make(folder: Path, modality: str, sop_class_uid: str, images: Iterator[Pixels]) -> Images:
    folder.mkdir()
    files = []
    for number, pixels in enumerate(images, 1):
        path = folder / f"{number:04d}.dcm"
        dataset = _dataset(modality, sop_class_uid, number)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = np.clip(pixels, 0, 4095).astype("<u2").tobytes()
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return Images(modality=modality, files=files)


def _ct_slices(count: int) -> Iterator[Pixels]:
    """Stored values of axial slices of a made-up chest: a body, two lungs that change from slice to slice, noise."""
    random = np.random.default_rng(SEED)
    noises = [random.normal(0, 15, (CT_SIZE, CT_SIZE)).astype(np.float32) for _ in range(NOISES)]
    y, x = np.mgrid[-1 : 1 : CT_SIZE * 1j, -1 : 1 : CT_SIZE * 1j].astype(np.float32)
    body = (x / 0.84) ** 2 + (y / 0.58) ** 2 < 1
    for number in range(count):
        slice_ = np.where(body, np.float32(1064), np.float32(24))
        radius = 0.2 + 0.1 * np.sin(np.pi * number / count)
        for side in (-0.37, 0.37):
            slice_[((x - side) / radius) ** 2 + (y / (radius + 0.12)) ** 2 < 1] = 164
        yield slice_ + np.roll(noises[number % NOISES], number)


def _cr_images(count: int) -> Iterator[Pixels]:
    random = np.random.default_rng(SEED)
    noise = random.normal(0, 12, (CR_ROWS, CR_COLUMNS)).astype(np.float32)
    chest = 1800 + 900 * np.sin(np.linspace(0, np.pi, CR_COLUMNS, dtype=np.float32))
    for number in range(count):
        yield chest + np.roll(noise, number)


def _dataset(modality: str, sop_class_uid: str, number: int) -> Dataset:
    def uid(name: str) -> str:
        return generate_uid(entropy_srcs=["scanside ingest benchmark", modality, name])

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, uid(str(number))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20261101", "101500", f"BENCH-{modality}"
    dataset.Modality, dataset.Manufacturer = modality, "Synthetic"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Bench^Mark", "BENCH", "19500101"
    dataset.PatientSex, dataset.BodyPartExamined, dataset.ReferringPhysicianName = "O", "CHEST", ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, number
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    if modality == "CT":
        dataset.ImageType, dataset.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], 1
        dataset.ImagePositionPatient, dataset.PixelSpacing = [-180, -180, -number], [0.703125, 0.703125]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    return dataset
