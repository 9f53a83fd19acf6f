"""What a header may cost, checked before pydicom sees it: depth, number of elements, bytes, and lengths that are true.

pydicom recurses for each nested sequence, takes what a length says, and reads whole values into memory. This walks
the element headers on a stack of its own and steps over values. Encodings: PS3.5 section 7 and Annex A.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

from appliance.errors import CannotAnalyse
from appliance.model import Reason

MAX_DEPTH = 24  #: of sequences in sequences; functional groups and structured context take five
MAX_ELEMENTS = 500_000  #: those of an enhanced CT of some thousand frames are less
MAX_HEADER = 64 << 20  #: bytes before the pixels

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


@dataclass(frozen=True, slots=True)
class _Level:
    """A value whose content is walked, too."""

    end: int | None  #: None: ended by a delimiter
    implicit: bool
    fragments: bool = False  #: items hold bytes, not elements


def check(file: BinaryIO, syntax: UID) -> None:
    """Walk the data set that begins where `file` stands, up to its pixels; `file` stands there again afterwards.

    Raises CannotAnalyse(UNDECODABLE).
    """
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(start)
    _Walk(file, size, syntax).run()
    file.seek(start)


class _Walk:
    def __init__(self, file: BinaryIO, size: int, syntax: UID) -> None:
        self._file, self._at, self._size = file, file.tell(), size
        self._limit = self._at + MAX_HEADER
        self._order = "<" if syntax.is_little_endian else ">"
        self._short = struct.Struct(f"{self._order}HHI")
        first = file.read(8)
        file.seek(self._at)
        self._levels = [_Level(size, implicit=not _has_vr(first))]  # whatever the syntax says: so does pydicom

    def run(self) -> None:
        for _ in range(MAX_ELEMENTS):
            self._leave_what_ended()
            head = self._file.read(8)
            if not self._levels or len(head) < 8:
                return
            self._at += 8
            group, number, length = self._short.unpack(head)
            tag = group << 16 | number
            if tag in _PIXELS and len(self._levels) == 1:
                return
            self._element(tag, head, length)
            if self._at > self._limit:
                raise _refused(f"more than {MAX_HEADER >> 20} MB")
        raise _refused(f"more than {MAX_ELEMENTS} elements")

    def _leave_what_ended(self) -> None:
        while self._levels and self._levels[-1].end is not None and self._levels[-1].end <= self._at:
            self._levels.pop()

    def _element(self, tag: int, head: bytes, length: int) -> None:
        level = self._levels[-1]
        if tag == _ITEM:
            if level.fragments:
                self._step_over(length)
            return  # its elements come next
        if tag in (_ITEM_END, _SEQUENCE_END):
            if tag == _SEQUENCE_END and level.end is None:
                self._levels.pop()
            return
        vr = head[4:6] if not level.implicit and _has_vr(head) else b""
        if vr in _LONG_VRS:
            (length,) = struct.unpack(f"{self._order}I", self._file.read(4))
            self._at += 4
        elif vr:
            (length,) = struct.unpack(f"{self._order}H", head[6:])
        is_sequence = vr == b"SQ" or (not vr and _is_sequence(tag))
        if length == _UNDEFINED:
            fragments = vr not in (b"", b"SQ", b"UN")
            self._enter(_Level(None, level.implicit or vr == b"UN", fragments))
        elif is_sequence and length:
            self._check_length(length)
            self._enter(_Level(self._at + length, level.implicit))
        else:
            self._step_over(length)

    def _enter(self, level: _Level) -> None:
        if len(self._levels) > MAX_DEPTH:
            raise _refused(f"sequences nested more than {MAX_DEPTH} deep")
        self._levels.append(level)

    def _step_over(self, length: int) -> None:
        self._check_length(length)
        self._at = self._file.seek(self._at + length)

    def _check_length(self, length: int) -> None:
        if length > self._size - self._at:
            raise _refused("a value is longer than the file")


def _has_vr(head: bytes) -> bool:
    return head[4:6].isalpha() and head[4:6].isupper()


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False


def _refused(what: str) -> CannotAnalyse:
    return CannotAnalyse(Reason.UNDECODABLE, f"header: {what}")
