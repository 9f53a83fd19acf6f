"""Small data sets made to hurt whoever decodes them."""

import struct
import zlib
from collections.abc import Mapping

BOMB_BYTES = 100 << 20  #: what the deflated one becomes
UNDEFINED = 0xFFFFFFFF
CT_IMAGE = b"1.2.840.10008.5.1.4.1.1.2\0"
_LONG = (b"OB", b"OW", b"SQ")


def data_sets(identity: bytes = b"") -> Mapping[str, bytes]:
    """By name; Explicit VR Little Endian but for "deflate" (deflated) and "rle-65535" (RLE).

    `identity`: elements of groups 0008 to 0020 that stand before what hurts.
    """
    return {
        "deflate": _deflate(identity),
        "nested-200": identity + _nested(200),
        "nested-5000": identity + _nested(5000),
        "length-fffffffe": identity + _layout(512, 512) + _element(0x7FE00010, b"OW", b"x" * 10, 0xFFFFFFFE),
        "short-pixels": identity + _layout(512, 512) + _element(0x7FE00010, b"OW", b"x" * 10),
        "rle-65535": identity + _rle_claim(),
        "large-header": identity + _element(0x00291010, b"OB", bytes(24 << 20)),
        "many-elements": identity + _element(0x00290010, b"LO", b"X ") * 400_000,
        "uid-path": _element(0x00080016, b"UI", CT_IMAGE) + _element(0x00080018, b"UI", b"../../../etc/cron.d/x\0"),
    }


def identity(*texts: tuple[int, bytes, bytes]) -> bytes:
    """Elements (tag, VR, value), padded."""
    return b"".join(
        _element(tag, vr, value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)) for tag, vr, value in texts
    )


def _element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<xxI", size) if vr in _LONG else struct.pack("<H", size)) + value


def _item(content: bytes, tag: int = 0xFFFEE000, length: int | None = None) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(content) if length is None else length) + content


def _nested(depth: int) -> bytes:
    opening = _element(0x0040A730, b"SQ", b"", UNDEFINED) + _item(b"", length=UNDEFINED)
    return opening * depth + (_item(b"", 0xFFFEE00D) + _item(b"", 0xFFFEE0DD)) * depth


def _layout(rows: int, columns: int) -> bytes:
    numbers = {0x02: 1, 0x10: rows, 0x11: columns, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 0}
    words = b"".join(_element(0x00280000 | tag, b"US", struct.pack("<H", number)) for tag, number in numbers.items())
    return _element(0x00280004, b"CS", b"MONOCHROME2 ") + words


def _rle_claim() -> bytes:
    frame = struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\x00\x81\x00"
    pixels = _item(b"") + _item(frame) + _item(b"", 0xFFFEE0DD)
    return _layout(65_535, 65_535) + _element(0x7FE00010, b"OB", pixels, UNDEFINED)


def _deflate(identity: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(identity + _layout(512, 512) + _element(0x7FE00010, b"OW", b"", BOMB_BYTES))
    for _ in range(BOMB_BYTES >> 20):
        packed += packer.compress(bytes(1 << 20))
    return packed + packer.flush()
