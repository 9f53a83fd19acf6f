"""One connection and never a second: not to the server, and not to a stranger who takes its place on this box."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from appliance.runtimes.one_connection import OneConnection
from tests.waiting import eventually


@dataclass
class Ends:
    line: OneConnection
    near: socket.socket  #: what a library here has
    far: socket.socket  #: what the server has


def address(line: OneConnection) -> str:
    return "\0" + line.target.removeprefix("unix-abstract:")


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as near:
        line = OneConnection("127.0.0.1", listener.getsockname()[1], 5.0)
        near.connect(address(line))
        far, _ = listener.accept()
        near.settimeout(10)
        far.settimeout(10)
        with far, line._door:  # which is open as long as its process, else
            yield Ends(line, near, far)
            near.close()
            eventually(lambda: line._far.fileno() < 0, 5, "the connection is closed")


def test_what_one_says_the_other_hears(ends: Ends) -> None:
    ends.near.sendall(b"asked")
    assert ends.far.recv(16) == b"asked"
    ends.far.sendall(b"answered")
    assert ends.near.recv(16) == b"answered"
    assert not ends.line.lost


@pytest.mark.promise("P8")
def test_when_the_server_is_gone_nobody_can_be_in_its_place(ends: Ends) -> None:
    ends.far.close()
    assert ends.near.recv(16) == b""
    eventually(lambda: ends.line.lost, 5, "it is known")
    with closing(socket.socket(socket.AF_UNIX)) as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(address(ends.line))
    with closing(socket.socket(socket.AF_UNIX)) as again, pytest.raises(ConnectionRefusedError):
        again.connect(address(ends.line))


def test_nobody_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        OneConnection("127.0.0.1", port, 5.0)
