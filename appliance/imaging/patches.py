"""A volume read patch by patch by a model that takes a patch: cut, asked, joined to what the whole would have given.

Memory beside the inputs: 4 bytes for each voxel and channel of the outputs that are read, at most 256 MB together, and
one patch. There is no volume of weights: patches stand in rows along each axis, so the weights of their overlaps are a
product of one short vector for each axis, which are made to add up to 1 beforehand.

The deadline and `cancelled` are of the whole volume; both are looked at before each patch, and go along with it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from appliance.engine_manifest import Manifest
from appliance.engine_ops import Boxes3D, SlidingWindow
from appliance.errors import CannotAnalyse, RuntimeCancelled, RuntimeFailed
from appliance.imaging import boxes, outputs
from appliance.imaging.grid import Float
from appliance.model import Reason
from appliance.ports import Array, LoadedEngine

MAX_PATCHES = 10_000
MAX_JOINED = 2**26  #: elements of all outputs together: 256 MB
SIGMA = 1 / 8  #: of a patch's length, of the Gaussian about its centre
EDGE = 0.25  #: of an overlap: a box whose centre lies so near a patch's edge is likely to be cut off there
LEAST_WEIGHT = 1e-3  #: of its corners, axis by axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said of an image, by one run or by many."""

    outputs: dict[str, Array]
    run_ms: float  #: inside the runtime, of all runs together
    degraded: str  #: why not all of it ran where it should, in words; "" if it did


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The whole of an image: arrays (1, channels, z, y, x) of one size; `masks` are filled up with 0."""

    inputs: Mapping[str, Array]
    masks: frozenset[str]
    deadline_s: float
    cancelled: Callable[[], bool]


def sliding_window(manifest: Manifest) -> SlidingWindow | None:
    return next((op for op in manifest.preprocess if isinstance(op, SlidingWindow)), None)


def ask(op: SlidingWindow, manifest: Manifest, loaded: LoadedEngine, question: Question) -> Answer:
    """Run the model on every patch. Raises what `infer` does, RuntimeFailed for nonsense, CannotAnalyse(UNSUITABLE).

    Of outputs that lie within a range, so do the joined ones. An engine that answers nonsense is told of its doubt.
    """
    until = time.monotonic() + question.deadline_s
    whole = next(iter(question.inputs.values())).shape[2:]
    rows = [_row(length, size, op) for length, size in zip(whole, op.size, strict=True)]
    count = prod(map(len, rows))
    if count > MAX_PATCHES:
        raise CannotAnalyse(Reason.UNSUITABLE, f"{' x '.join(map(str, whole))} voxels are {count} patches: too many")
    last = manifest.postprocess
    joined = _Boxes(last, manifest) if isinstance(last, Boxes3D) else _Means(manifest, op, whole)
    run_ms, slow, degraded = 0.0, 0, ""
    for number, place in enumerate(product(*rows)):
        left_s = until - time.monotonic()
        if question.cancelled():
            raise RuntimeCancelled(Reason.ENGINE_FAILED, f"cancelled after {number} of {count} patches")
        if left_s <= 0:
            raise RuntimeFailed(Reason.DEADLINE, f"the time was over after {number} of {count} patches")
        patch = {
            name: _cut(array, place, op.size, "constant" if name in question.masks else "edge")
            for name, array in question.inputs.items()
        }
        answers = loaded.infer(patch, left_s, question.cancelled)
        run_ms += loaded.last_run_ms
        if loaded.degraded:
            slow, degraded = slow + 1, loaded.degraded
        try:
            joined.add(answers, place)
        except RuntimeFailed as error:
            loaded.doubt(str(error))
            raise
    if 0 < slow < count:
        degraded = f"{slow} of {count} patches: {degraded}"
    return Answer(outputs=joined.whole(), run_ms=run_ms, degraded=degraded)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One place of a patch along one axis: where it begins, and the weights of its elements within the volume."""

    start: int
    weights: Float
    own: tuple[float, float]  #: centres of boxes between these are its own to tell


