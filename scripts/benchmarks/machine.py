"""Facts of the machine a benchmark ran on, without which its figures mean nothing."""

import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.report import BenchError, quantile

SYNCS = 40
LOOK_S = 1.0
GB = 10**9
IN_MEMORY = ("tmpfs", "ramfs")


def facts(folder: Path) -> dict[str, str | float | int]:
    """Of this machine, and of the disk under `folder`."""
    syncs = _sync_times_ms(folder)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "busy_before": round(_busy_share(), 2),
        "file_system": file_system(folder),
        "fdatasync_ms": round(statistics.median(syncs), 2),
        "fdatasync_p99_ms": round(quantile(syncs, 0.99), 2),
    }


def file_system(folder: Path) -> str:
    """Its type, as mounted."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def need_disk(folder: Path, wanted: float) -> None:
    """Raises BenchError unless so many bytes are free, and on a disk: memory would make every sync free of charge."""
    if (kind := file_system(folder)) in IN_MEMORY:
        raise BenchError(f"{folder} is a {kind}: syncs cost nothing there. Set TMPDIR to a folder on a disk")
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise BenchError(f"{free / GB:.1f} GB free at {folder}, {wanted / GB:.1f} GB are needed. TMPDIR moves it")


def _sync_times_ms(folder: Path) -> list[float]:
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(SYNCS):
            begun = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    return times


def _busy_share() -> float:
    """How much of the processor others take just now, 0 to 1: what they take is missing in every figure."""
    idle, total = _processor_time()
    time.sleep(LOOK_S)
    idle_after, total_after = _processor_time()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def _processor_time() -> tuple[int, int]:
    """Ticks idle, waiting for disks included, and in all (proc_stat(5))."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
