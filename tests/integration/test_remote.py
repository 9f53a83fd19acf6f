"""An engine that a server runs while it can: real gRPC, real children, and a server that misbehaves on purpose."""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.ports import Array, LoadedEngine, Runtime
from appliance.runtimes.channel import TensorSpec
from appliance.runtimes.fallback import Preferred, WithFallback
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from tests.certificates import Authority, Paper
from tests.kserve_double import Double, Model, serving
from tests.waiting import eventually

X = np.array([1, 2, 3, 4], np.float32)
INPUT = TensorSpec(name="x", dtype="float32", shape=(4,))
OUTPUT = TensorSpec(name="y", dtype="float32", shape=(4,))
MESSAGE = 1 << 20


def right(inputs: Mapping[str, Array], _gone: Callable[[], bool]) -> dict[str, Array]:
    return {"y": inputs["x"].astype(np.float32) + np.float32(1)}


def double(run: Callable[..., Mapping[str, Array]] = right, **more: Any) -> Double:
    return Double(models={"m": Model(inputs=[INPUT], outputs=[OUTPUT], run=run)}, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x + 1, as the server has it too."""
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    one = TensorProto(name="one", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    graph = make_graph([make_node("Add", ["x", "one"], ["y"])], "test", [x], [y], [one])
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    made = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def golden(engine: LoadedEngine) -> str:
    found = engine.infer({"x": X}, 60.0)
    return "" if np.allclose(found["y"], X + 1) else "output y differs"


@dataclass
class Kept:
    """The engine of this box, as each test has it: closed only after the last."""

    engine: ChildEngine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def close(self) -> None:
        return


@pytest.fixture(scope="module")
def here(model: Path) -> Iterator[Any]:
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    engine = ChildRuntime(ChildSettings(interpreter=Path(sys.executable))).load(model, sha256)
    assert golden(engine) == ""
    yield Kept(engine)
    engine.close()


@dataclass
class Box:
    """This box's side; what it makes is closed in the end."""

    model: Path
    here: Any
    verify: Callable[[LoadedEngine], str] = golden
    engines: list[WithFallback] = field(default_factory=list)

    def engine(self, port: int, **more: Any) -> WithFallback:
        sha256 = hashlib.sha256(self.model.read_bytes()).hexdigest()
        settings = {"url": f"127.0.0.1:{port}", "model": "m", "connect_s": 10.0, "max_message_bytes": MESSAGE}
        tls, monotonic = more.pop("tls", None), more.pop("monotonic", time.monotonic)
        runtime = ChildRuntime(
            ChildSettings(
                interpreter=Path(sys.executable), runtime="kserve", runtime_settings={**settings, "tls": tls}, reap_s=1
            )
        )
        given: dict[str, Any] = {"inputs": [INPUT], "outputs": [OUTPUT], "share": 0.5, "max_message_bytes": MESSAGE}
        given |= {"kind": "the server", "instead": "this box", "tend_s": 20.0}
        wanted = Preferred(
            name=f"m at 127.0.0.1:{port}", model=self.model, sha256=sha256, verify=self.verify, **given | more
        )
        self.engines.append(WithFallback(runtime, self.here, wanted, monotonic))
        return self.engines[-1]


@pytest.fixture
def box(model: Path, here: Any) -> Iterator[Box]:
    made = Box(model, here)
    yield made
    for engine in made.engines:
        engine.close()


def check(engine: LoadedEngine, *, local: bool, words: str = "", deadline_s: float = 60.0) -> None:
    """It answers rightly, and says who did."""
    assert engine.infer({"x": X}, deadline_s)["y"].tolist() == (X + 1).tolist()
    assert engine.runtime == ("onnx" if local else "kserve")
    assert engine.device.startswith("CPU" if local else "double at 127.0.0.1:")
    if local:
        assert "was not used, this box ran it instead" in engine.degraded
        assert words in engine.degraded
    else:
        assert engine.degraded == ""
    assert engine.last_run_ms > 0


def test_it_is_what_the_port_says(box: Box) -> None:
    with serving(double()) as port:
        engine: LoadedEngine = box.engine(port)
        runtime: Runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable), runtime="kserve"))
        assert runtime.name == "kserve"
        check(engine, local=False)


@pytest.mark.promise("P8")
def test_the_server_runs_it_after_the_golden_cases_and_is_named(box: Box) -> None:
    served = double()
    with serving(served) as port:
        engine = box.engine(port)
        engine.tend()
        assert len(served.asked) == 1  # the golden case
        check(engine, local=False)
        check(engine, local=False)
        assert len(served.asked) == 3
    assert engine.device == f"double at 127.0.0.1:{port}, model m version 1"
    assert engine.runtime_version == "1.0"
    assert {request.model_version for request in served.asked} == {"1"}
    assert all(request.id == "" and not request.parameters for request in served.asked)


