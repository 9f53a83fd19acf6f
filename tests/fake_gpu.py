"""A simulated GPU: what PyCUDA, cuda-bindings, libcuda and TensorRT offer of one, as far as the runtime uses it.

As on a real one, what is queued on a stream is done only when somebody waits for it; memory must be pinned, a graph is
what was queued while it was captured, and every call is noted. The engine is y = 2 * x, float32 of any length by 2.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

STREAM = 0x57
PLAN = b"plan: y = 2 x"
MOST_ROWS = 8

Work = Callable[[], None]


@dataclass
class FakeGpu:
    """The one GPU; `calls` are the names of what was asked of it, in order."""

    calls: list[str] = field(default_factory=list)
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None  #: None: not capturing
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    free: int = 1 << 30
    fault: str = ""  #: the call that fails

    def note(self, call: str) -> bool:
        """Whether it works."""
        self.calls.append(call)
        return call != self.fault

    def put(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def allocate(self, size: int) -> int:
        array = np.full(size, 0xFF, np.uint8)  # so that what was not copied shows
        self.memory[array.ctypes.data] = array
        self.free -= size
        return array.ctypes.data

    def copy(self, target: int, source: int, size: int) -> None:
        for address in (target, source):
            owner = max(start for start in self.memory if start <= address)
            assert address + size <= owner + self.memory[owner].nbytes
        ctypes.memmove(target, source, size)

    def synchronise(self) -> None:
        assert self.captured is None, "waited while capturing"
        work, self.queue = self.queue, []
        for one in work:
            one()


class FakePyCuda:
    """pycuda.driver."""

    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})
    event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def _do(self, call: str) -> None:
        if not self._gpu.note(call):
            raise (self.MemoryError if "alloc" in call else self.Error)(f"{call} failed")

    def init(self) -> None:
        self._do("init")

    def Device(self, _number: int) -> Any:  # noqa: N802 - as it is named
        context = SimpleNamespace(push=lambda: self._do("push"), pop=lambda: self._do("pop"))
        return SimpleNamespace(retain_primary_context=lambda: context)

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=STREAM)

    def Event(self, flags: int) -> Any:  # noqa: N802
        assert flags == 3
        return SimpleNamespace(record=lambda _stream: self._do("record"), synchronize=self._synchronize)

    def _synchronize(self) -> None:
        self._do("synchronize")
        self._gpu.synchronise()

    def pagelocked_empty(self, size: int, dtype: type) -> np.ndarray:
        self._do("pinned_alloc")
        address = self._gpu.allocate(size)
        self._gpu.pinned.add(address)
        return self._gpu.memory[address].view(dtype)

    def mem_alloc(self, size: int) -> int:
        self._do("mem_alloc")
        return self._gpu.allocate(size)

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        assert stream.handle == STREAM
        assert source.ctypes.data in self._gpu.pinned
        self._do(f"copy in {source.nbytes}")
        self._gpu.put(lambda: self._gpu.copy(target, source.ctypes.data, source.nbytes))

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        assert stream.handle == STREAM
        assert target.ctypes.data in self._gpu.pinned
        self._do(f"copy out {target.nbytes}")
        self._gpu.put(lambda: self._gpu.copy(target.ctypes.data, source, target.nbytes))

    def mem_get_info(self) -> tuple[int, int]:
        return self._gpu.free, 1 << 30


class CudaError(IntEnum):
    cudaSuccess = 0  # noqa: N815 - as it is named
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


class FakeCudaBindings:
    """cuda.bindings.runtime."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaEventBlockingSync, cudaEventDisableTiming, cudaHostAllocDefault = 1, 2, 0  # noqa: N815
    cudaError_t = CudaError  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def _answer(self, call: str, *values: Any) -> tuple[Any, ...]:
        if self._gpu.note(call):
            return CudaError.cudaSuccess, *values
        out_of = CudaError.cudaErrorMemoryAllocation if "alloc" in call else CudaError.cudaErrorIllegalAddress
        return out_of, *(None for _ in values)

    def cudaSetDevice(self, _number: int) -> Any:  # noqa: N802
        return self._answer("init")

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return self._answer("stream", STREAM)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == 3
        return self._answer("event", "event")

    def cudaHostAlloc(self, size: int, _flags: int) -> Any:  # noqa: N802
        address = self._gpu.allocate(size)
        self._gpu.pinned.add(address)
        return self._answer("pinned_alloc", address)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self._answer("mem_alloc", self._gpu.allocate(size))

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:  # noqa: N802
        assert stream == STREAM
        assert (source if kind == 1 else target) in self._gpu.pinned
        self._gpu.put(lambda: self._gpu.copy(target, source, size))
        return self._answer(f"copy {'in' if kind == 1 else 'out'} {size}")

    def cudaEventRecord(self, _event: str, stream: int) -> Any:  # noqa: N802
        assert stream == STREAM
        return self._answer("record")

    def cudaEventSynchronize(self, _event: str) -> Any:  # noqa: N802
        answer = self._answer("synchronize")
        self._gpu.synchronise()
        return answer

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return CudaError.cudaSuccess, self._gpu.free, 1 << 30


