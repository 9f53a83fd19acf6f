"""Data sets from one encoding into another (PS3.5 section 7 and annex A): the headers of elements change, the bytes of
their values do not, but for their order where it was big endian. No text is decoded, and no number read but those that
say how the pixels lie.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

from appliance.errors import CannotAnalyse
from appliance.imaging.bounds import MAX_DEPTH
from appliance.model import Reason

Write = Callable[[bytes | memoryview], object]

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_REPRESENTATION = 0x00280103
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_WORDS: Mapping[bytes, int] = {
    vr.encode(): size
    for size, vrs in ((2, "AT OW SS US"), (4, "FL OF OL SL UL"), (8, "FD OD OV SV UV"))
    for vr in vrs.split()
}
_AMBIGUOUS: Mapping[str, tuple[str, str]] = {  # unsigned, signed
    "US or SS": ("US", "SS"),
    "OB or OW": ("OW", "OW"),  # PS3.5 A.1: what was implicit is OW
    "US or OW": ("OW", "OW"),
    "US or SS or OW": ("OW", "OW"),
}


def refused(what: str) -> CannotAnalyse:
    return CannotAnalyse(Reason.UNDECODABLE, what)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the headers of elements are written, and the bytes of numbers ordered."""

    explicit: bool
    little: bool = True

    @classmethod
    def of(cls, syntax: UID) -> "Encoding":
        return cls(explicit=not syntax.is_implicit_VR, little=syntax.is_little_endian)


@dataclass(frozen=True, slots=True)
class Element:
    """Where one is in the data. `end` is behind its delimiter, where it has one."""

    tag: int
    vr: bytes  #: b"": implicit
    start: int
    value: int
    length: int  #: as stated
    end: int


