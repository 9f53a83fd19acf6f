"""A small reader of the few tags the appliance needs from a file on disk, and a check that its data set is whole.

Written for hostile input: it never raises on content, allocates no length that a file claims, recurses nowhere, and
counts the elements it looks at. It reads bounded pieces and steps over long values unread. Encodings: PS3.5
section 7 and Annex A; a transfer syntax it does not know has Explicit VR Little Endian structure (A.4).
"""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.dimse.sop_classes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN
from appliance.model import Header

MAX_ELEMENTS = 50_000  # of a header, nested ones counted: a reformat may reference some thousand source images
MAX_DEPTH = 64
MAX_DEFLATED = MAX_INFLATED = 1 << 22  # bytes of a deflated data set that are read and made to find the header
MAX_INFLATED_WALK = 1 << 32  # bytes that are inflated, and thrown away, to see whether a stream is whole

_CHUNK = 1 << 14
_MAX_VALUE = 4096
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LAST_TAG = 0x00401003
_GROUP_LENGTH = 0x00020000
_META = (0x00020002, 0x00020003, 0x00020010)  # Media Storage SOP Class and Instance UID, Transfer Syntax UID

# VRs with a 16-bit length field. All others, future ones too, have two reserved bytes and 32 bits (PS3.5 7.1.2).
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

_UID = re.compile(rb"[0-9.]{1,64}")
_CODE_STRING = re.compile(rb"[A-Z0-9 _]{1,16}")
_COUNT = re.compile(rb"\+?[0-9]{1,9}")

Read = Callable[[int, int], bytes]  # (position, size) -> up to size bytes; fewer at the end


class _ParseHeader(Protocol):
    def __call__(self, buffer: bytes, at: int) -> tuple[int, bytes, int, int] | None:
        """(tag, VR or b"", bytes of this header, value length), or None where the buffer is too short."""
        ...


def read_header(path: Path, offset: int, transfer_syntax_uid: str) -> Header:
    """The header of the data set that begins at `offset`. Raises OSError only where the file cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_header_fd(fd, offset, transfer_syntax_uid)
    finally:
        os.close(fd)


def read_header_fd(fd: int, offset: int, transfer_syntax_uid: str) -> Header:
    """As `read_header`, of an open file whose position is neither used nor moved."""
    return _header(_values(fd, offset, transfer_syntax_uid, _WANTED))


def read_values(path: Path, offset: int, transfer_syntax_uid: str, wanted: frozenset[int]) -> dict[int, bytes]:
    """The top-level values of these tags that are there and of a bearable length, as they stand in the file.

    Raises OSError only, as `read_header`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _values(fd, offset, transfer_syntax_uid, wanted)
    finally:
        os.close(fd)


def first_item(sequence: bytes, transfer_syntax_uid: str) -> dict[int, bytes]:
    """The values in the first item of a sequence that `read_values` has read."""
    found: dict[int, bytes] = {}
    layout = _Layout.of(transfer_syntax_uid, sequence[8:16])
    for tag, start, end in _top_level(lambda at, size: sequence[at : at + size], layout, _MAX_VALUE, at=8):
        if tag >> 16 == _ITEM >> 16:
            break
        found[tag] = sequence[start:end]
    return found


def _values(fd: int, offset: int, transfer_syntax_uid: str, wanted: frozenset[int]) -> dict[int, bytes]:
    read: Read = _reader(fd, offset)
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        read = _Inflated(read)
    last, values = max(wanted), dict[int, bytes]()
    for tag, start, end in _top_level(read, _Layout.of(transfer_syntax_uid, read(0, 8)), MAX_ELEMENTS):
        if tag in wanted and end - start <= _MAX_VALUE:
            value = read(start, end - start)
            if len(value) < end - start:  # a UID cut short would still look like one
                break
            values[tag] = value
        if tag >= last:
            break
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Part10:
    """Where the data set of a Part 10 file is, and what its File Meta Information says (PS3.10 section 7.1)."""

    path: Path
    data_set_offset: int
    size: int  #: bytes of the data set
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


