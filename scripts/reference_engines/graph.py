"""A small writer of ONNX graphs: constants and nodes by name, the same bytes each time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


#: Name -> (value, shape).
Outputs = dict[str, tuple[str, Sequence[int | str]]]


class Graph:
    """Nodes in the order in which they are added; values are known by generated names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, value: ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        array = np.ascontiguousarray(np.asarray(value, dtype))
        for name, known in self._constants.items():
            if known.SerializeToString() == numpy_helper.from_array(array, name).SerializeToString():
                return name
        name = f"c{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output; the others are `<first>_1`, `<first>_2` ..."""
        first = f"t{len(self._nodes)}"
        names = [first, *(f"{first}_{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return first

    def add(self, *values: str) -> str:
        return self._fold("Add", values)

    def mul(self, *values: str) -> str:
        return self._fold("Mul", values)

    def sub(self, a: str, b: str) -> str:
        return self.op("Sub", a, b)

    def clip(self, value: str, low: float, high: float) -> str:
        return self.op("Clip", value, self.constant(low), self.constant(high))

    def conv(self, value: str, kernel: ArrayLike) -> str:
        """Correlation with zeros beyond the edges; `kernel` is (outputs, inputs, *odd sizes)."""
        weights = np.asarray(kernel, np.float32)
        pads = [size // 2 for size in weights.shape[2:]]
        return self.op("Conv", value, self.constant(weights), kernel_shape=list(weights.shape[2:]), pads=pads * 2)

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Outputs) -> bytes:
        """The checked, serialised model."""
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph(self._nodes, self.name, list(inputs), infos, list(self._constants.values()))
        model = helper.make_model(
            graph, producer_name="scanside", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    def _fold(self, kind: str, values: Sequence[str]) -> str:
        result = values[0]
        for value in values[1:]:
            result = self.op(kind, result, value)
        return result


def tensor(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
