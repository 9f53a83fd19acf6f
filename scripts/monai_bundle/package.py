"""Writes an engine package out of a bundle that could be mapped: model, manifest, golden case, card, hashes."""

import hashlib
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from appliance import engine_package
from appliance.errors import PackageInvalid
from monai_bundle.bundle import Bundle, CannotImport
from monai_bundle.mapping import Mapped

FILM, SCORES = "film", "scores"
OURS = "scanside_"  # begins every name that is put into the graph
FIRST_OPSET = 13
SEED = 1
TOLERANCE = 1e-3
_ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError, ValueError, RuntimeError)
# ONNX Runtime's exceptions share no base of their own.
_RUNTIME_ERRORS = tuple(
    kind for kind in vars(binding).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a bundle does not say and whoever imports it does."""

    id: str
    threshold: float
    body_part: Sequence[str]
    view: Sequence[str]


def write(bundle: Bundle, mapped: Mapped, wanted: Wanted, target: Path) -> None:
    """Make the folder `target`, whole or not at all. Raises CannotImport; OSError where it cannot be written."""
    if target.exists():
        raise CannotImport(f"{target} is there already: give another --to, or remove it")
    model = _model(bundle.model, mapped)
    golden = _golden(model, mapped.size)
    with TemporaryDirectory(dir=target.parent, prefix=".import-") as temporary:
        folder = Path(temporary) / target.name
        (folder / "golden").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        (folder / "golden" / "seeded.npz").write_bytes(golden)
        (folder / "CARD.md").write_text(_card(bundle, mapped), encoding="utf-8")
        if (licence := bundle.folder / "LICENSE").is_file():
            shutil.copyfile(licence, folder / "LICENSE")
        manifest = _manifest(bundle, mapped, wanted, model) | {"files": _hashes(folder)}
        text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=116)
        (folder / engine_package.MANIFEST).write_text(text, encoding="utf-8")
        try:
            engine_package.load(folder)
        except PackageInvalid as error:
            raise CannotImport(*str(error).splitlines()) from error
        folder.rename(target)


def _model(content: bytes, mapped: Mapped) -> bytes:
    """The bundle's network between our film and our scores. Raises CannotImport."""
    model = _sound(content)
    graph = model.graph
    entry, leave = graph.input[-1].name, graph.output[0].name
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {entry, leave}
    film, scores = (name if name not in taken else OURS + name for name in (FILM, SCORES))
    nodes = [*_front(mapped, film, entry), *graph.node, *_back(mapped, leave, scores)]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(film, TensorProto.FLOAT, [1, 1, mapped.size, mapped.size]))
    graph.output.append(helper.make_tensor_value_info(scores, TensorProto.FLOAT, [1, len(mapped.back.kept)]))
    try:
        onnx.checker.check_model(model, full_check=True)
    except _ERRORS as error:
        raise CannotImport(f"models/model.onnx does not fit what the bundle says of it: {_line(error)}") from error
    return bytes(model.SerializeToString())


def _sound(content: bytes) -> onnx.ModelProto:
    """With exactly one input and one output, and nothing outside of it. Raises CannotImport."""
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except _ERRORS as error:
        raise CannotImport(f"models/model.onnx is no sound ONNX: {_line(error)}") from error
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    problems = []
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
        problems.append("models/model.onnx has weights in other files: export it as one file")
    if len(inputs) != 1 or len(graph.output) != 1:
        problems.append(
            f"models/model.onnx has {len(inputs)} inputs and {len(graph.output)} outputs: one of each is taken"
        )
    if opset < FIRST_OPSET:
        problems.append(f"models/model.onnx has opset {opset}: export it with {FIRST_OPSET} or later")
    if problems:
        raise CannotImport(*problems)
    del graph.input[:]
    graph.input.extend(inputs)
    return model


def _front(mapped: Mapped, film: str, entry: str) -> list[onnx.NodeProto]:
    """Nodes from the film to what the network wants."""
    front, at = mapped.front, film
    nodes: list[onnx.NodeProto] = []

    def then(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal at
        inputs = [at, *more] if kind != "Concat" else [at] * front.channels
        at = f"{OURS}front_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [at], **attributes))

    if front.swap_axes:
        then("Transpose", perm=[0, 1, 3, 2])
    for kind, value, idle in (("Mul", front.scale, 1.0), ("Add", front.offset, 0.0)):
        if value != idle:
            constant = f"{OURS}{kind.lower()}"
            nodes.append(_constant(constant, np.float32(value)))
            then(kind, constant)
    if front.channels > 1:
        then("Concat", axis=1)
    return [*nodes, helper.make_node("Identity", [at], [entry])]


def _back(mapped: Mapped, leave: str, scores: str) -> list[onnx.NodeProto]:
    """Nodes from what the network says to scores of the labels that are kept."""
    back, at, nodes = mapped.back, leave, []
    if back.activation:
        attributes: dict[str, Any] = {"axis": 1} if back.activation == "Softmax" else {}
        nodes.append(helper.make_node(back.activation, [at], [f"{OURS}activation"], **attributes))
        at = f"{OURS}activation"
    nodes.append(_constant(f"{OURS}kept", np.array(back.kept, np.int64)))
    return [*nodes, helper.make_node("Gather", [at, f"{OURS}kept"], [scores], axis=1)]


def _constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))


