"""TensorRT inside the runtime child: runs one plan on the GPU. Imported by `child.py`; 3.10-clean like it.

One module for TensorRT 10.3 to 11 and TensorRT-RTX: it uses only what all of them have (tests/contract holds it against
their real classes). Its model is a plan, built on this machine for this GPU by `plan_build`; code in a plan is never
run (`engine_host_code_allowed` stays off), and precision is what the ONNX said.

The driver is asked in a child before any object of TensorRT is made. All memory is taken when the plan is loaded, for
the largest shapes that it takes, and first it is reckoned whether there is so much, and whether it may have it. What
`run` returns lies there, and is good until the next run. A shape is run as it is the first time; when it comes again it
is recorded as a CUDA graph, and launched as one from then on. Where that cannot be done, it goes on without, and `note`
says so.
"""

import importlib
import sys
from collections import deque
from math import prod
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from appliance.runtimes import cuda_memory, cuda_probe

Array = NDArray[np.generic]
Octets = NDArray[np.uint8]
Spec = Dict[str, Any]
Shape = Tuple[int, ...]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_LAST_LINES = 3
#: TensorRT's names of the types that numpy has, too.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class Library:
    """The TensorRT that is there, and what it said last."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.is_rtx = module.__name__ == "tensorrt_rtx"
        self.version = f"{module.__version__}{' RTX' if self.is_rtx else ''}"
        self.lines: Deque[str] = deque(maxlen=_LAST_LINES)
        self.logger = _logger(module, self.lines.append)

    def said(self) -> str:
        """The last errors that it logged, for a message of ours."""
        return "; ".join(self.lines) or "TensorRT does not say why"


def _logger(trt: Any, note: Callable[[str], None]) -> Any:
    """One for the whole process: TensorRT warns of a second."""

    class Logger(trt.ILogger):  # type: ignore[misc] # a class of a library that is not there when types are checked
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                note(" ".join(message.split()))

    return Logger()


def open_library() -> Library:
    """TensorRT where it is installed, else TensorRT-RTX. Makes no object of theirs. Raises ImportError."""
    problems = []
    for name in LIBRARIES:
        try:
            return Library(importlib.import_module(name))
        except ImportError as error:
            problems.append(str(error))
    raise ImportError(f"no TensorRT: {'; '.join(problems)}")


class Tensor:
    """An input or output of the plan, with its memory on both sides."""

    def __init__(self, name: str, dtype: str, shape: Shape, *, is_input: bool) -> None:
        self.name, self.dtype, self.shape, self.is_input = name, np.dtype(dtype), shape, is_input
        self.least: Shape = shape  # as the profile has them
        self.most: Shape = shape
        self.host: Octets
        self.device = 0
        self.now: Shape = ()  # of the run

    @property
    def spec(self) -> Spec:
        return {"name": self.name, "dtype": self.dtype.name, "shape": list(self.shape)}

    def octets(self) -> Octets:
        """The part of the host's memory that the run uses."""
        return self.host[: self.size_of(self.now)]

    def size_of(self, shape: Shape) -> int:
        return prod(shape) * self.dtype.itemsize

    def array(self) -> Array:
        typed: Array = self.octets().view(self.dtype)
        return typed.reshape(self.now)

    def check(self, shape: Shape) -> None:
        """Raises ValueError where the plan was not built for that shape."""
        least, most = self.least, self.most
        fits = len(shape) == len(most) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        if not fits:
            raise ValueError(f"{self.name} has the shape {shape}; the plan takes {least} to {most}")


