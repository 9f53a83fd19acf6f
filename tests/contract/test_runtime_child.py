"""The daemon's side against children that misbehave on purpose, and what the child program itself must be.

A scripted child is an "interpreter" of ours: the very seam the configuration has.
"""

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance import runtimes
from appliance.errors import RuntimeFailed
from appliance.model import Reason
from appliance.runtimes.memory import layout, memory_file, read_array, write_array
from appliance.runtimes.passage import LASTING_BYTES
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from tests.missing import missing
from tests.waiting import eventually

PROGRAMS = [
    Path(runtimes.__file__).with_name(name)
    for name in (
        "child.py",
        "onnx.py",
        "kserve.py",
        "one_connection.py",
        "tensorrt.py",
        "cuda_memory.py",
        "cuda_probe.py",
        "plan_build.py",
    )
]
LIBRARIES = {"onnx.py": {"onnxruntime"}, "kserve.py": {"grpc", "tritonclient"}}
X = {"x": np.zeros(2, np.float32)}

SCRIPT = f"""#!{sys.executable} -I
import json, os, resource, select, signal, socket, struct, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
wire = socket.socket(fileno=0)
def read():
    size, = struct.unpack(">I", wire.recv(4, socket.MSG_WAITALL))
    return json.loads(wire.recv(size, socket.MSG_WAITALL))
def raw(body):
    wire.sendall(struct.pack(">I", len(body)) + body)
def say(**message):
    raw(json.dumps(message).encode())
def hang():
    select.select([], [], [])
def tensor(name, shape, dtype="float32"):
    return dict(name=name, dtype=dtype, shape=shape)
def ran(*outputs, **more):
    say(ok=True, outputs=outputs, **dict(run_ms=1.0) | more)
Y = tensor("y", [2])
"""
UP_TO_INFER = """
read(); say(ok=True, protocol=2, version="1", device="none")
read(); say(ok=True, inputs=[tensor("x", [2])], outputs=[tensor("y", [-1])])
read()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").write_bytes(b"")
    return tmp_path / "model"


def scripted(folder: Path, text: str, first: str = SCRIPT, memory_mb: int = 1) -> ChildRuntime:
    path = folder / "python"
    path.write_text(first + text)
    path.chmod(0o755)
    return ChildRuntime(ChildSettings(interpreter=path, memory_mb=memory_mb, reap_s=1, load_deadline_s=20))


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = set(Path("/proc/self/fd").iterdir())
    yield
    assert set(Path("/proc/self/fd").iterdir()) == before


def load(runtime: ChildRuntime, model: Path) -> ChildEngine:
    return runtime.load(model, hashlib.sha256(model.read_bytes()).hexdigest())


NONSENSE = "answered nonsense"


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ("raw(b'garbage')", Reason.ENGINE_FAILED, NONSENSE),
        ("raw(b'')", Reason.ENGINE_FAILED, NONSENSE),
        ("raw(b'[' * 100_000)", Reason.ENGINE_FAILED, NONSENSE),
        ("raw(b'\\xff\\xfe')", Reason.ENGINE_FAILED, NONSENSE),
        ("raw(b'[1, 2]')", Reason.ENGINE_FAILED, NONSENSE),
        ("say(outputs=[Y], run_ms=1)", Reason.ENGINE_FAILED, NONSENSE),
        ("say(ok=False, reason='mood', detail='')", Reason.ENGINE_FAILED, NONSENSE),
        ("say(ok=False, reason='run', detail='x' * 501)", Reason.ENGINE_FAILED, NONSENSE),
        ("say(ok=False, reason='run', detail='no luck')", Reason.ENGINE_FAILED, "no luck"),
        ("say(ok=False, reason='memory', detail='out of it')", Reason.ENGINE_FAILED, "out of it"),
        ("ran(Y, run_ms=float('nan'))", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(Y, more=1)", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(tensor('y', [-1]))", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(tensor('y', [10 ** 3000]))", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(tensor('y', [2], 'object'))", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(tensor('y', [2], 'float64'))", Reason.ENGINE_FAILED, "y is float64, not float32"),
        ("ran(tensor('y', [2, 2]))", Reason.ENGINE_FAILED, "y has the shape"),
        ("ran(tensor('y', [2 ** 20]))", Reason.ENGINE_FAILED, "over the memory limit"),
        ("ran(tensor('z', [2]))", Reason.ENGINE_FAILED, "not those of the model"),
        ("ran()", Reason.ENGINE_FAILED, "not those of the model"),
        ("ran(Y, Y)", Reason.ENGINE_FAILED, "not those of the model"),
        ("ran(Y, offsets=[1 << 20])", Reason.ENGINE_FAILED, "not where they should be"),
        ("ran(Y, offsets=[0])", Reason.ENGINE_FAILED, "not where they should be"),
        ("ran(Y, offsets=[0, 0])", Reason.ENGINE_FAILED, "not where they should be"),
        ("ran(Y, offsets=[-1])", Reason.ENGINE_FAILED, NONSENSE),
        ("say(ok=True, run_ms=1)", Reason.ENGINE_FAILED, NONSENSE),
        ("say(ok=True, outputs=None, run_ms=1)", Reason.ENGINE_FAILED, NONSENSE),
        (r"wire.sendall(b'\0\0\0\x02{}' * 2); hang()", Reason.ENGINE_FAILED, "more than it was asked"),
        ("ran(Y); read(); say(ok=True, more=1)", Reason.ENGINE_FAILED, NONSENSE),
        ("ran(Y); read(); sys.exit(0)", Reason.ENGINE_FAILED, "ended with status 0"),
        ("ran(Y); hang()", Reason.DEADLINE, "passed its deadline"),
        ("wire.sendall(b'\\xff\\xff\\xff\\xff'); hang()", Reason.ENGINE_FAILED, "too long: 4294967295"),
        ("wire.sendall(b'\\0\\0\\0\\x09abc'); hang()", Reason.DEADLINE, "passed its deadline"),
        ("hang()", Reason.DEADLINE, "passed its deadline"),
        ("print('one\\n\\ntwo\\x1b[0m', file=sys.stderr); sys.exit(3)", Reason.ENGINE_FAILED, r"status 3: two \[0m"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", Reason.ENGINE_FAILED, "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGABRT)", Reason.ENGINE_FAILED, "killed by SIGABRT"),
        ("wire.close(); sys.exit('bye')", Reason.ENGINE_FAILED, "status 1: bye"),
    ],
)
def test_every_way_to_answer_wrongly(tmp_path: Path, model: Path, answer: str, reason: Reason, words: str) -> None:
    engine = load(scripted(tmp_path, UP_TO_INFER + answer), model)
    with pytest.raises(RuntimeFailed, match=words) as caught:
        engine.infer(X, 0.3 if reason is Reason.DEADLINE else 10)
    assert caught.value.reason == reason
    assert engine.pid is None


@pytest.mark.parametrize("more", ["offsets=[64]); hang()", "); read(); say(ok=True); hang()"])
def test_an_empty_output_whose_other_lengths_no_array_can_have(tmp_path: Path, model: Path, more: str) -> None:
    shapes = UP_TO_INFER.replace("[-1]", "[-1, -1, -1]")
    engine = load(scripted(tmp_path, f"{shapes}ran(tensor('y', [2 ** 40, 2 ** 40, 0]), {more}"), model)
    with pytest.raises(RuntimeFailed, match="no shape of an array") as caught:
        engine.infer(X, 10)
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert engine.pid is None


def test_outputs_that_were_left_beside_the_inputs_are_not_asked_for(tmp_path: Path, model: Path) -> None:
    left = """
