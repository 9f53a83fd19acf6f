"""The line of benchmarks.wan: makes two network namespaces and carries every packet between them.

    wan_line.py CONTROL_FD MTU

A program of its own, of the standard library alone, so that no other work of the benchmark or the test delays a packet.
It obeys JSON lines on the control socket and answers each with its counts. When that socket ends, however its owner
ended, it ends all that runs in its namespaces, and itself; the namespaces have no name, so nothing of them is left.
"""

import ctypes
import fcntl
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

NEAR, FAR = 0, 1
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # RFC 5737: nobody's
DEVICE = "wan"
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
TCP, FIN_SYN, RST, ACK = 6, 0x03, 0x04, 0x10
BURST = 64  # packets taken from one side before the other is looked at
PATIENCE_S = 0.05
CARRY, SILENT, REFUSE = "carry", "silent", "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the line does to packets, the same in both directions."""

    delay_s: float = 0.0  #: one way
    rate: float = 0.0  #: bits per second; 0: no limit
    loss: float = 0.0  #: of each packet, 0 to 1
    queue: int = 256 << 10  #: bytes that may wait before the line; what comes then is dropped
    mode: str = CARRY  #: SILENT: nothing passes; REFUSE: whoever speaks TCP is answered by a reset
    answers: int = -1  #: bytes of TCP payload that still pass from far to near, its ACKs always; -1: no limit
    outages: tuple[tuple[float, float], ...] = ()  #: seconds, from the last setting on, in which nothing passes


@dataclass(slots=True)
class Direction:
    """From one side to the other."""

    chance: random.Random
    free_at: float = 0.0  #: when the line has sent all that it accepted
    flight: deque[tuple[float, bytes]] = field(default_factory=deque)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("packets", "bytes", "lost", "dropped", "silenced"), 0)
    )


class Line:
    """Carries packets between the TUN devices `taps`, near and far."""

    def __init__(self, taps: tuple[int, int]) -> None:
        self._taps = taps
        self._set_at = time.monotonic()
        self._answers = -1
        self.settings = Settings()
        self.directions = (Direction(random.Random(1)), Direction(random.Random(2)))  # noqa: S311 - of lost packets

    def set(self, settings: Settings) -> None:
        self.settings, self._set_at, self._answers = settings, time.monotonic(), settings.answers
        if settings.mode == SILENT:
            for direction in self.directions:
                direction.flight.clear()

    def due_s(self) -> float:
        """How long nothing is to be delivered."""
        due = [direction.flight[0][0] for direction in self.directions if direction.flight]
        return min(PATIENCE_S, max(0.0, min(due) - time.monotonic())) if due else PATIENCE_S

    def deliver(self) -> None:
        now = time.monotonic()
        for side, direction in enumerate(self.directions):
            while direction.flight and direction.flight[0][0] <= now:
                self._write(1 - side, direction.flight.popleft()[1])

    def take(self, side: int) -> None:
        """What one side has sent."""
        with suppress(OSError):  # BlockingIOError: that was all
            for _ in range(BURST):
                packet = os.read(self._taps[side], 65536)
                if packet[0] >> 4 == 4:
                    self._judge(side, packet)

    def _judge(self, side: int, packet: bytes) -> None:
        counts = self.directions[side].counts
        counts["packets"] += 1
        counts["bytes"] += len(packet)
        if self.settings.mode == REFUSE:
            counts["silenced"] += 1
            for towards, reset in resets(packet):
                self._write(side if towards == "sender" else 1 - side, reset)
        elif self._is_silent(side, packet):
            counts["silenced"] += 1
        else:
            self._send(side, packet)

    def _is_silent(self, side: int, packet: bytes) -> bool:
        since = time.monotonic() - self._set_at
        if self.settings.mode == SILENT or any(start <= since < end for start, end in self.settings.outages):
            return True
        if side == FAR and self._answers >= 0 and (size := payload(packet)):
            self._answers = max(0, self._answers - size)
            return self._answers == 0
        return False

    def _send(self, side: int, packet: bytes) -> None:
        direction, settings, now = self.directions[side], self.settings, time.monotonic()
        waiting_s = max(0.0, direction.free_at - now)
        if settings.rate and waiting_s * settings.rate / 8 > settings.queue:
            direction.counts["dropped"] += 1
            return
        if settings.rate:
            direction.free_at = now + waiting_s + len(packet) * 8 / settings.rate
        else:
            direction.free_at = now
        if direction.chance.random() < settings.loss:  # lost on the way: it has used the line
            direction.counts["lost"] += 1
            return
        last = direction.flight[-1][0] if direction.flight else 0.0
        direction.flight.append((max(last, direction.free_at + settings.delay_s), packet))

    def _write(self, side: int, packet: bytes) -> None:
        with suppress(OSError):  # the device may be down just now
            os.write(self._taps[side], packet)