class TensorRt:
    """The child's Backend: one plan, one execution context, one stream."""

    def __init__(
        self, library: Library, cuda: cuda_memory.Cuda, driver: Any, device: str, gpu_memory_mb: int = 0
    ) -> None:
        """`driver` is libcuda, for graphs. `gpu_memory_mb`: of the GPU's memory that a plan may need; 0: all of it."""
        self.version = library.version
        self.device = device
        self.deadline_s = 0.0  #: the parent keeps it, by a kill
        self.note = ""  #: how the last run went, and what the plan takes on the GPU
        self._library, self._cuda, self._driver = library, cuda, driver
        self._budget_mb = gpu_memory_mb
        self._tensors: List[Tensor] = []
        self._shapes: Tuple[Shape, ...] = ()  # of the inputs, that the context is set to
        self._graph: Optional[cuda_memory.Graph] = None
        self._no_graph = ""  # why
        self._taken = 0  # bytes

    def load(self, model: bytes) -> Tuple[List[Spec], List[Spec]]:
        free = self._cuda.free_bytes()
        runtime = self._library.module.Runtime(self._library.logger)
        engine = runtime.deserialize_cuda_engine(model)
        if engine is None:
            raise ValueError(f"no plan for this GPU and TensorRT {self.version}: {self._library.said()}")
        weights, scratch = max(free - self._cuda.free_bytes(), 0), int(engine.device_memory_size_v2)
        self._tensors = [self._tensor(engine, index) for index in range(engine.num_io_tensors)]
        inputs = sum(tensor.size_of(tensor.most) for tensor in self._inputs())
        self._check_memory(weights, scratch, inputs, wanted=scratch + inputs)
        context = engine.create_execution_context()
        if context is None:
            raise RuntimeError(f"no execution context: {self._library.said()}")
        self._runtime, self._engine, self._context = runtime, engine, context  # in this order they depend
        self._set_shapes(tuple(tensor.most for tensor in self._inputs()))
        for tensor in self._tensors:
            tensor.most = tensor.now
        arrays = sum(tensor.size_of(tensor.most) for tensor in self._tensors)  # those of outputs are known by now
        self._check_memory(weights, scratch, arrays, wanted=arrays)
        for tensor in self._tensors:
            size = max(tensor.size_of(tensor.most), 1)
            tensor.host, tensor.device = self._cuda.pinned(size), self._cuda.device(size)
            if not context.set_tensor_address(tensor.name, tensor.device):
                raise RuntimeError(f"{tensor.name} cannot be placed: {self._library.said()}")
        self._shapes = ()
        self._taken = max(free - self._cuda.free_bytes(), 0)
        return [tensor.spec for tensor in self._inputs()], [tensor.spec for tensor in self._outputs()]

    def _check_memory(self, weights: int, scratch: int, arrays: int, *, wanted: int) -> None:
        """Bytes; `wanted` are not taken yet. Raises ValueError: nothing is wrong with what there is, it is too little.

        Not by trying: what is taken last of a GPU that is full may be another's.
        """
        need, free = weights + scratch + arrays, self._cuda.free_bytes()
        parts = f"{_mb(weights)} for weights, {_mb(scratch)} to work in, {_mb(arrays)} for what goes in and out"
        if 0 < self._budget_mb << 20 < need:
            raise ValueError(
                f"it needs {_mb(need)} MB of the GPU's memory ({parts}), and may have {self._budget_mb}"
                " (analyse.gpu_memory_mb)"
            )
        if wanted > free:
            raise ValueError(f"it needs {_mb(need)} MB of the GPU's memory ({parts}): {_mb(wanted - free)} are wanting")

    def run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        shapes = tuple(tuple(inputs[tensor.name].shape) for tensor in self._inputs())
        for tensor, shape in zip(self._inputs(), shapes, strict=True):
            tensor.check(shape)
        again = shapes == self._shapes
        if not again:
            self._forget_graph()
            self._shapes = ()  # unknown, if it fails half-way
            self._set_shapes(shapes)
        for tensor in self._inputs():
            tensor.array()[...] = inputs[tensor.name]
        how = self._launch(again)
        self._cuda.finish()
        self._shapes = shapes
        self.note = f"{how}; {self._taken >> 20} MB on the GPU; {self._cuda.name}"
        return {tensor.name: tensor.array() for tensor in self._outputs()}

    def _launch(self, again: bool) -> str:
        if again and self._graph is None and not self._no_graph:
            self._record_graph()
        if self._graph is not None:
            self._graph.launch()
            return "CUDA graph"
        self._queue()
        return f"no CUDA graph: {self._no_graph}" if self._no_graph else "as it is, the first of its shape"

    def _record_graph(self) -> None:
        """It is valid for these shapes, this context and these buffers alone."""
        try:
            self._graph = cuda_memory.Graph(self._driver, self._cuda.stream, self._queue)
        except (RuntimeError, AttributeError) as error:
            self._no_graph = str(error)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _queue(self) -> None:
        for tensor in self._inputs():
            self._cuda.copy_in(tensor.device, tensor.octets())
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RuntimeError(f"the plan did not run: {self._library.said()}")
        for tensor in self._outputs():
            self._cuda.copy_out(tensor.octets(), tensor.device)

    def _set_shapes(self, shapes: Sequence[Shape]) -> None:
        """Of the inputs; those of the outputs follow."""
        for tensor, shape in zip(self._inputs(), shapes, strict=True):
            if not self._context.set_input_shape(tensor.name, shape):
                raise ValueError(f"{tensor.name} cannot have the shape {shape}: {self._library.said()}")
            tensor.now = shape
        if lacking := self._context.infer_shapes():
            raise ValueError(f"shapes are unknown: {', '.join(lacking)}")
        for tensor in self._outputs():
            tensor.now = tuple(self._context.get_tensor_shape(tensor.name))
            if min(tensor.now, default=0) < 0:
                raise ValueError(f"{tensor.name} has a shape that depends on the data")

    def _tensor(self, engine: Any, index: int) -> Tensor:
        """Raises ValueError for what cannot be passed as a plain array in the GPU's memory."""
        trt, name = self._library.module, engine.get_tensor_name(index)
        dtype = _DTYPES.get(engine.get_tensor_dtype(name).name)
        if dtype is None:
            raise ValueError(f"{name} is {engine.get_tensor_dtype(name).name}: numpy has no such type")
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ValueError(f"{name} is a shape, not data: such models cannot be run here")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensor = Tensor(name, dtype, tuple(engine.get_tensor_shape(name)), is_input=is_input)
        if is_input and -1 in tensor.shape:
            least, _, most = engine.get_tensor_profile_shape(name, 0)
            tensor.least, tensor.most = tuple(least), tuple(most)
        return tensor

    def _inputs(self) -> List[Tensor]:
        return [tensor for tensor in self._tensors if tensor.is_input]

    def _outputs(self) -> List[Tensor]:
        return [tensor for tensor in self._tensors if not tensor.is_input]


def _mb(size: int) -> int:
    """Bytes in megabytes, rounded up."""
    return -(-size >> 20)


def open_backend(_threads: int, gpu_memory_mb: int = 0) -> TensorRt:
    """What `child.py` calls. Raises ImportError where a part is missing: TensorRT, a driver, a GPU, a way to memory."""
    library = open_library()
    gpu = cuda_probe.ask(sys.executable)
    if gpu["reason"]:
        raise ImportError(f"TensorRT {library.version} is there, but {gpu['reason']}")
    device = f"{gpu['gpu']} ({gpu['compute_capability']}, driver {gpu['driver']}, CUDA {gpu['cuda']})"
    try:
        cuda = cuda_memory.open_cuda()
    except RuntimeError as error:  # cuda-bindings of a newer CUDA than the driver's
        raise ImportError(f"{device} cannot be used: {error}") from error
    return TensorRt(library, cuda, cuda_memory.open_driver(), device, gpu_memory_mb)
