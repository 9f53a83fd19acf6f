"""Memory, streams and events of one GPU behind one small interface, by PyCUDA or by NVIDIA's cuda-bindings.

Neither is imported before it is asked for; both work in CUDA's primary context, which is TensorRT's too. Everything
here belongs to the thread that made it. Waiting for the GPU gives up the processor (a blocking event): a core that
spins is one that receives no images. Buffers live until the process ends: a child has one engine.

Errors: RuntimeError, and MemoryError where there is too little. Not run on a GPU by the tests here; they run it against
stand-ins that note the calls. 3.10-clean.
"""

import atexit
import ctypes
import importlib
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Protocol, Tuple

import numpy as np
from numpy.typing import NDArray

Octets = NDArray[np.uint8]

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_CAPTURES = "cuStreamBeginCapture_v2"


class Cuda(Protocol):
    """One GPU and one stream on it, in the order of which everything happens."""

    name: str

    @property
    def stream(self) -> int:
        """The stream's handle."""
        ...

    def pinned(self, size: int) -> Octets:
        """So many bytes of host memory that the GPU reads and writes itself."""
        ...

    def device(self, size: int) -> int:
        """The address of so many bytes on the GPU."""
        ...

    def copy_in(self, target: int, source: Octets) -> None:
        """From pinned memory to the GPU, queued."""
        ...

    def copy_out(self, target: Octets, source: int) -> None:
        """From the GPU to pinned memory, queued."""
        ...

    def finish(self) -> None:
        """Wait until all that was queued is done. An error of any of it is raised here."""
        ...

    def free_bytes(self) -> int:
        """Of the GPU's memory."""
        ...


class PyCuda:
    """A Cuda by PyCUDA: `driver` is the module pycuda.driver."""

    name = "pycuda"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        with self._told():
            driver.init()
            self._context = driver.Device(0).retain_primary_context()
            self._context.push()
            atexit.register(self._context.pop)  # or PyCUDA aborts the process when it ends
            self._stream = driver.Stream()
            self._done = driver.Event(driver.event_flags.BLOCKING_SYNC | driver.event_flags.DISABLE_TIMING)
        self._kept: List[Any] = []

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def pinned(self, size: int) -> Octets:
        with self._told():
            array: Octets = self._driver.pagelocked_empty(size, np.uint8)
        return array

    def device(self, size: int) -> int:
        with self._told():
            allocation = self._driver.mem_alloc(size)
        self._kept.append(allocation)  # freed when nobody holds it
        return int(allocation)

    def copy_in(self, target: int, source: Octets) -> None:
        with self._told():
            self._driver.memcpy_htod_async(target, source, self._stream)

    def copy_out(self, target: Octets, source: int) -> None:
        with self._told():
            self._driver.memcpy_dtoh_async(target, source, self._stream)

    def finish(self) -> None:
        with self._told():
            self._done.record(self._stream)
            self._done.synchronize()

    def free_bytes(self) -> int:
        with self._told():
            free, _ = self._driver.mem_get_info()
        return int(free)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._driver.MemoryError as error:
            raise MemoryError(f"GPU: {error}") from error
        except self._driver.Error as error:
            raise RuntimeError(f"GPU: {error}") from error


class CudaBindings:
    """A Cuda by cuda-bindings: `runtime` is the module cuda.bindings.runtime, whose calls return a code first."""

    name = "cuda-bindings"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._check(runtime.cudaSetDevice(0))
        self._stream = self._check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
        self._done = self._check(runtime.cudaEventCreateWithFlags(flags))

    @property
    def stream(self) -> int:
        return int(self._stream)

    def pinned(self, size: int) -> Octets:
        address = int(self._check(self._runtime.cudaHostAlloc(size, self._runtime.cudaHostAllocDefault)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def device(self, size: int) -> int:
        return int(self._check(self._runtime.cudaMalloc(size)))

    def copy_in(self, target: int, source: Octets) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._runtime.cudaMemcpyAsync(target, source.ctypes.data, source.nbytes, kind, self._stream))

    def copy_out(self, target: Octets, source: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._runtime.cudaMemcpyAsync(target.ctypes.data, source, target.nbytes, kind, self._stream))

    def finish(self) -> None:
        self._check(self._runtime.cudaEventRecord(self._done, self._stream))
        self._check(self._runtime.cudaEventSynchronize(self._done))

    def free_bytes(self) -> int:
        free, _ = self._check(self._runtime.cudaMemGetInfo())
        return int(free)

    def _check(self, answer: Tuple[Any, ...]) -> Any:
        """What a call returned after its error code: nothing, one value or several."""
        code, *values = answer
        if int(code) == int(self._runtime.cudaError_t.cudaErrorMemoryAllocation):
            raise MemoryError(f"GPU: {code.name}")
        if int(code):
            raise RuntimeError(f"GPU: {code.name}")
        return values[0] if len(values) == 1 else tuple(values)


class Graph:
    """What was queued once, to be queued again as one thing: half a hundred launches for the price of one.

    By the driver library itself, because PyCUDA knows no graphs; `driver` is libcuda.
    """

    def __init__(self, driver: Any, stream: int, queue: Callable[[], None]) -> None:
        """Note what `queue` queues on the stream, without doing it. Raises RuntimeError where that cannot be noted."""
        self._driver, self._stream = driver, ctypes.c_void_p(stream)
        graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call(_CAPTURES, self._stream, _THREAD_LOCAL)
        try:
            queue()
        finally:  # or the stream would stay as it is
            code = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code:
            raise RuntimeError(f"cuStreamEndCapture failed: error {code}")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        self._call("cuGraphLaunch", self._ready, self._stream)

    def close(self) -> None:
        self._call("cuGraphExecDestroy", self._ready)

    def _call(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._driver, function)(*arguments):
            raise RuntimeError(f"{function} failed: error {code}")


def open_cuda() -> Cuda:
    """By PyCUDA where it is installed, else by cuda-bindings. Raises ImportError where neither is."""
    problems = []
    for module, kind in (("pycuda.driver", PyCuda), ("cuda.bindings.runtime", CudaBindings)):
        try:
            return kind(importlib.import_module(module))
        except ImportError as error:
            problems.append(str(error))
    raise ImportError(f"neither PyCUDA nor cuda-bindings: {'; '.join(problems)}")


def open_driver() -> Any:
    """libcuda, for graphs."""
    return ctypes.CDLL("libcuda.so.1")
