"""A process's signs of life to its supervisor, and its end with it."""

import ctypes
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # prctl(2)
BEAT_EVERY_S = 5.0
BEAT, READY = b".", b"R"


def leave_no_core() -> None:
    """No core file of this process, nor of those it starts: what it holds is patient data (P10).

    Not dumpable as well, because a kernel that hands cores to a program does so whatever the limit is (core(5)).
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


class Life:
    """The child's end: `beat` while all is well, `ready` once; `stopping` is set when it should end.

    Without a supervisor (`fd` None) nobody listens. With one, the kernel kills this process when the supervisor dies:
    a half appliance that nobody watches would hold the port.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.stopping = threading.Event()
        self.on_stop: Callable[[], None] = lambda: None  #: wakes a main loop that waits for something else
        self._socket = socket.socket(fileno=fd) if fd is not None else None
        if self._socket is not None:
            self._socket.setblocking(False)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if self._is_abandoned():  # it died before we asked: its successor's processes must not meet this one
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_abandoned(self) -> bool:
        """Whether the supervisor's end of the line is gone; it never says anything."""
        try:
            return self._socket is not None and not self._socket.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def stop_on_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopping.set()
        self.on_stop()

    def beat(self) -> None:
        self._say(BEAT)

    def ready(self) -> None:
        self._say(READY)

    def _say(self, word: bytes) -> None:
        if self._socket is not None:
            try:
                self._socket.send(word)
            except BlockingIOError:
                return  # the supervisor has not read for long; it has other worries
            except OSError:
                self.stopping.set()
