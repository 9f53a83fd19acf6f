"""The image size that a compressed frame states of itself, read without decoding it.

Decoders allocate what the codestream says, not what Rows, Columns and Samples per Pixel say, so a small file could ask
for gigabytes.
"""

import struct

#: Decoded bytes for each byte of a compressed frame. An empty 4096 x 4096 film stays below it.
MAX_EXPANSION = 50_000

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, SIZ: ISO/IEC 15444-1 A.5.1
_JPEG_START = b"\xff\xd8"
#: SOFn but DHT, JPG and DAC (ISO/IEC 10918-1 table B.1), and SOF55 (JPEG-LS, ISO/IEC 14495-1 C.2.2).
_FRAME_HEADERS = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_JP2_HEADER_LIMIT = 4096


def misfit(frame: bytes, declared: tuple[int, int, int], frame_bytes: int) -> str:
    """Why a compressed frame must reach no decoder: what it says of itself, against (rows, columns, components) and the
    bytes that it is to become; "" where nothing is the matter.
    """
    try:
        stated = stated_size(frame)
    except struct.error:
        return "the codestream ends early"
    if stated not in (None, declared):
        return f"the codestream is {stated}, the header says {declared}"
    if frame_bytes > MAX_EXPANSION * len(frame):
        return f"{len(frame)} bytes cannot be a frame of {declared[0]} x {declared[1]}"
    return ""


def stated_size(frame: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of a JPEG, JPEG-LS or JPEG 2000 frame; None where it has none (RLE, or damaged).

    Raises struct.error on a header that ends early.
    """
    if frame.startswith(_JPEG_START):
        return _jpeg_size(frame)
    start = frame.find(_J2K_START, 0, _JP2_HEADER_LIMIT)
    if start < 0:
        return None
    right, bottom, left, top, components = struct.unpack_from(">4I16xH", frame, start + 8)
    return bottom - top, right - left, components


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    position = len(_JPEG_START)
    while position + 4 <= len(frame):
        prefix, marker, length = struct.unpack_from(">BBH", frame, position)
        if prefix != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _FRAME_HEADERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, components
        else:
            position += 2 + length
    return None
