"""Building plans, from the daemon's side: a child compiles, what it gives is checked, and kept by `plan_store`.

Takes minutes on a small GPU and much memory, so it is never on a study's way: the child is nice, has a limit of memory
and a deadline, and can be withdrawn. Two machines, or one machine after an update, are two targets: `find` says whether
a plan that is there is for this one.
"""

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from appliance.engine_manifest import Manifest, Tensor
from appliance.engine_package import MANIFEST, EnginePackage, load_manifest
from appliance.errors import PackageInvalid, PlanRefused, RuntimeFailed
from appliance.model import Reason
from appliance.ports import Array, BuiltPlan
from appliance.runtimes import cuda_probe, plan_build, plan_store
from appliance.runtimes.channel import Patience
from appliance.runtimes.plan_store import Target
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings

Shape = tuple[int, ...]
Progress = Callable[[str, int, int], None]

_CODE = Path(plan_build.__file__)
_FLAGS = ("strongly_typed",)
LEAST, MOST = 16, 256  #: of a length that a manifest leaves open and says nothing more about


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """The shapes of one input that a plan takes, and the one that it is made fast for."""

    name: str
    least: Shape
    best: Shape
    most: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a builder must know of a model file."""

    ranges: tuple[InputRange, ...]
    precision: str  #: of the package's variant


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How plans are built, and for what."""

    interpreter: Path = field(default_factory=lambda: Path(sys.executable))  #: a Python >= 3.10 with TensorRT
    compute_capabilities: tuple[str, ...] = ()  #: SM86; none: the GPU that is there. Others need TensorRT-RTX
    workspace_mb: int = 1024  #: that kernels may take; 0: as TensorRT likes
    threads: int = 1
    memory_mb: int = 8192
    start_s: float = 120.0  #: for its start, and to parse the model

    @property
    def child(self) -> ChildSettings:
        return ChildSettings(
            interpreter=self.interpreter,
            runtime="plan_build",
            threads=self.threads,
            memory_mb=self.memory_mb,
            load_deadline_s=self.start_s,
        )


class TensorRtBuilder:
    """A ports.PlanBuilder, by the TensorRT or TensorRT-RTX that the interpreter has."""

    def __init__(self, settings: BuildSettings, model_of: Callable[[Path], Model] | None = None) -> None:
        """`model_of`: the shapes of a model file; raises PackageInvalid. Otherwise its package's manifest tells."""
        self._settings = settings
        self._model_of = model_of or beside
        self._runtime = ChildRuntime(settings.child)

    @property
    def abandoned(self) -> tuple[int, ...]:
        """Process ids of children that were killed and are still there."""
        return self._runtime.abandoned

    def probe(self) -> str:
        """Raises nothing."""
        try:
            self.library()
        except RuntimeFailed as error:
            return str(error)
        return "" if self._settings.compute_capabilities else str(self._gpu()["reason"])

    def library(self) -> str:
        """The version of what builds here. Raises RuntimeFailed where nothing does."""
        child, hello = self._runtime.start(self._runtime.load_patience())
        child.quit()
        self._runtime.bury(child)
        return hello.version

    def target(self, model: Path, sha256: str) -> Target:
        """What a plan for this machine depends on, as things are now. Raises RuntimeFailed."""
        return self._target(self._facts(model), sha256, self.library())

    def find(self, model: Path, sha256: str, folder: Path) -> BuiltPlan:
        """The plan that was built for all that there is now. Raises PlanRefused, RuntimeFailed."""
        return plan_store.find(folder, self.target(model, sha256))

    def build(self, model: Path, sha256: str, folder: Path, progress: Progress, deadline_s: float) -> BuiltPlan:
        """Raises RuntimeFailed: NO_ENGINE where there is nothing to build with, or TensorRT does not take the model;
        ENGINE_FAILED where it cannot be built; DEADLINE; NO_ROOM. What `progress` raises ends the build, too.
        """
        facts, patience = self._facts(model), Patience.of("build", deadline_s)
        with closing(ChildEngine(self._runtime, model, sha256)) as child:
            child.start(patience)
            target = self._target(facts, sha256, child.runtime_version)
            inputs, told = self._inputs(child, facts.ranges), _Teller(child, progress)
            left_s = max(patience.until - time.monotonic(), 0.0)
            plan = child.infer(inputs, left_s, told)[plan_build.PLAN]
        progress("write", 0, 1)
        kept = _kept(folder, target, plan)
        progress("write", 1, 1)
        return kept

    def _facts(self, model: Path) -> Model:
        try:
            return self._model_of(model)
        except PackageInvalid as error:
            raise RuntimeFailed(Reason.NO_ENGINE, f"no plan without shapes: {error}") from error

    def _gpu(self) -> Mapping[str, str]:
        return cuda_probe.ask(str(self._settings.interpreter))

    def _target(self, model: Model, sha256: str, library: str) -> Target:
        target = Target(
            onnx_sha256=sha256,
            library=library,
            gpu="",
            compute_capabilities=self._settings.compute_capabilities,
            driver="",
            system=_system(),
            profiles={one.name: (one.least, one.best, one.most) for one in model.ranges},
            precision=model.precision,
            flags=_FLAGS,
            workspace_mb=0 if library.endswith(plan_store.RTX) else self._settings.workspace_mb,  # see plan_build
            builder=hashlib.sha256(_CODE.read_bytes()).hexdigest(),
        )
        if self._settings.compute_capabilities:
            return target
        gpu = self._gpu()
        if gpu["reason"]:
            raise RuntimeFailed(Reason.NO_ENGINE, gpu["reason"])
        driver = f"{gpu['driver']}, CUDA {gpu['cuda']}"
        return replace(target, gpu=gpu["gpu"], compute_capabilities=(gpu["compute_capability"],), driver=driver)

    def _inputs(self, child: ChildEngine, ranges: Sequence[InputRange]) -> dict[str, Array]:
        shapes = {one.name: np.array([one.least, one.best, one.most], np.int64) for one in ranges}
        numbers = [int(name.removeprefix("SM")) for name in self._settings.compute_capabilities]
        own = {
            plan_build.COMPUTE_CAPABILITIES: np.array(numbers, np.int64),
            plan_build.WORKSPACE_MB: np.array(self._settings.workspace_mb, np.int64),
        }
        if unknown := {spec.name for spec in child.inputs} - shapes.keys() - own.keys():
            raise RuntimeFailed(Reason.NO_ENGINE, f"the shapes of {', '.join(sorted(unknown))} are not known")
        return {**shapes, **own}


