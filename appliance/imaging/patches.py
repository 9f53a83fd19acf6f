"""A volume read patch by patch by a model that takes a patch: cut, asked, joined to what the whole would have given.

Memory beside the inputs: 4 bytes for each voxel and channel of the outputs that are read, at most 256 MB together, and
one patch. There is no volume of weights: patches stand in rows along each axis, so the weights of their overlaps are a
product of one short vector for each axis, which are made to add up to 1 beforehand.

The deadline and `cancelled` are of the whole volume; both are looked at before each patch, and go along with it.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.engine_manifest import Manifest
from appliance.engine_ops import (
    MAX_IN_PATCHES,
    MAX_JOINED,
    MAX_PATCHES,
    Boxes3D,
    Normalise,
    Resample,
    SlidingWindow,
)
from appliance.errors import CannotAnalyse, RuntimeCancelled, RuntimeFailed
from appliance.imaging import boxes, outputs
from appliance.imaging.grid import Float
from appliance.model import Reason
from appliance.ports import Array, LoadedEngine

SIGMA = 1 / 8  #: of a patch's length, of the Gaussian about its centre
EDGE = 0.25  #: of an overlap: a box whose centre lies so near a patch's edge is likely to be cut off there
LEAST_WEIGHT = 1e-3  #: of its corners, axis by axis


@dataclass(frozen=True, slots=True, kw_only=True)
class RanOn:
    """What a run was done on, as a ports.LoadedEngine says it of its last one."""

    runtime: str
    runtime_version: str
    device: str
    variant_sha256: str
    plan_sha256: str

    @classmethod
    def of(cls, loaded: LoadedEngine) -> Self:
        return cls(
            runtime=loaded.runtime,
            runtime_version=loaded.runtime_version,
            device=loaded.device,
            variant_sha256=loaded.variant_sha256,
            plan_sha256=loaded.plan_sha256,
        )

    def words(self, model_sha256: str) -> str:
        """With the hashes of the files (P8); `model_sha256` is of the package's model."""
        runtime = f"{self.runtime} {self.runtime_version}".strip()
        plan = f", plan sha256 {self.plan_sha256}" if self.plan_sha256 else ""
        return f"{runtime} on {self.device} (model sha256 {self.variant_sha256 or model_sha256}{plan})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said of an image, by one run or by many."""

    outputs: dict[str, Array]
    run_ms: float  #: inside the runtime, of all runs together
    ran_on: RanOn  #: what most of the runs were done on; of as many, the first
    degraded: str  #: why not all of it ran where it should, and on what else it ran, in words; "" if it did


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The whole of an image: arrays (1, channels, z, y, x) of one size; `masks` are filled up with 0."""

    inputs: Mapping[str, Array]
    masks: frozenset[str]
    deadline_s: float
    cancelled: Callable[[], bool]


def sliding_window(manifest: Manifest) -> SlidingWindow | None:
    return next((op for op in manifest.preprocess if isinstance(op, SlidingWindow)), None)


def most_voxels(manifest: Manifest) -> int:
    """Of a volume that is read patch by patch, on the model's grid; its shape may allow fewer (MAX_PATCHES)."""
    given = max((len(op.mean) for op in manifest.preprocess if isinstance(op, Normalise)), default=1)
    if manifest.postprocess.joined != "mean":
        return MAX_IN_PATCHES // given
    read = manifest.postprocess.output_names()
    answered = sum(tensor.shape[1] for tensor in manifest.outputs if tensor.name in read)
    return min(MAX_IN_PATCHES // given, MAX_JOINED // answered)


def limit(manifest: Manifest) -> str:
    """How large a volume may be, in words for the engine's author; "" where it is not read patch by patch."""
    if sliding_window(manifest) is None:
        return ""
    voxels = most_voxels(manifest)
    spacing = next((op.spacing_mm for op in manifest.preprocess if isinstance(op, Resample)), None)
    size = f"{voxels // 512**2} slices of 512 x 512"
    if spacing is not None:
        size = f"a cube of {int(voxels ** (1 / 3) * spacing)} mm at {spacing:g} mm"
    return (
        f"The most that it reads is {voxels} voxels, such as {size}, in {MAX_PATCHES} patches:"
        " a larger volume is not analysed"
    )


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
    joined = _Boxes(last, manifest, op.size) if isinstance(last, Boxes3D) else _Means(manifest, op, whole)
    run_ms, slow, degraded = 0.0, 0, ""
    ran_on: Counter[RanOn] = Counter()
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
        ran_on[RanOn.of(loaded)] += 1
        if loaded.degraded:
            slow, degraded = slow + 1, loaded.degraded
        try:
            joined.add(answers, place)
        except RuntimeFailed as error:
            loaded.doubt(str(error))
            raise
    if 0 < slow < count:
        degraded = f"{slow} of {count} patches: {degraded}"
    (most, _), *others = ran_on.most_common()
    own = manifest.files[manifest.model]
    mixed = [f"{number} of {count} patches ran on {other.words(own)}" for other, number in others]
    told = "; ".join(part for part in (degraded, *mixed) if part)
    return Answer(outputs=joined.whole(), run_ms=run_ms, ran_on=most, degraded=told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One place of a patch along one axis: where it begins, and the weights of its elements within the volume."""

    start: int
    weights: Float
    own: tuple[
        float, float
    ]  #: boxes with their centre between these are its own to tell, even where its edge cuts them


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

    def __init__(self, op: Boxes3D, manifest: Manifest, size: tuple[int, ...]) -> None:
        self._union = boxes.Union(op, manifest.labels, size)

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
            raise CannotAnalyse(
                Reason.UNSUITABLE, f"{words} voxels of {channels} outputs are too many: {MAX_JOINED} are the most"
            )
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
