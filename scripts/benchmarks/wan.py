"""A slow, distant, lossy line between two network namespaces of this machine, which may be cut, healed and starved.

Both ends are the kernel's own TCP, so congestion control, retransmission and slow start are real; what lies between is
a program that gives packets a delay, a rate, a bounded queue and random loss (wan_line). `inside` puts the calling
thread into one of the namespaces: sockets made there stay there, and so do processes and threads started there.

    with Wan(Shape(delay_ms=50, rate=2e6, loss=0.02)) as wan:
        with wan.inside(FAR):
            pacs = subprocess.Popen(...)        # listens on ADDRESSES[FAR]
        with wan.inside(NEAR):
            appliance.start()                   # sends to ADDRESSES[FAR]
        wan.blackhole()

Needs root, /dev/net/tun and `ip` (Debian: iproute2). Nothing is left of it, not even when its owner is killed. One
Python process carries every packet: believe no figure above 200 Mbit/s. Loss is independent, without bursts; there is
no reordering and no jitter but the machine's.
"""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.wan_line import ADDRESSES, CARRY, CLONE_NEWNET, DEVICE, FAR, NEAR, REFUSE, SILENT

__all__ = ["ADDRESSES", "FAR", "NEAR", "Counts", "Shape", "Wan", "WanError", "unavailable"]

LINE = Path(__file__).with_name("wan_line.py")
TUN = Path("/dev/net/tun")
ANSWER_S = 20.0
MTU = 1500


class WanError(Exception):
    """The line cannot be laid here, or broke down; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the line does to packets, in each direction."""

    delay_ms: float = 0.0  #: one way
    rate: float = 0.0  #: bits per second, headers included; 0: no limit
    loss: float = 0.0  #: of each packet, 0 to 1
    queue: int = 256 << 10  #: bytes that may wait before the line

    @property
    def words(self) -> str:
        parts = [f"{self.rate / 1e6:g} Mbit/s" if self.rate else "no limit", f"{2 * self.delay_ms:g} ms"]
        return ", ".join(parts + ([f"{self.loss:.0%} loss"] if self.loss else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Packets that one side sent, and what became of them."""

    packets: int
    bytes: int
    lost: int  #: by chance
    dropped: int  #: the queue was full
    silenced: int  #: while nothing, or not that, could pass


class Wan:
    """The line; `with` lays it and takes it away, with all that still runs at its ends."""

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self._kept = ExitStack()
        self._congestion: dict[int, str] = {}

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            self._line = subprocess.Popen(
                [sys.executable, "-I", "-S", LINE, str(theirs.fileno()), str(MTU)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._kept.callback(self._line.wait)
        ours.settimeout(ANSWER_S)
        self._control = self._kept.enter_context(ours)
        self._said = self._kept.enter_context(ours.makefile("r"))
        try:
            self._namespaces = self._open_namespaces(self._answer())
            self.reshape(self.shape)
        except BaseException:
            self._kept.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()

    @contextmanager
    def inside(self, side: int) -> Iterator[None]:
        """Of the calling thread alone."""
        with _opened(Path("/proc/thread-self/ns/net")) as home:
            _enter(self._namespaces[side])
            try:
                yield
            finally:
                _enter(home)

    def reshape(self, shape: Shape) -> None:
        """From the next packet on; the line carries again, whatever was before."""
        self.shape = shape
        self._set(delay_s=shape.delay_ms / 1e3, rate=shape.rate, loss=shape.loss, queue=shape.queue)
        self.heal()

    def congest(self, side: int, algorithm: str) -> None:
        """The congestion control of connections that this side opens from now on; "": its default again.

        Set on the route, since inside a namespace the kernel's default cannot be any but those allowed to everybody.
        It overrules what a socket asked for before it was connected.
        """
        self._congestion[side] = algorithm
        words = ["congctl", algorithm] if algorithm else []
        self._ip(side, "route", "replace", ADDRESSES[1 - side], "dev", DEVICE, "src", ADDRESSES[side], *words)

    def default_congestion(self, side: int, algorithm: str) -> None:
        """What connections of this side get that ask for nothing: one that the kernel allows to everybody."""
        with self.inside(side):
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(algorithm)

    def cut(self) -> None:
        """The near side's link goes down: connections wait, new ones fail at once (network is unreachable)."""
        self._ip(NEAR, "link", "set", DEVICE, "down")

    def blackhole(self) -> None:
        """Packets vanish in both directions: only time-outs tell."""
        self._set(mode=SILENT)

    def reset(self) -> None:
        """Whoever speaks TCP is answered by a reset, on both sides; new connections are refused."""
        self._set(mode=REFUSE)

    def lose_answers(self, after: int = 0) -> None:
        """What far says vanishes once it has said so many bytes; what it is told arrives: stored, and not told so."""
        self._set(answers=after)

    def fail_between(self, *outages: tuple[float, float]) -> None:
        """Nothing passes in these spans of seconds from now."""
        self._set(outages=outages)

    def heal(self) -> None:
        self._set(mode=CARRY, answers=-1, outages=())
        if not self._is_up():
            self._ip(NEAR, "link", "set", DEVICE, "up")
            if name := self._congestion.get(NEAR):
                self.congest(NEAR, name)

    def counts(self) -> tuple[Counts, Counts]:
        """Of near and of far, since the line was laid."""
        near, far = self._set()
        return Counts(**near), Counts(**far)

    def run(self, side: int, *command: str) -> str:
        """A command at one end, and what it said. Raises WanError where it fails."""
        with self.inside(side):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WanError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def _ip(self, side: int, *words: str) -> None:
        self.run(side, "ip", *words)

    def _is_up(self) -> bool:
        return "UP" in self.run(NEAR, "ip", "-o", "link", "show", DEVICE).split("<")[1].split(">")[0].split(",")

    def _set(self, **settings: object) -> Any:
        try:
            self._control.sendall(json.dumps(settings).encode() + b"\n")
        except OSError as error:
            raise WanError(f"the line has died: {error}") from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            line = self._said.readline()
        except OSError as error:
            raise WanError(f"the line has died: {error}") from error
        if not line:
            raise WanError("the line has died")
        answer = json.loads(line)
        if "error" in answer:
            raise WanError(f"no line can be laid: {answer['error']}")
        return answer

    def _open_namespaces(self, found: dict[str, list[int]]) -> list[int]:
        folder = Path("/proc") / str(self._line.pid) / "fd"
        return [self._kept.enter_context(_opened(folder / str(number))) for number in found["namespaces"]]


def unavailable() -> str:
    """Why no line can be laid on this machine; "" if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not TUN.exists():
        return f"there is no {TUN}"
    if not shutil.which("ip"):
        return "`ip` is not installed: on Debian or Ubuntu, apt-get install iproute2"
    try:
        with Wan():
            return ""
    except (OSError, WanError) as error:
        return str(error)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
