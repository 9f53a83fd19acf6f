"""What our modules ask of TensorRT and cuda-bindings is there in each version: held against their real classes.

The names were written down by scripts/tensorrt_surface.py. Which class a name of ours stands for is said below; a use
of TensorRT under a name that is not, is no use that is checked, so the simulated GPU is held against the classes, too.
That a call takes the arguments that we give is shown for TensorRT-RTX where it builds; for the rest by nothing here.
PyCUDA has no wheel to look into.
"""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance import runtimes
from tests import fake_gpu

SURFACE: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("tensorrt_surface.json").read_text())
TENSORRTS = [version for version in SURFACE if version.startswith("tensorrt")]
MODULE, CUDA = "", "cuda_bindings 13.5.0"
#: File -> expression -> class.
STANDS_FOR = {
    "tensorrt": {
        "trt": MODULE,
        "module": MODULE,
        "self._library.module": MODULE,
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "trt.ILogger": "ILogger",
        "trt.TensorLocation": "TensorLocation",
        "trt.TensorIOMode": "TensorIOMode",
    },
    "plan_build": {
        "trt": MODULE,
        "self._builder": "Builder",
        "self._network": "INetworkDefinition",
        "self._parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "one": "ParserError",
        "tensor": "ITensor",
        "trt.MemoryPoolType": "MemoryPoolType",
        "trt.NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
    },
}
#: Used only after it was seen that it is RTX.
ONLY_RTX = {
    (MODULE, "ComputeCapability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}
#: Methods of ours that TensorRT calls.
CALLED_BACK = {
    ("ILogger", "log"),
    *(("IProgressMonitor", name) for name in ("phase_start", "step_complete", "phase_finish")),
}


def uses(name: str) -> set[tuple[str, str]]:
    """(class, attribute) of all that a file of ours asks of TensorRT."""
    tree = ast.parse((Path(runtimes.__file__).with_name(f"{name}.py")).read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    named = {(ast.unparse(node.value), node.attr) for node in attributes}
    table = STANDS_FOR[name]
    return {
        (table[owner], attribute) for owner, attribute in named if owner in table and not attribute.startswith("__")
    }


@pytest.mark.parametrize("version", TENSORRTS)
def test_all_that_the_runtime_uses_is_there(version: str) -> None:
    lacking = {f"{kind}.{name}" for kind, name in uses("tensorrt") if name not in SURFACE[version].get(kind, ())}
    assert lacking == set()


@pytest.mark.parametrize("version", TENSORRTS)
def test_all_that_the_builder_uses_is_there(version: str) -> None:
    """But what is RTX's alone; and the lean runtimes have no builder."""
    wanted = uses("plan_build")
    if "lean" in version:
        assert "Builder" not in SURFACE[version]
        return
    lacking = {(kind, name) for kind, name in wanted if name not in SURFACE[version].get(kind, ())}
    assert lacking == (set() if "rtx" in version else ONLY_RTX)


@pytest.mark.parametrize("version", TENSORRTS)
def test_what_tensorrt_calls_is_named_as_it_calls_it(version: str) -> None:
    assert {(kind, name) for kind, name in CALLED_BACK if name not in SURFACE[version][kind]} == set()


def test_each_expression_of_the_table_is_found_in_its_file() -> None:
    """Or a name that was changed would go unchecked."""
    for file, table in STANDS_FOR.items():
        tree = ast.parse((Path(runtimes.__file__).with_name(f"{file}.py")).read_text())
        found = {ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert set(table) <= found
        assert {kind for kind, _ in uses(file)} == set(table.values())


def test_a_name_that_is_not_there_is_found() -> None:
    assert "execute_async_v2" not in SURFACE["tensorrt 11.4.0.106"]["IExecutionContext"]
    assert "execute_async_v3" in SURFACE["tensorrt 10.3.0"]["IExecutionContext"]
    assert "FP16" not in SURFACE["tensorrt 11.4.0.106"]["BuilderFlag"]


@pytest.mark.parametrize("version", TENSORRTS)
def test_the_simulated_tensorrt_has_nothing_that_the_real_one_lacks(version: str) -> None:
    real = SURFACE[version]
    for simulated, kind in (
        (fake_gpu.FakeEngine, "ICudaEngine"),
        (fake_gpu.FakeContext, "IExecutionContext"),
        (fake_gpu.FakeTensorRt, MODULE),
    ):
        assert public(simulated) - {"trt", "logger"} <= set(real[kind])
    for kind in ("TensorLocation", "TensorIOMode"):
        constants: SimpleNamespace = getattr(fake_gpu.FakeTensorRt, kind)
        assert set(vars(constants)) <= set(real[kind])


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_cuda_bindings_have_what_is_used_and_what_is_simulated() -> None:
    tree = ast.parse((Path(runtimes.__file__).with_name("cuda_memory.py")).read_text())
    bindings = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CudaBindings")
    owners = ("runtime", "self._runtime")
    used = {
        node.attr
        for node in ast.walk(bindings)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners
    }
    assert len(used) > 10
    assert used <= set(SURFACE[CUDA][MODULE])
    assert public(fake_gpu.FakeCudaBindings) <= set(SURFACE[CUDA][MODULE])
