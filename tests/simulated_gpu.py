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


def simulated(builder: SimulatedBuilder) -> Compiler:
    runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable), memory_mb=600, reap_s=3))
    runtime.name = "simulated"
    return Compiler(builder=builder, runtime=runtime)
