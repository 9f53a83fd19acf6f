"""What the reader child may say, checked before anything is made of it: it has seen what strangers sent."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from appliance.imaging.headers import (
    MAX_BITS,
    MAX_COUNT,
    MAX_NUMBER,
    MAX_SIDE,
    MAX_TEXT,
    MAX_VALUES,
    ImageHeader,
    PixelLayout,
    Plane,
)
from appliance.imaging.reading import MAX_VALUE
from appliance.runtimes.channel import Answer

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Texts = Annotated[tuple[Text, ...], Field(max_length=MAX_VALUES)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Side = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Bits = Annotated[int, Field(ge=0, le=MAX_BITS)]
Pattern = Annotated[int, Field(ge=0, lt=2**MAX_BITS)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Vector = tuple[Number, Number, Number]
Length = Annotated[float, Field(gt=0, le=MAX_NUMBER)]
Spacing = tuple[Length, Length]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cannot(_Part):
    reason: Literal["undecodable", "unsuitable", "geometry", "no_room"]
    detail: Annotated[str, Field(max_length=500)]


class Said(Answer):
    """Either the file is at fault, or the answer is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cannot: Cannot | None = None


class Hello(Answer):
    protocol: Literal[1]


class _Layout(_Part):
    transfer_syntax_uid: Text
    rows: Side
    columns: Side
    frames: Count
    samples_per_pixel: Count
    photometric: Text
    bits_allocated: Bits
    bits_stored: Bits
    high_bit: Count
    signed: bool
    padding: tuple[Pattern, Pattern] | None
    offset: Offset
    length: Offset | None

    def value(self) -> PixelLayout:
        return PixelLayout(**dict(self) | {"transfer_syntax_uid": UID(self.transfer_syntax_uid)})


class _Plane(_Part):
    frame: Count
    position: Vector
    row_direction: Vector
    column_direction: Vector
    pixel_spacing: Spacing
    slope: Number
    intercept: Number
    rescaled: bool


class _Header(_Part):
    sop_class_uid: Text
    sop_instance_uid: Text
    series_instance_uid: Text
    modality: Text
    image_type: Texts
    body_part: Text
    view_position: Text
    kernels: Texts
    tilt: Number
    slice_thickness: Number | None
    pixel_spacing: Spacing | None
    slope: Number
    intercept: Number
    layout: _Layout
    planes: tuple[_Plane, ...]
    patient_orientation: Texts
    age_years: Annotated[float, Field(ge=0, lt=1000)] | None

    def value(self, path: Path) -> ImageHeader:
        parts = {"layout": self.layout.value(), "planes": tuple(Plane(**dict(plane)) for plane in self.planes)}
        return ImageHeader(**dict(self) | parts, path=path)


class HeaderSaid(Said):
    header: _Header | None = None


class _Element(_Part):
    tag: Annotated[int, Field(ge=0, lt=2**32)]
    vr: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None
    value: Annotated[Base64Bytes, Field(max_length=MAX_VALUE)] | None
    little_endian: bool

    def raw(self) -> RawDataElement:
        size = len(self.value or b"")
        return RawDataElement(Tag(self.tag), self.vr, size, self.value, 0, self.vr is None, self.little_endian)


class ElementsSaid(Said):
    elements: Annotated[tuple[_Element, ...], Field(max_length=1000)] | None = None  #: None: it said nothing

    def dataset(self) -> Dataset | None:
        if self.elements is None:
            return None
        return Dataset({one.raw().tag: one.raw() for one in self.elements})


class SameSaid(Said):
    same: bool | None = None  #: None: it said nothing
