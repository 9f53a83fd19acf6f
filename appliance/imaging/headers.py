"""Image headers as values: what geometry, pixel layout and acceptance rules need: of the patient the age alone.

One reader for all that is analysed (classic and enhanced CT, CR, DX, secondary capture). Whatever is wrong with a
file, callers see CannotAnalyse(Reason.UNDECODABLE) and nothing else; its text never quotes a value of the file.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID

from appliance.errors import CannotAnalyse
from appliance.imaging import bounds
from appliance.model import Reason

Vector = tuple[float, float, float]

#: Everything that pydicom, its decoders and the standard library were seen to raise on damaged files.
PARSE_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    BytesLengthException,
    EOFError,
    ImportError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

MAX_DEFLATED, MAX_INFLATED = 1 << 20, 1 << 22  #: bytes, of a header
MAX_TEXT, MAX_VALUES = 1024, 64  #: characters, values of an element: the rest is cut away
MAX_COUNT, MAX_BITS = 2**31 - 1, 64
MAX_SIDE = 2**16 - 1  #: rows, columns: both are US, whatever VR the file gives them
MAX_NUMBER = 1e6  #: millimetres, degrees, or HU: more would only overflow what is reckoned with it
AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}  #: of an Age String (PS3.5 6.2), in a year
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VRS = (b"OB", b"OW", b"UN", b"OD", b"OF", b"OL", b"OV")
_PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How the pixels lie in the file (PS3.3 C.7.6.3, PS3.5 8)."""

    transfer_syntax_uid: UID
    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None  #: PixelPaddingValue and range limit as unsigned patterns of BitsAllocated
    offset: int  #: of the value of Pixel Data in the file; 0 = no pixel data
    length: int | None  #: bytes of that value; None = encapsulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One slice in space, and how its stored values become HU (PS3.3 C.7.6.2, C.11.1)."""

    frame: int
    position: Vector
    row_direction: Vector  #: of increasing columns
    column_direction: Vector  #: of increasing rows
    pixel_spacing: tuple[float, float]  #: between rows, between columns, in mm
    slope: float
    intercept: float
    rescaled: bool = True  #: whether the file states slope or intercept, so that the values mean something


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """One file. `planes` is empty where it has no place in space (radiographs)."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str
    image_type: tuple[str, ...]
    body_part: str
    view_position: str
    kernels: tuple[str, ...]
    tilt: float  #: GantryDetectorTilt in degrees
    slice_thickness: float | None
    pixel_spacing: tuple[float, float] | None  #: None where absent or not positive: no millimetres
    slope: float
    intercept: float
    layout: PixelLayout
    planes: tuple[Plane, ...]
    patient_orientation: tuple[str, ...] = ()  #: to where rows and columns of a radiograph run, such as ("L", "F")
    age_years: float | None = None  #: None where the file does not state it


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn every failure to parse or decode into CannotAnalyse(UNDECODABLE): "<what> cannot be read (KeyError)".

    The cause is dropped on purpose: pydicom quotes element values, which may identify the patient (P10).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PARSE_FAILURES as error:
        raise CannotAnalyse(Reason.UNDECODABLE, f"{what} cannot be read ({type(error).__name__})") from None


def read_header(path: Path) -> ImageHeader:
    """Read one Part 10 file up to its pixels. Raises CannotAnalyse(UNDECODABLE)."""
    with parsing("header"), path.open("rb") as file:
        dataset, syntax = read_elements(file)
        offset, length = _pixel_element(file, syntax)
        return _header(path, dataset, _layout(dataset, syntax, offset, length))


def read_elements(file: BinaryIO, *, inflate: bool = False) -> tuple[Dataset, UID]:
    """The elements before the pixels, and the transfer syntax; leaves `file` at the pixel data.

    Not dcmread, because that inflates a deflated data set without a limit. Call it within `parsing`. With `inflate` a
    deflated one is read as far as MAX_INFLATED goes, and `file` is left anywhere.
    """
    read_preamble(file, force=False)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)
    syntax = UID(meta[0x00020010].value)
    if syntax.is_deflated and not inflate:
        raise CannotAnalyse(Reason.UNDECODABLE, "deflated transfer syntaxes are not read")
    if syntax.is_deflated:
        file = BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(MAX_DEFLATED), MAX_INFLATED))
    bounds.check(file, syntax)
    dataset = read_dataset(
        file,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=_at_pixels,
    )
    return dataset, syntax


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom's signature
    return tag >> 16 != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom's signature
    return tag in _PIXEL_DATA


def _pixel_element(file: BinaryIO, syntax: UID) -> tuple[int, int | None]:
    """Offset and length of Pixel Data's value; raises where the declared length passes the end of the file."""
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8)
    if len(head) < 8:
        return 0, 0
    if syntax.is_implicit_VR or head[4:6] not in _LONG_VRS:
        (length,) = struct.unpack(f"{order}I", head[4:])
    else:
        (length,) = struct.unpack(f"{order}I", file.read(4))
    offset = file.tell()
    if length == _UNDEFINED_LENGTH:
        return offset, None
    end = file.seek(0, 2)
    if offset + length > end:
        raise CannotAnalyse(Reason.UNDECODABLE, f"pixel data: {length} bytes declared, {end - offset} in the file")
    return offset, length


