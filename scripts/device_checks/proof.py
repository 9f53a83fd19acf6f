"""One model of one engine on this machine's GPU: its plan built, its golden cases compared, its time and memory taken.

And where there is no GPU: what can be built all the same.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.report import quantile

from appliance.engine_package import EnginePackage
from appliance.errors import RuntimeFailed
from appliance.ports import Array
from appliance.runtimes.builder import BuildSettings, TensorRtBuilder
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings

BUILD_DEADLINE_S = 3600.0  # on the smallest Jetson
RUN_DEADLINE_S = 120.0
WARM_UP = 20
OFFLINE = ("SM86", "SM89", "SM120")

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model file of a package; tolerances of None are those of each golden case."""

    package: EnginePackage
    file: str
    atol: float | None = None
    rtol: float | None = None

    @property
    def name(self) -> str:
        return f"{self.package.manifest.id}/{self.file}"

    @property
    def path(self) -> Path:
        return self.package.folder / self.file

    @property
    def sha256(self) -> str:
        return self.package.manifest.files[self.file]


@dataclass(slots=True, kw_only=True)
class Row:
    """What was found; None: not done."""

    engine: str
    fault: str = ""
    built_for: str = ""
    build_s: float | None = None
    plan_mb: float | None = None
    golden_cases: int = 0  #: that agreed
    max_difference: float | None = None
    p50_ms: float | None = None  #: from arrays to arrays in the child: copies and kernels
    p99_ms: float | None = None
    call_p50_ms: float | None = None  #: as the daemon waits for it
    host_mb: float | None = None  #: the most that the child had
    how: str = ""  #: by a CUDA graph or not, and memory on the GPU


def models(package: EnginePackage) -> Iterator[Model]:
    yield Model(package=package, file=package.manifest.model)
    for variant in getattr(package.manifest, "variants", {}).values():
        if variant.file != package.manifest.model:
            yield Model(package=package, file=variant.file, atol=variant.atol, rtol=variant.rtol)


def prove(model: Model, python: Path, folder: Path, runs: int, told: Told) -> Row:
    """Build, load, compare, measure."""
    row = Row(engine=model.name)
    try:
        plan = _build(model, BuildSettings(interpreter=python), folder, row, told)
        runtime = ChildRuntime(ChildSettings(interpreter=python, runtime="tensorrt", load_deadline_s=RUN_DEADLINE_S))
        with closing(runtime.load(plan, hashlib.sha256(plan.read_bytes()).hexdigest())) as engine:
            examine(model, engine, row, runs)
    except (RuntimeFailed, OSError, ValueError, KeyError) as error:
        row.fault = str(error)
    return row


def examine(model: Model, engine: ChildEngine, row: Row, runs: int) -> None:
    """Hold a loaded engine against its golden cases, then measure it. Raises ValueError where it differs."""
    _compare(model, engine, row)
    _measure(model, engine, row, runs)


def build_offline(model: Model, python: Path, folder: Path, told: Told) -> Row:
    """For GPUs that are not here, by TensorRT-RTX."""
    row = Row(engine=model.name)
    try:
        _build(model, BuildSettings(interpreter=python, compute_capabilities=OFFLINE), folder, row, told)
    except RuntimeFailed as error:
        row.fault = str(error)
    return row


def _build(model: Model, settings: BuildSettings, folder: Path, row: Row, told: Told) -> Path:
    builder = TensorRtBuilder(settings)
    started = time.monotonic()
    plan = builder.build(
        model.path,
        model.sha256,
        folder / hashlib.sha256(model.name.encode()).hexdigest()[:16],
        lambda phase, step, steps: told(f"{model.name}: {phase} {step} of {steps}"),
        BUILD_DEADLINE_S,
    )
    row.build_s = round(time.monotonic() - started, 1)
    row.plan_mb = round(plan.path.stat().st_size / 1e6, 2)
    row.built_for = " ".join(settings.compute_capabilities) or "this GPU"
    return plan.path


def _compare(model: Model, engine: ChildEngine, row: Row) -> None:
    row.max_difference = 0.0
    for golden in model.package.manifest.golden:
        inputs, wanted = _case(model.package, golden.case)
        got = engine.infer(inputs, RUN_DEADLINE_S)
        atol = golden.atol if model.atol is None else model.atol
        rtol = golden.rtol if model.rtol is None else model.rtol
        for name, want in wanted.items():
            if got[name].shape != want.shape or not np.isfinite(got[name]).all():
                raise ValueError(f"{golden.case}: {name} is no answer of this engine")
            difference = np.abs(got[name].astype(np.float64) - want.astype(np.float64))
            row.max_difference = max(row.max_difference, float(difference.max(initial=0.0)))
            if (difference > atol + rtol * np.abs(want.astype(np.float64))).any():
                raise ValueError(f"{golden.case}: {name} differs by {difference.max():.3g}, more than it may")
        row.golden_cases += 1


def _measure(model: Model, engine: ChildEngine, row: Row, runs: int) -> None:
    inputs, _ = _case(model.package, model.package.manifest.golden[0].case)
    inside, outside = [], []
    for _ in range(WARM_UP + runs):
        started = time.perf_counter()
        engine.infer(inputs, RUN_DEADLINE_S)
        outside.append((time.perf_counter() - started) * 1000)
        inside.append(engine.last_run_ms)
    row.p50_ms, row.p99_ms = (round(quantile(inside[WARM_UP:], part), 3) for part in (0.5, 0.99))
    row.call_p50_ms = round(quantile(outside[WARM_UP:], 0.5), 3)
    row.how = engine.last_note
    row.host_mb = _most_memory_mb(engine.pid)


def _case(package: EnginePackage, name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs of a golden case."""
    outputs = {tensor.name for tensor in package.manifest.outputs}
    with np.load(package.folder / name, allow_pickle=False) as case:
        arrays = {key: case[key] for key in case.files}
    return (
        {key: array for key, array in arrays.items() if key not in outputs},
        {key: array for key, array in arrays.items() if key in outputs},
    )


def _most_memory_mb(pid: int | None) -> float | None:
    if pid is None:
        return None
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
