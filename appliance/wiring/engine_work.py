"""What proves a release of an engine before it serves: check, build, verify. Each ends in a step of the store.

All of it runs in runtime children, as a study does, with the configuration's memory limit; none of it is on a study's
way. A release that is found wrong is refused in the store: it serves no more until it is checked anew.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance.config import Config
from appliance.engine_manifest import Tensor
from appliance.engine_package import EnginePackage
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused, PackageInvalid, RuntimeFailed
from appliance.imaging import golden
from appliance.imaging.golden import Tolerance
from appliance.ports import BuiltPlan, PlanBuilder
from appliance.runtimes.channel import TensorSpec
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from appliance.states import Event
from appliance.wiring.releases import engine_store

WARM_UPS = 2
RUNS = 20
MB = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One model file of a package, right on all golden cases."""

    precision: str  #: "model", or the name of a variant
    file: str
    runtime: str
    runtime_version: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How long the first golden case takes, in milliseconds inside the runtime, and how much memory."""

    runs: int
    p50_ms: float
    p99_ms: float
    peak_memory_mb: float  #: of the whole child


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    release: str
    package_sha256: str
    model_sha256: str
    runtime: str
    runtime_version: str
    device: str
    golden_cases: int
    measured: Measured
    plan: str
    at: str
    appliance: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where releases are worked on, and who answers for it."""

    store: EngineStore
    runtime: ChildRuntime
    by: str

    def check(self, named: Named, progress: Progress) -> list[Checked]:
        """Every model file, on ONNX Runtime on the processor: numbers within tolerances, and the same findings.

        Raises PackageInvalid, EngineRefused where it is not right, RuntimeFailed where no runtime is there.
        """
        with self._refusing(named):
            package = self.store.load(named)
            models = list(_models(package))
            found = []
            for done, (precision, file, tolerance) in enumerate(models):
                progress(done, len(models))
                found.append(self._checked(package, precision, file, tolerance))
            progress(len(models), len(models))
        self.store.step(named, Event.VALIDATE, self.by, ", ".join(one.precision for one in found))
        return found

    def _checked(self, package: EnginePackage, precision: str, file: str, tolerance: Tolerance | None) -> Checked:
        with closing(self._loaded(package, file)) as child:
            if fault := _io_fault(package, child) or golden.fault(package, child, tolerance):
                raise EngineRefused(f"{file}: {fault}")
            return Checked(
                precision=precision,
                file=file,
                runtime=child.runtime,
                runtime_version=child.runtime_version,
                device=child.device,
            )

    def build(
        self, named: Named, builder: PlanBuilder, progress: Callable[[str, int, int], None], deadline_s: float
    ) -> BuiltPlan:
        """Compile it for this device. What serves goes on meanwhile. Raises EngineRefused, RuntimeFailed."""
        if named.stage is None:
            raise EngineRefused(
                f"{named} is not imported: plans are kept with what is. First `scanside engines import`"
            )
        if reason := builder.probe():
            raise EngineRefused(f"{named} cannot be compiled here: {reason}. It goes on being served by the processor")
        self.store.check_ready(named, Event.BUILD)
        package = self.store.load(named)
        folder = self.store.plans(named)
        plan = builder.build(package.model_path, package.model_sha256, folder, progress, deadline_s)
        with plan.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != plan.sha256 or folder not in plan.path.parents:
            raise EngineRefused(f"{plan.path.name}: the builder says of it what does not hold")
        also = {"plan": str(plan.path.relative_to(folder)), "plan_sha256": plan.sha256, "plan_key": plan.key}
        self.store.step(named, Event.BUILD, self.by, plan.key, **also)
        return plan

    def verify(self, named: Named, progress: Progress) -> tuple[Verified, Path | None]:
        """Prove it on what will run it, and measure it; the report is durable before the step. None: shipped.

        Raises PackageInvalid, EngineRefused where it is not right, RuntimeFailed where no runtime is there.
        """
        self.store.check_ready(named, Event.VERIFY)
        with self._refusing(named):
            package = self.store.load(named)
            with closing(self._loaded(package, package.manifest.model)) as child:
                if fault := _io_fault(package, child) or golden.fault(package, child):
                    raise EngineRefused(fault)
                measured = _measure(package, child, progress)
                report = Verified(
                    release=str(named),
                    package_sha256=package.package_sha256,
                    model_sha256=package.model_sha256,
                    runtime=child.runtime,
                    runtime_version=child.runtime_version,
                    device=child.device,
                    golden_cases=len(package.manifest.golden),
                    measured=measured,
                    plan="",
                    at=self.store.now(),
                )
        if named.stage is None:
            return report, None
        path = self.store.write_report(named, json.dumps(asdict(report), indent=1).encode() + b"\n")
        self.store.step(named, Event.VERIFY, self.by, f"p50 {measured.p50_ms:g} ms, p99 {measured.p99_ms:g} ms")
        return report, path

    def _loaded(self, package: EnginePackage, file: str) -> ChildEngine:
        return self.runtime.load(package.folder / file, package.manifest.files[file])

    @contextmanager
    def _refusing(self, named: Named) -> Iterator[None]:
        """What is found wrong is refused, unless it is the runtime that is missing. What serves is the daemon's."""
        try:
            yield
        except (PackageInvalid, EngineRefused, RuntimeFailed) as error:
            if isinstance(error, RuntimeFailed) and (reason := self.runtime.probe()):
                raise EngineRefused(f"no engine can run here: {reason}") from error
            why = str(error).partition("\n")[0]
            if not self.store.serves(named):
                self.store.step(named, Event.REFUSE, self.by, why)
            raise EngineRefused(f"{named} is not right: {error}") from error


