"""From what a model marks in a volume to findings: its connected parts, measured on the model's grid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from appliance.engine_manifest import Label
from appliance.engine_ops import Segmentation
from appliance.imaging import outputs
from appliance.imaging.components import Mask, Part, ranked
from appliance.imaging.grid import Float, Grid
from appliance.imaging.measure import axes
from appliance.imaging.outputs import Outputs, Said, listed, nonsense
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.volume import Volume
from appliance.model import Finding

Window = tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marked:
    """Of one label: where it is, in a window that holds all of it."""

    name: str
    window: Window
    mask: Mask
    scores: Float | None = None  #: in that window


def segmentation(
    op: Segmentation, labels: Mapping[str, Label], volume: Volume, image: ModelImage, answers: Outputs
) -> Said:
    """Parts of each label, largest first, and how much of each is marked, in ml. Raises RuntimeFailed.

    What is marked where `crop_to_mask` filled the model's grid beyond the volume does not count.
    """
    inside = image.grid.within(image.image.shape, volume.hu.shape)
    grid = image.grid.cut([part.start for part in inside])
    voxel_mm3 = float(np.prod(grid.spacing_mm))
    findings: list[Finding] = []
    measures: dict[str, float] = {}
    unlisted = 0
    for one in _marked(op, labels, answers, image.image.shape, inside):
        measures[f"{one.name}_ml"] = round(float(np.count_nonzero(one.mask)) * voxel_mm3 / 1000, 2)
        heaviest, others = ranked(one.mask, 1 if op.largest_only else op.max_findings)
        if not op.largest_only:
            unlisted += int(np.count_nonzero(others * voxel_mm3 >= op.min_ml * 1000))
        for part in heaviest:
            if part.weight * voxel_mm3 >= op.min_ml * 1000:
                score = 1.0 if one.scores is None else round(float(one.scores[part.window][part.mask].max()), 4)
                found = _finding(one.name, score, _moved(part, one.window), grid, volume)
                findings.append(replace(found, has_score=one.scores is not None))
    findings.sort(key=lambda finding: -(finding.volume_mm3 or 0.0))
    told = listed(findings, op.max_findings)
    return Said(findings=told, measures=measures, unlisted=unlisted + len(findings) - len(told))


def _marked(
    op: Segmentation, labels: Mapping[str, Label], answers: Outputs, shape: tuple[int, ...], inside: Window
) -> Iterator[_Marked]:
    """What of each label lies within `inside`, one after the other: they may be large."""
    wanted = (1, op.channels, *shape)
    if op.kind == "classes":
        classes = outputs.whole_numbers(answers, op.output, wanted)[0, 0]
        if classes.min() < 0 or classes.max() > len(op.labels):
            raise nonsense(f"{op.output} names classes that are none of {len(op.labels)} labels")
        classes = classes[inside]
        for number, window in enumerate(ndimage.find_objects(classes, len(op.labels)), 1):
            around = window or (slice(0, 1),) * 3  # there is none of it, in any place
            yield _Marked(name=op.labels[number - 1], window=around, mask=classes[around] == number)
        return
    scores = outputs.scores(answers, op.output, wanted)[0]
    for name, values in zip(op.labels, scores[int(op.background) :], strict=True):
        cut = values[inside]
        whole = tuple(slice(0, size) for size in cut.shape)
        yield _Marked(name=name, window=whole, mask=cut >= np.float32(labels[name].threshold), scores=cut)


def _moved(part: Part, window: Window) -> Part:
    """The same part, in the whole that the window is of."""
    sides = zip(part.window, window, strict=True)
    return replace(part, window=tuple(slice(own.start + of.start, own.stop + of.start) for own, of in sides))


def _finding(name: str, score: float, part: Part, grid: Grid, volume: Volume) -> Finding:
    """On the slice where its section is longest."""
    key, long_mm, short_mm = _longest_section(part.mask, grid.spacing_mm[1:])
    start = [side.start for side in part.window]
    rows, columns = np.nonzero(part.mask[key])
    edges = np.array([[key, rows.min(), columns.min()], [key + 1, rows.max() + 1, columns.max() + 1]]) + start
    (_, top, left), (_, bottom, right) = np.clip(grid.edges_to_source(edges), 0, volume.hu.shape)
    middle = [float(places.mean()) + first for places, first in zip(np.nonzero(part.mask), start, strict=True)]
    x, y, z = volume.stack.to_patient(grid.to_source(middle))
    at = round(grid.to_source([start[0] + key, 0, 0])[0])
    slices = volume.stack.slices
    return Finding(
        label=name,
        score=score,
        sop_instance_uid=slices[min(max(at, 0), len(slices) - 1)].header.sop_instance_uid,
        box=(round(float(left), 2), round(float(top), 2), round(float(right), 2), round(float(bottom), 2)),
        centre_mm=(round(x, 1), round(y, 1), round(z, 1)),
        long_axis_mm=round(long_mm, 1),
        short_axis_mm=round(short_mm, 1),
        volume_mm3=round(part.weight * float(np.prod(grid.spacing_mm)), 1),
    )


def _longest_section(mask: Mask, pixel_mm: tuple[float, ...]) -> tuple[int, float, float]:
    """Which slice of a part has the longest axis, that axis, and the extent at right angles to it."""
    sections = [(index, *axes(*_ends_of_rows(section), pixel_mm)) for index, section in enumerate(mask)]
    return max(sections, key=lambda section: section[1])


def _ends_of_rows(section: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the outermost pixels: no other is the furthest in any direction."""
    rows = np.flatnonzero(section.any(axis=1))
    first = section[rows].argmax(axis=1)
    last = section.shape[1] - 1 - section[rows, ::-1].argmax(axis=1)
    return np.concatenate([rows, rows]), np.concatenate([first, last])