def _layout(dataset: Dataset, syntax: UID, offset: int, length: int | None) -> PixelLayout:
    allocated = _count(dataset, "BitsAllocated", 0)
    stored = _count(dataset, "BitsStored", allocated)
    if max(allocated, stored) > MAX_BITS:
        raise ValueError("BitsAllocated")
    return PixelLayout(
        transfer_syntax_uid=syntax,
        rows=_count(dataset, "Rows", 0, MAX_SIDE),
        columns=_count(dataset, "Columns", 0, MAX_SIDE),
        frames=_count(dataset, "NumberOfFrames", 1),
        samples_per_pixel=_count(dataset, "SamplesPerPixel", 1),
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=max(stored - 1, 0) if dataset.get("HighBit") is None else _count(dataset, "HighBit", 0),
        signed=int(dataset.get("PixelRepresentation") or 0) == 1,
        padding=_padding(dataset, allocated),
        offset=offset,
        length=length,
    )


def _count(dataset: Dataset, keyword: str, absent: int, most: int = MAX_COUNT) -> int:
    """Raises ValueError for what no count can be; absent, empty and 0 are one."""
    value = int(dataset.get(keyword) or absent)
    if not 0 <= value <= most:
        raise ValueError(keyword)
    return value


def _padding(dataset: Dataset, bits_allocated: int) -> tuple[int, int] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    mask = (1 << bits_allocated) - 1
    return int(value) & mask, int(value if limit is None else limit) & mask


def _header(path: Path, dataset: Dataset, layout: PixelLayout) -> ImageHeader:
    thickness = dataset.get("SliceThickness")
    return ImageHeader(
        path=path,
        sop_class_uid=_text(dataset, "SOPClassUID"),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        series_instance_uid=_text(dataset, "SeriesInstanceUID"),
        modality=_text(dataset, "Modality"),
        image_type=_texts(dataset, "ImageType"),
        body_part=_text(dataset, "BodyPartExamined"),
        view_position=_text(dataset, "ViewPosition"),
        patient_orientation=_texts(dataset, "PatientOrientation"),
        age_years=_age(_text(dataset, "PatientAge")),
        kernels=_texts(dataset, "ConvolutionKernel"),
        tilt=_number(dataset.get("GantryDetectorTilt") or 0),
        slice_thickness=None if thickness is None else _number(thickness),
        pixel_spacing=_pixel_spacing(dataset),
        slope=_number(dataset.get("RescaleSlope") or 1),
        intercept=_number(dataset.get("RescaleIntercept") or 0),
        layout=layout,
        planes=_planes(dataset, layout),
    )


def _age(text: str) -> float | None:
    """Years, of an Age String (PS3.5 6.2); what is none says nothing."""
    count, unit = text[:-1], text[-1:].upper()
    known = unit in AGE_UNITS and count.isascii() and count.isdigit() and len(count) <= 3
    return int(count) / AGE_UNITS[unit] if known else None


def _planes(dataset: Dataset, layout: PixelLayout) -> tuple[Plane, ...]:
    """One plane for a classic image; one per frame from the functional groups (PS3.3 C.7.6.16) for an enhanced one."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        has_place = dataset.get("ImagePositionPatient") and dataset.get("ImageOrientationPatient")
        one_plane = has_place and _pixel_spacing(dataset) and layout.frames == 1
        return (_plane((dataset,), 0),) if one_plane else ()
    if len(per_frame) != layout.frames:
        raise ValueError("NumberOfFrames")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return tuple(_plane((_macros(frame), _macros(shared[0])), index) for index, frame in enumerate(per_frame))


_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


def _macros(group: Dataset) -> Dataset:
    """The elements of the functional group macros that a plane needs, flattened into one data set."""
    flat = Dataset()
    for macro in _MACROS:
        for item in (group.get(macro) or ())[:1]:
            flat.update(item)
    return flat


def _plane(sources: Sequence[Dataset], frame: int) -> Plane:
    """A plane from the first source that has each element. Raises AttributeError where none has it."""

    def first(keyword: str) -> Sequence[float]:
        values = next((source[keyword].value for source in sources if keyword in source), None)
        if values is None:
            raise AttributeError(keyword)
        return [_number(value) for value in (values if hasattr(values, "__len__") else [values])]

    x, y, z = first("ImagePositionPatient")
    cosines = first("ImageOrientationPatient")
    row_spacing, column_spacing = first("PixelSpacing")
    if min(row_spacing, column_spacing) <= 0:
        raise ValueError("PixelSpacing")
    has_slope, has_intercept = (
        any(keyword in source for source in sources) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return Plane(
        frame=frame,
        position=(x, y, z),
        row_direction=(cosines[0], cosines[1], cosines[2]),
        column_direction=(cosines[3], cosines[4], cosines[5]),
        pixel_spacing=(row_spacing, column_spacing),
        slope=first("RescaleSlope")[0] if has_slope else 1.0,
        intercept=first("RescaleIntercept")[0] if has_intercept else 0.0,
        rescaled=has_slope or has_intercept,
    )


def _pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    values = dataset.get("PixelSpacing")
    if not isinstance(values, MultiValue) or len(values) != 2 or "" in values:
        return None
    rows, columns = (_number(value) for value in values)
    return (rows, columns) if min(rows, columns) > 0 else None


def _text(dataset: Dataset, keyword: str) -> str:
    return _short(dataset.get(keyword) or "")


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    values = dataset.get(keyword) or ()
    return tuple(_short(value) for value in ([values] if isinstance(values, str) else list(values[:MAX_VALUES])))


def _short(value: object) -> str:
    """Text that any encoding of Unicode can carry."""
    return str(value)[:MAX_TEXT].strip().encode(errors="replace").decode()


def _number(value: object) -> float:
    number = float(str(value))
    if not abs(number) <= MAX_NUMBER:  # nor is NaN
        raise ValueError("not a number within bounds")
    return number
