"""Stored objects in another transfer syntax, without loss: for destinations that take no other, or a thin line.

All that is not Pixel Data stays as it is, element by element; what comes out is read again and compared with what went
in, or it does not come out at all: see `sameness`. Runs in a child that a file may cost its life. Raises
CannotAnalyse(UNDECODABLE) where the file is at fault, RuntimeFailed where the result cannot be written.
"""

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian

from appliance.errors import RuntimeFailed
from appliance.imaging import bounds, sameness
from appliance.imaging.encoding import UNDEFINED, Element, Encoding, Rewriter, Walker, refused
from appliance.imaging.headers import parsing
from appliance.imaging.pixel_coding import ENCODERS, Pixels, decoded, encoded, read_pixels
from appliance.model import Reason

PIXEL_DATA = 0x7FE00010
#: What goes with compressed frames only (PS3.3 C.7.6.3.1.8), and lengths of groups that change.
DROPPED = frozenset((0x7FE00000, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0x00280000))
_INFLATE_AT_A_TIME = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A stored object, its data set inflated."""

    data: memoryview
    syntax: UID
    meta: tuple[str, str]  #: Media Storage SOP Class and Instance UID


@dataclass(slots=True)
class _Output:
    """Counts what is written to a file."""

    file: BinaryIO
    most: int
    size: int = 0

    def write(self, piece: bytes | memoryview) -> None:
        self.size += len(piece)
        if self.size > self.most:
            raise refused(f"the result would be longer than {self.most} bytes")
        try:
            self.file.write(piece)
        except OSError as error:
            raise _unwritable(error) from None


def transcode(path: Path, output: BinaryIO, syntax: UID, most: int) -> int:
    """Write a Part 10 file of at most so many bytes into an empty file; returns their number.

    `syntax`: one of ENCODERS, for uncompressed pixels; or Explicit or Implicit VR Little Endian.
    """
    with parsing("the object"):
        source = _opened(path, most)
        walker = Walker(source.data, Encoding.of(source.syntax))
        elements = list(walker.elements(0))
        out = _Output(output, most)
        out.write(_file_meta(source.meta, syntax))
        start = out.size
        work = _Work(walker, elements, source.syntax, syntax)
        work.write(out)
        try:
            output.flush()
        except OSError as error:
            raise _unwritable(error) from None
        sameness.check(work.sides(_mapped(output.fileno())[start:]))
        return out.size


class _Work:
    """One object on its way."""

    def __init__(self, walker: Walker, elements: list[Element], was: UID, wanted: UID) -> None:
        self._walker, self._elements, self._was, self._wanted = walker, elements, was, wanted
        self._pixels: Pixels | None = None
        self._changed: dict[int, bytes] = {}

    def write(self, out: _Output) -> None:
        to = Encoding.of(self._wanted)
        rewriter = Rewriter(self._walker, to.explicit, out.write)
        pixel_element = next((one for one in self._elements if one.tag == PIXEL_DATA), None)
        if pixel_element is not None:
            self._pixels = read_pixels(self._walker, self._elements, pixel_element, self._was)
        if self._pixels is not None and not self._pixels.little and self._pixels.allocated > 16:
            raise refused("big endian pixels of more than 16 bits: writers do not agree on the order of their bytes")
        if self._wanted in ENCODERS and pixel_element is None:
            raise refused("there are no pixels")
        recodes = self._wanted in ENCODERS or (pixel_element is not None and pixel_element.length == UNDEFINED)
        if recodes and self._pixels is not None and pixel_element is not None and self._wanted not in ENCODERS:
            self._changed = self._pixels.changed_when_decoded()
        for one in self._elements:
            if recodes and one is pixel_element and self._pixels is not None:
                self._write_pixels(rewriter, self._pixels)
            elif one.tag in self._changed:
                rewriter.value(one.tag, one.vr, self._changed[one.tag])
            elif not (recodes and one.tag in DROPPED):
                rewriter.element(one)

    def _write_pixels(self, rewriter: Rewriter, pixels: Pixels) -> None:
        if self._wanted in ENCODERS:
            rewriter.header(PIXEL_DATA, b"OB", UNDEFINED)
            rewriter.write(_ITEM_OF_NOTHING)  # no offset table: it may be empty (PS3.5 A.4)
            for frame in encoded(pixels, self._wanted):
                rewriter.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)))
                rewriter.write(frame)
            rewriter.write(_END_OF_ITEMS)
            return
        size = pixels.frame_bytes * pixels.frames
        rewriter.header(PIXEL_DATA, b"OW" if pixels.allocated > 8 else b"OB", size + size % 2)
        for frame in decoded(pixels):
            rewriter.write(frame)
        rewriter.write(bytes(size % 2))

    def sides(self, result: memoryview) -> sameness.Sides:
        return sameness.Sides(
            source=self._walker.data,
            was=self._was,
            result=result,
            wanted=self._wanted,
            pixels=self._pixels,
            changed=self._changed,
        )


_ITEM_OF_NOTHING = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
_END_OF_ITEMS = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _opened(path: Path, most: int) -> Source:
    with path.open("rb") as file:
        read_preamble(file, force=False)
        meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)
        syntax = UID(meta[0x00020010].value)
        uids = (str(meta[0x00020002].value), str(meta[0x00020003].value))
        offset = file.tell()
        if not syntax.is_deflated:
            bounds.check(file, syntax)
        data = _mapped(file.fileno())[offset:]
    if syntax.is_deflated:
        return Source(data=memoryview(_inflated(data, most)), syntax=ExplicitVRLittleEndian, meta=uids)
    return Source(data=data, syntax=syntax, meta=uids)


def _inflated(data: memoryview, most: int) -> bytes:
    inflater, made = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    for at in range(0, len(data), _INFLATE_AT_A_TIME):
        made += inflater.decompress(data[at : at + _INFLATE_AT_A_TIME], most + 1 - len(made))
        if len(made) > most:
            raise refused(f"it inflates to more than {most} bytes")
    if not inflater.eof:
        raise refused("the deflated data set is cut short")
    return bytes(made)


def _mapped(fd: int) -> memoryview:
    if not os.fstat(fd).st_size:
        raise refused("the file is empty")
    return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))  # goes with the last view of it


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom's signature
    return tag >> 16 != 2


def _file_meta(uids: tuple[str, str], syntax: UID) -> bytes:
    """What the sending side needs of it; the file lives no longer than that."""
    elements = b"".join(
        struct.pack("<HH2sH", 2, number, b"UI", len(uid) + len(uid) % 2) + uid.encode() + bytes(len(uid) % 2)
        for number, uid in ((2, uids[0]), (3, uids[1]), (0x10, str(syntax)))
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _unwritable(error: OSError) -> RuntimeFailed:
    return RuntimeFailed(Reason.ENGINE_FAILED, f"the result cannot be written: {error.strerror}")