def part10(path: Path) -> Part10:
    """Read the File Meta Information. Raises OSError, and ValueError where the file is not a usable Part 10 file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _part10(path, fd)
    finally:
        os.close(fd)


def _part10(path: Path, fd: int) -> Part10:
    if os.pread(fd, 4, 128) != b"DICM":
        raise ValueError("not a DICOM Part 10 file")
    values: dict[int, str] = {}
    offset, read, stated_end = 132, _reader(fd, 0), -1
    for tag, start, end in _top_level(read, _EXPLICIT, MAX_ELEMENTS, at=offset):
        if tag >> 16 != 0x0002 or offset == stated_end:  # a data set may be malformed enough to begin with group 2
            break
        if tag == _GROUP_LENGTH and end - start == 4:
            stated_end = end + int.from_bytes(read(start, 4), "little")
        offset = end
        if tag in _META:
            value = read(start, min(end - start, _MAX_VALUE)).strip(b" \0")
            values[tag] = value.decode("ascii") if _UID.fullmatch(value) else ""
    sop_class, sop_instance, syntax = (values.get(tag, "") for tag in _META)
    if not (sop_class and sop_instance):  # a careless writer's File Meta: the data set has them too
        header = read_header_fd(fd, offset, syntax)
        sop_class, sop_instance = sop_class or header.sop_class_uid, sop_instance or header.sop_instance_uid
    size = os.fstat(fd).st_size - offset
    if size < 0 or not (sop_class and sop_instance and syntax):
        raise ValueError("Part 10 file without SOP class, instance or transfer syntax")
    return Part10(
        path=path,
        data_set_offset=offset,
        size=size,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        transfer_syntax_uid=syntax,
    )


def walk_to_end(path: Path, offset: int, transfer_syntax_uid: str) -> bool:
    """Whether the data set's top-level elements end exactly where the file ends: recovery's test for a torn file.

    A deflated data set is whole where its stream ends; one that inflates past MAX_INFLATED_WALK counts as whole, for
    it may have been acknowledged. Raises OSError only.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size - offset
        read = _reader(fd, offset)
        if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            return _inflates_to_end(read)
        reached = 0
        for _, _, reached in _top_level(read, _Layout.of(transfer_syntax_uid, read(0, 8)), size // 8 + 1):
            if reached >= size:
                break
        return 0 < reached == size
    finally:
        os.close(fd)


def _reader(fd: int, offset: int) -> Read:
    """Of a file that nobody writes to meanwhile: what was read last is not read again."""
    held, begin = b"", 0

    def read(at: int, size: int) -> bytes:
        nonlocal held, begin
        if at < begin or at + size > begin + len(held):
            held, begin = os.pread(fd, max(size, _CHUNK), offset + at), at
        return held[at - begin : at - begin + size]

    return read


def _header(values: dict[int, bytes]) -> Header:
    def matching(tag: int, pattern: re.Pattern[bytes]) -> str:
        value = values.get(tag, b"").strip(b" \0")
        return value.decode("ascii") if pattern.fullmatch(value) else ""

    patient_id, issuer = (values.get(tag, b"").strip(b" \0") for tag in (0x00100020, 0x00100021))
    return Header(
        sop_class_uid=matching(0x00080016, _UID),
        sop_instance_uid=matching(0x00080018, _UID),
        study_instance_uid=matching(0x0020000D, _UID),
        series_instance_uid=matching(0x0020000E, _UID),
        modality=matching(0x00080060, _CODE_STRING),
        patient=hashlib.sha256(patient_id + b"\0" + issuer).digest() if patient_id else b"",
        stated_count=int(matching(0x00201209, _COUNT) or 0),
        requested_priority=matching(_LAST_TAG, _CODE_STRING),
    )


_WANTED = frozenset(
    (0x00080016, 0x00080018, 0x00080060, 0x00100020, 0x00100021, 0x0020000D, 0x0020000E, 0x00201209, _LAST_TAG)
)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How element headers are written."""

    parse: _ParseHeader
    nested_unknown: _ParseHeader  #: inside a UN of undefined length, which is implicit (PS3.5 6.2.2)
    short: struct.Struct | None = None  #: group, element, VR, length of those with a VR in _SHORT_VRS: most by far

    @staticmethod
    def of(transfer_syntax_uid: str, first: bytes) -> "_Layout":
        """By the transfer syntax, unless the first element shows that the peer mislabelled its data."""
        if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN:
            return _BIG_ENDIAN
        looks_explicit = first[4:6].isalpha() and first[4:6].isupper()
        return _EXPLICIT if looks_explicit else _IMPLICIT


def _explicit(order: str) -> _ParseHeader:
    short, long, tail = struct.Struct(order + "HH2sH"), struct.Struct(order + "I"), struct.Struct(order + "4xI")

    def parse(buffer: bytes, at: int) -> tuple[int, bytes, int, int] | None:
        if len(buffer) - at < 8:
            return None
        group, element, vr, length = short.unpack_from(buffer, at)
        if group == 0xFFFE:  # items have no VR
            return group << 16 | element, b"", 8, tail.unpack_from(buffer, at)[0]
        if vr in _SHORT_VRS:
            return group << 16 | element, vr, 8, length
        if not (vr.isalpha() and vr.isupper()):  # no VR at all ("??"): such writers use the short form
            return group << 16 | element, vr, 8, length
        if len(buffer) - at < 12:
            return None
        return group << 16 | element, vr, 12, long.unpack_from(buffer, at + 8)[0]

    return parse


def _implicit() -> _ParseHeader:
    layout = struct.Struct("<HHI")

    def parse(buffer: bytes, at: int) -> tuple[int, bytes, int, int] | None:
        if len(buffer) - at < 8:
            return None
        group, element, length = layout.unpack_from(buffer, at)
        return group << 16 | element, b"", 8, length

    return parse


_IMPLICIT = _Layout(_implicit(), _implicit())
_EXPLICIT = _Layout(_explicit("<"), _IMPLICIT.parse, struct.Struct("<HH2sH"))
_BIG_ENDIAN = _Layout(_explicit(">"), _IMPLICIT.parse, struct.Struct(">HH2sH"))


def _top_level(read: Read, layout: _Layout, max_elements: int, at: int = 0) -> Iterator[tuple[int, int, int]]:
    """(tag, start, end) of each top-level value, in file order; ends early at what it cannot read.

    `end` may lie past the end of the file. Values of undefined length, sequences and encapsulated pixel data, are
    walked level by level on a stack of our own: (parser to return to, whether the level is an item).
    """
    parse, levels = layout.parse, list[tuple[_ParseHeader, bool]]()
    short = layout.short
    buffer, base, last = b"", at, -1  # the last position in the buffer where a whole header must be
    outer = (0, 0)
    for _ in range(max_elements):
        if not base <= at <= base + last:
            buffer, base = read(at, _CHUNK), at
            last = len(buffer) - 12
        if short is not None and last >= 0 and not levels:  # one step for nearly all: each image is read
            group, element, vr, length = short.unpack_from(buffer, at - base)
            if vr in _SHORT_VRS and group != 0xFFFE:
                start, at = at + 8, at + 8 + length
                yield group << 16 | element, start, at
                continue
        found = parse(buffer, at - base)
        if found is None:
            return
        tag, vr, header_size, length = found
        at += header_size
        if length == _UNDEFINED:
            if len(levels) == MAX_DEPTH:
                return
            outer = outer if levels else (tag, at)
            levels.append((parse, tag == _ITEM))
            parse = layout.nested_unknown if vr == b"UN" else parse
            continue
        start, at = at, at + length
        if not levels:
            yield tag, start, at
        elif tag in (_ITEM_END, _SEQUENCE_END):
            if tag == _SEQUENCE_END and levels[-1][1]:  # an item that nobody closed ends with its sequence
                levels.pop()
            if levels and levels[-1][1] == (tag == _ITEM_END):
                parse, _ = levels.pop()
            if not levels:
                yield *outer, at


class _Inflated:
    """Random access to the first MAX_INFLATED bytes of a deflated data set (PS3.5 A.5: no zlib header)."""

    def __init__(self, read: Read) -> None:
        self._read, self._taken = read, 0
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._out = bytearray()

    def __call__(self, at: int, size: int) -> bytes:
        wanted = min(at + size, MAX_INFLATED)
        while len(self._out) < wanted and not self._inflater.eof and self._taken < MAX_DEFLATED:
            piece = self._inflater.unconsumed_tail or self._next()
            try:
                more = self._inflater.decompress(piece, wanted - len(self._out))
            except zlib.error:
                break
            if not more and not piece:
                break
            self._out += more
        return bytes(self._out[at : at + size])

    def _next(self) -> bytes:
        piece = self._read(self._taken, _CHUNK)
        self._taken += len(piece)
        return piece


def _inflates_to_end(read: Read) -> bool:
    inflater, taken, made = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail
        if not piece:
            piece = read(taken, _CHUNK)
            taken += len(piece)
        try:
            made += len(inflater.decompress(piece, 1 << 20))
        except zlib.error:
            return False
        if made > MAX_INFLATED_WALK:
            return True
        if not piece:
            return False
    return True  # what follows the end of a stream is padding, or the checksum that some writers add
