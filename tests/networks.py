"""Networks of strangers, one of each kind, that look at what they are given; and what they are given.

Each is packaged by declaration alone. A film is black with a white insert, a volume is lung with a dense block.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engine_package import EnginePackage
from tests.sources import write_film, write_volume
from tests.strangers import Network, write_package

SIDE = 64  #: of what the film networks take
ROWS, COLUMNS = 150, 200  #: of the films
SCALE = COLUMNS / SIDE
INSERT = (110, 30, 160, 80)  #: what is white on a film: column min, row min, column max, row max
SHAPE, MM = (21, 40, 50), (2.0, 1.0, 1.0)
BLOCK = (slice(6, 12), slice(10, 26), slice(20, 40))  #: what is dense in a volume
CENTRE = (29.5, 17.5, 17.0)  #: of it, x, y, z in mm
PATCH = (17, 24, 32)


def tensor(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def film_of(folder: Path, white: float = 1.0) -> list[Path]:
    pixels = np.zeros((ROWS, COLUMNS), np.float32)
    left, top, right, bottom = INSERT
    pixels[top:bottom, left:right] = white
    return [write_film(folder / "film", pixels)]


def squares(seed: int) -> NDArray[np.float32]:
    """A golden film in one channel of [0, 1]: a white square on black."""
    film = np.zeros((1, 1, SIDE, SIDE), np.float32)
    at = 8 + seed
    film[..., at : at + 20, at + 4 : at + 30] = 1
    return film


def volume_of(folder: Path) -> list[Path]:
    hu = np.full(SHAPE, -900, np.int16)
    hu[BLOCK] = 200
    return write_volume(folder / "volume", hu, MM)


def extent(net: Network, seen: str, axis: int, rank: int) -> tuple[str, str]:
    """Where what is 1 begins along an axis, and where it ends: (1,) each."""
    others = [other for other in range(rank) if other != axis]
    profile = net.node("ReduceMax", seen, axes=others, keepdims=0)
    begins = net.node("ArgMax", profile, axis=0, keepdims=1)
    from_behind = net.node("ArgMax", profile, axis=0, keepdims=1, select_last_index=1)
    ends = net.node("Add", from_behind, net.constant([1], np.int64))
    return net.node("Cast", begins, to=1), net.node("Cast", ends, to=1)


def above(net: Network, name: str, level: float) -> str:
    return net.node("Cast", net.node("Greater", name, net.constant(level)), to=1)


def detector(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> bytes:
    """Boxes about what is white, three channels of [-1, 1]; none where nothing is: their count is the data's.

    The box itself, the box a little larger and less sure, and one far outside.
    """
    net = Network()
    grey = net.node("ReduceMean", "image", axes=[1], keepdims=1)
    seen = above(net, grey, 0.0)
    (left, right), (top, bottom) = extent(net, seen, 3, 4), extent(net, seen, 2, 4)
    box = net.node("Unsqueeze", net.node("Concat", left, top, right, bottom, axis=0), net.constant([0], np.int64))
    larger = net.node("Add", box, net.constant([[-1, -1, 1, 1]]))
    far = net.constant([[500, 500, 600, 600]])
    every = net.node("Concat", box, larger, far, axis=0)
    there = net.node("ReduceMax", seen, keepdims=0)
    sure = net.node("Mul", net.constant([0.9, 0.8, 0.95]), there)
    kept = net.node("Greater", sure, net.constant(0.0))
    net.node("Compress", every, kept, axis=0, name="boxes")
    net.node("Compress", sure, kept, axis=0, name="scores")
    net.node("Compress", net.constant([2, 2, 1], np.int64), kept, axis=0, name="classes")
    return net.model(inputs, outputs)


def write_detector(folder: Path, name: str = "strangers") -> EnginePackage:
    inputs = [tensor("image", 1, 3, SIDE, SIDE)]
    outputs = [tensor("boxes", -1, 4), tensor("scores", -1), tensor("classes", -1, dtype="int64")]
    film = np.repeat(squares(3) * 2 - 1, 3, axis=1)
    return write_package(
        folder,
        detector(inputs, outputs),
        {"square": {"image": film}, "empty": {"image": -np.ones_like(film)}},
        id=name,
        scope="instance",
        labels=("clip", "plate"),
        inputs=inputs,
        preprocess=[{"op": "letterbox", "size": SIDE}, {"op": "normalise", "mean": [0.5] * 3, "std": [0.5] * 3}],
        outputs=outputs,
        postprocess={
            "op": "boxes",
            "boxes": "boxes",
            "scores": "scores",
            "classes": "classes",
            "first_class": 1,
            "labels": ["clip", "plate"],
        },
    )


def write_classifier(folder: Path) -> EnginePackage:
    """Scores of two labels, and a map of 8 x 8 of each: how white it is there, and how black."""
    net = Network()
    white = net.node("AveragePool", "image", kernel_shape=[8, 8], strides=[8, 8])
    black = net.node("Sub", net.constant(1.0), white)
    net.node("Concat", white, black, axis=1, name="map")
    top = net.node("ReduceMax", white, axes=[2, 3], keepdims=0)
    halved = net.node("Mul", top, net.constant(0.2))
    net.node("Concat", top, halved, axis=1, name="scores")
    inputs, outputs = [tensor("image", 1, 1, SIDE, SIDE)], [tensor("map", 1, 2, 8, 8), tensor("scores", 1, 2)]
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"square": {"image": squares(1)}},
        scope="instance",
        labels=("opacity", "lucency"),
        inputs=inputs,
        preprocess=[{"op": "letterbox", "size": SIDE}],
        outputs=outputs,
        postprocess={"op": "heat_map", "map": "map", "scores": "scores", "labels": ["opacity", "lucency"]},
    )


def write_segmenter(folder: Path, name: str = "strangers") -> EnginePackage:
    """A fixed patch in, how dense each voxel is out."""
    net = Network()
    steep = net.node("Mul", net.node("Sub", "patch", net.constant(0.5)), net.constant(20.0))
    net.node("Sigmoid", steep, name="p")
    inputs, outputs = [tensor("patch", 1, 1, *PATCH)], [tensor("p", 1, 1, *PATCH)]
    patch = np.zeros((1, 1, *PATCH), np.float32)
    patch[0, 0, 2:7, 3:9, 4:12] = 1
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"block": {"patch": patch}},
        id=name,
        scope="series",
        labels=("mass",),
        inputs=inputs,
        preprocess=[
            {"op": "resample", "spacing_mm": 1.0},
            {"op": "window", "low": -1000, "high": 400},
            {"op": "sliding_window", "size": list(PATCH), "overlap": 0.4},
        ],
        outputs=outputs,
        postprocess={"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["mass"], "min_ml": 0.1},
    )


def write_volume_detector(folder: Path) -> EnginePackage:
    """The box about what is dense in a volume of any size, its corners from x on."""
    net = Network()
    seen = above(net, "volume", 0.5)
    sides = [extent(net, seen, axis, 5) for axis in (4, 3, 2)]
    ends = [side[end] for end in (0, 1) for side in sides]
    net.node("Unsqueeze", net.node("Concat", *ends, axis=0), net.constant([0, 1], np.int64), name="boxes")
    there = net.node("ReduceMax", seen, keepdims=0)
    net.node("Reshape", net.node("Mul", there, net.constant(0.9)), net.constant([1, 1, 1], np.int64), name="scores")
    inputs, outputs = [tensor("volume", 1, 1, -1, -1, -1)], [tensor("boxes", 1, -1, 6), tensor("scores", 1, -1, 1)]
    volume = np.zeros((1, 1, 8, 12, 10), np.float32)
    volume[0, 0, 2:6, 3:9, 1:5] = 1
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"block": {"volume": volume}},
        scope="series",
        labels=("mass",),
        inputs=inputs,
        preprocess=[{"op": "resample", "spacing_mm": 1.0}, {"op": "window", "low": -1000, "high": 400}],
        outputs=outputs,
        postprocess={"op": "boxes_3d", "boxes": "boxes", "scores": "scores", "labels": ["mass"], "axes": "xyz"},
    )


def write_judge(folder: Path) -> EnginePackage:
    """Says that a series is too dense to be read."""
    net = Network()
    mean = net.node("ReduceMean", "volume", axes=[2, 3, 4], keepdims=0)
    net.node("Sigmoid", net.node("Mul", mean, net.constant(50.0)), name="scores")
    inputs, outputs = [tensor("volume", 1, 1, -1, -1, -1)], [tensor("scores", 1, 1)]
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"grey": {"volume": np.full((1, 1, 8, 8, 8), 0.1, np.float32)}},
        scope="series",
        labels=("unfit",),
        inputs=inputs,
        preprocess=[{"op": "resample", "spacing_mm": 2.0}, {"op": "window", "low": -1000, "high": 400}],
        outputs=outputs,
        postprocess={"op": "label_scores", "scores": "scores", "labels": ["unfit"]},
    )
