"""The line between two namespaces: that it is as slow, as long, as lossy and as dead as it is told to be."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from benchmarks.wan import ADDRESSES, FAR, NEAR, Shape, Wan, WanError, unavailable
from benchmarks.wan_line import payload, resets

from tests.missing import missing
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ECHO = 7
SO_RCVBUFFORCE = 33  # socket(7); Python does not name it
NETWORK_UNREACHABLE = "Network is unreachable"


@pytest.fixture(scope="module")
def laid() -> Iterator[Wan]:
    """One for all: each test gets it healed, and as fast as it goes."""
    if why := unavailable():
        missing(f"no line can be laid: {why}")
    with Wan() as wan:
        yield wan


@pytest.fixture
def wan(laid: Wan) -> Wan:
    laid.congest(NEAR, "")
    laid.reshape(Shape())
    return laid


class Taker:
    """Listens at the far side; counts what it is told, and answers each piece with one byte."""

    def __init__(self, wan: Wan) -> None:
        self.taken = 0
        with wan.inside(FAR):
            self._listener = socket.create_server((ADDRESSES[FAR], 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while piece := connection.recv(1 << 16):
                self.taken += len(piece)
                connection.sendall(b".")


@pytest.fixture
def taker(wan: Wan) -> Iterator[Taker]:
    one = Taker(wan)
    yield one
    one.close()


def connected(wan: Wan, taker: Taker, timeout_s: float = 5.0) -> socket.socket:
    with wan.inside(NEAR):
        return socket.create_connection(taker.address, timeout=timeout_s)


def test_a_connection_takes_a_round_trip(wan: Wan, taker: Taker) -> None:
    wan.reshape(Shape(delay_ms=40))
    found = []
    for _ in range(3):
        begun = time.monotonic()
        connected(wan, taker).close()
        found.append(time.monotonic() - begun)
    assert 0.08 <= min(found) < 0.12


def test_bytes_take_as_long_as_the_rate_says(wan: Wan, taker: Taker) -> None:
    wan.reshape(Shape(rate=4e6))
    size = 500_000
    with connected(wan, taker) as out:
        begun = time.monotonic()
        out.sendall(bytes(size))
        eventually(lambda: taker.taken == size, 10, "all has come")
        seconds = time.monotonic() - begun
    assert 1.0 <= seconds < 1.4  # 1.0 s of payload, and 40 bytes of headers per 1460


def datagrams(wan: Wan, count: int, size: int) -> int:
    """How many of so many get there."""
    with wan.inside(FAR):
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        far.bind((ADDRESSES[FAR], ECHO))
    with wan.inside(NEAR):
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with far, near:
        far.settimeout(1.0)
        for number in range(count):
            near.sendto(bytes(size), (ADDRESSES[FAR], ECHO))
            if number % 50 == 49:
                time.sleep(0.005)  # the device before the line has a queue, too
        arrived = 0
        with suppress(TimeoutError):
            while far.recv(2048):
                arrived += 1
        return arrived


def test_as_many_packets_are_lost_as_told(wan: Wan) -> None:
    wan.reshape(Shape(loss=0.1))
    before = wan.counts()[NEAR]
    arrived = datagrams(wan, 2000, 100)
    after = wan.counts()[NEAR]
    assert after.packets - before.packets == 2000
    assert after.lost - before.lost == 2000 - arrived
    assert 140 <= 2000 - arrived <= 260  # 200, within four and a half standard deviations


def test_what_the_queue_does_not_hold_is_dropped(wan: Wan) -> None:
    wan.reshape(Shape(rate=1e6, queue=10_000))
    before = wan.counts()[NEAR].dropped
    arrived = datagrams(wan, 50, 972)  # 1000 with headers; the burst takes some milliseconds, in which few bytes leave
    assert 10 <= arrived <= 16
    assert wan.counts()[NEAR].dropped - before == 50 - arrived


def test_a_line_that_is_cut_says_so_at_once_and_heals(wan: Wan, taker: Taker) -> None:
    wan.cut()
    with pytest.raises(OSError, match=NETWORK_UNREACHABLE):
        connected(wan, taker)
    wan.heal()
    connected(wan, taker).close()


def test_a_congestion_control_set_on_the_route_outlives_a_cut(wan: Wan, taker: Taker) -> None:
    wan.congest(NEAR, "reno")
    for cut in (False, True):
        if cut:
            wan.cut()
            wan.heal()
        with connected(wan, taker) as out:
            assert out.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_what_asks_for_nothing_gets_the_default_of_its_side(wan: Wan, taker: Taker) -> None:
    wan.default_congestion(NEAR, "reno")
    with connected(wan, taker) as out:
        assert out.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_a_black_hole_is_silent_and_a_connection_lives_through_it(wan: Wan, taker: Taker) -> None:
    with connected(wan, taker) as out:
        wan.blackhole()
        with pytest.raises(TimeoutError):
            connected(wan, taker, timeout_s=0.3)
        out.sendall(b"still there")
        wan.heal()
        assert out.recv(1) == b"."


def test_a_reset_ends_both_ends_and_refuses_new_ones(wan: Wan, taker: Taker) -> None:
    with connected(wan, taker) as out:
        out.sendall(b"x")
        assert out.recv(1) == b"."
        wan.reset()
        eventually(lambda: is_lost(out), 5, "it is reset")
        with pytest.raises(ConnectionRefusedError):
            connected(wan, taker)
    listed = wan.run(FAR, "ss", "-Htn", "state", "established")
    assert ADDRESSES[NEAR] not in listed


def test_answers_are_lost_while_what_is_told_arrives(wan: Wan, taker: Taker) -> None:
    with connected(wan, taker, timeout_s=0.5) as out:
        wan.lose_answers(after=2)
        out.sendall(b"x")
        assert out.recv(1) == b"."
        out.sendall(b"y" * 5000)
        with pytest.raises(TimeoutError):
            out.recv(1)
        eventually(lambda: taker.taken == 5001, 5, "all was taken")
        wan.heal()
        out.settimeout(5)
        assert out.recv(1) == b"."


def test_outages_come_and_go_by_themselves(wan: Wan, taker: Taker) -> None:
    wan.fail_between((0.0, 0.6))
    begun = time.monotonic()
    connected(wan, taker, timeout_s=10).close()
    assert 0.6 <= time.monotonic() - begun < 4


def test_a_thread_is_where_it_was_after_it_was_inside(wan: Wan) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    with wan.inside(NEAR):
        near = Path("/proc/thread-self/ns/net").readlink()
        with wan.inside(FAR):
            assert len({here, near, Path("/proc/thread-self/ns/net").readlink()}) == 3
        assert Path("/proc/thread-self/ns/net").readlink() == near
    assert Path("/proc/thread-self/ns/net").readlink() == here


OWNER = """
import subprocess, sys
sys.path[:0] = {path}
from benchmarks.wan import NEAR, Wan
with Wan() as wan:
    with wan.inside(NEAR):
        left = subprocess.Popen(["sleep", "300"], stdout=subprocess.DEVNULL, start_new_session=True)
    print(left.pid, wan._line.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.usefixtures("laid")
def test_nothing_is_left_however_its_owner_ends(*, killed: bool) -> None:
    path = [str(ROOT), str(ROOT / "scripts")]
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(path=path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.send_signal(signal.SIGKILL) if killed else owner.stdin.close()
        owner.wait(20)
    eventually(lambda: not any(map(runs, pids)), 10, "all that ran in its namespaces is ended")


def is_lost(out: socket.socket) -> bool:
    try:
        out.sendall(b"x")
    except ConnectionError:
        return True
    return False


def runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_cannot_be_laid_says_why(laid: Wan) -> None:
    with pytest.raises(WanError, match="no_such_control"):
        laid.congest(NEAR, "no_such_control")
    with Wan() as other:
        os.kill(other._line.pid, signal.SIGKILL)
        other._line.wait(10)
        with pytest.raises(WanError, match="died"):
            other.counts()


def packet(flags: int, data: bytes = b"", *, protocol: int = 6) -> bytes:
    tcp = b"\x30\x39\x00\x68" + (1000).to_bytes(4, "big") + (2000).to_bytes(4, "big") + bytes([0x50, flags]) + bytes(6)
    near, far = (socket.inet_aton(address) for address in ADDRESSES)
    return b"\x45" + bytes(8) + bytes([protocol]) + bytes(2) + near + far + tcp + data


def test_payload_is_what_tcp_carries() -> None:
    assert payload(packet(0x10, b"abc")) == 3
    assert payload(packet(0x10)) == 0
    assert payload(packet(0x10, b"abc", protocol=17)) == 0


def test_resets_are_for_what_each_side_expects_next() -> None:
    towards = dict(resets(packet(0x10, b"abc")))
    assert int.from_bytes(towards["sender"][24:28], "big") == 2000
    assert int.from_bytes(towards["receiver"][24:28], "big") == 1000
    assert resets(packet(0x04)) == []
    ((whom, refused),) = resets(packet(0x02))
    assert whom == "sender"
    assert int.from_bytes(refused[28:32], "big") == 1001
