"""Packages around networks that are not ours: an ONNX made in the test, and all else by declaration."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from appliance import engine_package
from appliance.engine_package import EnginePackage
from appliance.ports import Array

CR, CT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def manifest_of(
    *, scope: str, labels: Sequence[str], files: Mapping[str, bytes], threshold: float = 0.5, **parts: Any
) -> dict[str, Any]:
    """A manifest; `parts` are inputs, preprocess, outputs and postprocess."""
    modality, sop_class = ("CR", CR) if scope == "instance" else ("CT", CT)
    return {
        "schema": 1,
        "id": "strangers",
        "version": "1.0.0",
        "status": "reference",
        "title": "A stranger's network",
        "intended_use": "Tests.",
        "licence": "theirs",
        "author": "Somebody",
        "training_data": "none",
        "scope": scope,
        "accepts": {"modality": [modality], "sop_class": [sop_class]},
        "labels": {
            name: {
                "text": f"May be {name}",
                "code": {"value": name.upper()[:16], "scheme": "99SOMEBODY", "meaning": f"May be {name}"},
                "threshold": threshold,
            }
            for name in labels
        },
        "golden": [
            {"case": name, "atol": 1.0e-3, "rtol": 1.0e-3} for name in sorted(files) if name.startswith("golden/")
        ],
        "model": "model.onnx",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    } | parts


class Network:
    """An ONNX graph, node by node; the name of a node's output is what it is called on with."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"t{len(self._nodes)}"
        self._nodes.append(make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> bytes:
        """`inputs` and `outputs` as a manifest has them."""
        described = [
            [
                make_tensor_value_info(
                    tensor["name"], TYPES[tensor["dtype"]], [n if n >= 0 else None for n in tensor["shape"]]
                )
                for tensor in tensors
            ]
            for tensors in (inputs, outputs)
        ]
        graph = make_graph(self._nodes, "theirs", described[0], described[1], self._constants)
        proto = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(proto, full_check=True)
        content: bytes = proto.SerializeToString()
        return content


def write_package(folder: Path, model: bytes, cases: Mapping[str, Mapping[str, Array]], **parts: Any) -> EnginePackage:
    """A package in this folder, with a golden case of these inputs and what ONNX Runtime answers to them."""
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "CARD.md").write_text("# A stranger's network\n\nNot measured.\n")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, inputs in cases.items():
        answers = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        np.savez(folder / "golden" / f"{name}.npz", allow_pickle=False, **inputs, **answers)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    (folder / "engine.yaml").write_text(yaml.safe_dump(manifest_of(files=files, **parts), sort_keys=False))
    return engine_package.load(folder)