class FakeDriver:
    """libcuda, for graphs: functions that return a code and write through pointers."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def _code(self, call: str) -> int:
        return 0 if self._gpu.note(call) else 900

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: int) -> int:  # noqa: N802
        assert (stream.value, mode) == (STREAM, 1)
        code = self._code("capture")
        if not code:
            self._gpu.captured = []
        return code

    def cuStreamEndCapture(self, _stream: ctypes.c_void_p, graph: Any) -> int:  # noqa: N802
        work, self._gpu.captured = self._gpu.captured, None
        assert work is not None
        number = len(self._gpu.graphs) + 1
        self._gpu.graphs[number] = work
        graph._obj.value = number
        return self._code("end capture")

    def cuGraphInstantiateWithFlags(self, ready: Any, graph: ctypes.c_void_p, _flags: Any) -> int:  # noqa: N802
        ready._obj.value = graph.value
        return self._code("instantiate")

    def cuGraphDestroy(self, _graph: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuGraphLaunch(self, ready: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert stream.value == STREAM
        for work in self._gpu.graphs[ready.value or 0]:
            self._gpu.put(work)
        return self._code("launch")

    def cuGraphExecDestroy(self, ready: ctypes.c_void_p) -> int:  # noqa: N802
        del self._gpu.graphs[ready.value or 0]
        return self._code("forget graph")


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class FakeTensorRt:
    """The module tensorrt."""

    __name__ = "tensorrt"
    __version__ = "10.3.0"
    ILogger = _Logger
    TensorLocation = SimpleNamespace(DEVICE=0, HOST=1)
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)

    def __init__(
        self, gpu: FakeGpu, location: int = 0, dtype: str = "FLOAT", weights: int = 0, scratch: int = 0
    ) -> None:
        self.gpu, self.location, self.dtype = gpu, location, dtype
        self.weights, self.scratch = weights, scratch  # bytes of the GPU's memory

    def Runtime(self, logger: _Logger) -> Any:  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._engine(plan, logger))

    def _engine(self, plan: bytes, logger: _Logger) -> "FakeEngine | None":
        if plan == PLAN:
            self.gpu.free -= self.weights
            return FakeEngine(self, logger)
        logger.log(_Logger.WARNING, "not this")
        logger.log(_Logger.ERROR, "magicTag\n does not match")
        return None


@dataclass
class FakeEngine:
    trt: FakeTensorRt
    logger: _Logger
    num_io_tensors: int = 2

    @property
    def device_memory_size_v2(self) -> int:
        return self.trt.scratch

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_dtype(self, _name: str) -> Any:
        return SimpleNamespace(name=self.trt.dtype)

    def get_tensor_location(self, _name: str) -> int:
        return self.trt.location

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name == "x" else 2

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, 2)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("x", 0)
        return [(1, 2), (2, 2), (MOST_ROWS, 2)]

    def create_execution_context(self) -> "FakeContext":
        self.trt.gpu.free -= self.trt.scratch
        self.trt.gpu.note("context")
        return FakeContext(self.trt.gpu, self.logger)


class FakeContext:
    def __init__(self, gpu: FakeGpu, logger: _Logger) -> None:
        self._gpu, self._logger = gpu, logger
        self._shape: tuple[int, ...] = (-1, 2)
        self._address: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._shape = tuple(shape)
        return self._gpu.note(f"shape {name} {self._shape}")

    def infer_shapes(self) -> list[str]:
        return ["x"] if -1 in self._shape else []

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self._gpu.memory
        assert address not in self._gpu.pinned
        self._address[name] = address
        return self._gpu.note(f"place {name}")

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        rows, x, y = self._shape[0], self._gpu.memory[self._address["x"]], self._gpu.memory[self._address["y"]]
        self._gpu.put(lambda: _double(x, y, rows * 2))
        if self._gpu.note("execute"):
            return True
        self._logger.log(_Logger.ERROR, "enqueue failed")
        return False


def _double(x: np.ndarray, y: np.ndarray, count: int) -> None:
    y.view(np.float32)[:count] = 2 * x.view(np.float32)[:count]
