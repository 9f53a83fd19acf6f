"""Waking another process after a commit: one datagram on a Unix socket, no content, best effort.

A lost datagram costs a slow poll, never a decision: the journal says what there is to do. So latency is never a sleep,
and a process that is down is simply not woken.
"""

import os
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

SLOW_POLL_S = 5.0


def is_listening(folder: Path, name: str) -> bool:
    """Whether the process of this name is there: its bell ends with it, however it ends. Rings nothing."""
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect(f"/proc/self/fd/{folder_fd}/{name}.bell")
    except OSError:
        return False
    finally:
        os.close(folder_fd)
    return True


class Bell:
    """The bell of one process, and the way to ring the others'. Sockets are reached through the folder's descriptor:
    a path may be longer than the 107 bytes a socket address holds.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = name
        self._lock = threading.Lock()
        with suppress(FileNotFoundError):
            os.unlink(f"{name}.bell", dir_fd=self._folder_fd)
        self._own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._own.bind(self._path(name))
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def ring(self, *names: str) -> None:
        """Wake these processes, if they are there."""
        for name in names:
            with suppress(OSError):
                self._out.sendto(b"\0", self._path(name))

    def wait(self, timeout_s: float = SLOW_POLL_S) -> None:
        """Sleep until rung or until the time is over; several rings count as one."""
        with self._lock:
            ready, _, _ = select.select([self._own], [], [], max(0.0, timeout_s))
            while ready:
                try:
                    self._own.recv(16)
                except BlockingIOError:
                    return

    def close(self) -> None:
        self._own.close()
        self._out.close()
        with suppress(FileNotFoundError):
            os.unlink(f"{self._name}.bell", dir_fd=self._folder_fd)
        os.close(self._folder_fd)

    def _path(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder_fd}/{name}.bell"