read(); say(ok=True, protocol=2, version="1", device="none")
read(); say(ok=True, inputs=[tensor("x", [2])], outputs=[tensor("y", [2])])
head, (memory,), _, _ = socket.recv_fds(wire, 4, 1)
offset, length = json.loads(wire.recv(*struct.unpack(">I", head), socket.MSG_WAITALL))["room"]
assert (offset, length) == (64, 64)
os.pwrite(memory, struct.pack("<2f", 3.0, 4.0), offset)
ran(Y, offsets=[offset])
hang()
"""
    with closing(load(scripted(tmp_path, left), model)) as engine:
        assert engine.infer(X, 10)["y"].tolist() == [3.0, 4.0]


FIRST_OF_TWO = """
read(); say(ok=True, protocol=2, version="1", device="none")
read(); say(ok=True, inputs=[tensor("x", [-1])], outputs=[tensor("y", [2])])
def receive():
    body, (memory,), _, _ = socket.recv_fds(wire, 4096, 1)
    return json.loads(body[4:]), memory
request, memory = receive()
offset, length = request["room"]
"""
LEFT = (
    FIRST_OF_TWO
    + """
os.pwrite(memory, struct.pack("<2f", 3.0, 4.0), offset)
ran(Y, offsets=[offset])
"""
)


def test_on_arrays_of_the_same_kinds_the_child_is_sent_no_other_memory(tmp_path: Path, model: Path) -> None:
    again = """
