"""ONNX Runtime on the CPU, inside the runtime child. Imported by `child.py` by path; 3.10-clean like it.

The model is given as bytes and must be whole: weights in other files would be bytes that nobody hashed.
"""

import platform
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as binding

Array = NDArray[np.generic]
Spec = Dict[str, Any]

_ERROR_ONLY = 3
_NO_MEMORY = "bad_alloc"
_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(bool)": "bool",
}
# ONNX Runtime's exceptions share no base of their own.
_ERRORS = tuple(kind for kind in vars(binding).values() if isinstance(kind, type) and issubclass(kind, Exception))


class OnnxCpu:
    """The child's Backend: one session, run by the calling thread and `threads - 1` others that sleep in between."""

    def __init__(self, threads: int) -> None:
        self.version: str = ort.__version__
        self.device = f"CPU ({_processor()})"
        self._threads = threads
        self._session: ort.InferenceSession
        self._outputs: List[str] = []

    def load(self, model: bytes) -> Tuple[List[Spec], List[Spec]]:
        try:
            self._session = ort.InferenceSession(model, _options(self._threads), providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise ValueError(_text(error)) from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        return _specs(self._session.get_inputs()), _specs(self._session.get_outputs())

    def run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except _ERRORS as error:
            if _NO_MEMORY in str(error):
                raise MemoryError(_text(error)) from error
            raise RuntimeError(_text(error)) from error


def open_backend(threads: int) -> OnnxCpu:
    """What `child.py` calls."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(_ERROR_ONLY)
    return OnnxCpu(threads)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERROR_ONLY
    options.enable_cpu_mem_arena = False  # it grows by doubling, and keeps what one large CT took
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves receive and forward
    return options


def _specs(arguments: List[Any]) -> List[Spec]:
    """Raises ValueError for what is no plain tensor."""
    for argument in arguments:
        if argument.type not in _DTYPES:
            raise ValueError(f"{argument.name} is a {argument.type}: only tensors of numbers can be passed")
    return [
        {
            "name": argument.name,
            "dtype": _DTYPES[argument.type],
            "shape": [length if isinstance(length, int) else -1 for length in argument.shape],
        }
        for argument in arguments
    ]


def _text(error: Exception) -> str:
    return " ".join(str(error).split())


def _processor() -> str:
    """The model name as x86 Linux gives it, or a board's device tree (Jetson), or the architecture."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    board = Path("/proc/device-tree/model")
    return board.read_text(encoding="utf-8").strip("\0 \n") if board.exists() else platform.machine()