def payload(packet: bytes) -> int:
    """Bytes that a TCP segment carries; 0 for any other packet."""
    start = (packet[0] & 15) * 4
    if packet[9] != TCP:
        return 0
    return len(packet) - start - (packet[start + 12] >> 4) * 4


def resets(packet: bytes) -> list[tuple[str, bytes]]:
    """The segments that end the connection of this one on both sides (RFC 9293 3.5.2), and whom they are for."""
    start = (packet[0] & 15) * 4
    if packet[9] != TCP or packet[start + 13] & RST:
        return []
    source, target = packet[12:16], packet[16:20]
    from_port, to_port, seq, ack = struct.unpack_from("!HHII", packet, start)
    flags = packet[start + 13]
    if not flags & ACK:  # it asks for a connection: nobody listens
        refused = _segment(target, source, (to_port, from_port, 0, seq + payload(packet) + 1, RST | ACK))
        return [("sender", refused)]
    return [
        ("sender", _segment(target, source, (to_port, from_port, ack, 0, RST))),
        ("receiver", _segment(source, target, (from_port, to_port, seq, 0, RST))),
    ]


def _segment(source: bytes, target: bytes, words: tuple[int, int, int, int, int]) -> bytes:
    """An IPv4 packet with an empty TCP segment: ports, sequence and acknowledgement number, flags."""
    from_port, to_port, seq, ack, flags = words
    head = struct.pack("!HHIIBBHHH", from_port, to_port, seq % 2**32, ack % 2**32, 5 << 4, flags, 0, 0, 0)
    check = _checksum(source + target + struct.pack("!HH", TCP, len(head)) + head)
    head = head[:16] + struct.pack("!H", check) + head[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(head), 0, 0, 64, TCP, 0) + source + target
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + head


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def serve(line: Line, taps: tuple[int, int], control: socket.socket) -> None:
    """Until the control socket ends."""
    asked = b""
    while True:
        line.deliver()
        readable, _, _ = select.select([*taps, control.fileno()], [], [], line.due_s())
        for side, tap in enumerate(taps):
            if tap in readable:
                line.take(side)
        if control.fileno() in readable:
            some = control.recv(65536)
            if not some:
                return
            *orders, asked = (asked + some).split(b"\n")
            for order in orders:
                _obey(line, json.loads(order))
                control.sendall(json.dumps([one.counts for one in line.directions]).encode() + b"\n")


def _obey(line: Line, order: Mapping[str, Any]) -> None:
    if order:
        line.set(replace(line.settings, **order))


def namespace(side: int, mtu: int) -> tuple[int, int]:
    """Move this process into a new namespace; returns descriptors of it and of its end of the line."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    inside = os.open("/proc/self/ns/net", os.O_RDONLY)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for words in (
        f"address add {ADDRESSES[side]} peer {ADDRESSES[1 - side]} dev {DEVICE}",
        f"link set {DEVICE} mtu {mtu} up",
        "link set lo up",
    ):
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)
    return inside, tap


def end_all_in(namespaces: tuple[int, int], spared: frozenset[int]) -> None:
    """SIGKILL to every process that is in one of them."""
    ours = {(found.st_dev, found.st_ino) for found in map(os.fstat, namespaces)}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) not in spared:
            with suppress(OSError):
                found = (process / "ns" / "net").stat()
                if (found.st_dev, found.st_ino) in ours:
                    os.kill(int(process.name), signal.SIGKILL)


def main(control: socket.socket, mtu: int, spared: frozenset[int]) -> None:
    try:
        (near, near_tap), (far, far_tap) = namespace(NEAR, mtu), namespace(FAR, mtu)
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
        control.sendall(json.dumps({"error": why.strip()}).encode() + b"\n")
        return
    try:
        control.sendall(json.dumps({"namespaces": [near, far]}).encode() + b"\n")
        serve(Line((near_tap, far_tap)), (near_tap, far_tap), control)
    finally:
        end_all_in((near, far), spared)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), frozenset({os.getpid(), os.getppid()}))
