"""A small PACS for the demo and for tests: pynetdicom's server, so that what we send is judged by somebody else's code.

It listens on loopback only, checks no AE title, and keeps every data set byte for byte. Not for images that matter.
"""

import hashlib
import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from socketserver import BaseServer
from types import TracebackType
from typing import Any, Literal, Self, cast

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import ThreadedAssociationServer

from appliance.digest import digest_of
from appliance.dimse.sop_classes import VERIFICATION, storage_sop_classes

Answer = int | Literal["abort"]
SUCCESS = 0x0000
MAX_ASSOCIATIONS = 32
MAX_PDU = 131072
STOP_S = 5.0
POLL_S = 0.05  # how long `stop` may have to wait for the server's loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One instance it was sent; the newest bytes, and how often a C-STORE of its UID was answered with success."""

    sop_instance_uid: str
    sop_class_uid: str
    sha256: str  #: of the data set
    digest: str  #: of it, as the journal takes it, in hex
    path: Path  #: a Part 10 file
    transfer_syntax_uid: str
    times: int


class SmallPacs:
    """A storage SCP in threads of its own; `with` starts and stops it, `start` after `stop` keeps the port."""

    def __init__(self, folder: Path, ae_title: str = "SMALLPACS", port: int = 0, bind: str = "127.0.0.1") -> None:
        if not ipaddress.ip_address(bind).is_loopback:
            raise ValueError(f"the small PACS listens on loopback only, not on {bind}")
        self._folder, self._ae_title, self._bind = folder, ae_title, bind
        self.port = port  #: 0 until the first start, if none was given
        self.delay_s = 0.0  #: before each answer
        self.associations = MAX_ASSOCIATIONS  #: it grants at one time, from its next start
        self._server: ThreadedAssociationServer | None = None
        self._lock = threading.Lock()
        self._files = 0
        self._received: dict[str, Received] = {}
        self._connections: dict[Association, socket.socket] = {}
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stopping.clear()
        application = AE(self._ae_title)
        application.maximum_pdu_size, application.maximum_associations = MAX_PDU, self.associations
        syntaxes = [str(uid) for uid in AllTransferSyntaxes]
        for sop_class in (VERIFICATION, *sorted(storage_sop_classes())):
            application.add_supported_context(sop_class, syntaxes)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        server = application.make_server((self._bind, self.port), evt_handlers=handlers, server_class=_Server)
        server.contexts = _Contexts(server.contexts)
        self._server = server
        self.port = self._server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(POLL_S,), name="small-pacs", daemon=True).start()

    def stop(self) -> None:
        """Take no more associations and end those there are."""
        server, self._server = self._server, None
        if server is not None:
            self._stopping.set()
            associations = server.active_associations
            self.cut()
            BaseServer.shutdown(server)  # pynetdicom's override is for servers that its AE has started
            server.server_close()
            for association in associations:
                association.join(STOP_S)
                self._forget(association)

    def cut(self) -> None:
        """Lose all connections at once, in the middle of whatever they carry; new ones are taken."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            with suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def received(self) -> list[Received]:
        """What it was sent so far, in the order of first arrival."""
        with self._lock:
            return list(self._received.values())

    def answer(self, sop_instance_uid: str) -> Answer:  # noqa: ARG002 - for those that answer by it
        """What to say to the next C-STORE; only success keeps the data set."""
        return SUCCESS

    def _opened(self, event: Event) -> None:
        wrapped = event.assoc.dul.socket
        if wrapped is not None and wrapped.socket is not None:
            wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections[event.assoc] = wrapped.socket

    def _closed(self, event: Event) -> None:
        self._forget(event.assoc)

    def _forget(self, association: Association) -> None:
        """Close its socket: pynetdicom leaves it open on some of its paths."""
        with self._lock:
            connection = self._connections.pop(association, None)
        if connection is not None:
            connection.close()

    def _store(self, event: Event) -> int:
        if self.delay_s:
            self._stopping.wait(self.delay_s)
        request = cast(C_STORE, event.request)
        answer = self.answer(str(request.AffectedSOPInstanceUID))
        if answer == "abort":
            event.assoc.abort()
            return 0xC000
        if _is_stored(answer):
            self._keep(event, request)
        return answer

    def _keep(self, event: Event, request: C_STORE) -> None:
        uid, data = str(request.AffectedSOPInstanceUID), event.encoded_dataset(include_meta=False)
        with self._lock:
            self._files += 1
            path = self._folder / f"{self._files:06d}.dcm"
        path.write_bytes(event.encoded_dataset(include_meta=True))
        now = Received(
            sop_instance_uid=uid,
            sop_class_uid=str(request.AffectedSOPClassUID),
            sha256=hashlib.sha256(data).hexdigest(),
            digest=digest_of(data).hex(),
            path=path,
            transfer_syntax_uid=str(event.context.transfer_syntax),
            times=1,
        )
        with self._lock:
            before = self._received.get(uid)
            self._received[uid] = replace(now, times=before.times + 1) if before else now


class ScriptedPacs(SmallPacs):
    """A small PACS that answers by a script, one entry per C-STORE, and with success when the script is through."""

    def __init__(self, folder: Path, statuses: Iterable[Answer], ae_title: str = "SMALLPACS", port: int = 0) -> None:
        super().__init__(folder, ae_title, port)
        self.script = deque(statuses)  #: may grow while it runs

    def answer(self, sop_instance_uid: str) -> Answer:  # noqa: ARG002 - the script is blind
        try:
            return self.script.popleft()
        except IndexError:
            return SUCCESS


class _Server(ThreadedAssociationServer):
    def service_actions(self) -> None:
        """Not pynetdicom's: it looks through all of the process's memory for garbage every 60 rounds."""


class _Contexts(list[PresentationContext]):
    """Copied for each association: without the transfer syntaxes, which are thousands, and nobody changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> list[PresentationContext]:
        return [copy(context) for context in self]


def _is_stored(status: int) -> bool:
    return status in (SUCCESS, 0x0001, 0x0107, 0x0116) or 0xB000 <= status <= 0xBFFF
