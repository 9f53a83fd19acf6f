"""What NVIDIA driver and GPU are there: a program of its own, because a broken driver may crash who asks it.

TensorRT without a working driver hands out objects that crash the process when they are touched, so this is asked
before any of them is made. Run by path it asks the driver library itself (no CUDA toolkit, no package) and prints one
line of JSON. 3.10-clean, like everything that runs in a runtime child.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

LIMIT_S = 20.0
NO_DRIVER = "no NVIDIA driver"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR (cuda.h)
_ERRORS = {100: "no CUDA device", 803: "driver and libcuda do not fit each other", 999: "unknown error"}
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_L4T = Path("/etc/nv_tegra_release")

Facts = Dict[str, Any]


def ask(interpreter: str = sys.executable) -> Facts:
    """The facts of the first GPU, by a child process; raises nothing.

    `reason`: why no GPU can be used, in words, "" if one can. Where it can: `gpu`, its name; `compute_capability`, as
    SM87; `memory_mb`; `cuda`, the version that the driver supports; `driver`, its release and that of Jetson Linux.
    """
    command = [interpreter, "-I", str(Path(__file__).resolve())]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"the NVIDIA driver did not answer within {LIMIT_S:g} s"}
    except OSError as error:
        return {"reason": f"{interpreter} cannot be started: {error.strerror}"}
    if said.returncode < 0:
        return {"reason": f"the NVIDIA driver crashed who asked it (signal {-said.returncode})"}
    try:
        facts = json.loads(said.stdout)
        return facts if isinstance(facts["reason"], str) else {"reason": "the probe answered nonsense"}
    except (ValueError, TypeError, KeyError):
        return {"reason": f"the probe answered nonsense: {said.stderr.strip()[-200:]}"}


def look(open_driver: Callable[[str], Any] = ctypes.CDLL) -> Facts:
    """In this process: whoever calls this may crash."""
    try:
        driver = open_driver("libcuda.so.1")
    except OSError as error:
        return {"reason": f"{NO_DRIVER}: {error}"}
    try:
        _call(driver, "cuInit", 0)
        count, device = ctypes.c_int(), ctypes.c_int()
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            return {"reason": "the NVIDIA driver is there, but no GPU"}
        _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
        return {"reason": "", **_describe(driver, device)}
    except (RuntimeError, AttributeError) as error:
        return {"reason": f"the NVIDIA driver cannot be used: {error}"}


def _describe(driver: Any, device: ctypes.c_int) -> Facts:
    name, memory, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    capability: List[str] = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return {
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": f"SM{''.join(capability)}",
        "memory_mb": memory.value >> 20,
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "driver": " ".join(part for part in _releases(_KERNEL_MODULE, _L4T) if part) or "unknown",
    }


def _releases(kernel_module: Path, l4t: Path) -> Tuple[str, str]:
    """The driver's release and Jetson Linux's; "" where it is not told. They change where the CUDA version stays."""
    module = _first_line(kernel_module).partition("Kernel Module")[2].split()
    board = _first_line(l4t).lstrip("# ").split(",")  # "# R36 (release), REVISION: 4.3, GCID: ..."
    revision = board[1].partition(":")[2].strip() if len(board) > 1 else ""
    major = board[0].partition(" ")[0]
    numbers = [word for word in module if word[0].isdigit()]
    return (numbers[0] if numbers else ""), (f"L4T {major}.{revision}" if revision else "")


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(500).strip()
    except OSError:
        return ""


def _call(driver: Any, function: str, *arguments: Any) -> None:
    """Raises RuntimeError where it fails, AttributeError where the driver has no such function."""
    code = getattr(driver, function)(*arguments)
    if code:
        raise RuntimeError(f"{function} failed: {_ERRORS.get(code, 'error')} ({code})")


if __name__ == "__main__":
    print(json.dumps(look()))  # noqa: T201 - this is its answer
