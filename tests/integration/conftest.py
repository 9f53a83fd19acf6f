"""Fixtures of the integration tests."""

import threading
from collections.abc import Iterator

import pytest

from tests.certificates import Papers, make_papers
from tests.keeping import Memory, Server, descriptors
from tests.scanner import Witness, limits, listening
from tests.waiting import eventually


@pytest.fixture
def server() -> Iterator[Server]:
    memory, witness = Memory(), Witness()
    threads, files = threading.active_count(), descriptors()
    with listening(
        memory, witness, limits(grace_s=0.3, request_s=0.3, idle_s=0.6, send_s=0.3, min_rate=1_000_000)
    ) as there:
        yield Server(memory, witness, there)
    eventually(lambda: threading.active_count() <= threads, what="no thread is left")
    assert descriptors() <= files
    assert memory.open == []


@pytest.fixture(scope="session")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))
