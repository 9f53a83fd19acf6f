"""The FP16 variant of a model: the same graph in half precision, with inputs and outputs as they were."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(model: bytes) -> bytes:
    """Model bytes. Only constants of type float32 become float16; the scales of a Resize stay, as ONNX wants them."""
    made = onnx.load_from_string(model)
    graph = made.graph
    kept = {node.input[2] for node in graph.node if node.op_type == "Resize"}
    for constant in graph.initializer:
        if constant.data_type == TensorProto.FLOAT and constant.name not in kept:
            small = numpy_helper.to_array(constant).astype(np.float16)
            constant.CopyFrom(numpy_helper.from_array(small, constant.name))
    inputs = {value.name: f"{value.name}_half" for value in graph.input}
    outputs = {value.name: f"{value.name}_half" for value in graph.output}
    nodes = [helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16) for name, half in inputs.items()]
    for node in graph.node:
        node.input[:] = [inputs.get(name, name) for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
        nodes.append(node)
    nodes += [helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT) for name, half in outputs.items()]
    whole = helper.make_graph(nodes, graph.name, graph.input, graph.output, graph.initializer)
    result = helper.make_model(
        whole, producer_name=made.producer_name, opset_imports=made.opset_import, ir_version=made.ir_version
    )
    onnx.checker.check_model(result, full_check=True)
    return bytes(result.SerializeToString())