def _names(model: bytes) -> tuple[str, str]:
    graph = onnx.load_model_from_string(model).graph
    return graph.input[0].name, graph.output[0].name


def _golden(model: bytes, size: int) -> bytes:
    """Noise of a fixed seed, and what ONNX Runtime answers to it. Raises CannotImport where it answers nonsense."""
    film, scores = _names(model)
    given = np.random.default_rng(SEED).random((1, 1, size, size), np.float32)
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (answer,) = session.run([scores], {film: given})
    except _RUNTIME_ERRORS as error:
        raise CannotImport(f"ONNX Runtime does not run it: {_line(error)}") from error
    if not np.isfinite(answer).all() or answer.min() < 0 or answer.max() > 1:
        raise CannotImport(f"it answers {answer.ravel()[:4]} to noise: these are no scores from 0 to 1")
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{film: given, scores: answer})
    return content.getvalue()


def _manifest(bundle: Bundle, mapped: Mapped, wanted: Wanted, model: bytes) -> dict[str, Any]:
    film, scores = _names(model)
    keys = [f"{_slug(name, 40)}_{index}" for index, name in enumerate(mapped.labels)]
    return {
        "schema": 1,
        "id": wanted.id,
        "version": _version(bundle.text("version")),
        "status": "reference",
        "title": (bundle.text("name") or wanted.id).replace("\\", "/")[:64],
        "intended_use": f"Imported from a MONAI bundle, not validated here. {bundle.text('intended_use')}"[
            :4000
        ].strip(),
        "licence": (bundle.text("license") or bundle.text("copyright") or "not stated: ask its authors")[:4000],
        "author": (bundle.text("authors") or "not stated")[:4000],
        "training_data": (bundle.text("data_source") or "not stated")[:4000],
        "scope": "instance",
        "accepts": {
            "modality": ["CR", "DX"],
            "sop_class": list(SOP_CLASSES),
            "body_part": list(wanted.body_part),
            "view": list(wanted.view),
        },
        "inputs": [{"name": film, "dtype": "float32", "shape": [1, 1, mapped.size, mapped.size]}],
        "preprocess": mapped.preprocess,
        "outputs": [{"name": scores, "dtype": "float32", "shape": [1, len(keys)]}],
        "postprocess": {"op": "label_scores", "scores": scores, "labels": keys},
        "labels": {
            key: _label(name, index, wanted) for index, (key, name) in enumerate(zip(keys, mapped.labels, strict=True))
        },
        "golden": [{"case": "golden/seeded.npz", "atol": TOLERANCE, "rtol": TOLERANCE}],
        "model": "model.onnx",
    }


def _label(name: str, index: int, wanted: Wanted) -> dict[str, Any]:
    text = re.sub(r"[\\\x00-\x1f]", " ", name)[:64] or f"channel {index}"
    code = {"value": f"{index}-{_slug(name, 12).upper()}"[:16], "scheme": "99MONAI", "meaning": text}
    return {"text": text, "code": code, "threshold": wanted.threshold}


def _slug(name: str, length: int) -> str:
    """Begins with a letter: labels are names."""
    return (
        re.sub(r"[^a-z0-9]+", "_", f"l {name}" if not name[:1].isalpha() else name, flags=re.IGNORECASE)
        .strip("_")
        .lower()[:length]
    )


def _version(text: str) -> str:
    """Three numbers: what the bundle calls itself, as far as that goes."""
    numbers = re.findall(r"[0-9]+", text)[:3]
    return ".".join((*numbers, "0", "0", "0")[:3])


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _card(bundle: Bundle, mapped: Mapped) -> str:
    lines = [f"# {bundle.text('name') or 'Engine'}", ""]
    lines += [f"Imported from a MONAI bundle, version {bundle.text('version') or 'not stated'}.", ""]
    lines += ["What the bundle says of itself; nobody has measured it here:", ""]
    for key in ("description", "intended_use", "authors", "copyright", "data_source", "eval_metrics", "references"):
        value = bundle.metadata.get(key)
        if value:
            lines.append(f"- {key.replace('_', ' ')}: {' '.join(str(value).split())[:2000]}")
    lines += ["", "What is not as it was there:", "", *(f"- {remark}" for remark in mapped.remarks)]
    lines += [
        "- labels: thresholds and codes are placeholders; set them, and let your site measure sensitivity and",
        "  specificity on its own films before anything of it is sent",
        "- golden/seeded.npz is noise: it shows that the engine runs as it ran here, not that it is right",
        "",
    ]
    return "\n".join(lines)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
