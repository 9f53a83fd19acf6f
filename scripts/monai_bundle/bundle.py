"""A MONAI bundle on disk, read as plain data: nothing in it is imported, evaluated or run.

`$` begins an expression of Python in a bundle's configuration. It is never evaluated: a value that is needed and is one
makes the part that needs it a problem, told by name. `@a::b` (or `@a#b`) refers to another value of the same file and
is looked up.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 4 << 20
MAX_MODEL_BYTES = 2 << 30
MAX_REFERENCES = 16  # from one to the next

_EXPORT = (
    "export it where MONAI and the bundle's weights are: python -m monai.bundle onnx_export network_def"
    " --filepath models/model.onnx --ckpt_file models/model.pt --meta_file configs/metadata.json"
    " --config_file configs/inference.json"
)


class CannotImport(Exception):
    """The bundle cannot become an engine; `reasons` has all that was found, a line each."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """One step of a bundle's `preprocessing` or `postprocessing`."""

    kind: str  #: the class without its module and without the d of its dictionary form: "ScaleIntensityRange"
    options: Mapping[str, Any]

    def number(self, name: str, default: float | None = None) -> float:
        """Raises CannotImport where there is none."""
        value: Any = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CannotImport(f"{self.kind}: {name} is {_shown(value)}, not a number")
        return float(value)

    def sizes(self, name: str) -> list[float]:
        """A number or a list of numbers, as a list. Raises CannotImport."""
        value = self.options.get(name)
        values: list[Any] = value if isinstance(value, list) else [value]
        if not values or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
            raise CannotImport(f"{self.kind}: {name} is {_shown(value)}, not a number or a list of numbers")
        return [float(one) for one in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    folder: Path
    metadata: Mapping[str, Any]
    model: bytes
    preprocessing: Sequence[Transform]
    postprocessing: Sequence[Transform]
    inferer: str  #: its class, "" where none is named

    def text(self, key: str) -> str:
        """What the metadata says of itself under a key, as one line; "" where nothing."""
        value = self.metadata.get(key, "")
        return " ".join(str(value).split()) if isinstance(value, str | int | float) else ""

    def network(self, side: str) -> Mapping[str, Any]:
        """network_data_format of the inputs or outputs: of the one tensor there is. Raises CannotImport."""
        form = self.metadata.get("network_data_format")
        tensors = form.get(side) if isinstance(form, dict) else None
        if not isinstance(tensors, dict) or len(tensors) != 1:
            many = len(tensors) if isinstance(tensors, dict) else 0
            raise CannotImport(
                f"metadata.json: network_data_format.{side} names {many} tensors: exactly one can be used"
            )
        (tensor,) = tensors.values()
        if not isinstance(tensor, dict):
            raise CannotImport(f"metadata.json: network_data_format.{side}: must be a group of keys")
        return tensor


def read(folder: Path) -> Bundle:
    """Raises CannotImport."""
    if not folder.is_dir():
        raise CannotImport(f"{folder} is no folder: give the folder of the bundle, which holds configs/ and models/")
    metadata = _json(folder / "configs" / "metadata.json")
    inference = _json(folder / "configs" / "inference.json")
    inferer = _resolved(inference, inference.get("inferer"))
    return Bundle(
        folder=folder,
        metadata=metadata,
        model=_model(folder / "models"),
        preprocessing=_transforms(inference, "preprocessing"),
        postprocessing=_transforms(inference, "postprocessing"),
        inferer=str(inferer.get("_target_", "")).rpartition(".")[2] if isinstance(inferer, dict) else "",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        yaml = path.with_suffix(".yaml")
        hint = f" (there is {yaml.name}: save it as JSON)" if yaml.exists() else ""
        raise CannotImport(f"{path} cannot be read: {error.strerror}{hint}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise CannotImport(f"{path} has over {MAX_CONFIG_BYTES} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CannotImport(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CannotImport(f"{path}: must be a group of keys")
    return found


def _model(folder: Path) -> bytes:
    path = folder / "model.onnx"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        others = sorted(one.name for one in folder.glob("model*")) if folder.is_dir() else []
        there = f" (there is {', '.join(others)})" if others else ""
        raise CannotImport(f"{path} cannot be read: {error.strerror}{there}. Only ONNX is taken: {_EXPORT}") from error
    if len(content) > MAX_MODEL_BYTES:
        raise CannotImport(f"{path} has over {MAX_MODEL_BYTES} bytes")
    return content


def _transforms(config: Mapping[str, Any], name: str) -> list[Transform]:
    chain = _resolved(config, config.get(name, []))
    if isinstance(chain, dict):
        chain = _resolved(config, chain.get("transforms", []))
    if not isinstance(chain, list):
        raise CannotImport(f"inference.json: {name} is {_shown(chain)}, not a list of transforms")
    found = []
    for entry in chain:
        step = _resolved(config, entry)
        if not isinstance(step, dict) or not isinstance(step.get("_target_"), str):
            raise CannotImport(f"inference.json: {name}: {_shown(step)} names no transform by _target_")
        options = {key: _resolved(config, value) for key, value in step.items()}
        if options.get("_disabled_") is not True:
            found.append(Transform(kind=_kind(step["_target_"]), options=options))
    return found


def _kind(target: str) -> str:
    name = target.rpartition(".")[2]
    for ending in ("Dict", "d", "D"):
        if name.endswith(ending) and len(name) > len(ending) + 1:
            return name.removesuffix(ending)
    return name


def _resolved(config: Mapping[str, Any], value: Any) -> Any:
    """What a reference leads to; anything else is itself. Raises CannotImport."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        found: Any = config
        for key in value[1:].replace("#", "::").split("::"):
            if isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                return value  # something that exists while MONAI runs it: who needs it tells
        value = found
    raise CannotImport(f"inference.json: {_shown(value)}: its references lead round in a circle")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