class Walker:
    """Walks data of one encoding. Everything raises CannotAnalyse(UNDECODABLE) where the data ends early."""

    def __init__(self, data: memoryview, encoding: Encoding) -> None:
        self.data, self.encoding = data, encoding
        order = "<" if encoding.little else ">"
        self._head, self._long = struct.Struct(f"{order}HHI"), struct.Struct(f"{order}I")
        self._short = struct.Struct(f"{order}H")

    def elements(self, at: int) -> Iterator[Element]:
        """Those of the uppermost level, to the end of the data."""
        while at < len(self.data):
            element = self.element(at, self.encoding.explicit, 0)
            yield element
            at = element.end

    def element(self, at: int, explicit: bool, depth: int) -> Element:
        if depth > MAX_DEPTH:
            raise refused("sequences are nested too deep")
        tag, vr, value, length = self.head(at, explicit)
        end = value + length if length != UNDEFINED else self._end(value, vr, explicit, depth + 1)
        if end > len(self.data):
            raise refused("a value is longer than the file")
        return Element(tag=tag, vr=vr, start=at, value=value, length=length, end=end)

    def head(self, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR, where the value begins, and its length."""
        if at + 8 > len(self.data):
            raise refused("the data set ends within an element")
        group, number, length = self._head.unpack_from(self.data, at)
        tag = group << 16 | number
        if not explicit or group == 0xFFFE:
            return tag, b"", at + 8, length
        vr = bytes(self.data[at + 4 : at + 6])
        if not (vr.isalpha() and vr.isupper()):
            raise refused("an element has no value representation")
        if vr in SHORT_VRS:
            return tag, vr, at + 8, self._short.unpack_from(self.data, at + 6)[0]
        if at + 12 > len(self.data):
            raise refused("the data set ends within an element")
        return tag, vr, at + 12, self._long.unpack_from(self.data, at + 8)[0]

    def _end(self, at: int, vr: bytes, explicit: bool, depth: int) -> int:
        """Behind the delimiter of a value of undefined length whose items begin at `at`."""
        explicit = explicit and vr != b"UN"  # PS3.5 6.2.2: what is unknown inside it is implicit
        while True:
            tag, _, value, length = self.head(at, explicit)
            if tag == SEQUENCE_END:
                return value
            if tag != ITEM:
                raise refused("a sequence holds something else than items")
            at = value + length if length != UNDEFINED else self._item_end(value, explicit, depth)

    def _item_end(self, at: int, explicit: bool, depth: int) -> int:
        while True:
            tag, _, value, _ = self.head(at, explicit)
            if tag == ITEM_END:
                return value
            at = self.element(at, explicit, depth).end


@dataclass(slots=True)
class Rewriter:
    """Writes elements in another encoding, little endian."""

    walker: Walker
    explicit: bool  #: wanted
    write: Write
    signed: bool = field(default=False)  #: Pixel Representation of the data set at work

    @property
    def _same(self) -> bool:
        return self.walker.encoding == Encoding(self.explicit)

    def element(self, one: Element, depth: int = 0) -> None:
        """Retired group lengths are left out, since what they count changes."""
        walker, data = self.walker, self.walker.data
        if self._same:
            self.write(data[one.start : one.end])
            return
        if one.tag & 0xFFFF == 0:
            return
        if one.tag == PIXEL_REPRESENTATION:
            self.signed = any(data[one.value : one.end])
        vr = one.vr or self._vr(one)
        if one.length == UNDEFINED and one.vr == b"UN":
            self.header(one.tag, vr, UNDEFINED)
            self.write(data[one.value : one.end])
        elif vr == b"SQ" or (one.length == UNDEFINED and not one.vr):
            self._sequence(one, depth + 1)
        elif one.length == UNDEFINED:
            raise refused("there are compressed pixels within a sequence")
        else:
            value = data[one.value : one.end]
            self.value(one.tag, vr, value if walker.encoding.little else swapped(value, vr))

    def value(self, tag: int, vr: bytes, value: bytes | memoryview) -> None:
        self.header(tag, vr, len(value))
        self.write(value)

    def header(self, tag: int, vr: bytes, length: int) -> None:
        if not self.explicit:
            self.write(struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length))
        elif vr in SHORT_VRS and length <= 0xFFFF:
            self.write(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length))
        else:  # PS3.5 6.2.2: too long for its own VR is UN
            long_vr = b"UN" if vr in SHORT_VRS else vr
            self.write(struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, long_vr, length))

    def _sequence(self, one: Element, depth: int) -> None:
        """Items with lengths become items with delimiters: their elements are what counts."""
        walker, explicit = self.walker, self.walker.encoding.explicit
        signed, at = self.signed, one.value
        self.header(one.tag, b"SQ", UNDEFINED)
        while at < one.end:
            tag, _, value, length = walker.head(at, explicit)
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise refused("a sequence holds something else than items")
            self._marker(ITEM, UNDEFINED)
            at = self._item(value, None if length == UNDEFINED else value + length, depth)
            self._marker(ITEM_END, 0)
            self.signed = signed
        self._marker(SEQUENCE_END, 0)

    def _item(self, at: int, end: int | None, depth: int) -> int:
        walker, explicit = self.walker, self.walker.encoding.explicit
        while end is None or at < end:
            tag, _, value, _ = walker.head(at, explicit)
            if tag == ITEM_END:
                return value
            element = walker.element(at, explicit, depth)
            self.element(element, depth)
            at = element.end
        return at

    def _marker(self, tag: int, length: int) -> None:
        self.write(struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length))

    def _vr(self, one: Element) -> bytes:
        """Of an element that was implicit: the dictionary's; UN where it has none (PS3.5 6.2.2)."""
        if one.tag >> 16 & 1:
            return b"LO" if 0x10 <= one.tag & 0xFFFF <= 0xFF else b"UN"
        try:
            vr = dictionary_VR(one.tag)
        except KeyError:
            return b"UN"
        return _AMBIGUOUS.get(vr, (vr, vr))[self.signed].encode()


def swapped(value: memoryview, vr: bytes) -> bytes:
    """A big endian value as a little endian one."""
    size = _WORDS.get(vr, 1)
    if len(value) % size:
        raise refused("a value has a length that its value representation cannot have")
    turned = bytearray(len(value))
    for byte in range(size):
        turned[byte::size] = value[size - 1 - byte :: size]
    return bytes(turned)