@pytest.mark.promise("P6")
def test_without_a_server_this_box_runs_it_and_says_so(box: Box) -> None:
    with serving(double()) as port:
        pass
    engine = box.engine(port)
    engine.tend()
    assert "UNAVAILABLE" in engine.degraded  # before any study
    check(engine, local=True, words="UNAVAILABLE")


def wrong(inputs: Mapping[str, Array], _gone: Callable[[], bool]) -> dict[str, Array]:
    return {"y": inputs["x"].astype(np.float32) + np.float32(1.5)}


@pytest.mark.promise("P8")
def test_a_server_with_another_model_never_serves(box: Box) -> None:
    with serving(double(wrong)) as port:
        check(box.engine(port), local=True, words="it is not verified: output y differs")


def failing(_inputs: Mapping[str, Array], _gone: Callable[[], bool]) -> dict[str, Array]:
    raise RuntimeFailed("engine_failed", "out of CUDA memory")


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([INPUT.model_copy(update={"dtype": "float16"})], [OUTPUT], "x is float32, not float16"),
        ([INPUT.model_copy(update={"shape": (5,)})], [OUTPUT], "x has the shape (4,), not (5,)"),
        ([INPUT.model_copy(update={"shape": (-1, 4)})], [OUTPUT], "x has the shape (4,), not (-1, 4)"),
        ([INPUT], [OUTPUT, OUTPUT.model_copy(update={"name": "z"})], "its outputs are not the manifest's: z on one"),
    ],
)
@pytest.mark.promise("P8")
def test_inputs_and_outputs_must_be_the_manifests(
    box: Box, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], words: str
) -> None:
    with serving(Double(models={"m": Model(inputs=inputs, outputs=outputs, run=right)})) as port:
        check(box.engine(port), local=True, words=words)


def test_a_length_that_the_server_leaves_open_fits(box: Box) -> None:
    inputs = [INPUT.model_copy(update={"shape": (-1,)})]
    with serving(Double(models={"m": Model(inputs=inputs, outputs=[OUTPUT], run=right)})) as port:
        check(box.engine(port), local=False)


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (double(ready=False), "is not ready"),
        (Double(models={}), "unknown model"),
        (double(failing), "out of CUDA memory"),
    ],
)
def test_a_server_that_is_not_ready_or_fails(box: Box, served: Double, words: str) -> None:
    with serving(served) as port:
        check(box.engine(port), local=True, words=words)


def spoilt(alter: Callable[[Any], object]) -> Callable[[Any], Any]:
    def spoil(answer: Any) -> Any:
        alter(answer)
        return answer

    return spoil


def named_otherwise(answer: Any) -> None:
    answer.outputs[0].name = "z"


def of_another_kind(answer: Any) -> None:
    answer.outputs[0].datatype = "BYTES"


def longer_than_it_is(answer: Any) -> None:
    answer.outputs[0].shape[0] = 1 << 40


def negative(answer: Any) -> None:
    answer.outputs[0].shape[:] = [-1, -4]


def without_bytes(answer: Any) -> None:
    del answer.raw_output_contents[:]


def not_finite(answer: Any) -> None:
    answer.raw_output_contents[0] = np.full(4, np.nan, np.float32).tobytes()


def of_another_shape(answer: Any) -> None:
    answer.outputs[0].shape[:] = [2, 2]


def of_another_version(answer: Any) -> None:
    answer.model_version = "2"


