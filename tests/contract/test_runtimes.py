"""One suite for every runtime: real child processes, real models. What cannot work here is skipped with its reason.

TensorRT needs a GPU: without one it is skipped even in CI. Its plans are built of the same models; those that it cannot
build (a loop, a shape that is data) are skipped, too. On a GPU this suite has not been run yet.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.model import Reason
from appliance.ports import Runtime
from appliance.runtimes.builder import BuildSettings, InputRange, Model, TensorRtBuilder
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]
FOR_EVER = np.array(10**15, np.int64)
MEMORY_MB = 600
NEED_GPU = ("tensorrt",)
SERVED = "model"
#: How often the threads of an idle child may wake in 0.4 s after a run: gRPC has some that look after its others.
IDLE_SWITCHES = {"onnx": 1, "kserve": 100, "tensorrt": 100}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server serves, for runtimes that ask one."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / SERVED).mkdir()
    return folder


@pytest.fixture(scope="module", params=["onnx", "kserve", pytest.param("tensorrt", marks=pytest.mark.gpu)])
def settings(request: pytest.FixtureRequest, repository: Path) -> Iterator[ChildSettings]:
    with ExitStack() as stack:
        more = stack.enter_context(server(repository)) if request.param == "kserve" else {}
        settings = ChildSettings(
            interpreter=Path(sys.executable),
            runtime=request.param,
            memory_mb=4096 if request.param in NEED_GPU else MEMORY_MB,
            runtime_settings=more,
        )
        if reason := ChildRuntime(settings).probe():
            (pytest.skip if request.param in NEED_GPU else missing)(f"{request.param}: {reason}")
        yield settings


@contextmanager
def server(repository: Path) -> Iterator[dict[str, Any]]:
    """The double, as a process of its own: its descriptors are not ours. Yields where it is."""
    command = [sys.executable, "-m", "tests.kserve_double", str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield {"url": f"127.0.0.1:{port}", "model": SERVED, "connect_s": 20.0, "max_message_bytes": 1 << 30}
        process.communicate()


class ServedRuntime(ChildRuntime):
    """Of a server that was given the model before."""

    def __init__(self, settings: ChildSettings, repository: Path) -> None:
        super().__init__(settings)
        self._repository = repository

    def load(self, model: Path, sha256: str) -> ChildEngine:
        self.publish(model)
        return super().load(model, sha256)

    def publish(self, model: Path) -> None:
        if model.exists():
            model.with_suffix(".served").write_bytes(model.read_bytes())
            model.with_suffix(".served").rename(self._repository / SERVED / "model.onnx")


@pytest.fixture
def taken(settings: ChildSettings, tmp_path: Path) -> Callable[[bytes], bytes]:
    """What the runtime loads of an ONNX model: itself, or the plan built of it."""

    def plan(content: bytes) -> bytes:
        path = tmp_path / "source.onnx"
        path.write_bytes(content)
        builder = TensorRtBuilder(BuildSettings(), any_length)
        try:
            return builder.build(
                path, hashlib.sha256(content).hexdigest(), tmp_path, lambda *_: None, 110
            ).path.read_bytes()
        except RuntimeFailed as error:
            pytest.skip(f"{settings.runtime} cannot build this model: {error}")

    return plan if settings.runtime in NEED_GPU else lambda content: content


def any_length(path: Path) -> Model:
    """0 to 100,000 of each length that the model leaves open."""
    inputs = [(one.name, one.type.tensor_type.shape.dim) for one in onnx.load(path).graph.input]
    ranges = [
        InputRange(
            name=name,
            least=tuple(0 if one.dim_param else one.dim_value for one in lengths),
            best=tuple(2 if one.dim_param else one.dim_value for one in lengths),
            most=tuple(100_000 if one.dim_param else one.dim_value for one in lengths),
        )
        for name, lengths in inputs
    ]
    return Model(ranges=tuple(ranges), precision="fp32")


@pytest.fixture
def runtime(settings: ChildSettings, repository: Path) -> Iterator[ChildRuntime]:
    descriptors = set(Path("/proc/self/fd").iterdir())
    runtime = ServedRuntime(settings, repository) if settings.runtime == "kserve" else ChildRuntime(settings)
    yield runtime
    assert set(Path("/proc/self/fd").iterdir()) == descriptors
    assert runtime.abandoned == ()


def model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> bytes:
    proto = make_model(make_graph(nodes, "test", inputs, outputs), opset_imports=[make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def arithmetic() -> bytes:
    """total = a + b, of any length; more = (a > b)."""
    a, b, total = (make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("a", "b", "total"))
    more = make_tensor_value_info("more", TensorProto.BOOL, ["n", 2])
    nodes = [make_node("Add", ["a", "b"], ["total"]), make_node("Greater", ["a", "b"], ["more"])]
    return model(nodes, [a, b], [total, more])


def loop() -> bytes:
    """`n` times y = tanh(y), from x: as slow as one likes."""
    scalar = make_tensor_value_info("i", TensorProto.INT64, [])
    go_on, still = (make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", "still"))
    before, after = (make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("before", "after"))
    steps = [make_node("Identity", ["go_on"], ["still"]), make_node("Tanh", ["before"], ["after"])]
    body = make_graph(steps, "body", [scalar, go_on, before], [still, after])
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y"))
    node = make_node("Loop", ["n", "", "x"], ["y"], body=body)
    return model([node], [x, make_tensor_value_info("n", TensorProto.INT64, [])], [y])


def zeros() -> bytes:
    """sum = the sum of `shape` zeros: takes as much memory as one likes."""
    shape = make_tensor_value_info("shape", TensorProto.INT64, [1])
    total = make_tensor_value_info("sum", TensorProto.FLOAT, [1])
    nodes = [make_node("ConstantOfShape", ["shape"], ["z"]), make_node("ReduceSum", ["z"], ["sum"], keepdims=1)]
    return model(nodes, [shape], [total])


def places() -> bytes:
    """where = the indices at which x is not 0: as many as there are."""
    x = make_tensor_value_info("x", TensorProto.FLOAT, [4])
    where = make_tensor_value_info("where", TensorProto.INT64, [1, "n"])
    return model([make_node("NonZero", ["x"], ["where"])], [x], [where])


Load = Callable[[bytes], ChildEngine]


@pytest.fixture
def load(runtime: ChildRuntime, taken: Callable[[bytes], bytes], tmp_path: Path) -> Iterator[Load]:
    engines: list[ChildEngine] = []

    def load(model: bytes) -> ChildEngine:
        content = taken(model)
        path = tmp_path / f"{len(engines)}.onnx"
        path.write_bytes(content)
        engines.append(runtime.load(path, hashlib.sha256(content).hexdigest()))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


X = floats([0.1, 0.2, 0.3, 0.4])[0]
ONCE = {"x": X, "n": np.array(1, np.int64)}


class Hook:
    """Passed as `cancelled`: does something while the child is surely at work, and then answers `cancel`."""

    def __init__(self, action: Callable[[], object] = lambda: None, cancel: bool = False) -> None:
        self.action, self.cancel, self.calls = action, cancel, 0

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls == 3:  # the first is before the request is sent, the second before its answer is awaited
            self.action()
        return self.cancel and self.calls >= 3


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_is_what_the_port_says(runtime: ChildRuntime) -> None:
    port: Runtime = runtime  # the type checker compares the whole signature, that of the loaded engine too
    assert port.name
    assert port.probe() == ""


def test_right_numbers_of_right_kinds(load: Load) -> None:
    engine = load(arithmetic())
    assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [
        ("a", "float32", (-1, 2)),
        ("b", "float32", (-1, 2)),
    ]
    outputs = engine.infer({"a": floats([1, 2], [3, 4]), "b": floats([10, 0], [30, 40])}, 10)
    assert list(outputs) == ["total", "more"]
    assert outputs["total"].dtype == np.float32
    np.testing.assert_array_equal(outputs["total"], [[11, 2], [33, 44]])
    np.testing.assert_array_equal(outputs["more"], [[False, True], [False, False]])
    outputs["total"][:] = 0  # the caller's own


def test_it_names_what_it_ran_on(load: Load) -> None:
    engine = load(arithmetic())
    assert engine.runtime
    assert engine.runtime_version[0].isdigit()
    assert engine.device


@pytest.mark.parametrize("rows", [0, 1, 7, 100_000])
def test_any_length_in_one_child_and_any_memory_layout(load: Load, rows: int) -> None:
    engine = load(arithmetic())
    a = np.asfortranarray(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2))
    strided = np.ones((rows, 4), np.float32)[:, ::2]
    for _ in range(3):
        outputs = engine.infer({"b": strided, "a": a}, 10)
        np.testing.assert_array_equal(outputs["total"], a + 1)


def test_each_run_is_on_its_own_arrays_however_kinds_alternate(load: Load) -> None:
    engine = load(arithmetic())
    assert engine.pid is not None
    descriptors = []
    for number in range(12):
        a = np.full((1 + number // 2 % 3, 2), number, np.float32)
        inputs = {"a": a, "b": a + 1} if number % 4 else {"b": a + 1, "a": a}
        outputs = engine.infer(inputs, 10)
        np.testing.assert_array_equal(outputs["total"], 2 * a + 1)
        np.testing.assert_array_equal(outputs["more"], np.zeros_like(a, bool))
        descriptors.append(len(list(Path(f"/proc/{engine.pid}/fd").iterdir())))
    assert len(set(descriptors)) == 1


def test_outputs_whose_size_is_in_the_data(load: Load) -> None:
    """The inputs are of the same kinds each time."""
    engine = load(places())
    for ones in ([1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]):
        x = np.array(ones, np.float32)
        np.testing.assert_array_equal(engine.infer({"x": x}, 10)["where"], [np.flatnonzero(x)])


def test_outputs_belong_to_the_caller_whatever_runs_next(load: Load) -> None:
    engine = load(loop())
    first = engine.infer(ONCE, 30)["y"]
    before = first.copy()
    second = engine.infer({"x": X + 1, "n": np.array(1, np.int64)}, 30)["y"]
    np.testing.assert_array_equal(first, before)
    assert np.allclose(second, np.tanh(X + 1), rtol=1e-6)


def test_nan_and_infinity_pass_through(load: Load) -> None:
    outputs = load(arithmetic()).infer({"a": floats([np.nan, np.inf]), "b": floats([1, 1])}, 10)
    np.testing.assert_array_equal(outputs["total"], [[np.nan, np.inf]])


def test_the_time_inside_the_runtime_is_told(load: Load) -> None:
    engine = load(loop())
    start = time.perf_counter()
    engine.infer({"x": X, "n": np.array(2000, np.int64)}, 30)
    assert 0 < engine.last_run_ms <= (time.perf_counter() - start) * 1000


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": floats([1, 2])}, "b is missing"),
        ({"a": floats([1, 2]), "b": floats([1, 2]), "c": X}, "c is no input"),
        ({"a": floats([1, 2]).astype(np.float64), "b": floats([1, 2])}, "a is float64, not float32"),
        ({"a": floats([1, 2]).astype(">f4"), "b": floats([1, 2])}, "not float32"),
        ({"a": floats([1, 2, 3]), "b": floats([1, 2])}, "a has the shape"),
        ({"a": floats([1, 2])[0], "b": floats([1, 2])}, "a has the shape"),
    ],
)
def test_inputs_that_do_not_fit_never_reach_the_child(load: Load, inputs: dict[str, np.ndarray], words: str) -> None:
    engine = load(arithmetic())
    pid = engine.pid
    with pytest.raises(RuntimeFailed, match=words) as caught:
        engine.infer(inputs, 10)
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert engine.pid == pid


def test_what_the_runtime_itself_refuses_is_an_engine_failure(load: Load) -> None:
    engine = load(arithmetic())
    with pytest.raises(RuntimeFailed) as caught:
        engine.infer({"a": np.ones((3, 2), np.float32), "b": np.ones((2, 2), np.float32)}, 10)
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert len(engine.infer({"a": floats([1, 2]), "b": floats([1, 2])}, 10)) == 2


@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    ("content", "sha256", "words"),
    [
        (arithmetic(), "0" * 64, "another sha256"),
        (arithmetic()[:-40], None, "cannot be loaded"),
        (b"", None, "cannot be loaded"),
        (b"not a model", None, "cannot be loaded"),
    ],
)
def test_only_the_right_model_is_loaded(
    runtime: ChildRuntime, tmp_path: Path, content: bytes, sha256: str | None, words: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RuntimeFailed, match=words) as caught:
        runtime.load(path, sha256 or hashlib.sha256(content).hexdigest())
    assert caught.value.reason == Reason.NO_ENGINE


@pytest.mark.promise("P8")
def test_weights_outside_the_hashed_file_are_refused(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    floats([1, 2]).tofile("weights.bin")
    weights = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1, 2], data_location=TensorProto.EXTERNAL
    )  # fmt: skip
    weights.external_data.add(key="location", value="weights.bin")
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = make_graph([make_node("Add", ["x", "w"], ["y"])], "test", [x], [y], [weights])
    proto = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    with pytest.raises(RuntimeFailed, match="cannot be loaded"):
        load(proto.SerializeToString())


def test_no_model_file(runtime: ChildRuntime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match=r"model\.onnx cannot be read") as caught:
        runtime.load(tmp_path / "model.onnx", "0" * 64)
    assert caught.value.reason == Reason.NO_ENGINE


def test_a_model_altered_later_is_not_loaded_by_the_next_child(load: Load, tmp_path: Path) -> None:
    engine = load(loop())
    (tmp_path / "0.onnx").write_bytes(loop() + b" ")
    engine.close()
    with pytest.raises(RuntimeFailed, match="another sha256"):
        engine.infer(ONCE, 10)


def test_two_engines_at_once(load: Load) -> None:
    first, second = load(loop()), load(loop())
    assert first.pid != second.pid
    inputs = {"x": X, "n": np.array(20_000, np.int64)}
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda engine: engine.infer(inputs, 60)["y"], (first, second)))
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_deadline_is_hard(load: Load) -> None:
    engine = load(loop())
    pid = engine.pid
    start = time.monotonic()
    with pytest.raises(RuntimeFailed, match=r"passed its deadline of 0\.3 s") as caught:
        engine.infer({"x": X, "n": FOR_EVER}, 0.3)
    assert time.monotonic() - start < 3
    assert caught.value.reason == Reason.DEADLINE
    assert pid is not None
    assert gone(pid)
    assert engine.pid is None


def test_after_a_failure_the_next_call_starts_a_new_child(load: Load) -> None:
    engine = load(loop())
    first = engine.pid
    with pytest.raises(RuntimeFailed):
        engine.infer({"x": X, "n": FOR_EVER}, 0.2)
    assert np.allclose(engine.infer(ONCE, 30)["y"].astype(np.float32), np.tanh(X), rtol=1e-6)
    assert engine.pid not in (None, first)


def test_the_restart_counts_in_the_deadline(load: Load) -> None:
    engine = load(loop())
    engine.close()
    with pytest.raises(RuntimeFailed) as caught:
        engine.infer(ONCE, 0.01)
    assert caught.value.reason == Reason.DEADLINE


def test_cancelled_is_its_own_error_and_ends_the_child(load: Load) -> None:
    engine = load(loop())
    pid = engine.pid
    with pytest.raises(RuntimeCancelled):
        engine.infer({"x": X, "n": FOR_EVER}, 60, Hook(cancel=True))
    assert pid is not None
    assert gone(pid)


def test_killed_at_work(load: Load) -> None:
    engine = load(loop())
    pid = engine.pid
    assert pid is not None
    with pytest.raises(RuntimeFailed, match="killed by SIGKILL") as caught:
        engine.infer({"x": X, "n": FOR_EVER}, 60, Hook(lambda: os.kill(pid, signal.SIGKILL)))
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert "y" in engine.infer(ONCE, 30)


def test_killed_while_idle_is_not_noticed_by_the_caller(load: Load) -> None:
    engine = load(loop())
    engine.infer(ONCE, 30)
    pid = engine.pid
    assert pid is not None
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watch], [], [], 5)[0]
    os.close(watch)
    assert "y" in engine.infer(ONCE, 30)


def test_stopped_at_work(load: Load) -> None:
    engine = load(loop())
    pid = engine.pid
    assert pid is not None
    with pytest.raises(RuntimeFailed) as caught:
        engine.infer({"x": X, "n": FOR_EVER}, 0.5, Hook(lambda: os.kill(pid, signal.SIGSTOP)))
    assert caught.value.reason == Reason.DEADLINE
    assert gone(pid)


def test_the_memory_limit_holds_and_is_an_engine_failure(load: Load) -> None:
    engine = load(zeros())
    with pytest.raises(RuntimeFailed) as caught:
        engine.infer({"shape": np.array([MEMORY_MB << 18], np.int64)}, 30)  # floats: MEMORY_MB of them
    assert caught.value.reason == Reason.ENGINE_FAILED
    np.testing.assert_array_equal(engine.infer({"shape": np.array([10], np.int64)}, 30)["sum"], [0])


def switches(pid: int) -> int:
    """How often the child's threads went to sleep so far."""
    lines = (line for task in Path(f"/proc/{pid}/task").glob("*/status") for line in task.read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_an_idle_child_does_nothing_and_is_small(load: Load) -> None:
    engine = load(loop())
    engine.infer(ONCE, 30)
    pid = engine.pid
    assert pid is not None
    before = switches(pid)
    watch = os.pidfd_open(pid)
    assert select.select([watch], [], [], 0.4)[0] == []
    os.close(watch)
    assert switches(pid) - before <= IDLE_SWITCHES[engine.runtime]  # the answer was sent just before it slept
    assert resident_mb(pid) < 150


def test_memory_that_a_large_run_took_is_given_back(load: Load) -> None:
    engine = load(zeros())
    assert engine.pid is not None
    before = resident_mb(engine.pid)
    engine.infer({"shape": np.array([50 << 20], np.int64)}, 30)
    assert resident_mb(engine.pid) - before < 50  # of 200


def test_the_child_is_first_to_go_leaves_no_core_and_waits_behind_others(load: Load, settings: ChildSettings) -> None:
    proc = Path(f"/proc/{load(loop()).pid}")
    assert (proc / "oom_score_adj").read_text().strip() == "1000"
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    assert int(fields[16]) > os.getpriority(os.PRIO_PROCESS, 0) or int(fields[16]) == 19
    if (autogroup := proc / "autogroup").exists():  # its own, in which `nice` alone says nothing to others
        assert autogroup.read_text().split()[-1] == "10"
    limits = (proc / "limits").read_text()
    assert "Max core file size        0                    0" in limits
    assert f"Max data size             {settings.memory_mb << 20}" in limits


def test_close_ends_the_child_and_may_be_called_again(
    runtime: ChildRuntime, taken: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    content = taken(arithmetic())
    (tmp_path / "model").write_bytes(content)
    engine = runtime.load(tmp_path / "model", hashlib.sha256(content).hexdigest())
    pid = engine.pid
    with closing(engine):
        assert pid is not None
        assert not gone(pid)
    assert gone(pid)
    engine.close()


PARENT = """
import json, os, sys
from pathlib import Path
import numpy as np
from appliance.runtimes.builder import BuildSettings, InputRange, Model, TensorRtBuilder
from appliance.runtimes.process import ChildRuntime, ChildSettings
interpreter, more = Path(sys.executable), json.loads(sys.argv[4])
runtime = ChildRuntime(ChildSettings(interpreter=interpreter, runtime=sys.argv[1], runtime_settings=more))
engine = runtime.load(Path(sys.argv[2]), sys.argv[3])
calls = []
def at_work():
    calls.append(1)
    if len(calls) == 3:
        print(engine.pid, flush=True)
    return False
engine.infer({"x": np.zeros(4, np.float32), "n": np.array(10**15)}, 600, at_work)
"""


def test_the_child_dies_with_its_parent_even_at_work(
    runtime: ChildRuntime, settings: ChildSettings, taken: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path, content = tmp_path / "model.onnx", taken(loop())
    path.write_bytes(content)
    if isinstance(runtime, ServedRuntime):
        runtime.publish(path)
    sha256, more = hashlib.sha256(content).hexdigest(), json.dumps(settings.runtime_settings)
    command = [sys.executable, "-c", PARENT, runtime.name, str(path), sha256, more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    ended = select.select([child], [], [], 5)[0]
    os.close(child)
    assert ended
