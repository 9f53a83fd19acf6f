"""One frame of pixel data as stored values: bounded, masked, signed.

Nothing reaches a decoder before its claimed size agrees with the bytes that are there, with the size that its own
codestream states, and with our caps. Raises CannotAnalyse(UNDECODABLE) only.
"""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID, RLELossless

from appliance.errors import CannotAnalyse
from appliance.imaging.codestream import misfit
from appliance.imaging.headers import ImageHeader, PixelLayout, parsing
from appliance.model import Reason

MAX_FRAME_BYTES = 256 * 1024**2

Stored = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]


def read_frame(header: ImageHeader, frame: int = 0) -> tuple[Stored, Mask | None]:
    """Stored values (rows, columns) of one monochrome frame, and where they are padding (None: nowhere)."""
    layout = header.layout
    _check(layout, frame)
    with parsing("pixel data"), header.path.open("rb") as file:
        native = not layout.transfer_syntax_uid.is_compressed
        if native and layout.transfer_syntax_uid.is_little_endian:
            raw = _native(file, layout, frame)
        else:
            raw = _decoded(file, layout, frame)
        if raw.shape != (layout.rows, layout.columns) or raw.dtype.itemsize * 8 != layout.bits_allocated:
            raise _undecodable("the decoded frame has another size than the header says")
        bits = raw.view(f"u{raw.dtype.itemsize}")
        # A JPEG codestream knows its own precision; the others carry BitsAllocated bits, overlays among them.
        plain = native or layout.transfer_syntax_uid == RLELossless
        return (_meaning(bits, layout) if plain else raw), _padding(bits, layout)


def same_pixels(a: tuple[ImageHeader, int], b: tuple[ImageHeader, int]) -> bool:
    """Whether two frames (header, frame index) hold the same stored values."""
    return bool(np.array_equal(read_frame(*a)[0], read_frame(*b)[0]))


def _undecodable(problem: str) -> CannotAnalyse:
    return CannotAnalyse(Reason.UNDECODABLE, f"pixel data: {problem}")


def _check(layout: PixelLayout, frame: int) -> None:
    frame_bytes = layout.rows * layout.columns * layout.bits_allocated // 8
    if not layout.offset:
        raise _undecodable("there are none")
    if layout.samples_per_pixel != 1 or layout.bits_allocated not in (8, 16):
        raise _undecodable(f"{layout.samples_per_pixel} samples of {layout.bits_allocated} bits are not read")
    if not 0 < layout.bits_stored <= layout.high_bit + 1 <= layout.bits_allocated:
        raise _undecodable(f"{layout.bits_stored} bits up to bit {layout.high_bit} of {layout.bits_allocated}")
    if not 0 < frame_bytes <= MAX_FRAME_BYTES:
        raise _undecodable(f"a frame of {layout.rows} x {layout.columns} is not read")
    if not 0 <= frame < layout.frames:
        raise _undecodable(f"no frame {frame + 1} of {layout.frames}")
    if layout.length is not None and layout.length < frame_bytes * layout.frames:
        raise _undecodable(f"{layout.frames} x {frame_bytes} bytes declared, {layout.length} present")


def _native(file: BinaryIO, layout: PixelLayout, frame: int) -> Stored:
    count = layout.rows * layout.columns
    dtype = np.dtype("<u2" if layout.bits_allocated == 16 else "u1")
    file.seek(layout.offset + frame * count * dtype.itemsize)
    return np.fromfile(file, dtype, count).reshape(layout.rows, layout.columns)


def _decoded(file: BinaryIO, layout: PixelLayout, frame: int) -> Stored:
    """Through pydicom's decoders; `file` stands at the pixel data for them as they expect."""
    if layout.length is None:
        present = file.seek(0, 2) - layout.offset
        if present > MAX_FRAME_BYTES * layout.frames:
            raise _undecodable(f"{present} bytes are too many for {layout.frames} compressed frames")
        file.seek(layout.offset)
        _check_codestream(get_frame(file, frame, number_of_frames=layout.frames), layout)
    file.seek(layout.offset)
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.frames,
        "samples_per_pixel": 1,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.signed),
        "pixel_keyword": "PixelData",
    }
    decoder, plugin = decoder_of(layout.transfer_syntax_uid)
    pixels, _ = decoder.as_array(file, index=frame, raw=True, decoding_plugin=plugin, **options)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def decoder_of(transfer_syntax_uid: str) -> tuple[Decoder, str]:
    """Pydicom's decoder, and which of its plugins; "" is any.

    The Rust one for RLE panics on damaged data, which nothing of ours could catch; pydicom's own only raises.
    """
    return get_decoder(UID(transfer_syntax_uid)), "pydicom" if transfer_syntax_uid == RLELossless else ""


def _check_codestream(source: bytes, layout: PixelLayout) -> None:
    declared = (layout.rows, layout.columns, layout.samples_per_pixel)
    if problem := misfit(source, declared, layout.rows * layout.columns * layout.bits_allocated // 8):
        raise _undecodable(problem)


def _meaning(bits: Stored, layout: PixelLayout) -> Stored:
    """The BitsStored bits below HighBit as numbers; what lies above or below them is not pixel (PS3.5 8.1.1)."""
    shift = layout.high_bit + 1 - layout.bits_stored
    if shift:
        bits = bits >> shift
    if not layout.signed:
        return bits if layout.bits_stored == layout.bits_allocated else bits & ((1 << layout.bits_stored) - 1)
    spare = layout.bits_allocated - layout.bits_stored
    signed = bits.view(f"i{bits.dtype.itemsize}")
    return signed if not spare else (signed << spare) >> spare


def _padding(bits: Stored, layout: PixelLayout) -> Mask | None:
    """Where the pixels are PixelPaddingValue, or between it and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2)."""
    if layout.padding is None:
        return None
    if max(layout.padding) >> layout.bits_stored:  # a pattern outside BitsStored is meant as it is written
        return np.asarray((bits >= min(layout.padding)) & (bits <= max(layout.padding)))
    patterns = _meaning(np.array(layout.padding, bits.dtype), layout)
    values = _meaning(bits, layout)
    return np.asarray((values >= patterns.min()) & (values <= patterns.max()))
