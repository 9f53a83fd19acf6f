"""Fixtures for all tiers."""

import gc
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journals import ClosedLater
from tests.missing import missing

ROOT = Path(__file__).resolve().parent.parent
FULL = os.environ.get("SCANSIDE_FULL") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What `scripts/test --full` is for is left out otherwise, and counted as deselected."""
    left_out = [] if FULL else [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """What is imported by now stays: nobody need look through it for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real, public, de-identified cases; they are never part of the repository."""
    folder = Path(os.environ.get("SCANSIDE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"no real cases at {folder}: set SCANSIDE_DATA")
    return folder


@pytest.fixture
def closed_later() -> Iterator[ClosedLater]:
    """Takes journals that are to be closed with the test: from Python 3.13 on those that are not are told of."""
    with ExitStack() as journals:
        yield lambda journal: journals.enter_context(closing(journal))


@dataclass(frozen=True, slots=True)
class Storescp:
    """DCMTK's storage SCP in a process of its own; it keeps data sets exactly as they come."""

    port: int
    folder: Path


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Storescp]:
    program = Path("/usr/bin/storescp")
    if not program.exists():
        missing("DCMTK's storescp is not installed")
    folder = tmp_path / "storescp"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "+B", "+uf", "+xa", "-pdu", "131072", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port, 10.0)
        yield Storescp(port=port, folder=folder)
    finally:
        process.terminate()
        process.wait(10)


def _wait_for_port(port: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
        else:
            return
