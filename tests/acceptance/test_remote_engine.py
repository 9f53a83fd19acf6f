"""An engine on a server, and the server killed in the middle of a study: it ends with a result of this box.

With a server of ours that speaks as Triton does; and with SCANSIDE_FULL=1 (scripts/test --full) with Triton itself.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from appliance import phantom
from tests.acceptance.rig import ROOT, Appliance, Scanner, folder_destination, report_texts, settings
from tests.triton import Server, triton
from tests.waiting import eventually

SLICES = 40
VERIFIED_S = 150.0
HELD_S = 90.0
RESULT_S = 150.0


@contextmanager
def double(folder: Path, engine: Path) -> Iterator[Server]:
    """tests/kserve_double.py, serving the engine."""
    served = folder / engine.name
    served.mkdir()
    (served / "model.onnx").write_bytes((engine / "model.onnx").read_bytes())
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kserve_double", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        server = Server(folder=folder, port=port, name="double", process=process)
        try:
            yield server
        finally:
            if process.poll() is None:
                server.kill()


@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
@pytest.mark.promise("P11")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("serve", "name"),
    [(double, "cxr-acquisition"), pytest.param(triton, "ct-lesion", marks=pytest.mark.full)],
    ids=["double", "triton"],
)
def test_a_server_that_is_killed_in_the_middle_of_a_study(
    work: Path, serve: Callable[..., Any], name: str, figure: Callable[[str], None]
) -> None:
    (work / "server").mkdir()
    with serve(work / "server", ROOT / "engines" / name) as server:
        config = settings(
            folder_destination("review", work / "review", takes=["sr"], accept_reference=True),
            engines=[engine(name, server)],
            series={"silence_s": {"CT": 1}},
        )
        with Appliance(work / "appliance", config) as appliance:
            eventually(appliance.engines_serve, VERIFIED_S, "the engine is verified, here and at the server")
            place = f"{server.name} at 127.0.0.1:{server.port}, model {name} version 1"
            assert (fact(appliance)["device"], fact(appliance)["degraded"]) == (place, "")
            send(appliance, work / "first", name, seed=1)
            told = result_of(work, known=0)
            assert f"device: {place}" in told
            version = next(text for text in told if text.startswith("runtime: ")).removeprefix("runtime: kserve ")
            assert not [text for text in told if "egraded" in text]

            (server.folder / "hold").touch()
            send(appliance, work / "second", name, seed=2)
            eventually((server.folder / "held").exists, HELD_S, "the server is at work")
            begun = time.monotonic()
            server.kill()
            told = result_of(work, known=1)
            (degraded,) = [text for text in told if text.startswith("Degraded:")]
            assert any(text.startswith("device: CPU") for text in told)
            assert degraded.startswith(f"Degraded: {name} at 127.0.0.1:{server.port} was not used, this box ran it")
            seconds = time.monotonic() - begun
            figure(f"{name}: report {seconds:.1f} s after {server.name} {version} was killed; {degraded}")

            traced, status = said(appliance, "trace", study_of(work / "second")), said(appliance, "status")
            (concluded,) = [line["detail"] for line in traced["lines"] if line["event"] == "job_concluded"]
            assert concluded["conclusion"] in ("finding", "no_finding")
            assert (concluded["runtime"], concluded["late"]) == ("onnx", False)
            assert "was not used" in concluded["degraded"]
            assert any(one["what"].startswith(f"DEGRADED: {name}@") for one in status["attention"])


def engine(name: str, server: Server) -> dict[str, Any]:
    return {"id": name, "mode": "publish", "remote": {"url": f"127.0.0.1:{server.port}", "model": name}}


def fact(appliance: Appliance) -> dict[str, Any]:
    (found,) = json.loads((appliance.state / "run" / "engines.json").read_text()).values()
    return dict(found)


def send(appliance: Appliance, folder: Path, name: str, *, seed: int) -> None:
    made = phantom.write_cr(folder, seed) if name.startswith("cxr") else phantom.write_ct(folder, seed, slices=SLICES)
    Scanner(appliance).send(made.files)


def result_of(work: Path, *, known: int) -> list[str]:
    """The texts of the newest report, once there are more than are known."""

    def reports() -> list[Path]:
        return sorted((work / "review").glob("*.dcm"), key=lambda path: path.stat().st_mtime_ns)

    eventually(lambda: len(reports()) > known, RESULT_S, "the report is there")
    return report_texts(reports()[-1])


def study_of(folder: Path) -> str:
    return str(dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)


def said(appliance: Appliance, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "appliance", *words, "--json", "--config", str(appliance.config_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    return dict(json.loads(done.stdout))
