"""The run loop of the TensorRT runtime against a simulated GPU: the order of calls, sizes, stream, graphs.

Nothing here runs on a GPU, nor proves that it would.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from appliance.runtimes.cuda_memory import Cuda, CudaBindings, PyCuda
from appliance.runtimes.tensorrt import Library, TensorRt
from tests.fake_gpu import MOST_ROWS, PLAN, FakeCudaBindings, FakeDriver, FakeGpu, FakePyCuda, FakeTensorRt

ROW = 8  # bytes
LARGEST = MOST_ROWS * ROW

MAKERS: dict[str, Callable[[FakeGpu], Cuda]] = {
    "pycuda": lambda gpu: PyCuda(FakePyCuda(gpu)),
    "cuda-bindings": lambda gpu: CudaBindings(FakeCudaBindings(gpu)),
}


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture(params=MAKERS)
def cuda(request: pytest.FixtureRequest, gpu: FakeGpu) -> Cuda:
    return MAKERS[request.param](gpu)


def backend(gpu: FakeGpu, cuda: Cuda, gpu_memory_mb: int = 0, **kind: Any) -> TensorRt:
    trt = FakeTensorRt(gpu, **kind)
    return TensorRt(Library(trt), cuda, FakeDriver(gpu), "simulated", gpu_memory_mb)


@pytest.fixture
def loaded(gpu: FakeGpu, cuda: Cuda) -> TensorRt:
    runtime = backend(gpu, cuda)
    runtime.load(PLAN)
    gpu.calls.clear()
    return runtime


def rows(count: int, start: float = 0) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, start + count * 2, dtype=np.float32).reshape(count, 2)}


def run(runtime: TensorRt, inputs: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(runtime.run(inputs)["y"], 2 * inputs["x"])


def eager(count: int) -> list[str]:
    return [f"copy in {count * ROW}", "execute", f"copy out {count * ROW}", "record", "synchronize"]


def test_simulated_all_memory_is_taken_for_the_largest_shape_when_the_plan_is_loaded(gpu: FakeGpu, cuda: Cuda) -> None:
    runtime, free = backend(gpu, cuda), gpu.free
    inputs, outputs = runtime.load(PLAN)
    assert inputs == [{"name": "x", "dtype": "float32", "shape": [-1, 2]}]
    assert outputs == [{"name": "y", "dtype": "float32", "shape": [-1, 2]}]
    assert free - gpu.free == 4 * LARGEST  # x and y, on both sides
    assert sorted(array.nbytes for array in gpu.memory.values()) == [LARGEST] * 4
    assert len(gpu.pinned) == 2
    assert "execute" not in gpu.calls
    before = len(gpu.memory)
    for count in (1, MOST_ROWS, 3):
        run(runtime, rows(count))
    assert len(gpu.memory) == before


def test_simulated_in_run_out_wait(gpu: FakeGpu, loaded: TensorRt) -> None:
    run(loaded, rows(3))
    assert gpu.calls == ["shape x (3, 2)", *eager(3)]
    assert "first of its shape" in loaded.note


def test_simulated_a_graph_after_one_run_of_a_shape(gpu: FakeGpu, loaded: TensorRt) -> None:
    run(loaded, rows(3))
    gpu.calls.clear()
    run(loaded, rows(3, start=100))
    captured = ["capture", "copy in 24", "execute", "copy out 24", "end capture", "instantiate"]
    assert gpu.calls == [*captured, "launch", "record", "synchronize"]
    assert loaded.note.startswith("CUDA graph; ")
    gpu.calls.clear()
    run(loaded, rows(3, start=-7))
    assert gpu.calls == ["launch", "record", "synchronize"]


def test_simulated_another_shape_forgets_the_graph_before_it_touches_the_context(
    gpu: FakeGpu, loaded: TensorRt
) -> None:
    run(loaded, rows(3))
    run(loaded, rows(3))
    gpu.calls.clear()
    run(loaded, rows(5))
    assert gpu.calls == ["forget graph", "shape x (5, 2)", *eager(5)]
    run(loaded, rows(5, start=1))
    assert len(gpu.graphs) == 1
    gpu.calls.clear()
    run(loaded, rows(3))
    assert gpu.calls == ["forget graph", "shape x (3, 2)", *eager(3)]


@pytest.mark.parametrize("fault", ["capture", "end capture", "instantiate"])
def test_simulated_where_no_graph_can_be_made_it_goes_on_without_and_says_so(
    gpu: FakeGpu, loaded: TensorRt, fault: str
) -> None:
    run(loaded, rows(2))
    gpu.fault = fault
    run(loaded, rows(2, start=9))
    assert loaded.note.startswith("no CUDA graph: cu")
    gpu.calls.clear()
    run(loaded, rows(2))
    assert gpu.calls == eager(2)
    run(loaded, rows(4))
    assert "capture" not in gpu.calls


def test_simulated_what_fails_while_it_is_recorded_leaves_no_open_recording(gpu: FakeGpu, loaded: TensorRt) -> None:
    run(loaded, rows(2))
    gpu.fault = "execute"
    with pytest.raises(RuntimeError, match="did not run: enqueue failed"):
        loaded.run(rows(2))
    assert gpu.captured is None
    assert gpu.calls.count("end capture") == 1


def test_simulated_shapes_outside_the_profile_never_reach_the_gpu(gpu: FakeGpu, loaded: TensorRt) -> None:
    for shape in ((0, 2), (MOST_ROWS + 1, 2), (2, 3), (2,)):
        with pytest.raises(ValueError, match=r"the plan takes \(1, 2\) to \(8, 2\)"):
            loaded.run({"x": np.zeros(shape, np.float32)})
    assert gpu.calls == []
    run(loaded, rows(1))


@pytest.mark.parametrize(("fault", "error"), [("copy in 16", RuntimeError), ("synchronize", RuntimeError)])
def test_simulated_an_error_of_the_gpu_is_told(
    gpu: FakeGpu, loaded: TensorRt, fault: str, error: type[Exception]
) -> None:
    gpu.fault = fault
    with pytest.raises(error, match="GPU: "):
        loaded.run(rows(2))


@pytest.mark.parametrize("fault", ["mem_alloc", "pinned_alloc"])
def test_simulated_too_little_memory_is_a_memory_error(gpu: FakeGpu, cuda: Cuda, fault: str) -> None:
    gpu.fault = fault
    with pytest.raises(MemoryError, match="GPU: "):
        backend(gpu, cuda).load(PLAN)


MB = 1 << 20


@pytest.mark.parametrize(
    ("gpu_memory_mb", "free", "words"),
    [
        (
            300,
            1000 * MB,
            r"301 MB of the GPU's memory \(200 for weights, 100 to work in, 1 for .*\), and may have 300 \(",
        ),
        (0, 299 * MB, r"it needs 301 MB of the GPU's memory \(.*\): 2 are wanting$"),
    ],
    ids=["more than it may", "more than is free"],
)
def test_simulated_a_plan_that_needs_too_much_memory_is_refused_before_it_is_taken(
    gpu: FakeGpu, cuda: Cuda, gpu_memory_mb: int, free: int, words: str
) -> None:
    gpu.free = free
    runtime = backend(gpu, cuda, gpu_memory_mb, weights=200 * MB, scratch=100 * MB)
    with pytest.raises(ValueError, match=words):
        runtime.load(PLAN)
    assert "context" not in gpu.calls
    assert not gpu.memory


def test_simulated_what_comes_out_counts_too_and_the_budget_itself_may_be_used(gpu: FakeGpu, cuda: Cuda) -> None:
    """What comes out is known only when the shapes are: then the context is there, and no array yet."""
    exactly = 3 * MB - 2 * LARGEST
    backend(gpu, cuda, 3, weights=exactly - MB, scratch=MB).load(PLAN)
    gpu.memory.clear()
    with pytest.raises(ValueError, match="it needs 4 MB"):
        backend(gpu, cuda, 3, weights=exactly - MB + 1, scratch=MB).load(PLAN)
    assert not gpu.memory


def test_simulated_a_plan_of_another_gpu_or_version_is_refused_with_its_reason(gpu: FakeGpu, cuda: Cuda) -> None:
    with pytest.raises(ValueError, match=r"no plan for this GPU and TensorRT 10\.3\.0: magicTag does not match$"):
        backend(gpu, cuda).load(b"another")


@pytest.mark.parametrize(
    ("kind", "words"),
    [({"location": 1}, "is a shape"), ({"dtype": "BF16"}, "BF16: numpy")],
)
def test_simulated_what_is_no_plain_array_is_refused(
    gpu: FakeGpu, cuda: Cuda, kind: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        backend(gpu, cuda, **kind).load(PLAN)
    assert not gpu.memory
