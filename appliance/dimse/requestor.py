"""The client side of DICOM associations: sends stored bytes as they are, with blocking sockets and no thread.

It never decodes, and holds at most CHUNK bytes of a file. Each (SOP class, transfer syntax) has a presentation context
of its own, so that what is accepted is what is stored. Every wait has a deadline; one for sending grows with the bytes,
so that a slow line is no error and a stuck peer is. Serves the DIMSE destinations and `scanside send`.
"""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from appliance.dimse import command as dimse
from appliance.dimse.association import (
    ACCEPTED,
    MAX_CONTEXTS,
    AssociateRequest,
    ProposedContext,
    Role,
    decode_accept,
    decode_reject,
    encode_request,
)
from appliance.dimse.command import Command
from appliance.dimse.header import Part10
from appliance.dimse.pdu import (
    PDV_OVERHEAD,
    Control,
    Event,
    PduReader,
    PduType,
    decode_abort,
    encode_abort,
    encode_release_rp,
    encode_release_rq,
    p_data_header,
)
from appliance.dimse.sop_classes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from appliance.disk import SHORTAGE
from appliance.errors import (
    DeliveryError,
    DestinationRefused,
    ObjectRefused,
    RemoteProtocolError,
    ScansideError,
    TransientDeliveryError,
)

CHUNK = 1 << 20
MIN_RATE = 1000  # bytes per second below which a peer counts as stuck
RELEASE_S = 5.0

_SMALLEST_PDU = 512  # no peer that means well takes less, and headers would outweigh the data
_LARGEST_PDU = 1 << 20  # of a peer that states no limit
_READER_SIZE = 1 << 16
_IOV = 512  # parts per sendmsg; IOV_MAX is 1024

Pair = tuple[str, str]  # (SOP class UID, transfer syntax UID)
VERIFICATION_PAIR: Pair = (VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)


class Security(Protocol):
    """What makes a connection safe before a byte of DICOM is sent; dimse.tls has it."""

    def secure(self, connection: socket.socket) -> socket.socket:
        """Take the connection over. Raises DestinationRefused, TransientDeliveryError, the connection closed."""
        ...

    def refusal(self, error: OSError) -> DestinationRefused | None:
        """What a lost connection says of the destination for good."""
        ...

    def part(self, connection: socket.socket) -> None:
        """Tell the peer that nothing more follows. Never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to call, as whom, and how patiently."""

    host: str
    port: int
    calling_ae: str
    called_ae: str
    timeout_s: float = 30.0  #: to connect, for an answer, and for bytes to move
    max_pdu: int = 131072  #: longest P-DATA body, sent and received
    security: Security | None = None  #: None: plain TCP


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a peer said to a request. The comment is the peer's own text: it may name a patient."""

    status: int
    comment: str = ""


def connect(target: Target, contexts: Sequence[Pair]) -> "RequestedAssociation":
    """Open an association that proposes each pair in a context of its own.

    Raises DestinationRefused where the peer rejects it for good, TransientDeliveryError for all else that went wrong,
    ValueError for more than MAX_CONTEXTS pairs, or none.
    """
    pairs = list(dict.fromkeys(contexts))
    if not 1 <= len(pairs) <= MAX_CONTEXTS:
        raise ValueError(f"{len(pairs)} presentation contexts")
    association = RequestedAssociation(target, open_connection(target))
    association.negotiate(pairs)
    return association


def open_connection(target: Target) -> socket.socket:
    """Raises TransientDeliveryError, and DestinationRefused where TLS does not come about."""
    try:
        connection = socket.create_connection((target.host, target.port), timeout=target.timeout_s)
    except (OSError, UnicodeError) as error:
        raise TransientDeliveryError(f"cannot connect to {target.host}:{target.port}: {_text(error)}") from error
    return target.security.secure(connection) if target.security is not None else connection


