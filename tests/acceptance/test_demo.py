"""The demo and the outage drill, run as a newcomer runs them: the real command, real processes, real sockets."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.rig import ROOT
from tests.waiting import eventually

COMMAND = [sys.executable, "-m", "appliance", "demo"]
LIMIT_S = 110.0
ENGINES = {"ct-lesion", "cxr-acquisition"}


@pytest.fixture
def temp(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is empty now, and must be empty again afterwards."""
    yield {**os.environ, "TMPDIR": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def demo(environment: dict[str, str], *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, *options, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def assert_everything_arrived(told: dict[str, Any]) -> None:
    assert told["failures"] == []
    assert told["images_sent"] == told["images_in_pacs"] > 60
    assert told["byte_identical"] is True
    assert {(one["engine"].partition("@")[0], one["kind"]) for one in told["results"]} == {
        (engine, kind) for engine in ENGINES for kind in ("sr", "sc")
    }
    assert all(one["byte_identical"] and one["bytes"] for one in told["results"])


@pytest.mark.promise("P3", "P6")
def test_the_demo_finds_what_was_planted_and_delivers_every_byte(temp: dict[str, str]) -> None:
    told = demo(temp)
    assert_everything_arrived(told)
    assert all(one["found"] and one["distance_mm"] < 3 for one in told["planted"])
    for engine, times in told["timeline_ms"].items():
        steps = [
            times[name] for name in ("last_byte_in", "evidence", "inferred", "result_built", "sr_sent", "pacs_ack")
        ]
        assert steps == sorted(steps), engine


@pytest.mark.promise("P3", "P4", "P12")
def test_the_outage_drill_loses_nothing(temp: dict[str, str]) -> None:
    told = demo(temp, "--outage")
    assert_everything_arrived(told)
    assert told["outage"]["at_pacs_when_cut"] < told["images_sent"]
    assert told["outage"]["owed_after_kill"] >= told["outage"]["owed_when_scanned"] > 0


def test_interrupted_it_leaves_neither_processes_nor_files(temp: dict[str, str]) -> None:
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler);"]
    command[-1] += "from appliance.cli import main; main(['demo'])"
    with subprocess.Popen(command, cwd=ROOT, env=temp, stdout=subprocess.DEVNULL) as process:
        itself = psutil.Process(process.pid)
        eventually(lambda: len(itself.children(recursive=True)) >= 4, 40, "the appliance is up")
        children = itself.children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_a_study_of_ones_own(temp: dict[str, str], real_data: Path) -> None:
    told = demo(temp, "--study", str(real_data / "cxr" / "RG1_UNCR_metastases.dcm"))
    assert (told["images_sent"], told["images_in_pacs"], told["byte_identical"]) == (1, 1, True)
    assert [one["engine"].partition("@")[0] for one in told["conclusions"]] == ["cxr-acquisition"]


def test_a_study_that_is_none_says_so(temp: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "--study", str(ROOT / "README.md")],
        cwd=ROOT,
        env=temp,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing in it is a DICOM file" in done.stderr
    assert "Traceback" not in done.stderr
