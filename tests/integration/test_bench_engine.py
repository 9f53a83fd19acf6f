"""scripts/bench.py engine: that what it runs and counts is what it says. Not the figures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import engine
from benchmarks.engine import COMPARED, Length, Measured
from benchmarks.report import Report

from appliance import engine_package
from appliance.runtimes.child import RUNTIMES

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "engines").glob("*/engine.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_ours_and_bare_run_in_turns_on_the_same_arrays(name: str) -> None:
    package = engine_package.load(ROOT / "engines" / name)
    subject = engine.golden(package)
    assert {tensor.name for tensor in package.manifest.inputs} == set(subject.inputs)
    measured = engine.measure(subject, COMPARED, Length(seconds=0.0, pairs=3))
    assert len(measured.ours) == len(measured.bare) == len(measured.inside) == 3
    assert all(inside <= ours for inside, ours in zip(measured.inside, measured.ours, strict=True))
    assert 20 < measured.peak_mb < 2000
    assert measured.load > 0


def test_the_ratio_is_the_median_of_the_pairs_and_a_goal() -> None:
    measured = Measured(load=1.0, ours=[2.0, 3.0, 40.0], bare=[2.0, 2.0, 2.0], inside=[1.0, 1.0, 1.0], peak_mb=50.0)
    assert measured.ratio == 1.5
    report = Report()
    engine.tell(report, engine.golden(engine_package.load(ROOT / "engines" / NAMES[0])), COMPARED, measured)
    assert [row.name.rpartition(", ")[2] for row in report.rows] == ["onnx", "bare ONNX Runtime"]
    (goal,) = report.goals
    assert (goal.limit, goal.measured, goal.met) == (1.15, 1.5, False)


def test_a_runtime_with_nothing_beside_it_has_no_ratio() -> None:
    assert math.isnan(Measured(load=1.0, ours=[1.0]).ratio)


def test_quick_as_a_command_names_every_runtime_and_engine() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "engine", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=110)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    measured = " ".join(row["name"] for row in found["rows"])
    for name in NAMES:
        assert f"{name}@" in measured
    for runtime in RUNTIMES:
        assert runtime in measured or any(note.startswith(f"{runtime}: not measured:") for note in found["notes"])
    assert len(found["goals"]) == len(NAMES)