def far_too_long(answer: Any) -> None:
    answer.raw_output_contents[0] = bytes(2 * MESSAGE)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (named_otherwise, "the server left out y"),
        (of_another_kind, "nonsense: no tensor of numbers"),
        (longer_than_it_is, "nonsense: 16 bytes for (1099511627776,)"),
        (negative, "nonsense: no tensor of numbers"),
        (without_bytes, "nonsense: outputs without their bytes"),
        (not_finite, "nonsense: y is not finite"),
        (of_another_shape, "y has the shape (2, 2)"),
        (of_another_version, "version '2' answered instead of '1'"),
        (far_too_long, "RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.promise("P9")
def test_nonsense_after_the_golden_cases_is_not_believed(box: Box, alter: Callable[[Any], object], words: str) -> None:
    served = double()
    with serving(served) as port:
        engine = box.engine(port)
        engine.tend()
        assert engine.degraded == ""
        served.spoil = spoilt(alter)
        check(engine, local=True, words=words)


@dataclass
class Slow:
    """Answers only when let go, or when nobody waits any more."""

    go: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    slow: bool = False

    def __call__(self, inputs: Mapping[str, Array], gone: Callable[[], bool]) -> dict[str, Array]:
        while self.slow and not self.go.wait(0.05) and not gone():
            self.asked.set()
        return right(inputs, gone)


@pytest.mark.promise("P6")
def test_a_slow_server_has_its_share_and_no_more(box: Box) -> None:
    slow = Slow()
    with serving(double(slow)) as port:
        engine = box.engine(port, share=0.1)
        engine.tend()
        slow.slow = True
        begun = time.monotonic()
        check(engine, local=True, words="passed its deadline of", deadline_s=15.0)
        assert 1.0 < time.monotonic() - begun < 15.0
        slow.go.set()


def test_with_no_time_to_spare_it_is_not_asked(box: Box) -> None:
    served = double()
    with serving(served) as port:
        engine = box.engine(port)
        engine.tend()
        check(engine, local=True, words="no time to ask it", deadline_s=1.0)  # as long as its child may take to go
        assert len(served.asked) == 1
        check(engine, local=False)  # which was no fault of the server


def test_what_is_longer_than_a_message_is_not_sent(box: Box) -> None:
    served = double()
    with serving(served) as port:
        engine = box.engine(port, max_message_bytes=16)
        engine.tend()
        check(engine, local=True, words="the inputs have 16 bytes, its messages at most 16")
        assert len(served.asked) == 1


def test_cancelled_is_cancelled_and_nobody_else_is_asked(box: Box) -> None:
    slow = Slow()
    with serving(double(slow)) as port:
        engine = box.engine(port)
        engine.tend()
        slow.slow = True
        with pytest.raises(RuntimeCancelled):
            engine.infer({"x": X}, 60.0, slow.asked.is_set)
        slow.slow = False
        check(engine, local=False)


def test_looking_for_the_server_gives_way_to_a_study(box: Box) -> None:
    slow = Slow(slow=True)
    with serving(double(slow)) as port:
        engine = box.engine(port)
        engine.tend(slow.asked.is_set)
        slow.slow = False
        check(engine, local=False)


def is_called(port: int) -> bool:
    """Whether somebody here holds a connection to this port, be it one that the other side has closed."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(int(line[2].rpartition(":")[2], 16) == port and line[3] in ("01", "08") for line in lines)


def parted(port: int) -> None:
    eventually(lambda: not is_called(port), 20, "the child knows that the server is gone")


@pytest.mark.promise("P8")
def test_a_server_that_was_restarted_is_verified_anew_before_it_serves(box: Box) -> None:
    with serving(double()) as port:
        engine = box.engine(port)
        check(engine, local=False)
    parted(port)
    other = double(wrong)
    with serving(other, port):
        check(engine, local=True, words="it is not verified")
    assert len(other.asked) == 1  # the golden case: no study reached it


@pytest.mark.promise("P8")
def test_a_connection_that_was_lost_is_none_of_the_servers_fault(box: Box) -> None:
    with serving(double()) as port:
        engine = box.engine(port)
        check(engine, local=False)
    parted(port)
    again = double()
    with serving(again, port):
        check(engine, local=False)
    assert len(again.asked) == 2  # the golden case first


def test_a_server_that_failed_is_left_alone_for_a_while(box: Box) -> None:
    served = double(failing)
    with serving(served) as port:
        engine = box.engine(port)
        check(engine, local=True, words="out of CUDA memory")
        check(engine, local=True, words="out of CUDA memory")
        engine.tend()
    assert len(served.asked) == 1


def test_an_answer_that_turned_out_to_mean_nothing_is_not_asked_for_again(box: Box) -> None:
    with serving(double()) as port:
        engine = box.engine(port)
        check(engine, local=False)
        engine.doubt("scores lies outside 0..1")
        check(engine, local=True, words="scores lies outside 0..1")


def test_what_is_slow_here_leaves_the_server_a_fifth(box: Box) -> None:
    with serving(double()) as port:
        engine = box.engine(port)
        engine._slowest_s = 1000.0
        check(engine, local=False, deadline_s=60.0)
        check(engine, local=True, words="no time to ask it", deadline_s=4.0)  # of which a fifth is not worth it


@dataclass
class Clock:
    """Moved by hand, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def read_in_runs(engine: WithFallback, clock: Clock, runs: int) -> list[str]:
    """A study of a minute; who answered each of them."""
    engine.begin(60.0)
    until, who = clock.now + 60.0, []
    for _ in range(runs):
        assert engine.infer({"x": X}, until - clock.now)["y"].tolist() == (X + 1).tolist()
        who.append(engine.runtime)
    return who


def taking(seconds: float) -> tuple[Clock, Double]:
    """A server, each answer of which takes so many seconds of that clock."""
    clock = Clock()

    def run(inputs: Mapping[str, Array], gone: Callable[[], bool]) -> dict[str, Array]:
        clock.now += seconds
        return right(inputs, gone)

    return clock, double(run)


@pytest.fixture
def slowly() -> tuple[Clock, Double]:
    return taking(10.0)


@pytest.mark.promise("P6")
def test_a_server_that_is_quicker_than_this_box_reads_the_whole_study(box: Box) -> None:
    """This box would take 240 s for what the server does in 40: giving way would gain nothing."""
    clock, served = taking(1.0)
    with serving(served) as port:
        engine = box.engine(port, monotonic=clock)
        engine.tend()
        for _ in range(3):
            engine._slowest_s = 6.0
            assert read_in_runs(engine, clock, 40) == ["kserve"] * 40


@pytest.mark.promise("P6")
def test_a_study_that_is_read_in_many_runs_gives_a_slow_server_one_share_of_its_time(
    box: Box, slowly: tuple[Clock, Double]
) -> None:
    clock, served = slowly
    with serving(served) as port:
        engine = box.engine(port, monotonic=clock)
        engine.tend()
        for _ in range(2):
            assert read_in_runs(engine, clock, 6) == ["kserve"] * 3 + ["onnx"] * 3
            assert "this box ran it instead: it has used up its share of the study's time" in engine.degraded
        in_front = WithFallback(engine._runtime, engine, None, clock)  # where nothing is preferred to it
        assert read_in_runs(in_front, clock, 6) == ["kserve"] * 3 + ["onnx"] * 3
        assert read_in_runs(engine, clock, 1) == ["kserve"]
        assert engine._study is not None
        engine._study.last_run_s = 31.0  # more than the 20 s that are left to it: it would be cut off
        engine.infer({"x": X}, 50.0)
        assert (engine.runtime, engine._failures) == ("onnx", 0)
        engine.infer({"x": X}, 600.0)  # a run of its own
        assert engine.runtime == "kserve"


@pytest.mark.promise("P6")
def test_this_box_is_left_the_time_for_all_runs_that_are_still_to_come(box: Box, slowly: tuple[Clock, Double]) -> None:
    clock, served = slowly
    with serving(served) as port:
        engine = box.engine(port, monotonic=clock)
        engine.tend()
        assert len(read_in_runs(engine, clock, 8)) == 8
        engine._slowest_s = 4.0  # twice that for each of 8 is more than there is: of a fifth one run can be had
        assert read_in_runs(engine, clock, 8)[:2] == ["kserve", "onnx"]
        assert engine._failures == 0


def test_a_child_that_is_killed_between_two_studies(box: Box) -> None:
    served = double()
    with serving(served) as port:
        engine = box.engine(port)
        check(engine, local=False)
        remote = engine._preferred
        assert remote is not None
        assert remote._child is not None
        remote._child._process.kill()
        remote._child._process.wait()
        check(engine, local=False)
    assert len(served.asked) == 5  # golden, study; the study again over an unknown connection; golden, study


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """A server that shows a certificate and wants one, and what this box may show."""

    port: int
    served: Double
    ca: Path
    box: Paper
    rogue: Paper
    rogue_ca: Path

    def tls(self, **other: str) -> dict[str, str]:
        paper = {"certificate": str(self.box.certificate), "key": str(self.box.key)}
        return {"ca": str(self.ca), "server_name": "triton.trust.example", **paper, **other}


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    folder = tmp_path_factory.mktemp("trust")
    ours, rogue, served = Authority(folder, "Trust CA"), Authority(folder, "Rogue CA"), double()
    paper = ours.issue("triton", "DNS:triton.trust.example")
    pair = paper.key.read_bytes(), paper.certificate.read_bytes()
    wants_one = grpc.ssl_server_credentials([pair], ours.certificate.read_bytes(), require_client_auth=True)
    with serving(served, credentials=wants_one) as port:
        yield Trust(
            port=port,
            served=served,
            ca=ours.certificate,
            box=ours.issue("box"),
            rogue=rogue.issue("box"),
            rogue_ca=rogue.certificate,
        )


def test_tls_both_ways(box: Box, trust: Trust) -> None:
    check(box.engine(trust.port, tls=trust.tls()), local=False)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("stranger", ["the server's authority", "its name", "our certificate", "no TLS at all"])
def test_strangers_get_nothing(box: Box, trust: Trust, stranger: str) -> None:
    tls: dict[str, dict[str, str] | None] = {
        "the server's authority": trust.tls(ca=str(trust.rogue_ca)),
        "its name": trust.tls(server_name="other.trust.example"),
        "our certificate": trust.tls(certificate=str(trust.rogue.certificate), key=str(trust.rogue.key)),
        "no TLS at all": None,
    }
    trust.served.asked.clear()
    check(box.engine(trust.port, tls=tls[stranger]), local=True, words="UNAVAILABLE")
    assert trust.served.asked == []


def test_a_certificate_that_is_not_there_is_told(box: Box, trust: Trust) -> None:
    missing = trust.tls(certificate="/nowhere/box.pem")
    check(box.engine(trust.port, tls=missing), local=True, words="/nowhere/box.pem cannot be read: No such file")
