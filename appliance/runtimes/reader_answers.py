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
    MAX_TEXT,
    MAX_VALUES,
    ImageHeader,
    PixelLayout,
    Plane,
    Vector,
)
from appliance.imaging.reading import MAX_VALUE
from appliance.runtimes.channel import Answer

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Texts = Annotated[tuple[Text, ...], Field(max_length=MAX_VALUES)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Bits = Annotated[int, Field(ge=0, le=MAX_BITS)]
Pattern = Annotated[int, Field(ge=0, lt=2**MAX_BITS)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Spacing = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


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
    rows: Count
    columns: Count
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
    slope: float
    intercept: float
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
    tilt: float
    slice_thickness: float | None
    pixel_spacing: Spacing | None
    slope: float
    intercept: float
    layout: _Layout
    planes: tuple[_Plane, ...]
    patient_orientation: Texts

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
    elements: Annotated[tuple[_Element, ...], Field(max_length=1000)] = ()

    def dataset(self) -> Dataset:
        return Dataset({one.raw().tag: one.raw() for one in self.elements})


class SameSaid(Said):
    same: bool = False
