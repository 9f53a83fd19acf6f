"""Engine packages for tests: a film engine that says how bright a film is, or misbehaves as the film tells it to."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

SIDE = 32
CR = "1.2.840.10008.5.1.4.1.1.1"
FILM = make_tensor_value_info("film", TensorProto.FLOAT, [1, 1, SIDE, SIDE])
SCORES = make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1])


class Kind(float, Enum):
    """How much of a film is white, which is what the model goes by."""

    DARK = 0.1
    NAN = 0.25
    CRASHING = 0.4  #: does nothing to the model; for who runs it
    GREEDY = 0.5  #: takes 8 GB
    HANGING = 0.75
    BRIGHT = 0.9  #: a finding


def film_of(kind: Kind, side: int = SIDE) -> NDArray[np.float32]:
    """White from the top down to so much."""
    flat = np.zeros(side * side, np.float32)
    flat[: round(kind * flat.size)] = 1
    return flat.reshape(side, side)


def constant(name: str, value: Any, dtype: type[np.generic] = np.float32) -> onnx.TensorProto:
    return from_array(np.asarray(value, dtype), name)


def brightness(bias: float = 0.0, dtype: int = TensorProto.FLOAT) -> bytes:
    """scores = the mean of the film + bias, reckoned in `dtype`."""
    nodes = [
        make_node("Cast", ["film"], ["inside"], to=dtype),
        make_node("ReduceMean", ["inside"], ["mean"], axes=[2, 3], keepdims=0),
        make_node("Cast", ["mean"], ["wide"], to=TensorProto.FLOAT),
        make_node("Add", ["wide", "bias"], ["scores"]),
    ]
    return _model(nodes, [constant("bias", bias)])


def misbehaving() -> bytes:
    """As `brightness`, but for the films of three kinds."""
    nodes = [make_node("ReduceMean", ["film"], ["mean"], axes=[2, 3], keepdims=0)]
    constants = [constant("none", 0.0), constant("nan", np.nan), constant("near", 0.05)]
    for kind in (Kind.NAN, Kind.GREEDY, Kind.HANGING):
        name = kind.name.lower()
        constants.append(constant(f"{name}_at", float(kind)))
        nodes += [
            make_node("Sub", ["mean", f"{name}_at"], [f"{name}_off"]),
            make_node("Abs", [f"{name}_off"], [f"{name}_far"]),
            make_node("Less", [f"{name}_far", "near"], [f"{name}_is"]),
        ]
    constants += [constant("eight_gb", [[2 << 30]], np.int64), constant("one", [[1]], np.int64)]
    constants += [constant("for_ever", [[10**15]], np.int64), constant("flat", [1], np.int64)]
    nodes += [
        make_node("Where", ["greedy_is", "eight_gb", "one"], ["sizes"]),
        make_node("Reshape", ["sizes", "flat"], ["size"]),
        make_node("ConstantOfShape", ["size"], ["zeros"]),
        make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        make_node("Where", ["hanging_is", "for_ever", "one"], ["turns_there"]),
        make_node("Reshape", ["turns_there", "flat"], ["turns_flat"]),
        make_node("Squeeze", ["turns_flat"], ["turns"]),
        make_node("Loop", ["turns", "", "zero"], ["still_zero"], body=_body()),
        make_node("Where", ["nan_is", "nan", "still_zero"], ["odd"]),
        make_node("Add", ["mean", "odd"], ["scores"]),
    ]
    return _model(nodes, constants)


def _body() -> onnx.GraphProto:
    turn = make_tensor_value_info("i", TensorProto.INT64, [])
    go_on, still = (make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", "still"))
    before, after = (make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("before", "after"))
    steps = [make_node("Identity", ["go_on"], ["still"]), make_node("Tanh", ["before"], ["after"])]
    return make_graph(steps, "body", [turn, go_on, before], [still, after])


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> bytes:
    graph = make_graph(nodes, "film", [FILM], [SCORES], constants)
    proto = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a package is made of."""

    id: str = "films"
    version: str = "1.0.0"
    model: bytes = b""
    golden: Mapping[Kind, float] | None = None  #: film -> score; None: what is right
    variants: Mapping[str, bytes] | None = None
    changes: Mapping[str, Any] | None = None  #: of the manifest


def write_package(folder: Path, recipe: Recipe = Recipe()) -> Path:
    """A package in this folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "golden").mkdir(parents=True)
    (folder / "CARD.md").write_text("# A test\n")
    (folder / "model.onnx").write_bytes(recipe.model or brightness())
    for name, content in (recipe.variants or {}).items():
        (folder / f"model.{name}.onnx").write_bytes(content)
    golden = recipe.golden or {Kind.DARK: Kind.DARK, Kind.BRIGHT: Kind.BRIGHT}
    for kind, score in golden.items():
        film = film_of(kind)
        right = float(film.mean()) if score == kind else score
        case = folder / "golden" / f"{kind.name.lower()}.npz"
        np.savez(case, film=film[None, None], scores=np.array([[right]], np.float32))
    manifest = _manifest(recipe, [kind.name.lower() for kind in golden]) | dict(recipe.changes or {})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest["files"] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "engine.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def _manifest(recipe: Recipe, cases: list[str]) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": recipe.id,
        "version": recipe.version,
        "status": "reference",
        "title": "How bright a film is",
        "intended_use": "Tests.",
        "licence": "Apache-2.0",
        "author": "Scanside",
        "training_data": "none",
        "scope": "instance",
        "accepts": {"modality": ["CR"], "sop_class": [CR]},
        "inputs": [{"name": "film", "dtype": "float32", "shape": [1, 1, SIDE, SIDE]}],
        "preprocess": [{"op": "letterbox", "size": SIDE}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [1, 1]}],
        "postprocess": {"op": "label_scores", "scores": "scores", "labels": ["bright"]},
        "labels": {
            "bright": {
                "text": "Bright",
                "code": {"value": "BRIGHT", "scheme": "99SCANSIDE", "meaning": "Bright"},
                "threshold": 0.8,
            }
        },
        "tolerances": {"atol": 1.0e-3, "rtol": 1.0e-3},
        "golden": [{"case": f"golden/{case}.npz"} for case in cases],
        "model": "model.onnx",
        "variants": {
            name: {"file": f"model.{name}.onnx", "atol": 0.02, "rtol": 0.02} for name in recipe.variants or {}
        },
    }