def workshop(config: Config, by: str) -> Workshop:
    return Workshop(store=engine_store(config), runtime=child_runtime(config), by=by)


def child_runtime(config: Config) -> ChildRuntime:
    """The runtime that is everywhere: ONNX Runtime on the processor."""
    return ChildRuntime(
        ChildSettings(
            interpreter=Path(config.analyse.python or sys.executable),
            threads=config.analyse.threads,
            memory_mb=config.analyse.memory_mb,
        )
    )


def plan_builders(_: Config) -> Sequence[PlanBuilder]:
    """What compiles engines on this machine, best first. The first that can is asked."""
    return ()


def _models(package: EnginePackage) -> Iterator[tuple[str, str, Tolerance | None]]:
    """Precision, file, and tolerance; None: that of each golden case."""
    manifest = package.manifest
    yield "model", manifest.model, None
    for precision, variant in manifest.variants.items():
        yield precision, variant.file, Tolerance(atol=variant.atol, rtol=variant.rtol)


def _io_fault(package: EnginePackage, child: ChildEngine) -> str:
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


def _measure(package: EnginePackage, child: ChildEngine, progress: Progress) -> Measured:
    inputs, _ = golden.read_case(package, package.manifest.golden[0])
    times = []
    for number in range(WARM_UPS + RUNS):
        progress(number, WARM_UPS + RUNS)
        child.infer(inputs, golden.DEADLINE_S)
        if number >= WARM_UPS:
            times.append(child.last_run_ms)
    progress(WARM_UPS + RUNS, WARM_UPS + RUNS)
    times.sort()
    return Measured(
        runs=len(times),
        p50_ms=round(times[len(times) // 2], 2),
        p99_ms=round(times[min(len(times) - 1, int(0.99 * len(times)))], 2),
        peak_memory_mb=round(_peak_bytes(child.pid) / MB, 1),
    )


def _peak_bytes(pid: int | None) -> int:
    """VmHWM, see proc(5); 0 where it is not told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def report_of(store: EngineStore, named: Named) -> dict[str, Any] | None:
    """What `verify` wrote last of a release, or None."""
    try:
        found = json.loads((store.root / named.engine_id / f"{named.release}.verify.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_room(config: Config, folder: Path) -> Callable[[int], None]:
    """An import must leave the reserve that images need (P5)."""

    def check(size: int) -> None:
        room = os.statvfs(next(one for one in (folder, *folder.parents) if one.exists()))
        left = room.f_bavail * room.f_frsize - size - config.reserve.free_mb * MB
        if left < 0:
            raise EngineRefused(
                f"the package needs {size / MB:.0f} MB, and {-left / MB:.0f} MB are wanting if the reserve for images"
                " is to be kept (reserve.free_mb): make room first"
            )

    return check
