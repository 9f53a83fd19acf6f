"""scripts/device_check where there is no GPU: it says so, still does what can be done, and its exit code tells."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from device_checks.proof import Model, Row, examine, models

from appliance import engine_package
from appliance.runtimes import cuda_probe
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = 3


def device_check(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The program behind the script, which makes the environment that we are in."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
    return subprocess.run(
        [sys.executable, "-m", "device_checks", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def reason() -> str:
    """Why there is no GPU."""
    facts = cuda_probe.ask()
    if not facts["reason"]:
        pytest.skip(f"there is a GPU: {facts['gpu']}")
    return str(facts["reason"])


def test_help_tells_the_exit_codes() -> None:
    said = device_check("--help")
    assert said.returncode == 0
    for words in ("Exit codes: 0", "3 no GPU", "--json", "Jetson", "--python"):
        assert words in said.stdout


@pytest.mark.parametrize("arguments", [["--engine", "none"], ["--runs", "0"], ["--package", "/nowhere"]])
def test_a_wrong_command_line_is_told(arguments: list[str]) -> None:
    said = device_check(*arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert "Traceback" not in said.stderr


def test_without_a_gpu_it_says_why_and_builds_what_can_be_built(reason: str) -> None:
    said = device_check("--engine", "cxr-acquisition", "--json", "--python", sys.executable)
    assert said.returncode == NO_GPU, said.stderr
    found = json.loads(said.stdout)
    (why,) = found["unfit"].values()
    if "no TensorRT" in why:
        missing(f"no TensorRT-RTX here: {why}")
    assert reason in why
    assert found["no_gpu"] == reason
    assert (found["gpu"], found["tensorrt"], found["exit"]) == (None, None, NO_GPU)
    assert found["rows"]
    for row in found["rows"]:
        assert row["fault"] == ""
        assert row["built_for"] == "SM86 SM89 SM120"
        assert row["plan_mb"] > 0
        assert (row["golden_cases"], row["p50_ms"]) == (0, None)


def test_the_table_ends_with_the_reason(reason: str) -> None:
    said = device_check("--python", "/bin/false", "--engine", "cxr-acquisition")
    assert said.returncode == NO_GPU
    assert "/bin/false: the child ended with status 1" in said.stdout
    assert said.stdout.endswith(f"no GPU: {reason}\nNothing was run on a device.\n")


def test_the_script_hands_on_what_it_is_given() -> None:
    script = ROOT / "scripts" / "device_check"
    assert os.access(script, os.X_OK)
    assert '-m device_checks "$@"' in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture
def model() -> Model:
    (only, *_) = models(engine_package.load(ROOT / "engines" / "cxr-acquisition"))
    return only


@pytest.fixture
def engine(model: Model) -> Iterator[ChildEngine]:
    """On the processor: how an engine is examined is the same on a GPU."""
    with closing(onnx().load(model.path, model.sha256)) as engine:
        yield engine


def onnx() -> ChildRuntime:
    return ChildRuntime(ChildSettings(interpreter=Path(sys.executable)))


def test_an_engine_that_answers_as_its_golden_cases_is_measured(model: Model, engine: ChildEngine) -> None:
    row = Row(engine=model.name)
    examine(model, engine, row, 5)
    assert row.golden_cases == len(model.package.manifest.golden)
    assert row.max_difference is not None
    assert row.max_difference < 1e-3
    assert row.p50_ms is not None
    assert row.p99_ms is not None
    assert row.call_p50_ms is not None
    assert row.host_mb is not None
    assert 0 < row.p50_ms <= row.p99_ms
    assert row.p50_ms < row.call_p50_ms
    assert row.host_mb > 20


@pytest.mark.parametrize(
    ("answer", "words"),
    [(np.nan, "scores is no answer of this engine"), (0.5, r"scores differs by 0\.\d+, more than it may")],
)
def test_an_engine_that_answers_wrongly_is_told(model: Model, answer: float, words: str) -> None:
    class Wrong(ChildEngine):
        def infer(self, *_: object) -> dict[str, np.ndarray]:
            return {"scores": np.full((1, len(model.package.manifest.labels)), answer, np.float32)}

    with pytest.raises(ValueError, match=words):
        examine(model, Wrong(onnx(), model.path, model.sha256), Row(engine=model.name), 1)
