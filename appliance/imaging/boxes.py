"""From a model's boxes to findings: checked, back to the source image, clipped to it, thinned out, in NumPy.

The suppression of overlaps is here and not in the graph: compilers take NonMaxSuppression apart from all else badly,
and its count of boxes is the model's word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import Boxes, Boxes3D, BoxOutputs
from appliance.imaging import outputs
from appliance.imaging.film import Film
from appliance.imaging.outputs import Outputs, Said, given, listed, nonsense
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.volume import Volume
from appliance.model import Finding

MOST_BOXES = 100_000  #: that a model may answer
MOST_SCORES = 2**23  #: of all boxes and labels
MOST_CANDIDATES = 1000  #: above their threshold, best first, that are compared with each other, of each label
TOUCHES = 1.0  #: voxels from a patch's edge: a model hardly tells better where what is cut off ends
LEAST_SIDE = 0.02  #: of a pixel or slice: what is thinner has no two edges in the two decimals of a finding

#: (count, 2, axes): the least and the greatest corner of each box, as edges, in the order of the image's axes.
Corners = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Boxes of the labels with these numbers, best first."""

    corners: Corners
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]


def boxes(op: Boxes, labels: Mapping[str, Label], film: Film, image: ModelImage, answers: Outputs) -> Said:
    """Boxes in source pixels. Raises RuntimeFailed."""
    found = _found(op, labels, answers)
    corners = found.corners[..., ::-1]  # x before y
    if op.fractions:
        corners = corners * image.image.shape
    uid = film.header.sop_instance_uid
    findings = [
        Finding(label=op.labels[label], score=score, sop_instance_uid=uid, box=_flat(low, high))
        for label, score, (low, high) in _kept(op, found, image.grid.edges_to_source(corners), film.image.shape)
    ]
    return _said(op, findings)


def boxes_3d(op: Boxes3D, labels: Mapping[str, Label], volume: Volume, image: ModelImage, answers: Outputs) -> Said:
    """Boxes with their centre in patient mm, on the slice next to it. Raises RuntimeFailed."""
    found = _found(op, labels, answers)
    corners = found.corners[..., ::-1] if op.axes == "xyz" else found.corners
    findings = []
    for label, score, (low, high) in _kept(op, found, image.grid.edges_to_source(corners), volume.hu.shape):
        centre = (low + high) / 2 - 0.5
        key = int(np.clip(round(centre[0]), 0, volume.hu.shape[0] - 1))
        x, y, z = volume.stack.to_patient(centre.tolist())
        findings.append(
            Finding(
                label=op.labels[label],
                score=score,
                sop_instance_uid=volume.stack.slices[key].header.sop_instance_uid,
                box=_flat(low[1:], high[1:]),
                centre_mm=(round(x, 1), round(y, 1), round(z, 1)),
            )
        )
    return _said(op, findings)


def _said(op: BoxOutputs, findings: list[Finding]) -> Said:
    """The measure is of all that stayed: more than `max_findings` may have."""
    told = listed(findings, op.max_findings)
    return Said(findings=told, measures={"boxes": float(len(findings))}, unlisted=len(findings) - len(told))


def suppressed(corners: Corners, scores: NDArray[np.float32], iou: float) -> list[int]:
    """Indices of the boxes that stay, best first: each overlaps no better one by more than `iou` of their union."""
    sizes = (corners[:, 1] - corners[:, 0]).prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(corners[best, 0], corners[left, 0])
        common = np.maximum(np.minimum(corners[best, 1], corners[left, 1]) - low, 0).prod(axis=1)
        left = left[common <= iou * (sizes[best] + sizes[left] - common)]
    return kept


def _kept(op: BoxOutputs, found: _Found, corners: Corners, shape: tuple[int, ...]) -> list[tuple[int, float, Corners]]:
    """(label, score, corners within the image) of those that stay, best first."""
    corners = np.clip(corners, 0, shape)
    there = (corners[:, 1] - corners[:, 0] > LEAST_SIDE).all(axis=1)
    kept: list[int] = []
    for label in range(len(op.labels)):
        own = np.flatnonzero(there & (found.labels == label))
        kept += own[suppressed(corners[own], found.scores[own], op.iou)].tolist()
    best_first = sorted(kept)  # as they came
    return [(int(found.labels[n]), round(float(found.scores[n]), 4), corners[n]) for n in best_first]


