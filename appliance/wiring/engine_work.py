"""What proves a release of an engine before it serves: check, build, verify. Each ends in a step of the store.

All of it runs in runtime children, as a study does, with the configuration's memory limit; none of it is on a study's
way. A release that is found wrong is refused in the store: it serves no more until it is checked anew.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from appliance import __version__
from appliance.config import Config
from appliance.engine_package import EnginePackage
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused, PackageInvalid, PlanRefused, RuntimeCancelled, RuntimeFailed, StoreFailed
from appliance.imaging import golden
from appliance.imaging.golden import Tolerance
from appliance.ports import BuiltPlan
from appliance.runtimes import plan_store
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from appliance.states import Event
from appliance.wiring.common import MB
from appliance.wiring.compiler import Compiler, compiler
from appliance.wiring.engine_timing import Measured, Progress, measure
from appliance.wiring.model_files import FP32, MODEL, ModelFile, io_fault, model_file, model_files
from appliance.wiring.releases import engine_store

Phases = Callable[[str, int, int], None]  #: how far a build is: the phase, steps done, of how many

PLAN_GROWTH, PLAN_MB = 2, 16  # of a plan beside its model: what it may need on the disk


def _fp32(_: str) -> str:
    return FP32


def unlimited(_: int) -> None:
    """A `check_room` that lets everything be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One model file of a package, right on all golden cases."""

    precision: str  #: "model", or the name of a variant
    file: str
    runtime: str
    runtime_version: str
    device: str


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
    at: str
    plan: str = ""  #: file name of the plan that it was proved on; "": on the model itself, by the processor
    plan_sha256: str = ""
    plan_key: str = ""
    precision: str = MODEL  #: or the variant that the plan was compiled from
    not_its_plan: str = ""  #: why not on the plan that was built once
    appliance: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where releases are worked on, and who answers for it."""

    store: EngineStore
    runtime: ChildRuntime
    by: str
    compiler: Compiler | None = None  #: None: nothing is compiled here
    check_room: Callable[[int], None] = unlimited  #: raises EngineRefused where so many bytes are wanted for images
    precision_of: Callable[[str], str] = _fp32  #: engine id -> that of its plan

    def precisions(self, engine_id: str) -> list[str]:
        """Of its plan: what the site asks for, and what it gets where that cannot be had."""
        return list(dict.fromkeys((self.precision_of(engine_id), FP32)))

    def check(self, named: Named, progress: Progress) -> list[Checked]:
        """Every model file, on ONNX Runtime on the processor: numbers within tolerances, and the same findings.

        Raises PackageInvalid, EngineRefused where it is not right, RuntimeFailed where no runtime is there.
        """
        with self._refusing(named), self.store.using(named):
            package = self.store.load(named)
            models = list(model_files(package))
            found = []
            for done, model in enumerate(models):
                progress(done, len(models))
                found.append(self._checked(package, model))
            progress(len(models), len(models))
        self.store.step(named, Event.VALIDATE, self.by, ", ".join(one.precision for one in found))
        return found

    def _checked(self, package: EnginePackage, model: ModelFile) -> Checked:
        with closing(self.runtime.load(model.path, model.sha256)) as child:
            if fault := io_fault(package, child) or golden.fault(package, child, model.tolerance):
                raise EngineRefused(f"{model.name}: {fault}")
            return Checked(
                precision=model.precision,
                file=model.name,
                runtime=child.runtime,
                runtime_version=child.runtime_version,
                device=child.device,
            )

    def build(self, named: Named, progress: Phases, deadline_s: float, precision: str = "") -> BuiltPlan:
        """Compile it for this device. What serves goes on meanwhile. Raises EngineRefused, RuntimeFailed.

        `precision`: another than the site asks for. What `progress` raises ends it, and is raised.
        """
        if named.stage is None:
            raise EngineRefused(
                f"{named} is not imported: plans are kept with what is. First `scanside engines import`"
            )
        with self.store.using(named, plans=True):
            return self._build(named, progress, deadline_s, precision or self.precision_of(named.engine_id))

    def _build(self, named: Named, progress: Phases, deadline_s: float, precision: str) -> BuiltPlan:
        self.store.check_ready(named, Event.BUILD)
        reason = self.compiler.builder.probe() if self.compiler else "nothing here compiles engines"
        if self.compiler is None or reason:
            raise EngineRefused(f"{named} cannot be compiled here: {reason}. It goes on being served by the processor")
        builder, package = self.compiler.builder, self.store.load(named)
        model = model_file(package, precision)
        self.check_room(PLAN_GROWTH * model.path.stat().st_size + PLAN_MB * MB)
        folder = self.store.plans(named)
        plan = builder.build(model.path, model.sha256, folder, progress, deadline_s)
        with plan.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != plan.sha256 or folder not in plan.path.parents:
            raise EngineRefused(f"{plan.path.name}: the builder says of it what does not hold")
        also = {"plan": str(plan.path.relative_to(folder)), "plan_sha256": plan.sha256, "plan_key": plan.key}
        self.store.step(named, Event.BUILD, self.by, plan.key, **also)
        return plan

    def verify(self, named: Named, progress: Progress, precision: str = "") -> tuple[Verified, Path | None]:
        """Prove it on what will run it, and measure it; the report is durable before the step. None: shipped.

        That is its plan, where one was built for this machine as it is now, else the processor. A plan that is found
        wrong is refused, and the release is as it was. `precision`: of the plan, no other will do. What `progress`
        raises as RuntimeCancelled ends it.

        Raises PackageInvalid, EngineRefused where it is not right, RuntimeFailed where no runtime is there.
        """
        with self.store.using(named, plans=True):
            return self._verify(named, progress, [precision] if precision else self.precisions(named.engine_id))

    def _verify(self, named: Named, progress: Progress, precisions: Sequence[str]) -> tuple[Verified, Path | None]:
        self.store.check_ready(named, Event.VERIFY)
        with self._refusing(named):
            package = self.store.load(named)
        report = self._proved(named, package, progress, precisions)
        if named.stage is None:
            return report, None
        path = self.store.write_report(named, json.dumps(asdict(report), indent=1).encode() + b"\n")
        measured = report.measured
        times = f"p50 {measured.p50_ms:g} ms, p99 {measured.p99_ms:g} ms, by {report.runtime} {report.plan}".rstrip()
        self.store.step(named, Event.VERIFY, self.by, times)
        return report, path

    def _proved(self, named: Named, package: EnginePackage, progress: Progress, precisions: Sequence[str]) -> Verified:
        """On the first plan that is there, else on the processor."""
        why_not = ""
        for precision in precisions:
            plan, why = self.plan(named, package, precision)
            if plan is not None:
                report = self._verified_on(plan, named, package, model_file(package, precision), progress)
                return replace(report, not_its_plan=why_not)
            why_not = why_not or why
        with self._refusing(named), closing(self.runtime.load(package.model_path, package.model_sha256)) as child:
            return replace(self._verified(named, package, child, progress), not_its_plan=why_not)

    def plan(self, named: Named, package: EnginePackage, precision: str) -> tuple[BuiltPlan | None, str]:
        """The plan for this machine as it is now, or why the one that was built once cannot be used."""
        release = self.store.book(named.engine_id).releases.get(named.release)
        if self.compiler is None or release is None or not release.plan_key:
            return None, ""
        try:
            model = model_file(package, precision)
            found = self.compiler.builder.find(model.path, model.sha256, self.store.plans(named))
        except (EngineRefused, PlanRefused, RuntimeFailed) as error:
            return None, str(error)
        return found, ""

    def refuse_plan(self, named: Named, plan: BuiltPlan, why: str) -> str:
        """It is found no more, and history says why; the release is as it was. Returns why it is still there, or "".

        Raises OutOfResources; StoreFailed where the disk failed. A file that cannot be removed is no such thing.
        """
        words = f"{plan.path.name}, sha256 {plan.sha256}: {why}"
        self.store.note(named.engine_id, named.release, self.by, "plan_refused", words)
        try:
            plan_store.drop(plan)
        except OSError as error:
            what = f"{error.filename or plan.path} cannot be removed: {error.strerror}"
            if error.errno == errno.EIO:
                raise StoreFailed(what) from error
            return what
        return ""

    def _verified_on(
        self, plan: BuiltPlan, named: Named, package: EnginePackage, model: ModelFile, progress: Progress
    ) -> Verified:
        """A plan that does not even run is not refused: it may be the GPU's memory, or its driver."""
        if self.compiler is None:
            raise EngineRefused("nothing here runs plans")
        try:
            with closing(self.compiler.runtime.load(plan.path, plan.sha256)) as child:
                report = self._verified(named, package, child, progress, model.tolerance)
        except RuntimeCancelled:
            raise
        except RuntimeFailed as error:
            raise EngineRefused(f"{plan.path.name}, the plan of {named}, does not run: {error}") from error
        except EngineRefused as error:
            stays = self.refuse_plan(named, plan, str(error))
            what = "; ".join(part for part in (str(error), stays) if part)
            raise EngineRefused(
                f"{plan.path.name}, the plan of {named}, is not right and is refused: {what}. The release is not:"
                f" `scanside engines build {named}` compiles it anew, `verify` proves it on the processor"
            ) from error
        return replace(
            report,
            model_sha256=model.sha256,
            precision=model.precision,
            plan=plan.path.name,
            plan_sha256=plan.sha256,
            plan_key=plan.key,
        )

    def _verified(
        self,
        named: Named,
        package: EnginePackage,
        child: ChildEngine,
        progress: Progress,
        tolerance: Tolerance | None = None,
    ) -> Verified:
        """`tolerance`: of a variant. Raises EngineRefused where it is not right, RuntimeFailed."""
        if fault := io_fault(package, child) or golden.fault(package, child, tolerance):
            raise EngineRefused(fault)
        return Verified(
            release=str(named),
            package_sha256=package.package_sha256,
            model_sha256=package.model_sha256,
            runtime=child.runtime,
            runtime_version=child.runtime_version,
            device=child.device,
            golden_cases=len(package.manifest.golden),
            measured=measure(package, child, progress),
            at=self.store.now(),
        )

    @contextmanager
    def _refusing(self, named: Named) -> Iterator[None]:
        """What is found wrong is refused, unless it is the runtime that is missing. What serves is the daemon's."""
        try:
            yield
        except RuntimeCancelled:
            raise
        except (PackageInvalid, EngineRefused, RuntimeFailed) as error:
            if isinstance(error, RuntimeFailed) and (reason := self.runtime.probe()):
                raise EngineRefused(f"no engine can run here: {reason}") from error
            why = str(error).partition("\n")[0]
            if not self.store.serves(named):
                self.store.step(named, Event.REFUSE, self.by, why)
            raise EngineRefused(f"{named} is not right: {error}") from error


