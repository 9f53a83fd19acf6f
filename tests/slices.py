"""Small CT slices and films as DICOM files, every element of which a test may bend."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

SERIES = "1.2.3.4"


def ct_slice(z: float, pixels: NDArray[Any], **elements: Any) -> Dataset:
    """An axial slice at z mm: 12 of 16 bits unsigned, intercept -1024. An element that is None is left out."""
    return _dataset(
        pixels,
        {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": f"{SERIES}.{round(z * 1000) + 10**6}",
            "Modality": "CT",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "BodyPartExamined": "CHEST",
            "ImagePositionPatient": [-10.0, -20.0, z],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.8, 0.5],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            **elements,
        },
    )


def film(pixels: NDArray[Any], **elements: Any) -> Dataset:
    return _dataset(
        pixels,
        {
            "SOPClassUID": ComputedRadiographyImageStorage,
            "SOPInstanceUID": f"{SERIES}.1",
            "Modality": "CR",
            "BodyPartExamined": "CHEST",
            "ViewPosition": "PA",
            **elements,
        },
    )


def save(path: Path, dataset: Dataset) -> Path:
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def stack(folder: Path, levels: list[float], **elements: Any) -> list[Path]:
    """Slices of 6 x 8 pixels whose stored value is 1000 + their place in `levels`."""
    paths = []
    for index, z in enumerate(levels):
        pixels = np.full((6, 8), 1000 + index, np.uint16)
        paths.append(save(folder / f"{index:03d}.dcm", ct_slice(z, pixels, **elements)))
    return paths


def _dataset(pixels: NDArray[Any], elements: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    common = {
        "SeriesInstanceUID": SERIES,
        "StudyInstanceUID": "1.2.3",
        "PatientName": "Secret^Name",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 if pixels.dtype.itemsize == 1 else 12,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for keyword, value in {**common, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "HighBit" not in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset
