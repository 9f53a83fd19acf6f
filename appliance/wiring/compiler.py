"""What compiles engines for this machine, what runs them then, and whether a plan was proved there.

A plan is used only if it was built for all that there is now, and `engines verify` proved that very file (P8).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.config import Config
from appliance.engine_package import EnginePackage
from appliance.ports import BuiltPlan, PlanBuilder
from appliance.runtimes.builder import BuildSettings, TensorRtBuilder
from appliance.runtimes.process import ChildRuntime, ChildSettings

LOAD_S = 120.0  # for CUDA, TensorRT and a plan of hundreds of megabytes, on a small board


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """Used by the thread that runs engines and by that of a build: each child is its caller's."""

    builder: PlanBuilder
    runtime: ChildRuntime


def compiler(config: Config) -> Compiler:
    """TensorRT, by the interpreter that runs engines. Asks nobody yet whether it is there."""
    analyse = config.analyse
    interpreter = Path(analyse.python or sys.executable)
    settings = BuildSettings(interpreter=interpreter, threads=analyse.threads)
    # A plan that may not be loaded need not be built; one that was built with less to work in goes on serving.
    if analyse.gpu_memory_mb is not None:
        settings = replace(settings, workspace_mb=min(settings.workspace_mb, analyse.gpu_memory_mb))
    child = ChildSettings(
        interpreter=interpreter,
        runtime="tensorrt",
        threads=analyse.threads,
        memory_mb=analyse.memory_mb,
        load_deadline_s=LOAD_S,
        runtime_settings={"gpu_memory_mb": analyse.gpu_memory_mb or 0},
    )
    return Compiler(builder=TensorRtBuilder(settings), runtime=ChildRuntime(child))


def is_proved(report: Mapping[str, Any] | None, package: EnginePackage, plan: BuiltPlan) -> bool:
    """Whether `report`, the last of `engines verify`, is of this plan of this package."""
    wanted = {"package_sha256": package.package_sha256, "plan_sha256": plan.sha256, "plan_key": plan.key}
    return report is not None and all(report.get(name) == value for name, value in wanted.items())
