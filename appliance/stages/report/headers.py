"""From source headers to what highdicom accepts and a PACS files by.

highdicom raises on many absent or odd source attributes, and a header must never stop a result. So highdicom sees
only a stand-in for each image, made to please it (`stand_in`), with a note of what was invented; patient and study
attributes bypass it and go onto the finished object (`Sources.identity`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
)

from appliance.model import Instance
from appliance.stages.report.raw_values import encodings_of, numbers, text, unsigned_short

#: Carried over as received, too long or not: a PACS that took the images with them files the result beside them,
#: and a shortened number could be somebody else's.
_IDENTIFIERS: Final = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_OPTIONAL: Final = {"IssuerOfPatientID": r".+", "TimezoneOffsetFromUTC": r"[+-](0\d|1[0-4])[0-5]\d"}
_IF_LEGAL: Final = {  # empty otherwise: all are type 2
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
_EQUIPMENT: Final = {  # longest legal value (PS3.5 Table 6.2-1); longer ones are cut, they identify nobody
    "Manufacturer": 64,
    "ManufacturerModelName": 64,
    "InstitutionName": 64,
    "StationName": 16,
    "DeviceSerialNumber": 64,
}
#: All that is read of a source image's header; nothing of it lies in a sequence.
SOURCE_TAGS: Final = tuple(
    int(Tag(keyword))
    for keyword in (
        *_IDENTIFIERS,
        *_OPTIONAL,
        *_IF_LEGAL,
        *_EQUIPMENT,
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "InstanceNumber",
        "Modality",
        "BodyPartExamined",
        "Rows",
        "Columns",
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PatientOrientation",
        "PixelSpacing",
        "ImagerPixelSpacing",
        "SpacingBetweenSlices",
        "SliceThickness",
    )
)
#: Image classes that highdicom can describe; any other is shown to it as a secondary capture.
_DESCRIBABLE: Final = frozenset(
    {
        CTImageStorage,
        EnhancedCTImageStorage,
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        DigitalXRayImageStorageForProcessing,
        SecondaryCaptureImageStorage,
    }
)
#: Items of the image library (PS3.16 TID 1602 to 1604), to be removed where their value was invented.
_MODALITY: Final = {"121139"}
_MATRIX: Final = {"110910", "110911"}
_PIXEL_SPACING: Final = {"111026", "111066"}
_PATIENT_ORIENTATION: Final = {"111043", "111044"}
_SLICE_THICKNESS: Final = {"112225"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One image that was read."""

    header: Dataset
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    number: float  #: InstanceNumber, 0 if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """What highdicom sees of a source image."""

    dataset: Dataset
    sop_class_uid: str  #: the image's true SOP Class UID
    invented: frozenset[str]  #: code values of library items that must not be reported

    @property
    def replaced_class(self) -> bool:
        return self.sop_class_uid != str(self.dataset.SOPClassUID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All images that were read, by series, number and UID: the same set in any order gives the same result."""

    images: tuple[Source, ...]
    described: tuple[Source, ...]  #: those of them whose header says more than its UIDs; all if none does
    identity: Dataset  #: patient and study attributes of a result
    modality: str
    body_part: str

    def key_images(self, sop_instance_uids: Sequence[str]) -> list[Source]:
        """The images named, each once; the middle one if none is named. Raises ValueError for an unknown one."""
        if not sop_instance_uids:
            return [self.described[len(self.described) // 2]]
        by_uid = {image.sop_instance_uid: image for image in self.images}
        missing = [uid for uid in sop_instance_uids if uid not in by_uid]
        if missing:
            raise ValueError(f"a finding lies on an image that is not among the sources: {missing[0]}")
        return [by_uid[uid] for uid in dict.fromkeys(sop_instance_uids)]

    def local(self, at: datetime, box_utc_offset: timedelta) -> datetime:
        """`at` in the zone of the source (0008,0201), or else of the box."""
        stated = str(self.identity.get("TimezoneOffsetFromUTC", ""))
        return at.astimezone(timezone(_offset(stated) if stated else box_utc_offset))


def read_sources(headers: Sequence[Dataset], study_instance_uid: str) -> Sources:
    """Order the images and take over their identity. Raises ValueError if not one can be referred to."""
    images = sorted(
        (source for header in headers if (source := _source(header))),
        key=lambda image: (image.series_instance_uid, image.number, image.sop_instance_uid),
    )
    if not images:
        raise ValueError("no source header with a SOP Class, SOP Instance, Series and Study UID")
    described = [image for image in images if "PatientID" in image.header] or images
    first = described[0].header
    body_part = text(first, "BodyPartExamined")
    return Sources(
        images=tuple(images),
        described=tuple(described),
        identity=_identity(first, study_instance_uid),
        modality=text(first, "Modality"),
        body_part=body_part if re.fullmatch(r"[A-Z0-9_ ]{1,16}", body_part) else "",
    )


def bare_header(image: Instance | Source) -> Dataset:
    """The least header: enough to list an image as evidence, and all there is of one that cannot be read."""
    dataset = Dataset()
    dataset.StudyInstanceUID = image.study_instance_uid
    dataset.SeriesInstanceUID = image.series_instance_uid
    dataset.SOPClassUID = image.sop_class_uid
    dataset.SOPInstanceUID = image.sop_instance_uid
    return dataset


def stand_in(source: Source) -> StandIn:
    """A header that highdicom takes for the image library and as the first evidence, whatever the image's is."""
    dataset = bare_header(source)
    invented: set[str] = set()
    if source.sop_class_uid not in _DESCRIBABLE:
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        invented |= _MODALITY
    for keyword in (*_IDENTIFIERS, *_IF_LEGAL):
        setattr(dataset, keyword, "")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    encodings = encodings_of(source.header)
    for keyword, longest in _EQUIPMENT.items():
        if value := text(source.header, keyword, encodings).replace("\\", " ")[:longest].strip():
            setattr(dataset, keyword, value)
    dataset.Rows, dataset.Columns = (unsigned_short(source.header, keyword) for keyword in ("Rows", "Columns"))
    if not (dataset.Rows and dataset.Columns):
        invented |= _MATRIX
    invented |= _describe_geometry(source.header, dataset)
    return StandIn(dataset=dataset, sop_class_uid=source.sop_class_uid, invented=frozenset(invented))


def _describe_geometry(header: Dataset, dataset: Dataset) -> set[str]:
    """Set what TID 1603 or TID 1604 describes; returns the codes of what was invented."""
    frame_of_reference = text(header, "FrameOfReferenceUID")
    if re.fullmatch(r"[0-9.]{1,64}", frame_of_reference):
        dataset.FrameOfReferenceUID = frame_of_reference
    position = numbers(header, "ImagePositionPatient", 3)
    orientation = numbers(header, "ImageOrientationPatient", 6)
    spacing = _positive(header, "PixelSpacing", 2)
    if position and orientation and spacing:
        return _describe_slice(header, dataset, (position, orientation, spacing))
    if text(header, "Modality") in ("CR", "DX"):
        return _describe_projection(header, dataset)
    dataset.Modality = "OT"  # highdicom then describes no geometry
    return set()


def _describe_slice(
    header: Dataset, dataset: Dataset, geometry: tuple[list[float], list[float], list[float]]
) -> set[str]:
    dataset.Modality = "CT"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing = geometry
    if between := _positive(header, "SpacingBetweenSlices", 1):
        dataset.SpacingBetweenSlices = between[0]
    thickness = _positive(header, "SliceThickness", 1)
    dataset.SliceThickness = thickness[0] if thickness else 1.0
    return set() if thickness else _SLICE_THICKNESS


def _describe_projection(header: Dataset, dataset: Dataset) -> set[str]:
    dataset.Modality = "CR"
    invented: set[str] = set()
    orientation = text(header, "PatientOrientation")
    if re.fullmatch(r"[AFHLPR]{1,3}\\[AFHLPR]{1,3}", orientation):
        dataset.PatientOrientation = orientation.split("\\")
    else:
        dataset.PatientOrientation = ["L", "F"]
        invented |= _PATIENT_ORIENTATION
    spacing = _positive(header, "ImagerPixelSpacing", 2)
    dataset.ImagerPixelSpacing = spacing or [1.0, 1.0]
    return invented if spacing else invented | _PIXEL_SPACING


def _positive(header: Dataset, keyword: str, count: int) -> list[float]:
    values = numbers(header, keyword, count)
    return values if all(value > 0 for value in values) else []


def _source(header: Dataset) -> Source | None:
    source = Source(
        header=header,
        study_instance_uid=text(header, "StudyInstanceUID"),
        series_instance_uid=text(header, "SeriesInstanceUID"),
        sop_class_uid=text(header, "SOPClassUID"),
        sop_instance_uid=text(header, "SOPInstanceUID"),
        number=(numbers(header, "InstanceNumber", 1) or [0.0])[0],
    )
    complete = source.study_instance_uid and source.series_instance_uid and source.sop_class_uid
    return source if complete and source.sop_instance_uid else None


def _identity(header: Dataset, study_instance_uid: str) -> Dataset:
    encodings = encodings_of(header)
    values = {keyword: text(header, keyword, encodings) for keyword in _IDENTIFIERS}
    for keyword, legal in _IF_LEGAL.items():
        value = text(header, keyword)
        values[keyword] = value if re.fullmatch(legal, value) else ""
    for keyword, legal in _OPTIONAL.items():
        value = text(header, keyword, encodings)
        if re.fullmatch(legal, value):
            values[keyword] = value
    values |= {"SpecificCharacterSet": "ISO_IR 192", "StudyInstanceUID": study_instance_uid}
    identity = Dataset()
    for keyword, value in values.items():
        identity.add(DataElement(Tag(keyword), dictionary_VR(keyword), value, validation_mode=config.IGNORE))
    return identity


def _offset(stated: str) -> timedelta:
    sign = -1 if stated.startswith("-") else 1
    return sign * timedelta(hours=int(stated[1:3]), minutes=int(stated[3:5]))
