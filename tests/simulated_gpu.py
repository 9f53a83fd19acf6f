"""A simulated GPU: its plans are ONNX models, and what runs them is ONNX Runtime in a real child. Nothing here is one.

Plans are kept and found by the real store of plans, under keys of a real target.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.ports import BuiltPlan
from appliance.runtimes import plan_store
from appliance.runtimes.plan_store import Target
from appliance.runtimes.process import ChildRuntime, ChildSettings
from appliance.wiring.compiler import Compiler

MACHINE = Target(
    onnx_sha256="",
    library="10.3.0",
    gpu="simulated",
    compute_capabilities=("SM87",),
    driver="540",
    system="a test",
    profiles={},
    precision="model",
    flags=(),
    workspace_mb=1024,
    builder="",
)


@dataclass
class SimulatedBuilder:
    """A ports.PlanBuilder. `machine` may change, as by an update of the driver."""

    machine: Target = MACHINE
    why_not: str = ""
    plan: bytes = b""  #: what it makes of any model; b"": a plan that does as the model does
    plans: dict[str, bytes] = field(default_factory=dict)  #: what it makes of a model file of this name
    probed: int = 0
    built: int = 0
    may_end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_end.set()

    def probe(self) -> str:
        self.probed += 1
        return self.why_not

    def find(self, model: Path, sha256: str, folder: Path) -> BuiltPlan:  # noqa: ARG002 - the port's signature
        return plan_store.find(folder, self._target(sha256))

    def build(
        self,
        model: Path,
        sha256: str,
        folder: Path,
        progress: Callable[[str, int, int], None],
        deadline_s: float,  # noqa: ARG002 - the port's signature
    ) -> BuiltPlan:
        self.built += 1
        progress("simulated", 0, 1)
        while not self.may_end.wait(0.02):
            progress("simulated", 0, 1)
        plan = self.plans.get(model.name) or self.plan or model.read_bytes()
        return plan_store.keep(folder, self._target(sha256), memoryview(plan))

    def _target(self, sha256: str) -> Target:
        return replace(self.machine, onnx_sha256=sha256)


#: An interpreter in which the child's own program finds the TensorRT, PyCUDA and libcuda of `fake_gpu`.
FAKING = f"""\
#!{sys.executable} -I
import ctypes, importlib.util, sys, types

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

sys.argv = sys.argv[2:]  # what follows -I
fake = load("fake_gpu", {str(Path(__file__).with_name("fake_gpu.py"))!r})
gpu = fake.FakeGpu()
facts = dict(reason="", gpu="simulated", compute_capability="SM87", driver="540", cuda="12.6")
real = ctypes.CDLL
ctypes.CDLL = lambda name: fake.FakeDriver(gpu) if name == "libcuda.so.1" else real(name)
sys.modules["tensorrt"] = fake.FakeTensorRt(gpu, weights=200 << 20, scratch=100 << 20)
sys.modules["pycuda"], sys.modules["pycuda.driver"] = types.ModuleType("pycuda"), fake.FakePyCuda(gpu)
sys.modules["appliance.runtimes.cuda_probe"] = types.SimpleNamespace(ask=lambda _: facts)
sys.exit(load("child", sys.argv[0]).main())
"""


def simulated(builder: SimulatedBuilder) -> Compiler:
    runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable), memory_mb=600, reap_s=3))
    runtime.name = "simulated"
    return Compiler(builder=builder, runtime=runtime)
