"""The model files of a package: the model itself and its variants, and how far each may be from the golden cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.engine_manifest import Tensor
from appliance.engine_package import EnginePackage
from appliance.errors import EngineRefused
from appliance.imaging.golden import Tolerance
from appliance.runtimes.channel import TensorSpec
from appliance.runtimes.process import ChildEngine

MODEL = "model"  #: as a precision: the package's own model, whatever its types are
FP32 = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One of them, with the hash that the manifest states."""

    precision: str  #: MODEL, or the name of a variant
    name: str
    path: Path
    sha256: str
    tolerance: Tolerance | None  #: None: that of each golden case


def model_files(package: EnginePackage) -> Iterator[ModelFile]:
    """All of them, the model itself first."""
    manifest = package.manifest
    yield _of(package, MODEL, manifest.model, None)
    for precision, variant in manifest.variants.items():
        yield _of(package, precision, variant.file, Tolerance(atol=variant.atol, rtol=variant.rtol))


def model_file(package: EnginePackage, precision: str) -> ModelFile:
    """The one of a precision; fp32 is the model itself, unless there is such a variant. Raises EngineRefused."""
    there = {model.precision: model for model in model_files(package)}
    found = there.get(precision) or (there[MODEL] if precision == FP32 else None)
    if found is None:
        has = ", ".join(name for name in there if name != MODEL) or "none"
        raise EngineRefused(f"{package.key} has no variant {precision} (it has: {has})")
    return found


def io_fault(package: EnginePackage, child: ChildEngine) -> str:
    """Whether the model's inputs and outputs are those of the manifest; a model may leave open what that states."""
    for what, stated, found in (
        ("input", package.manifest.inputs, child.inputs),
        ("output", package.manifest.outputs, child.outputs),
    ):
        names, there = {tensor.name for tensor in stated}, {spec.name: spec for spec in found}
        if names != there.keys():
            return f"the model's {what}s are {', '.join(sorted(there))}, the manifest's {', '.join(sorted(names))}"
        for tensor in stated:
            if not _fits(tensor, there[tensor.name]):
                spec = there[tensor.name]
                return f"the {what} {tensor.name} is {spec.dtype} {list(spec.shape)}, not as the manifest says"
    return ""


def _fits(tensor: Tensor, spec: TensorSpec) -> bool:
    return (
        tensor.dtype == spec.dtype
        and len(tensor.shape) == len(spec.shape)
        and all(own in (-1, stated) for stated, own in zip(tensor.shape, spec.shape, strict=True))
    )


def _of(package: EnginePackage, precision: str, name: str, tolerance: Tolerance | None) -> ModelFile:
    return ModelFile(
        precision=str(precision),
        name=name,
        path=package.folder / name,
        sha256=package.manifest.files[name],
        tolerance=tolerance,
    )
