"""Builds a plan with TensorRT, inside a child of its own; see `builder` for its parent. 3.10-clean.

To `child.py` it is a runtime: its model is the ONNX; its inputs are, for each input of the network, the least, best and
largest shape (a row each), and what begins with a dot below; its one output is the plan's bytes. TensorRT tells nearly
every failure by a value and none by an exception, so each is looked at here.

TensorRT builds for the GPU that is there. TensorRT-RTX needs none where the compute capabilities are named.
Progress goes to stderr, a line each: `progress`, step, steps, phase, parted by tabs.
"""

import contextlib
import os
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from appliance.runtimes import cuda_probe
from appliance.runtimes.tensorrt import Library, open_library

Array = NDArray[np.generic]
Spec = Dict[str, Any]

COMPUTE_CAPABILITIES = ".compute_capabilities"  #: 86 for SM86; none: the GPU that is there
WORKSPACE_MB = ".workspace_mb"  #: for kernels beside weights and tensors; 0: as it likes. Not for RTX
PLAN = "plan"
PROGRESS = "progress"
NO_GPU = "no GPU"
_PROGRESS_EVERY_S = 0.1
_MORE_NICE = 9  # than the runtime child that serves
_MAX_ERRORS = 3


class PlanBuilder:
    """The child's Backend."""

    def __init__(self, library: Library, device: str, threads: int, say: Callable[[str], None]) -> None:
        self.version = library.version
        self.device = device
        self._library, self._threads, self._say = library, threads, say
        self._dynamic: List[str] = []  # inputs with a dimension of any length
        self._builder: Any
        self._network: Any

    def load(self, model: bytes) -> Tuple[List[Spec], List[Spec]]:
        """Parse the ONNX. Raises ValueError where it is none, or has what TensorRT does not know."""
        trt = self._library.module
        self._builder = trt.Builder(self._library.logger)
        self._builder.max_threads = self._threads
        self._network = self._builder.create_network(self._flags())
        self._parser = trt.OnnxParser(self._network, self._library.logger)  # holds the weights
        if not self._parser.parse(model):
            raise ValueError(self._parser_errors())
        if not self._network.num_layers:  # an empty file, or any text, is parsed without an error
            raise ValueError("not an ONNX model, or one without a node")
        tensors = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        self._dynamic = [tensor.name for tensor in tensors if -1 in tuple(tensor.shape)]
        specs = [_integers(tensor.name, [3, len(tuple(tensor.shape))]) for tensor in tensors]
        specs += [_integers(COMPUTE_CAPABILITIES, [-1]), _integers(WORKSPACE_MB, [])]
        return specs, [{"name": PLAN, "dtype": "uint8", "shape": [-1]}]

    def run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        """Build. Raises ValueError for what is asked wrongly, RuntimeError where TensorRT cannot."""
        trt, config = self._library.module, self._builder.create_builder_config()
        workspace_mb = int(inputs[WORKSPACE_MB].item())
        if workspace_mb and not self._library.is_rtx:  # RTX times no kernels; without a GPU a limit makes it fail
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
        self._set_profile(config, inputs)
        self._set_capabilities(config, [int(number) for number in inputs[COMPUTE_CAPABILITIES].tolist()])
        self._monitor = _monitor(trt, self._say)  # must outlive all that uses it
        config.progress_monitor = self._monitor
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            raise RuntimeError(f"TensorRT {self.version} cannot build it: {self._library.said()}")
        return {PLAN: np.frombuffer(plan, np.uint8)}

    def _flags(self) -> int:
        """Strongly typed: precision is what the ONNX says. From 11 on, and in RTX, there is nothing else."""
        trt = self._library.module
        if self._library.is_rtx or int(trt.__version__.partition(".")[0]) >= 11:
            return 0
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _set_profile(self, config: Any, inputs: Dict[str, Array]) -> None:
        if not self._dynamic:
            return
        profile = self._builder.create_optimization_profile()
        for name in self._dynamic:
            least, best, most = (tuple(row) for row in inputs[name].tolist())
            try:
                profile.set_shape(name, least, best, most)
            except ValueError as error:
                raise ValueError(f"{name} cannot have the shapes {least}, {best}, {most}: {error}") from error
        if config.add_optimization_profile(profile) < 0:
            raise ValueError(f"the shapes of {', '.join(self._dynamic)} contradict each other: {self._library.said()}")

    def _set_capabilities(self, config: Any, wanted: List[int]) -> None:
        trt = self._library.module
        if not self._library.is_rtx:
            if wanted:
                raise ValueError("only TensorRT-RTX builds for a GPU that is not there")
            return
        if not wanted and self.device.startswith(NO_GPU):
            raise ValueError(f"{self.device}: say for which compute capability to build")
        known = trt.ComputeCapability.__members__
        names = [f"SM{number}" for number in wanted] or ["CURRENT"]
        for name in names:
            if name not in known:
                raise ValueError(f"TensorRT {self.version} builds nothing for {name}, only for {', '.join(known)}")
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(known[name], index):
                raise ValueError(f"TensorRT {self.version} builds nothing for {name}: {self._library.said()}")

    def _parser_errors(self) -> str:
        errors = [self._parser.get_error(index) for index in range(min(self._parser.num_errors, _MAX_ERRORS))]
        words = [f"{one.desc()} ({one.node_operator()} {one.node_name()})".replace(" ( )", "") for one in errors]
        return "; ".join(words) or self._library.said()


def open_backend(threads: int) -> PlanBuilder:
    """What `child.py` calls. Raises ImportError where this machine cannot build anything."""
    library = open_library()
    gpu = cuda_probe.ask(sys.executable)
    if gpu["reason"] and not library.is_rtx:
        raise ImportError(f"TensorRT {library.version} builds only for a GPU that is there, but {gpu['reason']}")
    device = f"{NO_GPU}: {gpu['reason']}" if gpu["reason"] else f"{gpu['gpu']} ({gpu['compute_capability']})"
    with contextlib.suppress(OSError):
        os.nice(_MORE_NICE)
    return PlanBuilder(library, device, threads, _print)


def _integers(name: str, shape: List[int]) -> Spec:
    return {"name": name, "dtype": "int64", "shape": shape}


def _monitor(trt: Any, say: Callable[[str], None]) -> Any:
    """Called by threads of TensorRT's own."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above: the library may not be there
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: Dict[str, int] = {}
            self._said = float("-inf")

        def phase_start(self, phase: str, _parent: str, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return True

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def _tell(self, phase: str, step: int) -> None:
            now = time.monotonic()
            if now - self._said >= _PROGRESS_EVERY_S:
                self._said = now
                say(f"{PROGRESS}\t{step}\t{self._steps.get(phase, 0)}\t{phase}\n")

    return Monitor()


def _print(line: str) -> None:
    """The pipe does not block: a line that has no room in it is none."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
