"""The server side of DICOM associations (PS3.8): one blocking thread each, everything bounded.

A peer may cost one slot, one buffer and one open file, and only while it makes progress (dimse.pace). A TLS handshake
is part of the request: made in the association's thread, under the same deadline. Slots are kept for configured
peers; strangers share a few and get a proper rejection (P9). Responses leave in one write, with TCP_NODELAY and
TCP_QUICKACK, since Nagle's algorithm on either side would cost 40 ms an image.
"""

import errno
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from appliance.dimse import association as acse
from appliance.dimse import pdu
from appliance.dimse.admission import PLAIN, Hold, Limits, Policy, Slots
from appliance.dimse.association import AcceptedContext, AssociateAccept, AssociateRequest
from appliance.dimse.doors import Door, Guard
from appliance.dimse.pace import Pace
from appliance.dimse.pdu import Control, Fragment, PduReader, PduType
from appliance.dimse.services import Caller, Context, Conversation, Services
from appliance.errors import RemoteProtocolError

PAUSE_S = 0.2
MADE_ROOM = "aborted by us: it was at rest, and the peer needed its slot for another"
#: What `accept` says of one connection that came to nothing (accept(2)), and of a shortage that passes.
LOST = frozenset(
    {
        errno.EAGAIN,  # it was there when we looked
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EPERM,
    }
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """One connection, as it was accepted."""

    number: int
    connection: socket.socket
    address: str
    guard: Guard | None


class Acceptor:
    """Listens at its doors and serves until told to stop."""

    def __init__(
        self, doors: Sequence[Door], policy: Policy, limits: Limits, services: Services, observer: Observer
    ) -> None:
        self.policy, self.limits, self.services, self.observer = policy, limits, services, observer
        self._doors = doors
        self._slots = Slots(limits, policy)
        self._numbers = itertools.count(1)
        self._open: dict[int, socket.socket] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def serve(self) -> None:
        """Accept until `stop`; then give running associations a moment to finish."""
        with selectors.DefaultSelector() as selector:
            for door in self._doors:
                door.listener.setblocking(False)
                selector.register(door.listener, selectors.EVENT_READ, door)
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    self._accept(key.data)
        for door in self._doors:
            door.listener.close()
        deadline = time.monotonic() + self.limits.finish_s
        for thread in list(self._threads.values()):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._cut()

    def stop(self) -> None:
        self._stopping.set()
        for door in self._doors:
            with suppress(OSError):
                door.listener.shutdown(socket.SHUT_RDWR)  # wakes `serve`, which closes it

    def _accept(self, door: Door) -> None:
        try:
            connection, where = door.listener.accept()
        except OSError as error:
            if self._stopping.is_set():
                return
            if error.errno not in LOST | SHORTAGE:
                raise
            if error.errno in SHORTAGE:
                self._stopping.wait(PAUSE_S)
            return
        number, address = next(self._numbers), str(where[0])
        hold, goes = self._slots.arrive(number, address)
        if goes is not None:
            self._cut_one(goes)
        if hold is Hold.NOTHING:
            self.observer.rejected("", address, "no connection left")
            connection.close()
        else:
            self._start(_Arrival(number=number, connection=connection, address=address, guard=door.guard))

    def _start(self, arrival: _Arrival) -> None:
        number, name = arrival.number, f"association-{arrival.number}"
        thread = threading.Thread(target=self._serve_one, args=(arrival,), name=name, daemon=True)
        with self._lock:
            self._open[number], self._threads[number] = arrival.connection, thread
        try:
            thread.start()
        except RuntimeError as error:  # no memory, or no more threads allowed
            self.observer.rejected("", arrival.address, str(error))
            with arrival.connection:
                self._forget(arrival)

    def _serve_one(self, arrival: _Arrival) -> None:
        try:
            _Association(self, arrival).run()
        finally:
            self._forget(arrival)

    def exchange(self, number: int, connection: socket.socket) -> None:
        """An association goes on over this connection, which took the first one over."""
        with self._lock:
            self._open[number] = connection

    def admit(self, number: int, calling_ae: str) -> bool:
        """Whether there is a slot for a request that was found good; another one of the same peer may have to go."""
        if self._slots.settle(number, calling_ae):
            return True
        goes = self._slots.take_over(number, calling_ae)
        if goes is not None:
            self._cut_one(goes, socket.SHUT_RD)  # so that it can still say why it goes
        return goes is not None

    def rest(self, number: int) -> None:
        self._slots.rest(number)

    def stir(self, number: int) -> bool:
        """False: its slot is another one's by now, so that it must end."""
        return self._slots.stir(number)

    def _forget(self, arrival: _Arrival) -> None:
        with self._lock:
            del self._open[arrival.number], self._threads[arrival.number]
        self._slots.give_back(arrival.number)

    def _cut(self) -> None:
        for number in list(self._open):
            self._cut_one(number)

    def _cut_one(self, number: int, ways: int = socket.SHUT_RDWR) -> None:
        """Its thread will notice, and end."""
        with self._lock, suppress(OSError):  # TCP's own: a TLS socket's would take its state away under its thread
            if connection := self._open.get(number):
                socket.socket.shutdown(connection, ways)


class _Association:
    """One connection from its first byte to its last."""

    def __init__(self, server: Acceptor, arrival: _Arrival) -> None:
        self._server, self._number, self._socket = server, arrival.number, arrival.connection
        self._address, self._guard = arrival.address, arrival.guard
        self._channel = PLAIN
        self._reader = PduReader(server.limits.max_pdu)
        self._pace = Pace(server.limits)

    def run(self) -> None:
        try:
            self._run()
        finally:
            if self._guard is not None:
                self._guard.farewell(self._socket)
            self._socket.close()

    def _run(self) -> None:
        try:
            _tune(self._socket)
            if self._guard is not None:
                self._secure(self._guard)
            negotiated = self._negotiate()
        except (RemoteProtocolError, EndOfAssociation, OSError) as error:
            if isinstance(error, RemoteProtocolError):
                self._send_quietly(pdu.encode_abort(2, 1))
            self._server.observer.rejected("", self._address, str(error))
            return
        if negotiated is None:
            return
        caller, contexts = negotiated
        conversation = Conversation(caller, contexts, self._server.services)
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

    def _secure(self, guard: Guard) -> None:
        self._socket = guard.take_over(self._socket)
        self._server.exchange(self._number, self._socket)
        began = time.monotonic()
        self._channel = guard.handshake(self._socket, self._pace.left_s)
        self._pace.waited(time.monotonic() - began)

    def _negotiate(self) -> tuple[Caller, Mapping[int, Context]] | None:
        """Answer the request; None when it was rejected."""
        request = self._request()
        rejection = self._server.policy.rejection(request, self._address, self._channel)
        if rejection is None and not self._server.admit(self._number, request.calling_ae):
            rejection = (2, 3, 2, "local limit exceeded")
        if rejection is not None:
            self._socket.sendall(pdu.encode_reject(*rejection[:3]))
            self._server.observer.rejected(request.calling_ae, self._address, rejection[3])
            self._drain()
            return None
        accepted = acse.negotiate(request, self._server.policy.accepts_from(request, self._address, self._channel))
        self._socket.sendall(
            acse.encode_accept(
                AssociateAccept(
                    called_ae=request.called_ae,
                    calling_ae=request.calling_ae,
                    contexts=accepted,
                    max_pdu=self._server.limits.max_pdu,
                    roles=self._server.policy.roles(request, self._address),
                )
            )
        )
        caller = Caller(
            number=self._number, calling_ae=request.calling_ae, called_ae=request.called_ae, address=self._address
        )
        return caller, _contexts(request, accepted)

    def _request(self) -> AssociateRequest:
        while True:
            for event in self._reader.received(self._receive()):
                if not isinstance(event, Control) or event.type is not PduType.ASSOCIATE_RQ:
                    raise RemoteProtocolError("an A-ASSOCIATE-RQ was expected")
                return acse.decode_request(event.body)

    def _talk(self, conversation: Conversation) -> None:
        while True:
            self._pace.renew(self._reader, mid_message=conversation.mid_message)
            count = self._receive() if conversation.mid_message or self._reader.inside else self._next_message()
            for event in self._reader.received(count):
                if isinstance(event, Fragment):
                    if response := conversation.feed(event):
                        self._socket.settimeout(self._server.limits.send_s)
                        self._socket.sendall(response)
                else:
                    self._control(event, mid_message=conversation.mid_message)
            conversation.flush()

    def _next_message(self) -> int:
        """As `_receive`, between messages: only there may the association have to make room for another."""
        self._server.rest(self._number)
        try:
            count = self._receive()
        except (EndOfAssociation, OSError):
            if self._server.stir(self._number):
                raise
        else:
            if self._server.stir(self._number):
                return count
        self._send_quietly(pdu.encode_abort(2, 0))
        raise EndOfAssociation(MADE_ROOM)

    def _control(self, event: Control, *, mid_message: bool) -> None:
        if event.type is PduType.RELEASE_RQ:
            self._send_quietly(pdu.encode_release_rp())
            raise EndOfAssociation("released in mid message" if mid_message else "released", in_order=not mid_message)
        if event.type is PduType.ABORT:
            raise EndOfAssociation(pdu.decode_abort(event.body))
        raise RemoteProtocolError(f"unexpected {event.type.name}")

    def _receive(self) -> int:
        left = self._pace.left_s
        if left <= 0:
            raise EndOfAssociation("the peer was too slow or silent for too long")
        self._socket.settimeout(left)
        began = time.monotonic()
        try:
            space = self._reader.space()
            count = self._socket.recv_into(space)
            if self._guard is not None:
                count += self._guard.more(self._socket, space, count)
        except TimeoutError:
            self._send_quietly(pdu.encode_abort(2, 0))
            raise EndOfAssociation("the peer was too slow or silent for too long") from None
        self._pace.waited(time.monotonic() - began, count)
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
        if self._guard is not None:
            self._guard.farewell(self._socket)
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
