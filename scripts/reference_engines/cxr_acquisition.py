"""Graph of cxr-acquisition: one template of two lungs, matched at many places and sizes in both polarities.

The film (square, 0..1, brighter = denser) is pooled to 32 x 32. A template says: two lungs darker than what is between
them, below them and beside them. Its normalised correlation (Lewis, Vision Interface 1995) gives the best place and
size; the same with the film's negative tells an inverted film. At the best place four contrasts are read, in units of
the film's standard deviation under the template:

    mediastinum - lung, for each lung     both lungs are there
    below - lungs                         the bases are there, and no limb between two dark bands
    wall - lung, for each side            brightest point between the lung's middle and the film's edge: the wall is in
                                          the field, the lung is not cut off
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_engines.graph import Graph, tensor

Float = NDArray[np.float64]

FILM = 128
CELLS = 32
MARGIN = CELLS // 4  #: by how much a template may reach beyond the film
BOX = CELLS * 9 // 8
SIZES = tuple((width, height) for width in (15.0, 17.5, 20.0, 22.5, 25.0, 27.5) for height in (0.7, 0.85, 1.0))
LEAST_DEVIATION = 0.06
SCORES = ("inverted", "not_frontal", "lung_clipped_right", "lung_clipped_left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Masks (BOX, BOX) of one size of chest. Right is the patient's, on the left of the film."""

    right_lung: Float
    left_lung: Float
    mediastinum: Float
    below: Float
    right_wall: Float
    left_wall: Float
    right_middle: Float
    left_middle: Float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """Correlation of every size at every place [1, sizes, places, places], and the deviation under the template."""

    correlation: str
    deviation: str


