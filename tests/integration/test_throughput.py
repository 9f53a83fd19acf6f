"""What a connection knows of its line, by the kernel's counts, and what it lets wait."""

import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from benchmarks.wan import ADDRESSES, FAR, NEAR, Shape, Wan, unavailable

from appliance.dimse.throughput import FIRST_PIECE, LOSSY, QUICK_BYTES_S, UNSENT_S, Meter, counts
from tests.missing import missing
from tests.thin_line import ThinLine
from tests.waiting import eventually

THIN = 400_000  # bytes a second


@pytest.fixture
def taker() -> Iterator[int]:
    """A port where all that comes is read."""
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        with suppress(OSError):
            while True:
                one, _ = listener.accept()
                threading.Thread(target=drain, args=(one,), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.close()


def drain(one: socket.socket) -> None:
    with one, suppress(OSError):
        while one.recv(1 << 16):
            pass


def send(connection: socket.socket, meter: Meter, seconds: float) -> list[int]:
    """As pieces of one object; returns how much waited unsent after each, once the line was known."""
    waited, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        connection.sendall(bytes(meter.piece_of(lambda wanted: wanted, 1 << 30)))
        meter.look()
        now = counts(connection)
        assert now is not None
        if now.busy_s > seconds / 2:
            waited.append(now.unsent)
    return waited


@pytest.mark.promise("P7")
def test_on_a_thin_line_little_waits_unsent(taker: int) -> None:
    with ThinLine(taker, THIN) as line, closing(socket.create_connection(("127.0.0.1", line.port))) as connection:
        meter = Meter(connection)
        waited = send(connection, meter, 4.0)
        assert 0.5 * THIN < meter.bytes_s < 2 * THIN
        # A segment of loopback is 64 kB: the kernel counts no finer.
        assert max(waited) <= UNSENT_S * THIN + (1 << 16)


def small_object(connection: socket.socket, meter: Meter) -> None:
    """Less than what a measurement takes; its answer has come."""
    meter.begin()
    connection.sendall(bytes(meter.piece_of(lambda wanted: wanted, 200_000)))
    meter.look()
    eventually(lambda: all_taken(connection))


def all_taken(connection: socket.socket) -> bool:
    unsent_or_under_way = struct.pack("i", 0)
    return fcntl.ioctl(connection, termios.TIOCOUTQ, unsent_or_under_way) == struct.pack("i", 0)


def test_small_objects_can_show_that_a_line_is_quick_but_not_that_it_is_slow(taker: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", taker))) as connection:
        meter = Meter(connection)
        for _ in range(3):
            small_object(connection, meter)
        assert meter.bytes_s > QUICK_BYTES_S
        assert meter.piece > FIRST_PIECE
    with ThinLine(taker, THIN) as line, closing(socket.create_connection(("127.0.0.1", line.port))) as connection:
        meter = Meter(connection)
        connection.sendall(bytes(1000))
        for _ in range(2):
            meter.begin()
        assert meter.bytes_s == 0
        assert meter.piece == FIRST_PIECE


@pytest.fixture
def lossy() -> Iterator[Wan]:
    if why := unavailable():
        missing(f"no line can be laid: {why}")
    with Wan(Shape(delay_ms=5, rate=20e6, loss=0.03)) as wan:
        yield wan


@pytest.mark.parametrize("congestion", ["reno", "bbr"])
def test_loss_holds_back_whoever_takes_it_for_a_full_line(lossy: Wan, congestion: str) -> None:
    with lossy.inside(FAR):
        listener = socket.create_server((ADDRESSES[FAR], 0))
    threading.Thread(target=lambda: drain(listener.accept()[0]), daemon=True).start()
    with listener, lossy.inside(NEAR), closing(socket.socket()) as connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        except OSError:
            missing(f"this kernel has no {congestion}")
        connection.connect(listener.getsockname())
        meter = Meter(connection)
        send(connection, meter, 2.5)
        seen = counts(connection)
        assert seen is not None
        assert seen.again > LOSSY * seen.segments
        assert meter.held_back is (congestion != "bbr")


def test_small_objects_tell_nothing_of_a_quick_line(taker: int) -> None:
    """Each waits for an acknowledgement that comes late: that is no thin line, and limits nothing."""
    with closing(socket.create_connection(("127.0.0.1", taker))) as connection:
        meter = Meter(connection)
        piece = meter.piece
        for _ in range(40):
            meter.begin()
            connection.sendall(bytes(4_000))
            meter.look()
            time.sleep(0.02)  # the answer
        assert meter.piece == piece
        buffer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert buffer > 1 << 17


def test_a_line_that_was_thin_and_is_not_is_found_out(taker: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", taker))) as connection:
        meter = Meter(connection, bytes_s=50_000.0)
        assert meter.piece < 10_000
        for _ in range(3):
            meter.begin()
            connection.sendall(bytes(300_000))
            meter.look()
        assert meter.bytes_s > 10e6
