"""Graph of cxr-acquisition: a small convolutional network over the whole film, and rules on what it may say at once.

The weights were learnt (scripts/train_cxr_acquisition.py) and lie beside this module. Plain operators only, so that
any builder takes the graph: AveragePool, Conv, Relu, Gemm, Sigmoid and arithmetic.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reference_engines.graph import Graph, tensor

FILM = 128
CELLS = 32  #: along each axis, after the pooling that comes first
#: (inputs, outputs, kernel, stride) of each convolution. 32 x 32 cells become 4 x 4.
CONVOLUTIONS = ((1, 16, 5, 2), (16, 32, 3, 2), (32, 48, 3, 1), (48, 64, 3, 2))
HIDDEN = 64
LABELS = (
    "inverted",
    "rotated",
    "lateral",
    "not_chest",
    "empty",
    "over_exposed",
    "lung_clipped_right",
    "lung_clipped_left",
    "lung_clipped_top",
    "lung_clipped_bottom",
)
#: What a label means nothing beside: once one of these is likely, the label is not said.
NO_PATIENT = ("not_chest", "empty")
NOT_UPRIGHT = (*NO_PATIENT, "lateral", "rotated")
SILENCED_BY: dict[str, tuple[str, ...]] = {
    "not_chest": ("empty",),
    "inverted": NO_PATIENT,
    "rotated": NO_PATIENT,
    "over_exposed": NO_PATIENT,
    **dict.fromkeys(LABELS[6:], (*NOT_UPRIGHT, "over_exposed")),
}
UNLIKELY, LIKELY = 0.4, 0.6
FLAT, STRUCTURE = 0.04, 0.08  #: deviation of the cells of a film that is surely, and that is not plainly, empty
WEIGHTS = Path(__file__).with_name("cxr_acquisition.npz")

Weights = Mapping[str, NDArray[np.float32]]


def build(weights: Weights | None = None) -> bytes:
    """Model bytes. Input: film [1, 1, 128, 128]; output: scores [1, 10] in the order of LABELS, each 0..1."""
    if weights is None:
        with np.load(WEIGHTS, allow_pickle=False) as stored:
            weights = {name: stored[name].astype(np.float32) for name in stored.files}
    graph = Graph("cxr-acquisition")
    value = cells = graph.op("AveragePool", "film", kernel_shape=[FILM // CELLS] * 2, strides=[FILM // CELLS] * 2)
    for index, (_, _, kernel, stride) in enumerate(CONVOLUTIONS):
        convolved = graph.op(
            "Conv",
            value,
            graph.constant(weights[f"conv{index}"]),
            graph.constant(weights[f"conv{index}_bias"]),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )
        value = graph.op("Relu", convolved)
    value = graph.op("Flatten", value, axis=1)
    value = graph.op("Relu", _dense(graph, value, weights, "hidden"))
    likely = graph.op("Sigmoid", _dense(graph, value, weights, "scores"))
    likely = _with_plain_emptiness(graph, cells, likely)
    scores = graph.mul(likely, _allowed(graph, likely))
    return graph.model([tensor("film", [1, 1, FILM, FILM])], {"scores": (scores, [1, len(LABELS)])})


def _dense(graph: Graph, value: str, weights: Weights, name: str) -> str:
    return graph.op("Gemm", value, graph.constant(weights[name]), graph.constant(weights[f"{name}_bias"]), transB=1)


def _with_plain_emptiness(graph: Graph, cells: str, likely: str) -> str:
    """A film that is flat once its noise is averaged out is empty, whatever the network takes it for."""
    apart = graph.sub(cells, graph.op("ReduceMean", cells, axes=[1, 2, 3], keepdims=1))
    variance = graph.op("ReduceMean", graph.mul(apart, apart), axes=[1, 2, 3], keepdims=1)
    deviation = graph.op("Reshape", graph.op("Sqrt", variance), graph.constant([1, 1], np.int64))
    below = graph.sub(graph.constant(STRUCTURE), deviation)
    flat = graph.clip(graph.mul(below, graph.constant(1 / (STRUCTURE - FLAT))), 0.0, 1.0)
    column = np.array([[float(label == "empty") for label in LABELS]])
    return graph.op("Max", likely, graph.mul(flat, graph.constant(column)))


def _allowed(graph: Graph, likely: str) -> str:
    """[1, 10]: 1 where a label may be said, falling to 0 as one that silences it becomes likely."""
    groups: dict[Sequence[str], str] = {}
    for silencers in dict.fromkeys(SILENCED_BY.values()):
        strongest = graph.op("ReduceMax", _columns(graph, likely, silencers), axes=[1], keepdims=1)
        distance = graph.sub(graph.constant(LIKELY), strongest)
        groups[silencers] = graph.clip(graph.mul(distance, graph.constant(1 / (LIKELY - UNLIKELY))), 0.0, 1.0)
    one = graph.constant(np.ones((1, 1)))
    return graph.op("Concat", *(groups[SILENCED_BY[name]] if name in SILENCED_BY else one for name in LABELS), axis=1)


def _columns(graph: Graph, values: str, labels: Sequence[str]) -> str:
    return graph.op("Gather", values, graph.constant([LABELS.index(label) for label in labels], np.int64), axis=1)
