"""The ports we listen on, and what guards them."""

import socket
from dataclasses import dataclass
from typing import Protocol

from appliance.dimse.admission import Channel


class Guard(Protocol):
    """What makes a connection safe before a byte of DICOM is read. Used by many threads."""

    def take_over(self, connection: socket.socket) -> socket.socket:
        """The connection to use instead. Without a word to the peer yet. Raises OSError, the connection closed."""
        ...

    def handshake(self, connection: socket.socket, timeout_s: float) -> Channel:
        """Make it safe, within this time. Raises OSError with the reason, the connection closed."""
        ...

    def more(self, connection: socket.socket, space: memoryview, count: int) -> int:
        """How many bytes more are there already, put after the first `count` of this space. Never waits or raises."""
        ...

    def farewell(self, connection: socket.socket) -> None:
        """Tell the peer that nothing more follows. Never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A port we listen on, and what guards it; None: plain TCP."""

    listener: socket.socket
    guard: Guard | None = None


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; raises OSError with the address in its text."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {address} port {port}") from error
    return listener
