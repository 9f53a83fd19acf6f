"""The trained network as ONNX: every convolution with its scale and shift folded in, both inputs in HU and 0 or 1."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from reference_engines.graph import Graph, tensor

from ct_lesion_training import network

Float = NDArray[np.float32]
SIZE = ["D", "H", "W"]
EPSILON = 1e-4  #: added to a variance, as in training
#: Elements of 4 mm by which the lung is widened: a mass on the chest wall has its centre outside of the hull.
WIDER = (2, 2, 2)


class GraphLayers:
    """network.Layers as nodes of a graph."""

    def __init__(self, graph: Graph, weights: Mapping[str, Float]) -> None:
        self._graph, self._weights = graph, weights

    def first(self, name: str, volume: str, channels: int) -> str:
        graph = self._graph
        windows = []
        for low, high in network.WINDOWS:
            scaled = graph.mul(graph.sub(volume, graph.constant(low)), graph.constant(1 / (high - low)))
            doubled = graph.mul(graph.clip(scaled, 0.0, 1.0), graph.constant(2.0))
            windows.append(graph.sub(doubled, graph.constant(1.0)))
        kernel, bias = self._folded(name, channels)
        return self._relu(self._conv(graph.op("Concat", *windows, axis=1), of_voxels(kernel), bias, stride=2))

    def block(self, name: str, value: str, channels: int) -> str:
        return self._relu(self._conv(value, *self._folded(name, channels)))

    def halve(self, name: str, value: str, channels: int) -> str:
        return self._relu(self._conv(value, *self._folded(name, channels), stride=2))

    def raised(self, name: str, value: str, channels: int) -> str:
        return self.twice(self._conv(value, self._kernel(name, channels), None), "linear")

    def add(self, one: str, other: str) -> str:
        return self._graph.add(one, other)

    def head(self, name: str, value: str, channels: int) -> str:
        return self._conv(value, self._kernel(name, channels), self._weights[f"{name}.bias"])

    def twice(self, value: str, mode: str) -> str:
        scales = self._graph.constant([1, 1, 2, 2, 2])
        half_pixel = "half_pixel" if mode == "linear" else "asymmetric"
        return self._graph.op(
            "Resize", value, "", scales, mode=mode, coordinate_transformation_mode=half_pixel, nearest_mode="floor"
        )

    def _kernel(self, name: str, channels: int) -> Float:
        kernel = self._weights[f"{name}.kernel"]
        if len(kernel) != channels:
            raise ValueError(f"{name} has {len(kernel)} channels, not {channels}: the weights of another network")
        return kernel

    def _folded(self, name: str, channels: int) -> tuple[Float, Float]:
        scale, shift, mean, variance = (
            self._weights[f"{name}.{part}"].astype(np.float64) for part in ("scale", "shift", "mean", "variance")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        kernel = self._kernel(name, channels) * factor[:, None, None, None, None]
        return kernel.astype(np.float32), (shift - mean * factor).astype(np.float32)

    def _conv(self, value: str, kernel: Float, bias: Float | None, stride: int = 1) -> str:
        size = kernel.shape[2]
        pad = 0 if size == stride else (size - stride) // 2
        inputs = [value, self._graph.constant(kernel)] + ([] if bias is None else [self._graph.constant(bias)])
        return self._graph.op("Conv", *inputs, kernel_shape=[size] * 3, pads=[pad] * 6, strides=[stride] * 3)

    def _relu(self, value: str) -> str:
        return self._graph.op("Relu", value)


def build(weights: Mapping[str, Float]) -> bytes:
    """Model bytes. Inputs: volume (HU) and lung (0 or 1), [1, 1, D, H, W] at 2 mm, D, H and W multiples of 16.

    Outputs: score (0..1) and radius (mm) of the lesion that a voxel belongs to, of the same shape.
    """
    graph = Graph("ct-lesion")
    layers = GraphLayers(graph, weights)
    said = graph.op("Split", network.answer(layers, "volume"), outputs=2, axis=1)
    near = graph.op("MaxPool", "lung", kernel_shape=[2] * 3, strides=[2] * 3)
    for reach in WIDER:
        near = graph.op("MaxPool", near, kernel_shape=[2 * reach + 1] * 3, pads=[reach] * 6, strides=[1] * 3)
    score = graph.mul(graph.op("Sigmoid", said), near)
    low, high = (math.log(mm) for mm in network.RADIUS_MM)
    radius = graph.op("Exp", graph.clip(f"{said}_1", low, high))
    shape: list[int | str] = [1, 1, *SIZE]
    return graph.model(
        [tensor("volume", shape), tensor("lung", shape)],
        {"score": (layers.twice(score, "nearest"), shape), "radius": (layers.twice(radius, "nearest"), shape)},
    )


def of_voxels(kernel: Float) -> Float:
    """The kernel of 3^3 over cubes of 2^3 voxels that became channels, as one of 6^3 over the voxels."""
    after, before = kernel.shape[0], kernel.shape[1] // 8
    split = kernel.reshape(after, before, 2, 2, 2, 3, 3, 3)
    return np.ascontiguousarray(split.transpose(0, 1, 5, 2, 6, 3, 7, 4)).reshape(after, before, 6, 6, 6)