def _row(length: int, size: int, op: SlidingWindow) -> list[_Step]:
    """Evenly spread places that cover an axis, neighbours overlapping by `overlap` or more."""
    count = 1 if length <= size else ceil((length - size) / max(1, int(size * (1 - op.overlap)))) + 1
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)] if count > 1 else [0]
    shape = _profile(size, op.blend)
    total = np.zeros(max(length, size))
    for start in starts:
        total[start : start + size] += shape
    return [
        _Step(
            start=start,
            weights=(shape / total[start : start + size])[: length - start].astype(np.float32),
            own=own,
        )
        for start, own in zip(starts, _own(starts, size), strict=True)
    ]


def _own(starts: list[int], size: int) -> list[tuple[float, float]]:
    """Of each place: all but the last quarter of what it has in common with its neighbours, which they see whole."""
    edges = [before + size - (before + size - after) * np.array((EDGE, 1 - EDGE)) for before, after in pairwise(starts)]
    lows, highs = [-np.inf, *(float(edge[1]) for edge in edges)], [*(float(edge[0]) for edge in edges), np.inf]
    return list(zip(lows, highs, strict=True))


def _profile(size: int, blend: str) -> NDArray[np.float64]:
    if blend == "constant":
        return np.ones(size)
    offsets = (np.arange(size) - (size - 1) / 2) / (SIGMA * size)
    return np.maximum(np.exp(-(offsets**2) / 2), LEAST_WEIGHT)


_Place = tuple[_Step, ...]


def _window(place: _Place) -> tuple[slice, ...]:
    """The part of the volume that a patch covers, all channels."""
    here = (slice(step.start, step.start + step.weights.size) for step in place)
    return (slice(None), slice(None), *here)


def _cut(array: Array, place: _Place, size: tuple[int, ...], fill: str) -> Array:
    part = array[_window(place)]
    missing = [(0, 0), (0, 0), *((0, n - length) for n, length in zip(size, part.shape[2:], strict=True))]
    if not any(after for _, after in missing):
        return np.ascontiguousarray(part)
    return np.pad(part, missing, mode=fill)  # type: ignore[no-any-return,call-overload]


class _Boxes:
    """Boxes of the whole volume, growing by patches."""

    def __init__(self, op: Boxes3D, manifest: Manifest) -> None:
        self._union = boxes.Union(op, manifest.labels)

    def add(self, answers: Mapping[str, Array], place: _Place) -> None:
        own = np.array([step.own for step in place])
        self._union.add(answers, tuple(step.start for step in place), own)

    def whole(self) -> dict[str, Array]:
        return self._union.whole()


class _Means:
    """Outputs on the grid of the whole volume, growing by patches."""

    def __init__(self, manifest: Manifest, op: SlidingWindow, whole: tuple[int, ...]) -> None:
        """Raises CannotAnalyse(UNSUITABLE) where they would take too much memory."""
        read = manifest.postprocess.output_names()
        self._shapes = {
            tensor.name: (*tensor.shape[:2], *op.size) for tensor in manifest.outputs if tensor.name in read
        }
        self._scores = frozenset(manifest.postprocess.score_names())
        channels = sum(shape[1] for shape in self._shapes.values())
        if channels * prod(whole) > MAX_JOINED:
            words = " x ".join(map(str, whole))
            raise CannotAnalyse(Reason.UNSUITABLE, f"{words} voxels of {channels} outputs are too many")
        self._sums = {name: np.zeros((*shape[:2], *whole), np.float32) for name, shape in self._shapes.items()}
        self._ranges = dict.fromkeys(read, (np.float32(np.inf), np.float32(-np.inf)))

    def add(self, answers: Mapping[str, Array], place: _Place) -> None:
        """Each patch is checked by itself: nonsense must not hide in the mean of several. Raises RuntimeFailed."""
        deep, high, wide = (step.weights for step in place)
        weights = (deep[:, None, None] * high[:, None]) * wide
        for name, shape in self._shapes.items():
            check = outputs.scores if name in self._scores else outputs.finite
            part = check(answers, name, shape)[:, :, : deep.size, : high.size, : wide.size]
            least, most = self._ranges[name]
            self._ranges[name] = min(least, part.min()), max(most, part.max())
            self._sums[name][_window(place)] += part * weights

    def whole(self) -> dict[str, Array]:
        """Within the range of what was added: rounding makes a mean of ones 1.0000001."""
        return {name: np.clip(array, *self._ranges[name], out=array) for name, array in self._sums.items()}