request = read()
assert request["do"] == "again" and set(request) == {"do", "deadline_s"}
os.pwrite(memory, struct.pack("<2f", *(2 * x for x in struct.unpack("<2f", os.pread(memory, 8, 0)))), offset)
say(ok=True, run_ms=2.0)
request, other = receive()
assert request["do"] == "infer" and [spec["shape"] for spec in request["inputs"]] == [[3]]
ran(Y, offsets=request["room"][:1])
hang()
"""
    with closing(load(scripted(tmp_path, LEFT + again), model)) as engine:
        first = engine.infer(X, 10)["y"]
        second = engine.infer({"x": np.array([5, 6], np.float32)}, 10)["y"]
        assert engine.last_run_ms == 2.0
        third = engine.infer({"x": np.zeros(3, np.float32)}, 10)["y"]
    assert [array.tolist() for array in (first, second)] == [[3.0, 4.0], [10.0, 12.0]]
    assert np.isnan(third).all(), "it said that it left something there"


def test_a_child_that_says_it_ran_again_and_did_not_gives_nothing_of_the_run_before(
    tmp_path: Path, model: Path
) -> None:
    with closing(load(scripted(tmp_path, LEFT + "read(); say(ok=True, run_ms=1); hang()"), model)) as engine:
        assert engine.infer(X, 10)["y"].tolist() == [3.0, 4.0]
        assert np.isnan(engine.infer(X, 10)["y"]).all()


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("ran(Y); read(); say(ok=True)", "say(ok=True, run_ms=1)", "not those of the model"),
        ("ran(Y, offsets=[offset])", "say(ok=True, outputs=[], run_ms=1)", "not those of the model"),
        ("ran(Y, offsets=[offset])", "ran(tensor('y', [3]))", "y has the shape"),
        ("ran(Y, offsets=[offset])", "ran(Y, offsets=[1 << 20])", "not where they should be"),
        ("ran(Y, offsets=[offset])", "ran(Y, offsets=[])", "ended with status 0"),
        ("ran(Y, offsets=[offset])", "say(ok=False, reason='run', detail='no luck')", "no luck"),
        ("ran(Y, offsets=[offset])", "say(ok=True)", NONSENSE),
        ("ran(Y, offsets=[offset])", "sys.exit(3)", "ended with status 3"),
    ],
)
def test_every_way_to_answer_wrongly_the_second_time(
    tmp_path: Path, model: Path, first: str, second: str, words: str
) -> None:
    engine = load(scripted(tmp_path, f"{FIRST_OF_TWO}{first}\nread(); {second}"), model)
    engine.infer(X, 10)
    with pytest.raises(RuntimeFailed, match=words) as caught:
        engine.infer(X, 10)
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert engine.pid is None


def test_an_answer_too_many_is_no_answer_to_what_is_asked_next(tmp_path: Path, model: Path) -> None:
    said = tmp_path / "said"
    late = f"read(); say(ok=True, run_ms=1); say(ok=True, run_ms=1); open({str(said)!r}, 'x'); hang()"

    def infer_twice(engine: ChildEngine) -> None:
        engine.infer(X, 10)
        eventually(said.exists)
        engine.infer(X, 10)

    with closing(load(scripted(tmp_path, LEFT + late), model)) as engine:
        engine.infer(X, 10)
        with pytest.raises(RuntimeFailed, match="more than it was asked"):
            infer_twice(engine)


@pytest.mark.parametrize(("length", "kept"), [(LASTING_BYTES // 4 - 16, True), (LASTING_BYTES // 4, False)])
def test_memory_of_a_large_run_is_not_kept(tmp_path: Path, model: Path, length: int, kept: bool) -> None:
    said = "ran(Y, offsets=[offset], note=str(request['keep'])); hang()"
    before = set(Path("/proc/self/fd").iterdir())
    with closing(load(scripted(tmp_path, FIRST_OF_TWO + said), model)) as engine:
        started = set(Path("/proc/self/fd").iterdir()) - before
        engine.infer({"x": np.zeros(length, np.float32)}, 20)
        assert engine.last_note == str(kept)
        assert len(set(Path("/proc/self/fd").iterdir()) - before - started) == kept


def test_a_child_that_closes_its_socket_and_stays(tmp_path: Path, model: Path) -> None:
    engine = load(scripted(tmp_path, UP_TO_INFER + "wire.close(); hang()"), model)
    with pytest.raises(RuntimeFailed, match="closed its socket"):
        engine.infer(X, 10)
    assert engine.pid is None


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("sys.exit('no licence')", Reason.NO_ENGINE, "status 1: no licence"),
        ("read(); say(ok=True, protocol=1, version='1', device='none')", Reason.ENGINE_FAILED, "nonsense: protocol"),
        ("read(); say(ok=False, reason='runtime', detail='not here')", Reason.NO_ENGINE, "not here"),
    ],
)
def test_a_child_that_cannot_start_is_told_by_load_and_probe(
    tmp_path: Path, model: Path, text: str, reason: Reason, words: str
) -> None:
    runtime = scripted(tmp_path, text)
    assert words in runtime.probe()
    with pytest.raises(RuntimeFailed, match=words) as caught:
        load(runtime, model)
    assert caught.value.reason == reason


def test_load_has_a_deadline_of_its_own(tmp_path: Path, model: Path) -> None:
    path = scripted(tmp_path, "hang()")._settings.interpreter
    runtime = ChildRuntime(ChildSettings(interpreter=path, load_deadline_s=0.3))
    with pytest.raises(RuntimeFailed, match=r"load passed its deadline of 0\.3 s") as caught:
        load(runtime, model)
    assert caught.value.reason == Reason.DEADLINE


@pytest.mark.parametrize(("name", "words"), [("nowhere", "No such file"), ("model", "Permission denied")])
def test_no_interpreter(tmp_path: Path, model: Path, name: str, words: str) -> None:
    runtime = ChildRuntime(ChildSettings(interpreter=tmp_path / name))
    assert words in runtime.probe()
    with pytest.raises(RuntimeFailed, match=words) as caught:
        load(runtime, model)
    assert caught.value.reason == Reason.NO_ENGINE


def test_an_interpreter_without_numpy(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, f'exec {sys.executable} -S "$@"\n', "#!/bin/sh\n")
    assert "No module named 'numpy'" in runtime.probe()


def shim(text: str) -> str:
    """An interpreter that does something before it runs the true child program."""
    start = "import os, runpy, sys\nsys.argv = sys.argv[2:]\n"
    return f"#!{sys.executable} -I\n{start}{text}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def test_an_interpreter_without_the_runtime(tmp_path: Path) -> None:
    runtime = scripted(tmp_path, shim("sys.modules['onnxruntime'] = None"), "", memory_mb=1000)
    assert "onnx cannot be used by" in runtime.probe()


def test_a_library_that_prints_without_end_harms_nothing(tmp_path: Path) -> None:
    noise = "try:\n    while True: os.write(1, b'noise' * 1000)\nexcept BlockingIOError: pass"
    assert scripted(tmp_path, shim(noise), "", memory_mb=1000).probe() == ""


PTRACE = """
import ctypes, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0), flush=True)  # PTRACE_SEIZE
signal.pause()
"""


def test_a_child_that_even_sigkill_does_not_end_is_abandoned_and_told(tmp_path: Path, model: Path) -> None:
    """A tracer that does not look is as good as a driver that does not return: the dead child cannot be reaped."""
    runtime = scripted(tmp_path, UP_TO_INFER + "hang()")
    engine = load(runtime, model)
    pid = engine.pid
    command = [sys.executable, "-c", PTRACE, str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        if tracer.stdout.readline().strip() != "0":
            tracer.kill()
            missing("ptrace is not allowed here")
        with pytest.raises(RuntimeFailed, match="deadline"):
            engine.infer(X, 0.2)
        assert runtime.abandoned == (pid,)
        assert "AI is off" in runtime.probe()
        with pytest.raises(RuntimeFailed, match="AI is off"):
            engine.infer(X, 0.2)
        tracer.kill()
    assert not runtime.abandoned
    load(runtime, model).close()


@settings(max_examples=50, deadline=None)
@given(
    array=hnp.arrays(
        hnp.integer_dtypes() | hnp.floating_dtypes(endianness="="), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_arrays_survive_the_memory_file(array: np.ndarray) -> None:
    offsets, size = layout([3, array.nbytes])
    with memory_file(size) as fd:
        write_array(fd, offsets[1], array)
        copy = read_array(fd, offsets[1], array.dtype.str, array.shape)
    np.testing.assert_array_equal(copy, array)


@given(sizes=st.lists(st.integers(0, 2**40), max_size=8))
def test_arrays_lie_aligned_and_apart(sizes: list[int]) -> None:
    offsets, end = layout(sizes)
    assert all(offset % 64 == 0 for offset in offsets)
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
    assert all(stop <= start for stop, start in zip(ends, [*offsets[1:], end], strict=False))


def test_a_memory_file_cannot_be_cut_short() -> None:
    with memory_file(100) as fd, pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def modules(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
            if node.module == "appliance.runtimes":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_the_child_program_is_plain_python_3_10(program: Path) -> None:
    tree = ast.parse(program.read_text(), feature_version=(3, 10))
    imported = {name.partition(".")[0] for name in modules(tree)}
    allowed = sys.stdlib_module_names | {"numpy"} | LIBRARIES.get(program.name, set())
    of_ours = {f"appliance.runtimes.{path.stem}" for path in PROGRAMS} | {"appliance.runtimes"}
    assert imported - {"appliance"} <= allowed
    assert {name for name in modules(tree) if name.startswith("appliance")} <= of_ours
    assert imported.isdisjoint({"pickle", "marshal", "shelve"})
    assert "subprocess" not in imported or program.name == "cuda_probe.py"


def test_the_child_program_uses_nothing_newer_than_3_10() -> None:
    if importlib.util.find_spec("vermin") is None:
        missing("vermin (extra dev) is not installed")
    vermin = Path(sys.executable).with_name("vermin")
    command = [str(vermin), "-t=3.10-", "--violations", "--no-tips", *map(str, PROGRAMS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
