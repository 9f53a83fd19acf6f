"""The server side of DICOM associations (PS3.8): one blocking thread each, everything bounded.

A peer may cost one slot, one buffer and one open file, and only while it makes progress: there is a deadline for the
request, one for each PDU by a minimum rate, and one for silence. Slots are kept for configured peers; strangers
share a few and get a proper rejection (P9). Responses leave in one write, with TCP_NODELAY and TCP_QUICKACK, since
Nagle's algorithm on either side would cost 40 ms an image.
"""

import errno
import itertools
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from appliance.dimse import association as acse
from appliance.dimse import pdu
from appliance.dimse.admission import Limits, Policy, Slots
from appliance.dimse.association import AcceptedContext, AssociateAccept, AssociateRequest
from appliance.dimse.pdu import Control, Fragment, PduReader, PduType
from appliance.dimse.services import Caller, Context, Conversation, StorageHandler
from appliance.errors import RemoteProtocolError

PAUSE_S = 0.2
#: What `accept` says of one connection that came to nothing (accept(2)), and of a shortage that passes.
LOST = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM})
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class EndOfAssociation(Exception):
    """The association is over; `reason` says how, for the history."""

    def __init__(self, reason: str, *, in_order: bool = False) -> None:
        super().__init__(reason)
        self.in_order = in_order


class Observer(Protocol):
    """Who is told of associations. Called from many threads."""

    def opened(self, caller: Caller) -> None: ...
    def ended(self, caller: Caller, *, stored: int, in_order: bool, reason: str) -> None: ...
    def rejected(self, calling_ae: str, address: str, reason: str) -> None: ...


@dataclass(slots=True)
class _Deadline:
    """When the peer must have gone on; renewed whenever a PDU begins or ends."""

    limits: Limits
    at: float = 0.0
    _mark: tuple[int, bool] = field(default=(-1, False))

    def renew(self, reader: PduReader, *, mid_message: bool) -> None:
        mark = (reader.begun, reader.inside)
        if mark == self._mark and reader.inside:
            return
        self._mark = mark
        if reader.inside:
            allowed = self.limits.grace_s + reader.pdu_size / self.limits.min_rate
        else:
            allowed = min(self.limits.idle_s, self.limits.mid_message_s) if mid_message else self.limits.idle_s
        self.at = time.monotonic() + allowed


