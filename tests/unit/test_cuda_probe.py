"""The probe of driver and GPU: whatever goes wrong is a reason in words, and never a crash of who asks."""

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from appliance.runtimes import cuda_probe
from appliance.runtimes.cuda_memory import CudaBindings
from tests.missing import missing


class FakeDriver:
    """libcuda, simulated: one Orin."""

    def __init__(self, count: int = 1, **codes: int) -> None:
        self._count, self._codes = count, codes

    def _code(self, name: str) -> int:
        return self._codes.get(name, 0)

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - as it is named
        return self._code("cuInit")

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._count
        return self._code("cuDeviceGetCount")

    def cuDeviceGet(self, _device: Any, number: int) -> int:  # noqa: N802
        assert number == 0
        return 0

    def cuDeviceGetName(self, name: "ctypes.Array[ctypes.c_char]", _size: int, _device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, _device: Any) -> int:  # noqa: N802
        memory._obj.value = 8 << 30
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12060
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def look(driver: Any) -> dict[str, Any]:
    return cuda_probe.look(lambda _name: driver)


def test_simulated_what_a_gpu_is() -> None:
    facts = look(FakeDriver())
    facts.pop("driver")  # this machine's
    expected = {"reason": "", "gpu": "Orin", "compute_capability": "SM87", "memory_mb": 8192, "cuda": "12.6"}
    assert facts == expected


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (FakeDriver(cuInit=100), "the NVIDIA driver cannot be used: cuInit failed: no CUDA device (100)"),
        (FakeDriver(cuInit=3), "the NVIDIA driver cannot be used: cuInit failed: error (3)"),
        (FakeDriver(count=0), "the NVIDIA driver is there, but no GPU"),
        (object(), "the NVIDIA driver cannot be used: 'object' object has no attribute 'cuInit'"),
    ],
)
def test_simulated_what_is_wrong_with_a_driver(driver: Any, reason: str) -> None:
    assert look(driver) == {"reason": reason}


def test_no_driver_at_all() -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert cuda_probe.look(absent)["reason"] == "no NVIDIA driver: libcuda.so.1: cannot open shared object file"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "the NVIDIA driver crashed who asked it (signal 11)"),
        ("echo not JSON; echo a traceback >&2", "the probe answered nonsense: a traceback"),
        ("echo []", "the probe answered nonsense: "),
        ("echo '{\"reason\": 1}'", "the probe answered nonsense"),
        ('echo \'{"reason": "", "gpu": "x"}\'', ""),
    ],
)
def test_whatever_the_child_does_there_is_an_answer(tmp_path: Path, script: str, reason: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    assert cuda_probe.ask(str(python))["reason"] == reason


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    assert cuda_probe.ask(str(tmp_path / "python"))["reason"].endswith("cannot be started: No such file or directory")


def test_the_real_probe_answers() -> None:
    facts = cuda_probe.ask()
    assert facts["reason"] or facts["gpu"]


@pytest.mark.parametrize(
    ("module", "board", "releases"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n", "", ("550.54.14", "")),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n",
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            ("540.4.0", "L4T R36.4.3"),
        ),
        ("", "", ("", "")),
        ("nonsense", "nonsense", ("", "")),
    ],
)
def test_releases_of_driver_and_board(tmp_path: Path, module: str, board: str, releases: tuple[str, str]) -> None:
    (tmp_path / "module").write_text(module)
    (tmp_path / "board").write_text(board)
    assert cuda_probe._releases(tmp_path / "module", tmp_path / "board") == releases
    assert cuda_probe._releases(tmp_path / "none", tmp_path / "none") == ("", "")


def test_the_real_cuda_bindings_without_a_driver_are_an_error_with_a_name() -> None:
    if importlib.util.find_spec("cuda") is None:
        missing("no cuda-bindings: pip install '.[tensorrt-rtx]'")
    if not cuda_probe.ask()["reason"]:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="GPU: cudaError"):
        CudaBindings(importlib.import_module("cuda.bindings.runtime"))