class RequestedAssociation:
    """An association we asked for. Used by one thread; any error but a refused object ends it.

    Leaving its `with` releases it, or aborts it on the way out of an error.
    """

    def __init__(self, target: Target, connection: socket.socket) -> None:
        self._target = target
        self._socket = connection
        self._reader = PduReader(target.max_pdu, _READER_SIZE)
        self._events: Iterator[Event] = iter(())
        self._accepted: dict[Pair, int] = {}
        self.roles: tuple[Role, ...] = ()  #: what the peer answered to the roles proposed
        self._piece = 0  # bytes of data in a P-DATA PDU
        self._messages = 0
        self._buffer = memoryview(b"")
        self.alive = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    @property
    def taken(self) -> frozenset[Pair]:
        """The pairs whose contexts the peer accepted."""
        return frozenset(self._accepted)

    def accepted(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        return (sop_class_uid, transfer_syntax_uid) in self._accepted

    def negotiate(self, pairs: Sequence[Pair], roles: Sequence[Role] = ()) -> None:
        """Request the association; see `connect`."""
        proposed = {2 * n + 1: pair for n, pair in enumerate(pairs)}
        request = AssociateRequest(
            called_ae=self._target.called_ae,
            calling_ae=self._target.calling_ae,
            max_pdu=self._target.max_pdu,
            roles=tuple(roles),
            contexts=tuple(
                ProposedContext(id=id_, abstract_syntax=sop_class, transfer_syntaxes=(syntax,))
                for id_, (sop_class, syntax) in proposed.items()
            ),
        )
        with self._ends_on_error():
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send([encode_request(request)])
            answer = self._next_event(self._deadline())
            if not isinstance(answer, Control) or answer.type not in (PduType.ASSOCIATE_AC, PduType.ASSOCIATE_RJ):
                raise RemoteProtocolError("no answer to the association request")
            if answer.type is PduType.ASSOCIATE_RJ:
                rejection = decode_reject(answer.body)
                self._close()
                error = TransientDeliveryError if rejection.is_transient else DestinationRefused
                raise error(f"association {rejection.text}")
            accept = decode_accept(answer.body)
            for context in accept.contexts:
                pair = proposed.get(context.id)
                if pair and context.result == ACCEPTED and context.transfer_syntax == pair[1]:
                    self._accepted[pair] = context.id
            self._piece = self._piece_size(accept.max_pdu)
            self.roles = accept.roles

    def echo(self) -> Answer:
        """C-ECHO. Raises TransientDeliveryError."""
        request = dimse.echo_request(self._next_message_id())
        context_id = self._context_of(VERIFICATION_PAIR)
        with self._ends_on_error():
            self._send([dimse.encode(request, context_id)])
            return self._answer_to(request)

    def store(self, item: Part10) -> Answer:
        """C-STORE the data set of a Part 10 file, byte for byte.

        Raises TransientDeliveryError (the association is over), ObjectRefused where its context was not accepted, the
        file cannot be read, or the peer aborts at a data set of odd length. Any status is an answer, not an error.
        """
        context_id = self._context_of((item.sop_class_uid, item.transfer_syntax_uid))
        request = dimse.store_request(self._next_message_id(), item.sop_class_uid, item.sop_instance_uid)
        try:
            fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(error) from error
        try:
            with self._ends_on_error():
                parts: list[bytes | memoryview] = [dimse.encode(request, context_id)]
                for more in self._data_parts(fd, item, context_id):
                    self._send(parts + more)
                    parts = []
                return self._answer_to(request)
        except TransientDeliveryError as error:
            # PS3.5 section 7.1 has data sets even. Some peers take an odd one all the same; DCMTK aborts, every time.
            if item.size % 2 and isinstance(error.__cause__, RemoteProtocolError):
                raise ObjectRefused(f"data set of odd length: {error}") from error
            raise
        finally:
            os.close(fd)

    def release(self) -> None:
        """End the association in order, as far as the peer plays along. Never raises."""
        if not self.alive:
            return
        with suppress(OSError, ScansideError):
            self._send([encode_release_rq()])
            deadline = time.monotonic() + min(RELEASE_S, self._target.timeout_s)
            event = self._next_event(deadline)
            if isinstance(event, Control) and event.type is PduType.RELEASE_RQ:  # both at once: PS3.8 9.2.3, AR-8
                self._send([encode_release_rp()])
                self._next_event(deadline)
        self._close()

    def abort(self) -> None:
        """End it now. Never raises."""
        if not self.alive:
            return
        with suppress(OSError):
            self._socket.settimeout(0)  # an abort that cannot leave at once is not worth a wait
            self._socket.send(encode_abort(0, 0))
        self._close()

    def _close(self) -> None:
        self.alive = False
        if self._target.security is not None:
            self._target.security.part(self._socket)
        self._socket.close()

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.abort()
            raise TransientDeliveryError(f"no progress within {self._target.timeout_s:g} s") from error
        except OSError as error:
            self._close()
            security = self._target.security
            lost = TransientDeliveryError(f"connection lost: {_text(error)}")
            raise ((security.refusal(error) if security is not None else None) or lost) from error
        except RemoteProtocolError as error:
            self.abort()
            raise TransientDeliveryError(str(error)) from error
        except BaseException:  # a file that cannot be read, an interrupt: the message is half sent
            self.abort()
            raise

    def _context_of(self, pair: Pair) -> int:
        if not self.alive:
            raise TransientDeliveryError("the association is over")
        try:
            return self._accepted[pair]
        except KeyError:
            raise ObjectRefused(f"presentation context not accepted: {pair[0]} in {pair[1]}") from None

    def _next_message_id(self) -> int:
        self._messages += 1
        return self._messages & 0xFFFF

    def _piece_size(self, peer_max_pdu: int) -> int:
        limit = min(peer_max_pdu or _LARGEST_PDU, self._target.max_pdu or _LARGEST_PDU, _LARGEST_PDU)
        if limit < _SMALLEST_PDU:
            raise RemoteProtocolError(f"the peer takes PDUs of {limit} bytes only")
        return (limit - PDV_OVERHEAD) & ~1  # fragments of a data set have even length

    def _data_parts(self, fd: int, item: Part10, context_id: int) -> Iterator[list[bytes | memoryview]]:
        """P-DATA PDUs of the data set, some per list; the views die when the next list is asked for.

        A deflated stream of odd length gets the NUL that PS3.5 A.5 has follow it; else nothing is added.
        """
        pad = bytes(item.size % 2 if item.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else 0)
        per_read = self._piece * max(1, min(CHUNK // self._piece, _IOV // 3 - 1))
        if len(self._buffer) < per_read:
            self._buffer = memoryview(bytearray(per_read))
        done = 0
        while True:
            chunk = self._buffer[: min(per_read, item.size - done)]
            self._fill(chunk, fd, item.data_set_offset + done)
            done += len(chunk)
            parts: list[bytes | memoryview] = []
            for at in range(0, len(chunk) or 1, self._piece):
                piece = chunk[at : at + self._piece]
                end = pad if (is_last := done == item.size and at + len(piece) == len(chunk)) else b""
                size = len(piece) + len(end)
                parts += [p_data_header(context_id, is_command=False, is_last=is_last, size=size), piece, end]
            yield parts
            if done == item.size:
                return

    @staticmethod
    def _fill(chunk: memoryview, fd: int, offset: int) -> None:
        while chunk:
            try:
                count = os.preadv(fd, [chunk], offset)
            except OSError as error:
                raise unreadable(error) from error
            if not count:
                raise ObjectRefused("stored file is shorter than it was")
            chunk, offset = chunk[count:], offset + count

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(part) for part in parts]
        deadline = self._deadline(sum(len(view) for view in views))
        first = 0
        while first < len(views):
            self._await(deadline)
            sent = self._write(views[first : first + _IOV])
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            if sent:
                views[first] = views[first][sent:]

    def _write(self, views: Sequence[memoryview]) -> int:
        if self._target.security is None:
            return self._socket.sendmsg(views)
        return self._socket.send(b"".join(views))  # TLS takes one piece, and copies it in any case

    def _answer_to(self, request: Command) -> Answer:
        answer = self._response(request)
        if answer.has_data_set:
            raise RemoteProtocolError("a response to something else")
        return Answer(status=answer.status or 0, comment=answer.error_comment)

    def _response(self, request: Command) -> Command:
        deadline, collected = self._deadline(), bytearray()
        while True:
            event = self._next_event(deadline)
            if isinstance(event, Control):
                raise RemoteProtocolError(f"{event.type.name} instead of a response")
            if not event.is_command or len(collected) + len(event.view) > dimse.MAX_COMMAND_SET:
                raise RemoteProtocolError("not a response")
            collected += event.view
            if event.is_last and event.whole:
                break
        answer = dimse.decode(collected)
        if answer.responded_to != request.message_id or answer.field != request.field | 0x8000:
            raise RemoteProtocolError("a response to something else")
        return answer

    def _next_event(self, deadline: float) -> Event:
        """The next event; its view dies at the one after. Raises what ends the association."""
        while (event := next(self._events, None)) is None:
            space = self._reader.space()
            self._await(deadline)
            count = self._socket.recv_into(space)
            if not count:
                raise ConnectionResetError("closed by the peer")
            # The kernel clears it after each use; without it a peer that waits for our ACK stalls 40 ms (Nagle).
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._events = self._reader.received(count)
        if isinstance(event, Control) and event.type is PduType.ABORT:
            raise RemoteProtocolError(decode_abort(event.body))
        return event

    def _deadline(self, size: int = 0) -> float:
        return time.monotonic() + self._target.timeout_s + size / MIN_RATE

    def _await(self, deadline: float) -> None:
        """Let the next socket call wait for as long as is left, and for moving bytes no longer than the time-out."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left, self._target.timeout_s))


def unreadable(error: OSError | ValueError) -> DeliveryError:
    """What a stored file that cannot be read means for its delivery: a shortage of ours is not the object's fault."""
    passes = isinstance(error, OSError) and error.errno in SHORTAGE
    return (TransientDeliveryError if passes else ObjectRefused)(f"stored file cannot be read: {_text(error)}")


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
