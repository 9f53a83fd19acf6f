"""A thin line in front of a server: all connections through it share so many bytes a second on their way there."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 1 << 12
BUFFER = 1 << 14  # of the line's own sockets: what a sender has got rid of is on its way


class ThinLine:
    """`with` opens it, on `port`. The way back is free."""

    def __init__(self, server_port: int, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self._server_port = server_port
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._sockets: list[socket.socket] = []
        self.open_now = self.most_open = 0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._listener.listen()
        self._thread(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _thread(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server_port))
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [near, far]
                self._thread(self._there, near, far)
                self._thread(self._back, far, near)

    def _there(self, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
        with suppress(OSError):
            while piece := near.recv(PIECE):
                self._take_time(len(piece))
                far.sendall(piece)
        with self._lock:
            self.open_now -= 1
        with suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while piece := far.recv(PIECE):
                near.sendall(piece)
        with suppress(OSError):
            near.shutdown(socket.SHUT_WR)

    def _take_time(self, size: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self.bytes_s
            wait_s = self._free_at - now
        time.sleep(wait_s)  # this is the line, not a wait for something
