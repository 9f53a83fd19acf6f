"""The declared preparation of an image for a model: what each op of engine_ops does, in NumPy.

The image is a volume in HU (z, y, x) or a film (y, x) within [0, 1]; `run` carries it and the arrays made from it
through the steps, together with the grid that says where each element lies in the source.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from appliance.engine_ops import (
    MAX_ELEMENTS,
    MAX_IN_PATCHES,
    CropToMask,
    Letterbox,
    LungHull,
    Normalise,
    PercentileWindow,
    PreprocessOp,
    Resample,
    SlidingWindow,
    Window,
)
from appliance.errors import CannotAnalyse
from appliance.imaging.grid import Float, Grid, identity, isotropic
from appliance.imaging.lungs import lung_hull
from appliance.model import Reason

MAX_RESAMPLED = 2**26  #: elements, before anything is cut away


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelImage:
    """`image` and the named `masks`, all of one shape, on `grid` in the source image.

    `image` is as it was before `normalise`, which the model alone sees: see `channels`.
    """

    image: NDArray[np.generic]
    masks: dict[str, Float]
    grid: Grid


def run(steps: Iterable[PreprocessOp], image: NDArray[np.generic], spacing_mm: tuple[float, ...]) -> ModelImage:
    """Apply the steps in order. Raises CannotAnalyse(UNSUITABLE) where an op cannot work on this image.

    The last two are not for here: `normalise` is done by `channels`, and `sliding_window` while the model is asked.
    """
    state = ModelImage(image=image, masks={}, grid=identity(spacing_mm))
    most, count = MAX_ELEMENTS, 1
    for step in steps:
        match step:
            case SlidingWindow():
                most = MAX_IN_PATCHES
            case Normalise():
                count = len(step.mean)
            case _:
                state = _apply(step, state)
    if state.image.size * count > most:
        raise CannotAnalyse(
            Reason.UNSUITABLE, f"{state.image.size * count} elements are too many for the model: {most} are the most"
        )
    return state


def hu_window(steps: Iterable[PreprocessOp]) -> tuple[float, float] | None:
    """What of the HU the model sees from 0 to 1, where it has a window: a second one is of what the first made."""
    whole: tuple[float, float] | None = None
    for step in steps:
        if isinstance(step, Window):
            low, high = whole or (0.0, 1.0)
            whole = low + step.low * (high - low), low + step.high * (high - low)
    return whole


def channels(steps: Iterable[PreprocessOp], image: NDArray[np.generic]) -> NDArray[np.generic]:
    """The image as the model gets it: (1, channels, ...), normalised where a step says so."""
    op = next((step for step in steps if isinstance(step, Normalise)), None)
    if op is None:
        return image.reshape(1, 1, *image.shape)
    made = np.empty((1, len(op.mean), *image.shape), np.float32)
    for number, (mean, std) in enumerate(zip(op.mean, op.std, strict=True)):
        np.subtract(image, np.float32(mean), out=made[0, number], casting="same_kind")
        made[0, number] /= np.float32(std)
    return made


def film_of(steps: Iterable[PreprocessOp], given: NDArray[np.generic]) -> NDArray[np.generic]:
    """The image that `channels` made this of. Raises ValueError where there are other channels."""
    op = next((step for step in steps if isinstance(step, Normalise)), None)
    if given.ndim < 4 or given.shape[:2] != (1, 1 if op is None else len(op.mean)):
        raise ValueError("no image with the channels of this engine")
    if op is None:
        bare: NDArray[np.generic] = given[0, 0]
        return bare
    return np.asarray(given[0, 0] * np.float32(op.std[0]) + np.float32(op.mean[0]))


def _apply(step: PreprocessOp, state: ModelImage) -> ModelImage:
    match step:
        case Resample():
            _check_resampled(state, step.spacing_mm)
            image, grid = isotropic(_volume(state.image), state.grid.spacing_mm, step.spacing_mm)
            return replace(state, image=image, grid=grid)
        case LungHull():
            return _with_hull(step, state)
        case CropToMask():
            return _cropped(step, state)
        case Window():
            return replace(state, image=_windowed(state.image, step.low, step.high))
        case PercentileWindow():
            low, high = np.percentile(state.image[::4, ::4].astype(np.float32), (step.low, step.high))
            return replace(state, image=_windowed(state.image, float(low), float(high)))
        case Letterbox():
            return _letterboxed(state, step.size)
    raise CannotAnalyse(Reason.NO_ENGINE, f"the op {step!r} is not known here")


def _check_resampled(state: ModelImage, spacing_mm: float) -> None:
    """A wrong Pixel Spacing must not cost gigabytes. Raises CannotAnalyse(UNSUITABLE)."""
    extents_mm = [size * mm for size, mm in zip(state.image.shape, state.grid.spacing_mm, strict=True)]
    if prod(extents_mm) / spacing_mm**3 > MAX_RESAMPLED:
        what = " x ".join(f"{extent:.0f}" for extent in extents_mm)
        raise CannotAnalyse(Reason.UNSUITABLE, f"a volume of {what} mm is no part of a person")


def _volume(image: NDArray[np.generic]) -> NDArray[np.int16]:
    if image.ndim != 3 or image.dtype != np.int16:
        raise CannotAnalyse(Reason.UNSUITABLE, "resample works on a volume in HU, once")
    return image.view(np.int16)


def _windowed(image: NDArray[np.generic], low: float, high: float) -> Float:
    scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, 0, 1), np.float32)


def _with_hull(step: LungHull, state: ModelImage) -> ModelImage:
    spacing = state.grid.spacing_mm
    if state.image.ndim != 3 or max(spacing) > 1.01 * min(spacing):
        raise CannotAnalyse(Reason.UNSUITABLE, "lung_hull works on an isotropic volume")
    hull = lung_hull(state.image.astype(np.float32, copy=False), spacing[0], step.close_mm, step.min_ml)
    return replace(state, masks={**state.masks, step.output: hull.astype(np.float32)})


def _cropped(step: CropToMask, state: ModelImage) -> ModelImage:
    mask = state.masks[step.mask] > 0
    if not mask.any():
        raise CannotAnalyse(Reason.UNSUITABLE, f"{step.mask} is empty")
    start, stop = [], []
    for axis, mm in enumerate(state.grid.spacing_mm):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        margin = round(step.margin_mm / mm)
        start.append(max(0, int(inside[0]) - margin))
        size = min(mask.shape[axis], int(inside[-1]) + 1 + margin) - start[-1]
        stop.append(start[-1] + -(-size // step.multiple_of) * step.multiple_of)
    return ModelImage(
        image=_cut(state.image, start, stop, mode="edge"),
        masks={name: _cut(array, start, stop, mode="constant") for name, array in state.masks.items()},
        grid=state.grid.cut(start),
    )


def _cut(array: Float | NDArray[np.generic], start: list[int], stop: list[int], *, mode: str) -> NDArray[np.float32]:
    part = array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    missing = [(0, b - a - size) for a, b, size in zip(start, stop, part.shape, strict=True)]
    return np.pad(part.astype(np.float32, copy=False), missing, mode=mode)  # type: ignore[call-overload,no-any-return]


def _letterboxed(state: ModelImage, size: int) -> ModelImage:
    """Area means where the film is reduced, then linear interpolation, on a square centred on the film."""
    image = state.image.astype(np.float32, copy=False)
    if image.ndim != 2:
        raise CannotAnalyse(Reason.UNSUITABLE, "letterbox works on a film")
    scale = max(image.shape) / size  # source pixels per pixel of the square
    origin = tuple((length - 1) / 2 - (size - 1) / 2 * scale for length in image.shape)
    rows, columns = (_areas(length, size, start, scale) for length, start in zip(image.shape, origin, strict=True))
    grid = Grid(origin=origin, step=(scale, scale), spacing_mm=tuple(mm * scale for mm in state.grid.spacing_mm))
    return ModelImage(image=rows @ image @ columns.T, masks={}, grid=grid)


def _areas(length: int, size: int, origin: float, step: float) -> Float:
    """Matrix (size, length): triangle filter as wide as the step; beyond the ends the end pixel counts."""
    centres = origin + np.arange(size)[:, None] * step
    width = max(step, 1.0)
    reach = np.arange(-int(np.ceil(width)), int(np.ceil(width)) + 1)
    taps = np.floor(centres).astype(np.intp) + reach
    weights = np.maximum(0, 1 - np.abs(taps - centres) / width)
    matrix = np.zeros((size, length), np.float32)
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(taps, 0, length - 1)), weights)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32)