class Union:
    """The boxes of many patches of one volume, as if one run had answered them all; of a label `MOST_CANDIDATES`.

    What a patch's edge cuts off is no other lesion: it is left to the patch that sees what is beyond that edge.
    """

    def __init__(self, op: Boxes3D, labels: Mapping[str, Label], size: tuple[int, ...]) -> None:
        """`size`: of a patch, in voxels (z, y, x)."""
        self._op, self._labels, self._size = op, labels, size
        self._all: _Listed | None = None

    def add(self, answers: Outputs, start: tuple[int, ...], own: NDArray[np.float64]) -> None:
        """Those of the patch that begins at this voxel (z, y, x), but for what its edge cuts off: boxes that touch it,
        within a voxel, and have the centre of what lies in the patch beyond `own`: (axes, 2), least and greatest.
        Raises RuntimeFailed.
        """
        found = _best(self._op, self._labels, _read(self._op, answers))
        turn = slice(None, None, -1 if self._op.axes == "xyz" else 1)
        shift = np.array(start[turn], np.float32)
        ends = shift if self._op.layout == "corners" else np.zeros_like(shift)  # a size stays what it is
        found = replace(found, boxes=found.boxes + np.concatenate([shift, ends]))
        corners, (low, high) = _corners(self._op, found.boxes), own[turn].T
        first, last = shift, shift + np.array(self._size[turn], np.float32)
        centres = np.clip(corners, first, last).mean(axis=1)
        before, after = corners[:, 0] <= first + TOUCHES, corners[:, 1] >= last - TOUCHES
        cut = (before & (centres < low)) | (after & (centres > high))
        found = found.at(np.flatnonzero(~cut.any(axis=1)))
        whole = found if self._all is None else self._all.and_also(found)
        self._all = _best(self._op, self._labels, whole)

    def whole(self) -> dict[str, NDArray[np.generic]]:
        """Outputs as the op reads them; none before the first patch."""
        if self._all is None:
            return {}
        answers: dict[str, NDArray[np.generic]] = {self._op.boxes: self._all.boxes, self._op.scores: self._all.scores}
        if self._op.classes is not None and self._all.classes is not None:
            answers[self._op.scores] = self._all.scores[:, 0]
            answers[self._op.classes] = self._all.classes + self._op.first_class
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What a model listed: boxes (count, lengths), scores (count, labels or 1), the number of each box's label."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64] | None

    def at(self, rows: NDArray[np.intp]) -> "_Listed":
        classes = None if self.classes is None else self.classes[rows]
        return _Listed(boxes=self.boxes[rows], scores=self.scores[rows], classes=classes)

    def and_also(self, other: "_Listed") -> "_Listed":
        classes = None
        if self.classes is not None and other.classes is not None:
            classes = np.concatenate([self.classes, other.classes])
        return _Listed(
            boxes=np.concatenate([self.boxes, other.boxes]),
            scores=np.concatenate([self.scores, other.scores]),
            classes=classes,
        )


def _best(op: BoxOutputs, labels: Mapping[str, Label], listed: _Listed) -> _Listed:
    """Those of the boxes that are looked at."""
    rows, _ = _candidates(op, labels, listed)
    return listed.at(np.unique(rows))


def _found(op: BoxOutputs, labels: Mapping[str, Label], answers: Outputs) -> _Found:
    """The best above their label's threshold, corners in the model's grid, axes as the model has them."""
    listed = _read(op, answers)
    rows, columns = _candidates(op, labels, listed)
    scores = listed.scores[rows, columns if listed.classes is None else 0]
    return _Found(corners=_corners(op, listed.boxes[rows]), scores=scores, labels=columns)


def _candidates(
    op: BoxOutputs, labels: Mapping[str, Label], listed: _Listed
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which box, and for which label: the best of each above its threshold, best first. Raises RuntimeFailed."""
    scores, classes = listed.scores, listed.classes
    thresholds = np.array([labels[name].threshold for name in op.labels], np.float32)
    if classes is None:
        rows, columns = np.nonzero(scores >= thresholds)
        own = scores[rows, columns]
    else:
        rows = np.flatnonzero(scores[:, 0] >= thresholds.min())
        if rows.size and not (classes[rows].min() >= 0 and classes[rows].max() < len(op.labels)):
            raise nonsense(f"{op.classes} names classes that are none of {len(op.labels)} labels")
        rows = rows[scores[rows, 0] >= thresholds[classes[rows]]]
        columns, own = classes[rows], scores[rows, 0]
    best = _best_of_each(columns, own, len(op.labels))
    return rows[best], columns[best]


def _best_of_each(labels: NDArray[np.intp], scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Which are the best of their label, best first: so many of each of `count` labels that all may be listed again."""
    most = min(MOST_CANDIDATES, MOST_BOXES // count, MOST_SCORES // count**2)
    order = np.lexsort((-scores, labels))
    by_label = labels[order]
    rank = np.arange(order.size) - np.searchsorted(by_label, by_label)
    chosen = np.sort(order[rank < most])
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _read(op: BoxOutputs, answers: Outputs) -> _Listed:
    """The outputs, checked, without a batch axis. Raises RuntimeFailed."""
    shape = given(answers, op.boxes).shape
    if len(shape) not in (2, 3) or shape[-1] != op.lengths or shape[:-2] not in ((), (1,)):
        raise nonsense(f"{op.boxes} has the shape {shape}, not (count, {op.lengths})")
    lead, count = shape[:-1], shape[-2]
    if count > MOST_BOXES or count * len(op.labels) > MOST_SCORES:
        raise nonsense(f"{count} boxes of {len(op.labels)} labels")
    listed = outputs.finite(answers, op.boxes, shape).reshape(count, op.lengths)
    classes = None
    if op.classes is not None:
        classes = outputs.whole_numbers(answers, op.classes, lead).reshape(count) - op.first_class
    # Of one label the scores may have an axis for it or not.
    is_bare = classes is not None or (len(op.labels) == 1 and given(answers, op.scores).ndim == len(lead))
    each = 1 if is_bare else len(op.labels)
    scores = outputs.scores(answers, op.scores, lead if is_bare else (*lead, each)).reshape(count, each)
    return _Listed(boxes=listed, scores=scores, classes=classes)


def _corners(op: BoxOutputs, values: NDArray[np.float32]) -> Corners:
    """Raises RuntimeFailed where a box ends before it begins."""
    first, second = np.split(values.astype(np.float64), 2, axis=1)
    if op.layout == "centre_size":
        first, second = first - second / 2, first + second / 2
    if (second < first).any():
        raise nonsense(f"{op.boxes} holds boxes that end before they begin")
    return np.stack([first, second], axis=1)


def _flat(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Column min, row min, column max, row max; source pixels."""
    return (round(float(low[1]), 2), round(float(low[0]), 2), round(float(high[1]), 2), round(float(high[0]), 2))
