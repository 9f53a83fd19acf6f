"""Where sending is measured: a line, PACS at both of its ends, and what is sent."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.dimse.header import part10
from benchmarks.ingest_images import Images
from benchmarks.report import BenchError
from benchmarks.rig import LOOPBACK, free_port, program, wait_until
from benchmarks.wan import ADDRESSES, FAR, NEAR, Wan

START_S = 15.0
STREAM_S = 3600.0
ALL_SYNTAXES = ("+xa",)
TUNED = ("--fork", "+B", "-pdu", "131072")
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacs:
    """DCMTK's storage SCP, which keeps what it gets in a folder."""

    name: str
    host: str
    port: int
    folder: Path

    def empty(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """What is sent, the same to all."""

    what: str
    images: Images
    folder: Path  #: for links to them

    @property
    def files(self) -> Sequence[Path]:
        return self.images.files

    @property
    def bytes(self) -> int:
        """Of the data sets, which is what must cross the line."""
        return sum(part10(file).size for file in self.files)

    def first(self, count: int) -> "Cargo":
        images = Images(modality="CT", files=self.files[:count])
        return Cargo(what=self.what, images=images, folder=self.folder)


@contextmanager
def storescp(wan: Wan, side: int, options: Sequence[str], folder: Path) -> Iterator[Pacs]:
    """At one end of the line, where `near` reaches it on loopback; Nagle's algorithm is off."""
    folder.mkdir()
    name = "tuned" if options else "nd"
    with wan.inside(side):
        port = free_port()
        command = [str(program("storescp")), *options, "-od", str(folder), str(port)]
        process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        with wan.inside(side):
            wait_until(lambda: _listens(port), START_S, "storescp listens")
        yield Pacs(name=name, host=LOOPBACK if side == NEAR else ADDRESSES[FAR], port=port, folder=folder)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def plain_stream(wan: Wan, size: int, congestion: str) -> float:
    """Seconds for so many bytes over one TCP connection, from its opening until the far side says that it has all."""
    with wan.inside(FAR):
        listener = socket.create_server((ADDRESSES[FAR], 0))
    taker = threading.Thread(target=_take, args=(listener, size), daemon=True)
    taker.start()
    with listener, wan.inside(NEAR), socket.socket() as out:
        if congestion:
            out.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out.settimeout(STREAM_S)
        begun = time.monotonic()
        out.connect(listener.getsockname())
        out.sendall(bytes(size))
        if not out.recv(1):
            raise BenchError("the plain stream was cut short")
        return time.monotonic() - begun


def _take(listener: socket.socket, size: int) -> None:
    connection, _ = listener.accept()
    buffer = bytearray(1 << 18)
    with connection:
        while size > 0 and (count := connection.recv_into(buffer)):
            size -= count
        connection.sendall(b"\1")


def algorithms(wan: Wan) -> frozenset[str]:
    """The congestion controls that the kernel offers here."""
    with wan.inside(NEAR):
        return frozenset(Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split())


def connections(wan: Wan, pacs: Pacs) -> list[str]:
    """What `ss` says of each connection of the near side to it: the internals of its TCP, congestion control first."""
    said = wan.run(NEAR, "ss", "-Htni", "state", "established", "dport", "=", f":{pacs.port}")
    return [line for line in said.splitlines() if "cwnd:" in line]


@dataclass(slots=True)
class Looker:
    """Looks at the connections of the near side to a PACS while something sends."""

    wan: Wan
    pacs: Pacs
    known: frozenset[str]
    connections: int = 0  #: the most that carried something at a time
    congestion: str = ""
    _next: float = 0.0

    def look(self, *, at_once: bool = False) -> None:
        """Twice a second."""
        if (now := time.monotonic()) < self._next and not at_once:
            return
        self._next = now + LOOK_EVERY_S
        found = [word for line in connections(self.wan, self.pacs) for word in line.split() if word in self.known]
        self.connections = max(self.connections, len(found))
        self.congestion = found[0] if found else self.congestion
