"""Data sets in which everything that could tell of a person is a mark, and the search for marks in what must hold none.

Every element of the dictionary that a person's data could stand in is there, each with a mark of its own: names and
texts begin with "ZQ", their VR and their tag, dates are in the year 1847, times at 03:17:33, UIDs of other things begin
with 2.25.88776655. The UIDs of study, series and instance are none: by them a technician finds an object in `trace`,
`deliveries` and the log, and a scanner that writes dates of birth into them has no match here.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import DataElement

MARK = re.compile(rb"ZQ[A-Z]{2}[0-9A-F]{8}|ZQGIVEN|1847-?[0-9]{2}-?[0-9]{2}|03:?17:?33|2\.25\.88776655", re.IGNORECASE)
_TEXT_VRS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE", "CS", "UR")
_VRS = (*_TEXT_VRS, "DA", "TM", "DT", "UI")
#: What engines, and PACS, must be able to read. All else is a mark.
_NEEDED = frozenset(
    {
        "BodyPartExamined",
        "ImageType",
        "Modality",
        "PatientOrientation",
        "PhotometricInterpretation",
        "SOPClassUID",
        "SOPInstanceUID",
        "SeriesInstanceUID",
        "SpecificCharacterSet",
        "StudyInstanceUID",
        "VOILUTFunction",
        "ViewPosition",
    }
)


def mark(dataset: Dataset) -> Dataset:
    """Fill in every element that is not needed, retired ones too."""
    for tag, (vr, multiplicity, _, _, keyword) in DicomDictionary.items():
        is_set = 0x00080000 <= tag < 0x7FE00000 and keyword and keyword not in _NEEDED
        if is_set and vr in _VRS and multiplicity.startswith("1"):
            dataset[tag] = DataElement(tag, vr, _value(vr, tag))
    return dataset


def _value(vr: str, tag: int) -> str:
    match vr:
        case "DA":
            return f"1847{tag % 12 + 1:02d}{tag % 28 + 1:02d}"
        case "TM":
            return "031733.271828"
        case "DT":
            return f"1847{tag % 12 + 1:02d}{tag % 28 + 1:02d}031733"
        case "UI":
            return f"2.25.88776655{tag}"
        case "PN":
            return f"ZQPN{tag:08X}^ZQGIVEN"
    return f"ZQ{vr}{tag:08X}"


def marks_in(file: Path) -> int:
    """How many different marks an object carries."""
    values = (str(element.value) for element in dcmread(file).iterall() if element.VR in _VRS)
    return len({found for value in values for found in MARK.findall(value.encode())})


def hits(said: bytes | str) -> set[bytes]:
    """The marks in what a program said."""
    return set(MARK.findall(said if isinstance(said, bytes) else said.encode()))


def hits_in_files(paths: Iterable[Path]) -> dict[str, set[bytes]]:
    found = {str(path): hits(path.read_bytes()) for path in paths if path.is_file()}
    return {name: marks for name, marks in found.items() if marks}
