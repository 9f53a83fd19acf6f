"""Fixtures of the acceptance tier: a real study, DCMTK as the scanner, Orthanc as the PACS, and measured figures."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.orthanc import ORTHANC, Orthanc
from tests.acceptance.rig import Original
from tests.missing import missing

STORESCU = Path("/usr/bin/storescu")  # by full path: pynetdicom puts another program of this name on the PATH

FIGURES = pytest.StashKey[list[str]]()

Storescu = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not stay: real studies are large, and pytest keeps its own for three sessions."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def module_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def lung_ct(real_data: Path) -> Original:
    """C3N-00247: 99 slices of 3 mm, a sharp kernel (CPTAC-LSCC, CC BY 4.0)."""
    return Original(real_data / "ct" / "C3N-00247_LUNG3mm.tar.xz")


@pytest.fixture(scope="session")
def storescu() -> Storescu:
    if not STORESCU.exists():
        missing("DCMTK's storescu is not installed")

    def run(*arguments: object, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        command = [str(STORESCU), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    return run


@pytest.fixture
def orthanc(work: Path) -> Iterator[Orthanc]:
    if not ORTHANC.exists():
        missing("Orthanc is not installed")
    with Orthanc(work / "orthanc") as server:
        yield server


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note a measured figure: all of them are printed when the run ends."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)
