"""A radiograph as one image as its sender meant it to be seen, in which brighter means denser.

The grey-scale chain of PS3.3 C.11: stored values -> modality LUT or rescale -> VOI LUT or window -> polarity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from appliance.errors import CannotAnalyse
from appliance.imaging.headers import ImageHeader, PixelLayout, parsing, read_elements
from appliance.imaging.pixels import read_frame
from appliance.model import Reason

MAX_PIXELS = 2**26  #: four times the largest detector's
Float = NDArray[np.float32]
Transform = Callable[[Float], Float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """`image` is float32 (rows, columns) within [0, 1], brighter = denser; padding is 0."""

    header: ImageHeader
    image: Float


def read_film(header: ImageHeader) -> Film:
    """Raises CannotAnalyse: UNSUITABLE (colour, several frames, too large), UNDECODABLE."""
    layout = header.layout
    if layout.photometric not in ("MONOCHROME1", "MONOCHROME2") or layout.samples_per_pixel != 1:
        raise CannotAnalyse(Reason.UNSUITABLE, "a colour image, not a radiograph")
    if layout.frames != 1:
        raise CannotAnalyse(Reason.UNSUITABLE, f"{layout.frames} frames, not one radiograph")
    check_size(layout)
    with parsing("grey-scale chain"), header.path.open("rb") as file:
        dataset, _ = read_elements(file)
        modality, window = _modality(dataset, header), _voi(dataset, header)
    stored, padding = read_frame(header)
    image = window(modality(stored.astype(np.float32)))
    if layout.photometric == "MONOCHROME1":
        image = 1 - image
    if padding is not None:
        image[padding] = 0
    return Film(header=header, image=image)


def check_size(layout: PixelLayout) -> None:
    """Before there is any memory for it. Raises CannotAnalyse(UNSUITABLE)."""
    if layout.rows * layout.columns > MAX_PIXELS:
        raise CannotAnalyse(Reason.UNSUITABLE, f"an image of {layout.columns} x {layout.rows} pixels is not read")


def _modality(dataset: Dataset, header: ImageHeader) -> Transform:
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        return _lut(sequence[0], signed=header.layout.signed, scale=False)
    return lambda stored: stored * np.float32(header.slope) + np.float32(header.intercept)


def _voi(dataset: Dataset, header: ImageHeader) -> Transform:
    """The first VOI LUT, else the first window, else the full range; result within [0, 1]."""
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        signed = not dataset.get("ModalityLUTSequence") and (header.layout.signed or header.intercept < 0)
        return _lut(sequence[0], signed=signed, scale=True)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        return _full_range
    if function == "SIGMOID":
        return lambda values: _float(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80))))
    if function == "LINEAR_EXACT":
        return lambda values: _float(np.clip((values - centre) / width + 0.5, 0, 1))
    if width == 1:
        return lambda values: _float(values > centre - 0.5)
    return lambda values: _float(np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


def _lut(item: Dataset, *, signed: bool, scale: bool) -> Transform:
    """A look-up table (PS3.3 C.11.1.1, C.11.2.1.1). Entries beyond its ends take the end's value."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 2**16 or 2**16
    first = first - 2**16 if signed and first >= 2**15 else first
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, "<u2" if len(data) >= 2 * count else "u1")
    else:
        table = np.asarray(data, np.uint16)
    if table.size < count:
        raise ValueError("LUTData")
    scaled = table[:count].astype(np.float32) / np.float32(2**bits - 1 if scale else 1)

    def look_up(values: Float) -> Float:
        return _float(scaled[np.clip(np.rint(values) - first, 0, count - 1).astype(np.intp)])

    return look_up


def _full_range(values: Float) -> Float:
    low, high = float(values.min()), float(values.max())
    return (values - np.float32(low)) / np.float32(max(high - low, 1e-6))


def _float(values: NDArray[np.generic]) -> Float:
    return values.astype(np.float32, copy=False)


def _first(value: object) -> float | None:
    """The first of several values of a DS element, None where there is none."""
    values = [] if value in (None, "") else value if isinstance(value, Sequence) else [value]
    return float(str(values[0])) if values else None
