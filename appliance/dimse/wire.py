"""An outbound connection: PDUs out and events in, every wait with a deadline, plain or secured.

A deadline for sending grows with the bytes, so that a slow line is no error and a stuck peer is.
"""

import math
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from appliance.dimse.pdu import Control, Event, PduReader, PduType, decode_abort
from appliance.dimse.throughput import Meter
from appliance.errors import DestinationRefused, RemoteProtocolError, TransientDeliveryError

MIN_RATE = 1000  # bytes per second below which a peer counts as stuck
_READER_SIZE = 1 << 16


class Security(Protocol):
    """What makes a connection safe before a byte of DICOM is sent; dimse.tls has it."""

    def secure(self, connection: socket.socket) -> socket.socket:
        """Take the connection over. Raises DestinationRefused, TransientDeliveryError, the connection closed."""
        ...

    def refusal(self, error: OSError) -> DestinationRefused | None:
        """What a lost connection says of the destination for good."""
        ...

    def part(self, connection: socket.socket) -> None:
        """Tell the peer that nothing more follows. Never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to call, as whom, and how patiently."""

    host: str
    port: int
    calling_ae: str
    called_ae: str
    timeout_s: float = 30.0  #: to connect, for an answer, and for bytes to move
    answer_s: float = 0.0  #: to wait for the answer to an object; 0: timeout_s
    max_pdu: int = 131072  #: longest P-DATA body, sent and received
    bytes_s: float = 0.0  #: what an earlier connection carried; 0: not known
    congestion: str = ""  #: the kernel's congestion control to send with, where it has that; "": the system's own
    security: Security | None = None  #: None: plain TCP


class Wire:
    """One connection. Used by one thread. OSError, TimeoutError among them, and RemoteProtocolError end it."""

    def __init__(self, target: Target) -> None:
        """Raises TransientDeliveryError, and DestinationRefused where TLS does not come about."""
        self._target = target
        self._socket = _connection(target)
        self._reader = PduReader(target.max_pdu, _READER_SIZE)
        self._events: Iterator[Event] = iter(())
        self._heard = False  # of the peer, anything at all
        self.meter = Meter(self._socket, target.bytes_s)

    def tune(self) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._target.congestion:
            with suppress(OSError):  # the kernel has it not, or not for us: its own will do
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._target.congestion.encode())

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """All of them, a few at most."""
        views = [memoryview(part) for part in parts]
        if self._target.security is not None:  # TLS takes one piece, and copies it in any case
            views = [memoryview(b"".join(views))]
        deadline = self.deadline(sum(len(view) for view in views))
        first = 0
        while first < len(views):
            self._await(deadline, self._target.timeout_s)
            sent = self._write(views[first:])
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            if sent:
                views[first] = views[first][sent:]

    def _write(self, views: Sequence[memoryview]) -> int:
        if self._target.security is None:
            return self._socket.sendmsg(views)
        return self._socket.send(views[0])

    def event(self, deadline: float) -> Event:
        """The next event; its view dies at the one after. Raises what ends the association."""
        while (event := next(self._events, None)) is None:
            space = self._reader.space()
            self._await(deadline)
            count = self._socket.recv_into(space)
            if not count:
                raise ConnectionResetError("closed by the peer")
            self._heard = True
            # The kernel clears it after each use; without it a peer that waits for our ACK stalls 40 ms (Nagle).
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._events = self._reader.received(count)
        if isinstance(event, Control) and event.type is PduType.ABORT:
            raise RemoteProtocolError(decode_abort(event.body))
        return event

    def has_ended(self) -> bool:
        """Between messages: whether the peer has closed it, or said what nobody asked for, as an abort."""
        self._socket.settimeout(0)
        try:
            if next(self._events, None) is not None:  # it came along with the last answer
                return True
            self._socket.recv(1, 0 if self._target.security else socket.MSG_PEEK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (OSError, RemoteProtocolError):
            pass
        return True

    def deadline(self, size: int = 0) -> float:
        return time.monotonic() + self._target.timeout_s + size / MIN_RATE

    def _await(self, deadline: float, longest_s: float = math.inf) -> None:
        """Let the next socket call wait for as long as is left, and for bytes to move no longer than `longest_s`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, longest_s))

    def say_at_once(self, data: bytes) -> None:
        """What cannot leave at once is not worth a wait. Never raises."""
        with suppress(OSError):
            self._socket.settimeout(0)
            self._socket.send(data)

    def refusal(self, error: OSError) -> DestinationRefused | None:
        """What a lost connection says of the destination for good."""
        security = self._target.security
        return security.refusal(error) if security is not None else None

    def loss(self, error: OSError) -> str:
        """A lost connection in words."""
        if self._heard:
            return f"connection lost: {words(error)}"
        if self._target.security is None:
            return f"connection lost before any answer: {words(error)}"
        return "TLS: the connection was lost right after the handshake: our certificate may be missing or not accepted"

    def close(self) -> None:
        if self._target.security is not None:
            self._target.security.part(self._socket)
        self._socket.close()


def _connection(target: Target) -> socket.socket:
    try:
        connection = socket.create_connection((target.host, target.port), timeout=target.timeout_s)
    except (OSError, UnicodeError) as error:
        raise TransientDeliveryError(f"cannot connect to {target.host}:{target.port}: {words(error)}") from error
    return target.security.secure(connection) if target.security is not None else connection


def words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
