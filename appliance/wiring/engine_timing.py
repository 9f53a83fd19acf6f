"""How long an engine takes on what runs it, and how much memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.engine_package import EnginePackage
from appliance.imaging import golden
from appliance.runtimes.process import ChildEngine
from appliance.wiring.common import MB

WARM_UPS = 2
RUNS = 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How long the first golden case takes, in milliseconds inside the runtime, and how much memory."""

    runs: int
    p50_ms: float
    p99_ms: float
    peak_memory_mb: float  #: of the whole child


def measure(package: EnginePackage, child: ChildEngine, progress: Progress) -> Measured:
    """Of the first golden case. Raises RuntimeFailed."""
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