def workshop(config: Config, by: str) -> Workshop:
    return Workshop(
        store=engine_store(config),
        runtime=child_runtime(config),
        by=by,
        compiler=compiler(config),
        check_room=check_room(config, config.store_dir),
        precision_of=partial(_precision_of, config),
    )


def _precision_of(config: Config, engine_id: str) -> str:
    options = config.engine(engine_id)
    return options.precision if options else FP32


def child_runtime(config: Config) -> ChildRuntime:
    """The runtime that is everywhere: ONNX Runtime on the processor."""
    return ChildRuntime(
        ChildSettings(
            interpreter=Path(config.analyse.python or sys.executable),
            threads=config.analyse.threads,
            memory_mb=config.analyse.memory_mb,
        )
    )


def check_room(config: Config, folder: Path) -> Callable[[int], None]:
    """What is kept of engines must leave the reserve that images need (P5)."""

    def check(size: int) -> None:
        room = os.statvfs(next(one for one in (folder, *folder.parents) if one.exists()))
        left = room.f_bavail * room.f_frsize - size - config.reserve.free_mb * MB
        if left < 0:
            raise EngineRefused(
                f"it needs {size / MB:.0f} MB, and {-left / MB:.0f} MB are wanting if the reserve for images"
                " is to be kept (reserve.free_mb): make room first"
            )

    return check
