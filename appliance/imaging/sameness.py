"""Whether an object in another transfer syntax is the same object: read again by pydicom, which did not write it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from appliance.imaging.encoding import Element, Encoding, Walker, refused, swapped
from appliance.imaging.pixel_coding import ENCODERS, Pixels, decoded, read_pixels

PIXEL_DATA = 0x7FE00010
_Read = DataElement | RawDataElement
_BESIDE_PIXELS = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00003, PIXEL_DATA))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What went in and what came out, both without File Meta."""

    source: memoryview
    was: UID
    result: memoryview
    wanted: UID
    pixels: Pixels | None  #: of the source
    changed: Mapping[int, bytes]  #: elements that must be other than they were, and what they must be


def check(sides: Sides) -> None:
    """Raises CannotAnalyse(UNDECODABLE) where anything differs that need not."""
    recoded = sides.wanted in ENCODERS or (sides.pixels is not None and not sides.pixels.native)
    skipped = _BESIDE_PIXELS if sides.pixels is not None else frozenset[int]()
    result_walker = Walker(sides.result, Encoding.of(sides.wanted))
    result_elements = list(result_walker.elements(0))
    for ours, theirs in zip(
        _parts(sides.source, sides.was), _parts(sides.result, sides.wanted, result_elements), strict=True
    ):
        _same_elements(ours, theirs, skipped, sides.changed)
    if sides.pixels is None:
        return
    element = next((one for one in result_elements if one.tag == PIXEL_DATA), None)
    if element is None:
        raise refused("the result has no pixels")
    found = read_pixels(result_walker, result_elements, element, sides.wanted)
    if not (_same_frames(sides.pixels, found) if recoded else _same_native(sides.pixels, found)):
        raise refused("the result has other pixels")


def _parts(data: memoryview, syntax: UID, elements: list[Element] | None = None) -> Iterator[Dataset]:
    """What stands before the pixels, and what behind."""
    encoding = Encoding.of(syntax)
    known = elements or list(Walker(data, encoding).elements(0))
    pixels = next((one for one in known if one.tag == PIXEL_DATA), None)
    ends = (pixels.start, pixels.end) if pixels else (len(data), len(data))
    for part in (data[: ends[0]], data[ends[1] :]):
        with BytesIO(part) as file:
            yield read_dataset(file, is_implicit_VR=not encoding.explicit, is_little_endian=encoding.little)


def _same_elements(a: Dataset, b: Dataset, skipped: frozenset[int], changed: Mapping[int, bytes]) -> None:
    ours, theirs = (_as_read(side, skipped) for side in (a, b))
    if ours.keys() != theirs.keys():
        raise refused("the result has other elements")
    for tag, left in ours.items():
        right = theirs[tag]
        if tag in changed:
            _expect(tag, same=_bytes(right) == changed[tag])
        elif "SQ" in (left.VR, right.VR):
            _same_items(a[tag].value, b[tag].value, tag)
        else:
            unknown = not (left.VR and right.VR) or "UN" in (left.VR, right.VR)
            _expect(tag, same=(unknown or left.VR == right.VR) and _bytes(left) == _bytes(right))


def _as_read(dataset: Dataset, skipped: frozenset[int]) -> dict[BaseTag, _Read]:
    """Before pydicom makes values of them: reading one makes some of others."""
    return {tag: one for tag, one in dataset.items() if tag not in skipped and tag & 0xFFFF}


def _same_items(ours: Sequence[Dataset], theirs: Sequence[Dataset], tag: BaseTag) -> None:
    _expect(tag, same=len(ours) == len(theirs))
    for one, other in zip(ours, theirs, strict=True):
        _same_elements(one, other, frozenset(), {})


def _bytes(element: _Read) -> bytes:
    """The value, little endian."""
    if not isinstance(element, RawDataElement):
        raise refused(f"{element.tag:08X} cannot be compared")
    value = element.value or b""
    if element.is_little_endian:
        return bytes(value)
    return swapped(memoryview(value), (element.VR or "UN").encode())


def _expect(tag: int, *, same: bool) -> None:
    if not same:
        raise refused(f"the result differs in {tag:08X}")


def _same_frames(a: Pixels, b: Pixels) -> bool:
    if (a.rows, a.columns, a.frames, a.samples, a.allocated) != (b.rows, b.columns, b.frames, b.samples, b.allocated):
        return False
    ours = (bytes(a.frame(index)) for index in range(a.frames)) if a.native else decoded(a)
    theirs = (bytes(b.frame(index)) for index in range(b.frames)) if b.native else decoded(b)
    return all(one == other for one, other in zip(ours, theirs, strict=True))


def _same_native(a: Pixels, b: Pixels) -> bool:
    return a.data == b.data if a.little else swapped(a.data, a.vr) == bytes(b.data)
