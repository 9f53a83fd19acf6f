"""Studies to send in the latency benchmark: the real cases or the phantom, and fresh copies of them for each round."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

from appliance import phantom, scanner

REAL_CT = Path("ct/C3N-00247_LUNG3mm.tar.xz")
REAL_CR = Path("cxr/RG1_UNCR_metastases.dcm")
PHANTOM_SLICES = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A study on disk, and what it is for people."""

    what: str
    files: Sequence[Path]


def ct_case(data: Path, folder: Path) -> Case:
    """The real CT where it is there, unpacked into `folder`, else a phantom of as many slices."""
    folder.mkdir()
    if (data / REAL_CT).is_file():
        files = [item.stored.path for item in scanner.find(data / REAL_CT, folder).items]
        return Case(what=f"real CT C3N-00247, {len(files)} slices", files=files)
    truth = phantom.write_ct(folder, seed=1, slices=PHANTOM_SLICES)
    return Case(what=f"phantom CT, {PHANTOM_SLICES} slices", files=truth.files)


def cr_case(data: Path, folder: Path) -> Case:
    if (data / REAL_CR).is_file():
        return Case(what="real CR RG1", files=[data / REAL_CR])
    return Case(what="phantom CR", files=phantom.write_cr(folder, seed=1).files)


def fresh_copy(case: Case, folder: Path, *, stated_count: bool) -> str:
    """Write the study under new Study, Series and SOP Instance UIDs into `folder`; gives the Study Instance UID.

    With `stated_count` each image says how many there are (0020,1209).
    """
    folder.mkdir()
    root = f"2.25.{secrets.randbits(96)}."
    study, series = generate_uid(prefix=root), generate_uid(prefix=root)
    for number, file in enumerate(case.files):
        dataset = dcmread(file)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=root)
        if stated_count:
            dataset.NumberOfSeriesRelatedInstances = len(case.files)
        elif "NumberOfSeriesRelatedInstances" in dataset:
            del dataset.NumberOfSeriesRelatedInstances
        dataset.save_as(folder / f"{number:05d}.dcm")
    return study