class Acceptor:
    """Listens and serves until told to stop."""

    def __init__(
        self, listener: socket.socket, policy: Policy, limits: Limits, handler: StorageHandler, observer: Observer
    ) -> None:
        self.policy, self.limits, self.handler, self.observer = policy, limits, handler, observer
        self._listener = listener
        self._slots = Slots(limits, policy)
        self._numbers = itertools.count(1)
        self._open: dict[int, socket.socket] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def serve(self) -> None:
        """Accept until `stop`; then give running associations a moment to finish."""
        while not self._stopping.is_set():
            try:
                connection, where = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    break
                if error.errno not in LOST | SHORTAGE:
                    raise
                if error.errno in SHORTAGE:
                    self._stopping.wait(PAUSE_S)
                continue
            self._start(connection, str(where[0]))
        deadline = time.monotonic() + self.limits.finish_s
        for thread in list(self._threads.values()):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._cut()

    def stop(self) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, connection: socket.socket, address: str) -> None:
        kind = self._slots.take(address)
        if not kind:
            self.observer.rejected("", address, "no connection left")
            connection.close()
            return
        number = next(self._numbers)
        thread = threading.Thread(
            target=self._serve_one, args=(number, connection, address, kind), name=f"association-{number}", daemon=True
        )
        with self._lock:
            self._open[number], self._threads[number] = connection, thread
        try:
            thread.start()
        except RuntimeError as error:  # no memory, or no more threads allowed
            self.observer.rejected("", address, str(error))
            with connection:
                self._forget(number, address, kind)

    def _serve_one(self, number: int, connection: socket.socket, address: str, kind: str) -> None:
        try:
            with connection:
                _Association(self, number, connection, address, full=kind == "overflow").run()
        finally:
            self._forget(number, address, kind)

    def _forget(self, number: int, address: str, kind: str) -> None:
        with self._lock:
            del self._open[number], self._threads[number]
        self._slots.give_back(address, kind)

    def _cut(self) -> None:
        with self._lock:
            for connection in self._open.values():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Association:
    """One connection from its first byte to its last."""

    def __init__(self, server: Acceptor, number: int, connection: socket.socket, address: str, *, full: bool) -> None:
        self._server, self._number, self._socket, self._address = server, number, connection, address
        self._full = full
        self._reader = PduReader(server.limits.max_pdu)
        self._deadline = _Deadline(server.limits)

    def run(self) -> None:
        try:
            _tune(self._socket)
            negotiated = self._negotiate()
        except (RemoteProtocolError, EndOfAssociation, OSError) as error:
            if isinstance(error, RemoteProtocolError):
                self._send_quietly(pdu.encode_abort(2, 1))
            self._server.observer.rejected("", self._address, str(error))
            return
        if negotiated is None:
            return
        caller, contexts = negotiated
        conversation = Conversation(caller, contexts, self._server.handler)
        self._server.observer.opened(caller)
        end = EndOfAssociation("connection lost")
        try:
            self._talk(conversation)
        except EndOfAssociation as error:
            end = error
        except RemoteProtocolError as error:
            self._send_quietly(pdu.encode_abort(2, 2))
            end = EndOfAssociation(f"aborted by us: {error}")
        except OSError as error:
            end = EndOfAssociation(f"connection lost: {error.strerror or error}")
        finally:
            conversation.close()
            self._server.observer.ended(caller, stored=conversation.stored, in_order=end.in_order, reason=str(end))

    def _negotiate(self) -> tuple[Caller, Mapping[int, Context]] | None:
        """Answer the request; None when it was rejected."""
        request = self._request()
        rejection = self._server.policy.rejection(request, self._address)
        if rejection is None and self._full:
            rejection = (2, 3, 2, "local limit exceeded")
        if rejection is not None:
            self._socket.sendall(pdu.encode_reject(*rejection[:3]))
            self._server.observer.rejected(request.calling_ae, self._address, rejection[3])
            self._drain()
            return None
        accepted = acse.negotiate(request, self._server.policy.accepts)
        self._socket.sendall(
            acse.encode_accept(
                AssociateAccept(
                    called_ae=request.called_ae,
                    calling_ae=request.calling_ae,
                    contexts=accepted,
                    max_pdu=self._server.limits.max_pdu,
                )
            )
        )
        caller = Caller(
            number=self._number, calling_ae=request.calling_ae, called_ae=request.called_ae, address=self._address
        )
        return caller, _contexts(request, accepted)

    def _request(self) -> AssociateRequest:
        self._deadline.at = time.monotonic() + self._server.limits.request_s
        while True:
            for event in self._reader.received(self._receive()):
                if not isinstance(event, Control) or event.type is not PduType.ASSOCIATE_RQ:
                    raise RemoteProtocolError("an A-ASSOCIATE-RQ was expected")
                return acse.decode_request(event.body)

    def _talk(self, conversation: Conversation) -> None:
        while True:
            self._deadline.renew(self._reader, mid_message=conversation.mid_message)
            count = self._receive()
            for event in self._reader.received(count):
                if isinstance(event, Fragment):
                    if response := conversation.feed(event):
                        self._socket.settimeout(self._server.limits.send_s)
                        self._socket.sendall(response)
                else:
                    self._control(event, mid_message=conversation.mid_message)
            conversation.flush()

    def _control(self, event: Control, *, mid_message: bool) -> None:
        if event.type is PduType.RELEASE_RQ:
            self._send_quietly(pdu.encode_release_rp())
            raise EndOfAssociation("released in mid message" if mid_message else "released", in_order=not mid_message)
        if event.type is PduType.ABORT:
            raise EndOfAssociation(pdu.decode_abort(event.body))
        raise RemoteProtocolError(f"unexpected {event.type.name}")

    def _receive(self) -> int:
        left = self._deadline.at - time.monotonic()
        if left <= 0:
            raise EndOfAssociation("the peer was too slow or silent for too long")
        self._socket.settimeout(left)
        try:
            count = self._socket.recv_into(self._reader.space())
        except TimeoutError:
            self._send_quietly(pdu.encode_abort(2, 0))
            raise EndOfAssociation("the peer was too slow or silent for too long") from None
        if not count:
            raise EndOfAssociation("connection closed by the peer")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return count

    def _send_quietly(self, data: bytes) -> None:
        with suppress(OSError):
            self._socket.settimeout(1.0)
            self._socket.sendall(data)

    def _drain(self) -> None:
        """Wait briefly for the peer to close, so that our rejection is not lost to a reset."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(1.0)
            self._socket.recv(1)


def _contexts(request: AssociateRequest, accepted: Sequence[AcceptedContext]) -> dict[int, Context]:
    abstract = {context.id: context.abstract_syntax for context in request.contexts}
    return {
        context.id: Context(abstract_syntax=abstract[context.id], transfer_syntax=context.transfer_syntax)
        for context in accepted
        if context.result == 0
    }


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


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
