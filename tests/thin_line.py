"""A thin line in front of a server: one queue for all connections, first in, first out, so many bytes a second.

What a sender has handed over cannot be overtaken any more, as on a real line. The way back is free.
"""

import queue
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 1 << 12
BUFFER = 1 << 14  # of the line's own sockets
LONGEST_QUEUE = 8  # pieces on the line
MOST_LATE_S = 0.1


class ThinLine:
    """`with` opens it, on `port`."""

    def __init__(self, server_port: int, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self.carried: list[tuple[int, int]] = []  #: number of the connection, bytes
        self.open_now = self.most_open = 0
        self._server_port = server_port
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[int, socket.socket, bytes]] = queue.Queue(LONGEST_QUEUE)
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._listener.listen()
        threading.Thread(target=self._carry, daemon=True).start()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def carried_in_all(self) -> int:
        """Bytes."""
        return sum(size for _, size in list(self.carried))

    def _accept(self) -> None:
        with suppress(OSError):
            for number in range(1 << 30):
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server_port))
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [near, far]
                threading.Thread(target=self._there, args=(number, near, far), daemon=True).start()
                threading.Thread(target=self._back, args=(far, near), daemon=True).start()

    def _there(self, number: int, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        with suppress(OSError):
            while piece := near.recv(PIECE):
                self._queue.put((number, far, piece))
        with self._lock:
            self.open_now -= 1
        self._queue.put((number, far, b""))

    def _carry(self) -> None:
        through_at = 0.0  # with the piece before
        while True:
            busy = not self._queue.empty()
            number, far, piece = self._queue.get()
            now = time.monotonic()
            # A sleep takes longer than it should, on a busy machine by much: the next pieces take less for that.
            through_at = max(through_at, now - MOST_LATE_S if busy else now) + len(piece) / self.bytes_s
            time.sleep(max(0.0, through_at - now))  # this is the line, not a wait for something
            self.carried.append((number, len(piece)))
            with suppress(OSError):
                if piece:
                    far.sendall(piece)
                else:
                    far.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while piece := far.recv(PIECE):
                near.sendall(piece)
        with suppress(OSError):
            near.shutdown(socket.SHUT_WR)
