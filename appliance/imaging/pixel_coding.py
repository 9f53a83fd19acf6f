"""Frames of Pixel Data as bytes: out of their compression, and into a lossless one. See `transcode`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless

from appliance.imaging.codestream import misfit
from appliance.imaging.encoding import UNDEFINED, Element, Walker, refused
from appliance.imaging.pixels import MAX_FRAME_BYTES, decoder_of

#: To these. Nothing that is installed with us writes High-Throughput JPEG 2000 with the precision of Bits Stored.
ENCODERS = (JPEGLSLossless, JPEG2000Lossless)
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3}  # that are compressed
_PHOTOMETRIC, _PLANAR, _FRAMES = 0x00280004, 0x00280006, 0x00280008


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How they lie (PS3.3 C.7.6.3), and their bytes as they are stored."""

    data: memoryview
    syntax: UID
    vr: bytes
    native: bool
    little: bool
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    has: frozenset[int]  #: tags of these that stand in the data set

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def options(self) -> dict[str, Any]:
        """For pydicom's encoders and decoders."""
        options: dict[str, Any] = {
            "rows": self.rows,
            "columns": self.columns,
            "number_of_frames": self.frames,
            "samples_per_pixel": self.samples,
            "photometric_interpretation": self.photometric,
            "bits_allocated": self.allocated,
            "bits_stored": self.stored,
            "pixel_representation": int(self.signed),
        }
        return options if self.samples == 1 else {**options, "planar_configuration": self.planar}

    def frame(self, index: int) -> memoryview:
        """Of native pixels."""
        return self.data[index * self.frame_bytes : (index + 1) * self.frame_bytes]

    def changed_when_decoded(self) -> dict[int, bytes]:
        """Elements that must then be other than they are, by tag, little endian: colours that exist only in a
        codestream (PS3.5 8.2.3, 8.2.4), and samples that now lie side by side.
        """
        if self.samples == 1:
            return {}
        changed: dict[int, bytes] = {}
        _, said = next(_decoded_arrays(self))
        meaning = str(said["photometric_interpretation"])
        if _PHOTOMETRIC in self.has and meaning != self.photometric:
            text = meaning.encode()
            changed[_PHOTOMETRIC] = text + b" " * (len(text) % 2)
        if _PLANAR in self.has and self.planar:
            changed[_PLANAR] = bytes(2)
        return changed


def read_pixels(walker: Walker, elements: Sequence[Element], pixel_element: Element, syntax: UID) -> Pixels:
    order = "little" if walker.encoding.little else "big"
    raw = {one.tag: bytes(walker.data[one.value : one.end][:64]) for one in elements if one.tag >> 16 == 0x0028}

    def number(tag: int, absent: int = 0) -> int:
        return int.from_bytes(raw[tag][:2], order) if raw.get(tag) else absent  # type: ignore[arg-type]

    allocated = number(0x00280100)
    stored = number(0x00280101, allocated)
    pixels = Pixels(
        data=walker.data[pixel_element.value : pixel_element.end],
        syntax=syntax,
        vr=pixel_element.vr,
        native=pixel_element.length != UNDEFINED,
        little=walker.encoding.little,
        rows=number(0x00280010),
        columns=number(0x00280011),
        frames=int(raw.get(_FRAMES, b"").strip(b" \0") or 1),
        samples=number(0x00280002, 1),
        photometric=raw.get(_PHOTOMETRIC, b"").strip(b" \0").decode("ascii"),
        planar=number(_PLANAR),
        allocated=allocated,
        stored=stored,
        high_bit=number(0x00280102, max(stored - 1, 0)),
        signed=number(0x00280103) == 1,
        has=frozenset(raw),
    )
    if not pixels.native:
        _check_frame(pixels)
    return pixels


def _check_frame(pixels: Pixels) -> None:
    if pixels.allocated not in (8, 16, 32) or not 0 < pixels.stored <= pixels.allocated:
        raise refused(f"pixels of {pixels.stored} of {pixels.allocated} bits are not read")
    if not 0 < pixels.frame_bytes <= MAX_FRAME_BYTES or not 0 < pixels.frames <= 1 << 20:
        raise refused(f"{pixels.frames} frames of {pixels.rows} x {pixels.columns} are not read")


def encoded(pixels: Pixels, syntax: UID) -> Iterator[bytes]:
    """Each frame of native pixels as a codestream of even length."""
    _check_frame(pixels)
    size = pixels.frame_bytes * pixels.frames
    if not pixels.native or not pixels.little or len(pixels.data) not in (size, size + 1):
        raise refused(f"pixel data: {pixels.frames} frames of {pixels.frame_bytes} bytes are not what is there")
    if _SAMPLES.get(pixels.photometric) != pixels.samples or pixels.planar or pixels.allocated not in (8, 16):
        raise refused(f"{pixels.photometric} of {pixels.allocated} bits is not compressed")
    if pixels.high_bit != pixels.stored - 1:
        raise refused("pixels above unused bits are not compressed")
    encoder, options = get_encoder(syntax), {**pixels.options, "number_of_frames": 1}
    for index in range(pixels.frames):
        frame = encoder.encode(bytes(pixels.frame(index)), **options)
        yield frame + bytes(len(frame) % 2)


def decoded(pixels: Pixels) -> Iterator[bytes]:
    """Each frame of compressed pixels as little endian bytes, the samples of a pixel side by side."""
    count = 0
    for frame, _ in _decoded_arrays(pixels):
        if frame.nbytes != pixels.frame_bytes:
            raise refused("a decoded frame has another size than the header says")
        yield np.ascontiguousarray(frame, frame.dtype.newbyteorder("<")).tobytes()
        count += 1
    if count != pixels.frames:
        raise refused(f"{count} frames are there, the header says {pixels.frames}")


def _decoded_arrays(pixels: Pixels) -> Iterator[tuple[Any, Any]]:
    """With what the decoder says of each. Nothing reaches it whose codestream states another size than the header."""
    decoder, plugin = decoder_of(pixels.syntax)
    options = {**pixels.options, "number_of_frames": 1, "pixel_keyword": "PixelData"}
    for frame in generate_frames(BytesIO(pixels.data), number_of_frames=pixels.frames):
        if problem := misfit(frame, (pixels.rows, pixels.columns, pixels.samples), pixels.frame_bytes):
            raise refused(problem)
        alone = BytesIO(encapsulate([frame], has_bot=False))
        yield decoder.as_array(alone, index=0, raw=True, decoding_plugin=plugin, **options)
