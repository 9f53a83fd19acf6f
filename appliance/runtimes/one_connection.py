"""One TCP connection for a library that would open another one by itself, inside the runtime child. 3.10-clean like it.

gRPC replaces a connection that was lost behind its caller's back, and what answers on the new one need not be what was
verified. So it is given a socket of this process instead, behind which there is one connection and never a second.
Others on the box see its name (unix(7), abstract): they are not let in, and the worst they can do is to keep us out.
"""

import contextlib
import os
import socket
import struct
import threading

_PIECE = 1 << 18
_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7): process, user, group


class OneConnection:
    """To whoever listens there now; `target` is what gRPC is to be given. Ends with the process."""

    def __init__(self, host: str, port: int, connect_s: float) -> None:
        """Raises OSError where nobody is there."""
        self.lost = False  #: once and for all
        self._far = socket.create_connection((host, port), connect_s)
        self._far.settimeout(None)
        self._far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind("")  # a name in the abstract namespace that nobody has, unix(7)
        self._door.listen(1)
        self.target = f"unix-abstract:{self._door.getsockname()[1:].decode()}"
        threading.Thread(target=self._let_in, daemon=True).start()

    def _let_in(self) -> None:
        """The first who comes and is this very process; then nobody any more. The door stays ours, shut: another
        process could take the name of one that was closed, and be taken for the server.
        """
        near = _of_this_process(self._door)
        self._door.shutdown(socket.SHUT_RDWR)
        ways = [
            threading.Thread(target=self._pass_on, args=way, daemon=True)
            for way in ((near, self._far), (self._far, near))
        ]
        with near, self._far:
            for way in ways:
                way.start()
            for way in ways:
                way.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        piece = memoryview(bytearray(_PIECE))
        with contextlib.suppress(OSError):
            while count := source.recv_into(piece):
                sink.sendall(piece[:count])
        self.lost = True
        for end in (source, sink):  # the other thread may wait in a call on either: a closed one would not wake it
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _of_this_process(door: socket.socket) -> socket.socket:
    while True:
        near, _ = door.accept()
        told = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(told)[0] == os.getpid():
            return near
        near.close()
