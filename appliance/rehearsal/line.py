"""The line between the appliance and the PACS of a rehearsal, and what a line and a PACS can do to a sender.

Plain bytes on loopback: the appliance and the PACS both believe that the other one did it.
"""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
PIECE = 1 << 16
#: A-ASSOCIATE-RJ: permanent, by the service user, calling AE title not recognised (PS3.8 9.3.4).
NOT_RECOGNISED = bytes((0x03, 0, 0, 0, 0, 4, 0, 1, 1, 3))
TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Fault:
    """What is wrong with the line; each count goes down to 0, which is well, as it happens."""

    unknown: bool = False  #: every association is refused: calling AE title not recognised
    cuts: int = 0  #: connections lost in the middle of a data set
    cut_after: int = 100_000  #: bytes of it that still go through
    lost_answers: int = 0  #: connections lost when the PACS has stored the object and answers so
    late_answers: int = 0  #: answers that come late
    late_s: float = 0.0
    happened: int = 0  #: how often any of it has happened


class Line:
    """Takes associations on a port of its own and carries them to the PACS."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self.fault = Fault()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ends: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, name="line", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            _shut(end)

    def _serve(self) -> None:
        with suppress(OSError):  # closed: the rehearsal is over
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), name="line", daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            near.settimeout(TIMEOUT_S)
            if self.fault.unknown:
                self.fault.happened += 1
                near.recv(PIECE)
                near.sendall(NOT_RECOGNISED)
                return
            with socket.create_connection((LOOPBACK, self._to_port)) as far:
                far.settimeout(TIMEOUT_S)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._both_ways(near, far)

    def _both_ways(self, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self._ends |= {near, far}
        back = threading.Thread(target=self._back, args=(far, near), name="line", daemon=True)
        back.start()
        try:
            self._forth(near, far)
        finally:
            _shut(far)
            back.join(TIMEOUT_S)
            with self._lock:
                self._ends -= {near, far}

    def _forth(self, near: socket.socket, far: socket.socket) -> None:
        carried = 0
        while data := near.recv(PIECE):
            carried += len(data)
            if carried > self.fault.cut_after and self._happens("cuts"):
                _shut(near)
                return
            far.sendall(data)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        """The first that the PACS says is that it accepts the association; what follows are answers."""
        first = True
        with suppress(OSError):
            while data := far.recv(PIECE):
                if not first and self._happens("lost_answers"):
                    break
                if not first and self._happens("late_answers"):
                    self._stopping.wait(self.fault.late_s)
                near.sendall(data)
                first = False
        _shut(near)

    def _happens(self, what: str) -> bool:
        with self._lock:
            left: int = getattr(self.fault, what)
            if left <= 0:
                return False
            setattr(self.fault, what, left - 1)
            self.fault.happened += 1
            return True


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