def beside(model: Path) -> Model:
    """What the package in which the file lies says of it. Raises PackageInvalid."""
    for folder in model.absolute().parents[:5]:
        if (folder / MANIFEST).is_file():
            return model_of(load_manifest(folder), model)
    raise PackageInvalid(f"{model.name} lies in no engine package: no {MANIFEST} in its folder or above")


def model_of(package: EnginePackage, model: Path) -> Model:
    """Shapes as the manifest states them (min, opt, max); a length that it leaves open is that of the first golden case
    at its best, and LEAST to MOST.
    """
    case = _golden_shapes(package)
    ranges = tuple(_range(tensor, case.get(tensor.name, ())) for tensor in package.manifest.inputs)
    return Model(ranges=ranges, precision=_precision(package.manifest, model.name))


def _range(tensor: Tensor, golden: Shape) -> InputRange:
    stated = [getattr(tensor, name, None) for name in ("min", "opt", "max")]
    if all(shape is not None for shape in stated):
        least, best, most = (tuple(shape) for shape in stated if shape is not None)
        return InputRange(name=tensor.name, least=least, best=best, most=most)
    known = len(golden) == len(tensor.shape)
    best = tuple(
        length if length != -1 else (golden[axis] if known else LEAST) for axis, length in enumerate(tensor.shape)
    )
    pairs = list(zip(tensor.shape, best, strict=True))
    return InputRange(
        name=tensor.name,
        least=tuple(min(LEAST, at_best) if length == -1 else length for length, at_best in pairs),
        best=best,
        most=tuple(max(MOST, at_best) if length == -1 else length for length, at_best in pairs),
    )


def _golden_shapes(package: EnginePackage) -> dict[str, Shape]:
    """Of the first case; nothing where it cannot be read: whoever verifies the engine will tell."""
    path = package.folder / package.manifest.golden[0].case
    with suppress(OSError, ValueError, BadZipFile), np.load(path, allow_pickle=False) as case:
        return {name: tuple(case[name].shape) for name in case.files}
    return {}


def _precision(manifest: Manifest, file: str) -> str:
    """The name of the variant that the file is; "model": the package's own."""
    variants = getattr(manifest, "variants", {})
    return next((str(name) for name, variant in variants.items() if Path(variant.file).name == file), "model")


class _Teller:
    """Passes on how far a build is, each time that it is asked whether to withdraw it: never by itself."""

    def __init__(self, child: ChildEngine, progress: Progress) -> None:
        self._child, self._progress = child, progress
        self._last = ("build", 0, 0)

    def __call__(self) -> bool:
        for line in self._child.printed():
            kind, *rest = line.split("\t")
            if kind == plan_build.PROGRESS and len(rest) == 3 and rest[0].isdigit() and rest[1].isdigit():
                self._last = rest[2], int(rest[0]), int(rest[1])
        self._progress(*self._last)
        return False


def _kept(folder: Path, target: Target, plan: Array) -> BuiltPlan:
    try:
        return plan_store.keep(folder, target, np.ascontiguousarray(plan).data)
    except PlanRefused as error:
        raise RuntimeFailed(Reason.ENGINE_FAILED, f"{target.library} built something else: {error}") from error
    except OSError as error:
        raise RuntimeFailed(Reason.NO_ROOM, f"the plan cannot be written: {error.strerror}") from error


def _system() -> str:
    """Operating system and processor: a plan is not carried over an upgrade of either."""
    with suppress(OSError):
        release = platform.freedesktop_os_release()
        return f"{release['ID']} {release.get('VERSION_ID', '')} {platform.machine()}"
    return f"{platform.system()} {platform.machine()}"
