"""What an engine costs a study: milliseconds, memory, and how much of it is ours.

Each engine of engines/ runs in each runtime that works here, in its child, on arrays prepared from a study; in turns
with that, in this process, bare ONNX Runtime with its own defaults and as many threads, on the same arrays. The goal
is on the median of the pairs' ratios: what passing arrays through shared memory, checking them, and our options cost.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from appliance import engine_package
from appliance.engine_package import EnginePackage
from appliance.imaging import analysis
from appliance.imaging.reading import IN_PROCESS
from appliance.ports import Array
from appliance.runtimes.child import RUNTIMES
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from benchmarks.process_tree import Usage
from benchmarks.report import BenchError, Report, quantile
from benchmarks.rig import ROOT, Options, scratch
from benchmarks.studies import Case, cr_case, ct_case

RATIO = 1.15
THREADS = 1  # as the configuration has it where nobody changes it
COMPARED = "onnx"  #: the runtime that bare ONNX Runtime is beside
#: What this benchmark does not measure, and where else that is done.
ELSEWHERE = {
    "kserve": "it takes what a server takes, and the network; scripts/test --full has one",
    "tensorrt": "it runs plans; scripts/device_check builds and measures them on a GPU",
}
DEADLINE_S = 300.0
TABLE = "milliseconds of a run, and most memory of its process"

Inputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long each engine is looked at in a runtime."""

    seconds: float
    pairs: int  #: at least


FULL, QUICK = Length(seconds=90.0, pairs=20), Length(seconds=3.0, pairs=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine, and what it is given."""

    package: EnginePackage
    what: str  #: for people
    inputs: Inputs


@dataclass(slots=True, kw_only=True)
class Measured:
    """In ms, a pair at the same place of `ours` and `bare`; `bare` is empty where nothing is beside it."""

    load: float
    ours: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)  #: the runtime's own run call
    bare: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def ratio(self) -> float:
        """Of ours to bare, the median of the pairs; NaN of none."""
        return median(ours / bare for ours, bare in zip(self.ours, self.bare, strict=True)) if self.bare else np.nan


def run(options: Options) -> Report:
    report, length = Report(), QUICK if options.quick else FULL
    with scratch(options) as folder:
        subjects = _subjects(options, folder)
        for runtime in RUNTIMES:
            if why_not := _why_not(runtime):
                report.notes.append(f"{runtime}: not measured: {why_not}")
                continue
            for subject in subjects:
                tell(report, subject, runtime, measure(subject, runtime, length))
    report.notes += [f"{subject.package.key}: {subject.what}" for subject in subjects]
    report.notes.append(f"{THREADS} thread, the two in turns; the ratio is the median of the pairs'")
    if options.quick:
        report.notes.append("--quick: golden cases instead of studies, few pairs; the goals are meant for the full run")
    return report


def _why_not(runtime: str) -> str:
    return ELSEWHERE.get(runtime) or ChildRuntime(_settings(runtime)).probe()


def _settings(runtime: str) -> ChildSettings:
    return ChildSettings(interpreter=Path(sys.executable), runtime=runtime, threads=THREADS)


def _subjects(options: Options, folder: Path) -> list[Subject]:
    """Every engine of engines/. Raises BenchError where there is no study for one."""
    packages = [engine_package.load(path.parent) for path in sorted((ROOT / "engines").glob("*/engine.yaml"))]
    if options.quick:
        return [golden(package) for package in packages]
    cases: dict[str, Callable[[], Case]] = {
        "CT": lambda: ct_case(options.data, folder / "ct"),
        "CR": lambda: cr_case(options.data, folder / "cr"),
    }
    subjects = []
    for package in packages:
        modality = next((one for one in package.manifest.accepts.modality if one in cases), None)
        if modality is None:
            raise BenchError(f"there is no study for {package.key}: it reads {package.manifest.accepts.modality}")
        case = cases[modality]()
        prepared = analysis.prepare(package, case.files, folder, IN_PROCESS)
        subjects.append(Subject(package=package, what=case.what, inputs=prepared.inputs))
    return subjects


def golden(package: EnginePackage) -> Subject:
    """On the inputs of its first golden case."""
    name = package.manifest.golden[0].case
    with np.load(package.folder / name, allow_pickle=False) as case:
        inputs = {tensor.name: case[tensor.name] for tensor in package.manifest.inputs}
    return Subject(package=package, what=name, inputs=inputs)


def measure(subject: Subject, runtime: str, length: Length) -> Measured:
    begun = time.perf_counter()
    package = subject.package
    with closing(ChildRuntime(_settings(runtime)).load(package.model_path, package.model_sha256)) as engine:
        measured = Measured(load=_ms(begun))
        bare = _bare(package) if runtime == COMPARED else None
        engine.infer(subject.inputs, DEADLINE_S)
        if bare:
            bare(subject.inputs)
        with Usage(_pid(engine)) as usage:
            _rounds(measured, subject.inputs, engine, bare, length)
        measured.peak_mb = usage.peak_mb
    return measured


def _rounds(
    measured: Measured, inputs: Inputs, engine: ChildEngine, bare: Callable[[Inputs], object] | None, length: Length
) -> None:
    """In turns, and in turns with who begins."""

    def ours() -> None:
        begun = time.perf_counter()
        engine.infer(inputs, DEADLINE_S)
        measured.ours.append(_ms(begun))
        measured.inside.append(engine.last_run_ms)

    def beside() -> None:
        if bare is not None:
            begun = time.perf_counter()
            bare(inputs)
            measured.bare.append(_ms(begun))

    until = time.perf_counter() + length.seconds
    while len(measured.ours) < length.pairs or time.perf_counter() < until:
        for one in (ours, beside) if len(measured.ours) % 2 else (beside, ours):
            one()


def _bare(package: EnginePackage) -> Callable[[Inputs], object]:
    """As somebody would use ONNX Runtime who just wants the answer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(package.model_path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def tell(report: Report, subject: Subject, runtime: str, measured: Measured) -> None:
    key = subject.package.key
    report.row(
        TABLE,
        f"{key}, {runtime}",
        runs=len(measured.ours),
        p50=round(quantile(measured.ours, 0.5), 2),
        p99=round(quantile(measured.ours, 0.99), 2),
        inside_p50=round(quantile(measured.inside, 0.5), 2),
        peak_MB=round(measured.peak_mb, 1),
        load=round(measured.load, 1),
    )
    if measured.bare:
        report.row(
            TABLE,
            f"{key}, bare ONNX Runtime",
            runs=len(measured.bare),
            p50=round(quantile(measured.bare, 0.5), 2),
            p99=round(quantile(measured.bare, 0.99), 2),
        )
        report.goal(f"{key}: ours to bare ONNX Runtime", RATIO, round(measured.ratio, 3))


def _pid(engine: ChildEngine) -> int:
    if engine.pid is None:
        raise BenchError("the engine's child is gone")
    return engine.pid


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
