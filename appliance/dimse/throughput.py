"""How quickly a peer takes what is sent to it, by the kernel's own counts, and how much may wait for it.

What was handed to the kernel cannot be overtaken any more: on a thin line the socket's buffer, left to itself, holds
many seconds' worth, and a report would queue behind it. So pieces and buffers are measured by time, not by bytes.
"""

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

UNSENT_S = 0.2  # bytes that wait in the socket are worth no more, once the line is known
PIECE_S = 0.1  # of them, what is handed over at a time
FIRST_PIECE = 1 << 16  # bytes, until something was measured
LEAST_PIECE, MOST_PIECE = 1 << 12, 1 << 18
WINDOW_S, WINDOW_BYTES = 0.05, 4 << 20  # of one measurement
QUICK_BYTES_S = 50 * FIRST_PIECE  # a line that shows so much with a small object is not thin
LOSSY, LEAST_LOST, JUDGED_SEGMENTS = 0.005, 3, 100  # share of segments sent again; how many at least, of how many
SETTLED_S = 1.0  # of sending, before which slow start hides what the line can do
#: What any Linux takes (net.core.wmem_max is no more on many); larger buffers it tunes itself while nobody sets one.
MOST_SET_BUFFER = 212_992

_TCP_NOTSENT_LOWAT = 25
_SO_BUF_LOCK = 72
#: struct tcp_info (linux/tcp.h, append-only): segments sent again; bytes acknowledged; unsent bytes and the least round
#: trip in us; segments with data; busy time and, of it, that in which the peer's window was full, in us.
_INFO = struct.Struct("=100xI16xQ16xII4xI8xQQ")
_UNKNOWN_RTT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of one connection, since it began."""

    acked: int  #: bytes the peer's kernel has taken
    unsent: int  #: bytes in our socket that were never sent
    round_trip_s: float  #: the least that was seen; 0: none yet
    busy_s: float  #: time in which something was under way
    full_s: float = 0.0  #: of it, in which the peer's window let nothing more be sent
    segments: int = 0  #: with data, those that were sent again among them
    again: int = 0  #: segments that were


def counts(connection: socket.socket) -> Counts | None:
    """None where the kernel tells too little: then nothing is measured, and nothing limited."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return None
    if len(info) < _INFO.size:
        return None
    again, acked, unsent, round_trip, segments, busy, full = _INFO.unpack(info)
    known = round_trip != _UNKNOWN_RTT
    return Counts(
        acked=acked,
        unsent=unsent,
        round_trip_s=round_trip / 1e6 * known,
        busy_s=busy / 1e6,
        full_s=full / 1e6,
        segments=segments,
        again=again,
    )


class Meter:
    """One connection's goodput, and what follows from it. Used by the thread that sends.

    It is measured inside objects that take a while. Of small ones the kernel's counts tell how late they were
    acknowledged: the line carries that much at least, and so they can show that it is quick, but not that it is slow.
    """

    def __init__(self, connection: socket.socket, bytes_s: float = 0.0) -> None:
        """`bytes_s`: what an earlier connection to the same peer carried; 0: not known."""
        self._connection = connection
        self._last = counts(connection)
        self._limited = False
        self._settled: Counts | None = None  # when it was
        self.bytes_s = bytes_s  #: 0: not known yet
        self._let_wait(bytes_s)
        self.round_trip_s = self._last.round_trip_s if self._last is not None else 0.0

    @property
    def held_back(self) -> bool | None:
        """Whether something else than the line's width limits it, once that can be told: the peer's window, or loss,
        where the congestion control takes each loss for a full line, as all but bbr do.
        """
        first, last = self._settled, self._last
        if first is None or last is None or last.segments - first.segments < JUDGED_SEGMENTS:
            return None
        if last.full_s - first.full_s > (last.busy_s - first.busy_s) / 2:
            return True
        if last.again - first.again < max(LEAST_LOST, LOSSY * (last.segments - first.segments)):
            return False
        name = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        return not name.startswith(b"bbr")

    @property
    def piece(self) -> int:
        """Bytes to hand over at a time; even."""
        if not self.bytes_s:
            return FIRST_PIECE
        return max(LEAST_PIECE, min(int(self.bytes_s * PIECE_S), MOST_PIECE)) & ~1

    def piece_of(self, turn: Callable[[int], int], left: int) -> int:
        """Bytes to hand over next of so many; `turn` may make them wait, and fewer (ports.Turn)."""
        asked = time.monotonic()
        granted = turn(min(self.piece, left))
        if time.monotonic() - asked > WINDOW_S:
            self._last = counts(self._connection)  # what went out while it waited says nothing of the line
        return granted

    def begin(self) -> None:
        """Another object follows. The line may be quicker than was known."""
        now = counts(self._connection)
        if now is not None and self._last is not None and now.acked - self._last.acked >= FIRST_PIECE:
            least = _rate(self._last, now)
            if self.bytes_s or least >= QUICK_BYTES_S:
                self.bytes_s = max(self.bytes_s, least)
        self._last = now

    def look(self) -> None:
        """To be called after each piece."""
        now = counts(self._connection)
        if now is None or self._last is None:
            return
        busy_s, acked = now.busy_s - self._last.busy_s, now.acked - self._last.acked
        if not acked or (busy_s < WINDOW_S and acked < WINDOW_BYTES):
            return
        rate = _rate(self._last, now)
        self.bytes_s = (self.bytes_s + rate) / 2 if self.bytes_s else rate
        self.round_trip_s, self._last = now.round_trip_s, now
        if now.busy_s >= SETTLED_S:
            self._settled = self._settled or now
            self._limit()

    def _limit(self) -> None:
        """Bound what waits: unsent bytes, and where the line is thin those in its queues, too."""
        self._let_wait(self.bytes_s)
        buffer = int(self.bytes_s * (self.round_trip_s + UNSENT_S))
        if buffer <= MOST_SET_BUFFER:
            self._set_buffer(max(LEAST_PIECE, buffer))
            self._limited = True
        elif self._limited:
            try:
                self._connection.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
            except OSError:  # before Linux 5.14
                self._set_buffer(MOST_SET_BUFFER)
            self._limited = False

    def _set_buffer(self, size: int) -> None:
        with suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def _let_wait(self, bytes_s: float) -> None:
        """Another piece is handed over as soon as no more than this is unsent: they are bounded together."""
        unsent = max(LEAST_PIECE, int(bytes_s * (UNSENT_S - PIECE_S))) if bytes_s else FIRST_PIECE
        with suppress(OSError):
            self._connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent)


def _rate(before: Counts, now: Counts) -> float:
    return (now.acked - before.acked) / max(now.busy_s - before.busy_s, 1e-4)