def build() -> bytes:
    """Model bytes. Input: film [1, 1, 128, 128]; output: scores [1, 4] in the order of SCORES."""
    graph = Graph("cxr-acquisition")
    cells = graph.op("AveragePool", "film", kernel_shape=[FILM // CELLS] * 2, strides=[FILM // CELLS] * 2)
    chests = [_parts(width, width * ratio) for width, ratio in SIZES]
    upright, negative = (_match(graph, chests, values) for values in (cells, _negative(graph, cells)))
    best, best_negative = _largest(graph, upright.correlation), _largest(graph, negative.correlation)
    difference = graph.sub(best_negative, best)
    is_inverted = graph.op("Cast", graph.op("Greater", difference, graph.constant(0.0)), to=1)
    # From here on the film is taken in its better polarity, so that an inverted film is judged like any other.
    correct = graph.add(cells, graph.mul(is_inverted, graph.sub(_negative(graph, cells), cells)))
    correlation = graph.op("Max", best, best_negative)
    is_chest = _ramp(graph, correlation, 0.45, 0.55)
    inverted = graph.mul(_ramp(graph, difference, -0.2, 0.2), is_chest)
    contrasts = _contrasts(graph, chests, correct)
    missing = [_ramp(graph, contrasts[name], 1.5, 0.5) for name in ("right", "left", "below")]
    not_frontal = graph.op("Max", _ramp(graph, correlation, 0.6, 0.4), *missing)
    clipped = [graph.mul(_ramp(graph, contrasts[name], 2.0, 0.8), is_chest) for name in ("right_wall", "left_wall")]
    shape = graph.constant([1, 1], np.int64)
    scores = graph.op(
        "Concat", *(graph.op("Reshape", score, shape) for score in (inverted, not_frontal, *clipped)), axis=1
    )
    return graph.model([tensor("film", [1, 1, FILM, FILM])], {"scores": (scores, [1, len(SCORES)])})


def _match(graph: Graph, chests: Sequence[Parts], cells: str) -> _Match:
    weights = [_template(chest) for chest in chests]
    padded = _padded(graph, cells)
    supports = np.stack([support for _, support in weights])[:, None]
    count = graph.constant(supports.sum(axis=(1, 2, 3)).reshape(1, -1, 1, 1))
    mean = graph.op("Div", _valid(graph, padded, supports), count)
    squares = graph.op("Div", _valid(graph, graph.mul(padded, padded), supports), count)
    variance = graph.sub(squares, graph.mul(mean, mean))
    deviation = graph.op("Sqrt", graph.op("Max", variance, graph.constant(LEAST_DEVIATION**2)))
    response = _valid(graph, padded, np.stack([template for template, _ in weights])[:, None])
    norm = graph.mul(deviation, graph.op("Sqrt", count))
    return _Match(correlation=graph.op("Div", response, norm), deviation=deviation)


def _contrasts(graph: Graph, chests: Sequence[Parts], cells: str) -> dict[str, str]:
    """The contrasts at the best place and size, each a tensor [1, 1, 1, 1] in deviations."""
    match = _match(graph, chests, cells)
    best = _largest(graph, match.correlation)
    here = graph.op("Cast", graph.op("Equal", match.correlation, best), to=1)
    here = graph.op("Div", here, graph.op("ReduceSum", here, graph.constant([1, 2, 3], np.int64)))
    padded = _padded(graph, cells)
    right_edge, left_edge = _brightest_to_edge(graph, padded)

    def at(values: str, part: str) -> str:
        means = _valid(graph, values, np.stack([_mean(getattr(chest, part)) for chest in chests])[:, None])
        return _at(graph, here, means)

    deviation = _at(graph, here, match.deviation)
    right, left, middle = at(padded, "right_lung"), at(padded, "left_lung"), at(padded, "mediastinum")
    lungs = graph.mul(graph.add(right, left), graph.constant(0.5))
    differences = {
        "right": graph.sub(middle, right),
        "left": graph.sub(middle, left),
        "below": graph.sub(at(padded, "below"), lungs),
        "right_wall": graph.sub(at(right_edge, "right_middle"), at(padded, "right_middle")),
        "left_wall": graph.sub(at(left_edge, "left_middle"), at(padded, "left_middle")),
    }
    return {name: graph.op("Div", value, deviation) for name, value in differences.items()}


def _brightest_to_edge(graph: Graph, padded: str) -> tuple[str, str]:
    """For each cell the brightest one from it to the left, and to the right edge of the film, rows smoothed."""
    smooth = graph.conv(padded, np.full((1, 1, 3, 1), 1 / 3))
    inner = [graph.constant(values, np.int64) for values in ([MARGIN] * 2, [MARGIN + CELLS] * 2, [2, 3])]
    film = graph.op("Slice", smooth, *inner)
    kernel = [1, CELLS]
    leftward = graph.op("MaxPool", film, kernel_shape=kernel, pads=[0, CELLS - 1, 0, 0])
    rightward = graph.op("MaxPool", film, kernel_shape=kernel, pads=[0, 0, 0, CELLS - 1])
    return _padded(graph, leftward), _padded(graph, rightward)


def _negative(graph: Graph, cells: str) -> str:
    return graph.sub(graph.constant(1.0), cells)


def _padded(graph: Graph, cells: str) -> str:
    pads = graph.constant([0, 0, MARGIN, MARGIN] * 2, np.int64)
    return graph.op("Pad", cells, pads, mode="edge")


def _valid(graph: Graph, values: str, kernels: Float) -> str:
    """Correlation where the kernel lies wholly within the padded film."""
    return graph.op("Conv", values, graph.constant(kernels), kernel_shape=list(kernels.shape[2:]))


def _largest(graph: Graph, values: str) -> str:
    return graph.op("ReduceMax", values, axes=[1, 2, 3], keepdims=1)


def _at(graph: Graph, here: str, values: str) -> str:
    return graph.op("ReduceSum", graph.mul(here, values), graph.constant([1, 2, 3], np.int64), keepdims=1)


def _ramp(graph: Graph, value: str, zero: float, one: float) -> str:
    """0 at `zero`, 1 at `one`, linear between them."""
    scaled = graph.op("Div", graph.sub(value, graph.constant(zero)), graph.constant(one - zero))
    return graph.clip(scaled, 0.0, 1.0)


def _parts(width: float, height: float) -> Parts:
    """A chest whose two lungs together are `width` x `height` cells, centred in the box."""
    rows, columns = np.mgrid[0:BOX, 0:BOX] - (BOX - 1) / 2
    x, y = columns / (width / 2), rows / height + 0.5  # x: -1..1 across both lungs; y: 0 apex, 1 base
    side = np.abs(x)
    middle, half = 0.5 + 0.08 * np.clip(y, 0, 1), 0.22 + 0.19 * np.clip(y / 0.6, 0, 1)
    apex = ((side - middle) / half) ** 2 + (np.minimum(y - 0.25, 0) / 0.25) ** 2 < 1
    base = y < 1 - 0.12 * np.clip((0.8 - side) / 0.5, 0, 1)
    lung = (np.abs(side - middle) < half) & (y > 0) & apex & base
    wall = (side > 1.04) & (side < 1.2) & (y > 0.35) & (y < 0.95)
    centre = (np.abs(side - middle) < 0.1) & (y > 0.4) & (y < 0.8)
    return Parts(
        right_lung=lung & (x < 0),
        left_lung=lung & (x > 0),
        mediastinum=(side < 0.1) & (y > 0.05) & (y < 1),
        below=(side < 0.85) & (y > 1.06) & (y < 1.2),
        right_wall=wall & (x < 0),
        left_wall=wall & (x > 0),
        right_middle=centre & (x < 0),
        left_middle=centre & (x > 0),
    )


def _template(chest: Parts) -> tuple[Float, Float]:
    """Weights of zero mean and unit norm, and the mask of what they look at."""
    looks_at = (
        (chest.right_lung, -0.5),
        (chest.left_lung, -0.5),
        (chest.mediastinum, 0.4),
        (chest.below, 0.3),
        (chest.right_wall, 0.15),
        (chest.left_wall, 0.15),
    )
    support = np.any([mask for mask, _ in looks_at], axis=0).astype(np.float64)
    weights = np.sum([weight * _mean(mask) for mask, weight in looks_at], axis=0)
    weights = weights - weights.sum() / support.sum() * support
    return weights / np.sqrt((weights**2).sum()), support


def _mean(mask: Float) -> Float:
    return np.asarray(mask / max(mask.sum(), 1))
