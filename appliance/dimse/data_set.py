"""A small reader and writer of the data sets we must understand ourselves: those of storage commitment, MPPS, query.

Implicit and Explicit VR Little Endian (PS3.5 section 7, Annexes A.1 and A.2), sequences of defined and of undefined
length. Written for hostile input: bounded in bytes, elements and depth, iterative, and it raises DataSetRefused and
nothing else. Values stay bytes; images never come here, see header.py.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

from appliance.dimse.sop_classes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from appliance.errors import DataSetRefused

#: What can be read and written: a request with MAX_REFERENCES references of longest UIDs takes 3 MB.
TRANSFER_SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
MAX_DATA_SET = 4 << 20  # bytes
MAX_ELEMENTS = 120_000  # items counted
MAX_DEPTH = 8  # of sequences in sequences
PROCESSING_FAILURE = 0x0110

#: Tag -> value: bytes with their padding, or the items of a sequence.
DataSet = dict[int, "bytes | list[DataSet]"]


class Tag(IntEnum):
    """The attributes we read or write, by their keywords (PS3.6)."""

    SPECIFIC_CHARACTER_SET = 0x00080005
    SOP_INSTANCE_UID = 0x00080018
    QUERY_RETRIEVE_LEVEL = 0x00080052
    MODALITY = 0x00080060
    REFERENCED_IMAGE_SEQUENCE = 0x00081140
    REFERENCED_SOP_CLASS_UID = 0x00081150
    REFERENCED_SOP_INSTANCE_UID = 0x00081155
    TRANSACTION_UID = 0x00081195
    FAILURE_REASON = 0x00081197
    FAILED_SOP_SEQUENCE = 0x00081198
    REFERENCED_SOP_SEQUENCE = 0x00081199
    STUDY_INSTANCE_UID = 0x0020000D
    SERIES_INSTANCE_UID = 0x0020000E
    REFERENCED_NON_IMAGE_COMPOSITE_SOP_INSTANCE_SEQUENCE = 0x00400220
    PERFORMED_PROCEDURE_STEP_STATUS = 0x00400252
    SCHEDULED_STEP_ATTRIBUTES_SEQUENCE = 0x00400270
    PERFORMED_SERIES_SEQUENCE = 0x00400340


_VRS: Mapping[int, bytes] = {
    Tag.SPECIFIC_CHARACTER_SET: b"CS",
    Tag.SOP_INSTANCE_UID: b"UI",
    Tag.QUERY_RETRIEVE_LEVEL: b"CS",
    Tag.MODALITY: b"CS",
    Tag.REFERENCED_IMAGE_SEQUENCE: b"SQ",
    Tag.REFERENCED_SOP_CLASS_UID: b"UI",
    Tag.REFERENCED_SOP_INSTANCE_UID: b"UI",
    Tag.TRANSACTION_UID: b"UI",
    Tag.FAILURE_REASON: b"US",
    Tag.FAILED_SOP_SEQUENCE: b"SQ",
    Tag.REFERENCED_SOP_SEQUENCE: b"SQ",
    Tag.STUDY_INSTANCE_UID: b"UI",
    Tag.SERIES_INSTANCE_UID: b"UI",
    Tag.REFERENCED_NON_IMAGE_COMPOSITE_SOP_INSTANCE_SEQUENCE: b"SQ",
    Tag.PERFORMED_PROCEDURE_STEP_STATUS: b"CS",
    Tag.SCHEDULED_STEP_ATTRIBUTES_SEQUENCE: b"SQ",
    Tag.PERFORMED_SERIES_SEQUENCE: b"SQ",
}

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TAG_AND_LENGTH = struct.Struct("<HHI")
_SHORT_HEADER = struct.Struct("<HH2sH")
_LONG_HEADER = struct.Struct("<HH2sHI")
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_TEXT_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())
_VR = re.compile(rb"[A-Z]{2}")
_UID = re.compile(rb"[0-9.]{1,64}")
_CODE_STRING = re.compile(rb"[A-Z0-9 _]{1,16}")


def read(data: bytes | bytearray, transfer_syntax_uid: str) -> DataSet:
    """A data set from its bytes. Raises DataSetRefused with 0x0110, processing failure."""
    if transfer_syntax_uid not in TRANSFER_SYNTAXES:
        _refuse("in a transfer syntax that is not read here")
    if len(data) > MAX_DATA_SET:
        _refuse("too long")
    return _Reader(bytes(data), explicit=transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN).read()


def uid(data_set: DataSet, tag: int) -> str:
    """The UID of this attribute; "" where there is none, or what stands there is no UID."""
    value = data_set.get(tag, b"")
    found = value.rstrip(b"\0 ") if isinstance(value, bytes) else b""
    return found.decode("ascii") if _UID.fullmatch(found) else ""


def code_string(data_set: DataSet, tag: int) -> str:
    """The code string of this attribute; "" where there is none, or what stands there is no code string."""
    value = data_set.get(tag, b"")
    found = value.strip(b"\0 ") if isinstance(value, bytes) else b""
    return found.decode("ascii") if _CODE_STRING.fullmatch(found) else ""


def items(data_set: DataSet, tag: int) -> list[DataSet]:
    """The items of this sequence; none where it is absent, empty or no sequence."""
    value = data_set.get(tag, b"")
    return value if isinstance(value, list) else []


@dataclass(slots=True)
class _Item:
    """A data set whose end has not come."""

    elements: DataSet
    limit: int  #: position where the innermost defined length around it ends
    delimited: bool  #: an Item Delimitation ends it
    explicit: bool


@dataclass(slots=True)
class _Sequence:
    """A sequence whose end has not come."""

    items: list[DataSet]
    limit: int
    delimited: bool
    explicit: bool


class _Reader:
    """One pass over one data set, with a stack of what is open."""

    def __init__(self, data: bytes, *, explicit: bool) -> None:
        self._data = data
        self._at = 0
        self._seen = 0
        self._root: DataSet = {}
        self._open: list[_Item | _Sequence] = [_Item(self._root, len(data), delimited=False, explicit=explicit)]

    def read(self) -> DataSet:
        while self._open:
            top = self._open[-1]
            if self._at == top.limit:
                if top.delimited:
                    _refuse("a sequence or item without its end")
                self._open.pop()
            elif isinstance(top, _Item):
                self._element(top)
            else:
                self._item(top)
        return self._root

    def _element(self, item: _Item) -> None:
        group, element, length = self._header(item.limit)
        tag = group << 16 | element
        if group == 0xFFFE:
            self._end(item, tag, length, _ITEM_END)
            return
        vr = b""
        if item.explicit:
            vr, length = self._explicit(item.limit)
        if tag in item.elements:
            _refuse("an element stands twice")
        if length == _UNDEFINED and vr not in (b"", b"SQ", b"UN"):
            _refuse("a value of undefined length")
        if length == _UNDEFINED or vr == b"SQ" or (vr in (b"", b"UN") and _VRS.get(tag) == b"SQ"):
            # Within UN of a sequence all is implicit, whatever is around it (PS3.5 section 6.2.2).
            inside: list[DataSet] = []
            item.elements[tag] = inside
            explicit = item.explicit and vr != b"UN"
            self._push(_Sequence(inside, self._limit(item.limit, length), length == _UNDEFINED, explicit))
        else:
            end = self._limit(item.limit, length)
            item.elements[tag] = self._data[self._at : end]
            self._at = end

    def _item(self, sequence: _Sequence) -> None:
        group, element, length = self._header(sequence.limit)
        tag = group << 16 | element
        if tag != _ITEM:
            self._end(sequence, tag, length, _SEQUENCE_END)
            return
        elements: DataSet = {}
        sequence.items.append(elements)
        limit = self._limit(sequence.limit, length)
        self._push(_Item(elements, limit, length == _UNDEFINED, sequence.explicit))

    def _header(self, limit: int) -> tuple[int, int, int]:
        """Group, element, and what is a length unless the VR is explicit."""
        self._seen += 1
        if self._seen > MAX_ELEMENTS:
            _refuse("too many elements")
        if limit - self._at < _TAG_AND_LENGTH.size:
            _refuse("cut short")
        group, element, length = _TAG_AND_LENGTH.unpack_from(self._data, self._at)
        self._at += _TAG_AND_LENGTH.size
        return group, element, length

    def _explicit(self, limit: int) -> tuple[bytes, int]:
        """VR and length of the element whose first eight bytes were just passed."""
        vr, length = _SHORT_HEADER.unpack_from(self._data, self._at - _SHORT_HEADER.size)[2:]
        if not _VR.fullmatch(vr):
            _refuse("no VR where one should be")
        if vr in _SHORT_VRS:
            return vr, length
        if limit - self._at < 4:
            _refuse("cut short")
        self._at += 4
        return vr, int.from_bytes(self._data[self._at - 4 : self._at], "little")

    def _limit(self, around: int, length: int) -> int:
        """Where what has this length ends; of undefined length, no later than what is around it."""
        if length == _UNDEFINED:
            return around
        if length > around - self._at:
            _refuse("a length beyond the end")
        return self._at + length

    def _push(self, inside: _Item | _Sequence) -> None:
        self._open.append(inside)
        if len(self._open) > 2 * MAX_DEPTH + 1:
            _refuse("too deep")

    def _end(self, top: _Item | _Sequence, tag: int, length: int, expected: int) -> None:
        if tag != expected or length or not top.delimited:
            _refuse("a delimiter where none belongs")
        self._open.pop()


def write(data_set: DataSet, transfer_syntax_uid: str) -> bytes:
    """The bytes of a data set, lengths defined. Attributes must be in `Tag`; values are padded to even length.

    For data sets of our own making: raises ValueError for what it cannot write.
    """
    if transfer_syntax_uid not in TRANSFER_SYNTAXES:
        raise ValueError(f"not written here: {transfer_syntax_uid}")
    return _written(data_set, explicit=transfer_syntax_uid == EXPLICIT_VR_LITTLE_ENDIAN, depth=0)


def _written(data_set: DataSet, *, explicit: bool, depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    return b"".join(
        _element(tag, _value(_VRS[tag], value, explicit=explicit, depth=depth), explicit=explicit)
        for tag, value in sorted(data_set.items())
    )


def _value(vr: bytes, value: "bytes | list[DataSet]", *, explicit: bool, depth: int) -> bytes:
    if isinstance(value, bytes):
        return value + (b" " if vr in _TEXT_VRS else b"\0") * (len(value) % 2)
    inside = (_written(item, explicit=explicit, depth=depth + 1) for item in value)
    return b"".join(_TAG_AND_LENGTH.pack(_ITEM >> 16, _ITEM & 0xFFFF, len(item)) + item for item in inside)


def _element(tag: int, value: bytes, *, explicit: bool) -> bytes:
    group, element, vr = tag >> 16, tag & 0xFFFF, _VRS[tag]
    if not explicit:
        return _TAG_AND_LENGTH.pack(group, element, len(value)) + value
    if vr in _SHORT_VRS:
        return _SHORT_HEADER.pack(group, element, vr, len(value)) + value
    return _LONG_HEADER.pack(group, element, vr, 0, len(value)) + value


def references(pairs: Iterable[tuple[str, str]]) -> list[DataSet]:
    """Items of a sequence of references: (SOP class UID, SOP Instance UID) -> (0008,1150), (0008,1155)."""
    return [
        {Tag.REFERENCED_SOP_CLASS_UID: sop_class.encode(), Tag.REFERENCED_SOP_INSTANCE_UID: instance.encode()}
        for sop_class, instance in pairs
    ]


def _refuse(what: str) -> NoReturn:
    raise DataSetRefused(PROCESSING_FAILURE, f"malformed data set: {what}")
