"""The client side of DICOM associations: sends stored bytes as they are, with blocking sockets and no thread.

It never decodes, and holds at most CHUNK bytes of a file. Each (SOP class, transfer syntax) has a presentation context
of its own, so that what is accepted is what is stored. Serves the DIMSE destinations and `scanside send`.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

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
    PduType,
    encode_abort,
    encode_release_rp,
    encode_release_rq,
)
from appliance.dimse.pieces import Pieces, unreadable
from appliance.dimse.sop_classes import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from appliance.dimse.wire import Target, Wire
from appliance.errors import (
    AnswerLate,
    AssociationDenied,
    DestinationRefused,
    ObjectRefused,
    RemoteProtocolError,
    ScansideError,
    TransientDeliveryError,
)

RELEASE_S = 5.0

_SMALLEST_PDU = 512  # no peer that means well takes less, and headers would outweigh the data
_LARGEST_PDU = 1 << 20  # of a peer that states no limit

Pair = tuple[str, str]  # (SOP class UID, transfer syntax UID)
VERIFICATION_PAIR: Pair = (VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)


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
    association = RequestedAssociation(target, Wire(target))
    association.negotiate(pairs)
    return association


class RequestedAssociation:
    """An association we asked for. Used by one thread at a time; any error but a refused object ends it.

    Leaving its `with` releases it, or aborts it on the way out of an error.
    """

    def __init__(self, target: Target, wire: Wire) -> None:
        self._target, self._wire = target, wire
        self._accepted: dict[Pair, int] = {}
        self.roles: tuple[Role, ...] = ()  #: what the peer answered to the roles proposed
        self._piece = _SMALLEST_PDU  # bytes of data in a P-DATA PDU
        self._cutter = Pieces(self._piece)
        self._messages = 0
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

    def is_there(self) -> bool:
        """Between messages: whether it can still be used. A peer may have ended it while it rested."""
        if self.alive and self._wire.has_ended():
            self._close()
        return self.alive

    @property
    def bytes_s(self) -> float:
        """The goodput while something is under way; 0: not known."""
        return self._wire.meter.bytes_s

    @property
    def round_trip_s(self) -> float:
        """The least that was seen; 0: not known."""
        return self._wire.meter.round_trip_s

    @property
    def held_back(self) -> bool | None:
        """See Meter."""
        return self._wire.meter.held_back

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
            self._wire.tune()
            self._wire.send([encode_request(request)])
            answer = self._wire.event(self._wire.deadline())
            if not isinstance(answer, Control) or answer.type not in (PduType.ASSOCIATE_AC, PduType.ASSOCIATE_RJ):
                raise RemoteProtocolError("no answer to the association request")
            if answer.type is PduType.ASSOCIATE_RJ:
                rejection = decode_reject(answer.body)
                self._close()
                error = AssociationDenied if rejection.is_transient else DestinationRefused
                raise error(f"association {rejection.text}")
            accept = decode_accept(answer.body)
            for context in accept.contexts:
                pair = proposed.get(context.id)
                if pair and context.result == ACCEPTED and context.transfer_syntax == pair[1]:
                    self._accepted[pair] = context.id
            self._piece = self._piece_size(accept.max_pdu)
            self._cutter = Pieces(self._piece)
            self.roles = accept.roles

    def echo(self) -> Answer:
        """C-ECHO. Raises TransientDeliveryError."""
        request = dimse.echo_request(self._next_message_id())
        context_id = self._context_of(VERIFICATION_PAIR)
        with self._ends_on_error():
            self._wire.send([dimse.encode(request, context_id)])
            return self._answer_to(request)

    def store(self, item: Part10, turn: Callable[[int], int] = lambda wanted: wanted) -> Answer:
        """C-STORE the data set of a Part 10 file, byte for byte; `turn` is asked before each piece of it (ports.Turn).

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
                self._wire.meter.begin()
                before: list[bytes | memoryview] = [dimse.encode(request, context_id)]
                for piece in self._cutter.of(fd, item, context_id, partial(self._wire.meter.piece_of, turn)):
                    self._wire.send([*before, piece])
                    self._wire.meter.look()
                    before = []
                return self._answer_to_store(request)
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
            self._wire.send([encode_release_rq()])
            deadline = time.monotonic() + min(RELEASE_S, self._target.timeout_s)
            event = self._wire.event(deadline)
            if isinstance(event, Control) and event.type is PduType.RELEASE_RQ:  # both at once: PS3.8 9.2.3, AR-8
                self._wire.send([encode_release_rp()])
                self._wire.event(deadline)
        self._close()

    def abort(self) -> None:
        """End it now. Never raises."""
        if not self.alive:
            return
        self._wire.say_at_once(encode_abort(0, 0))
        self._close()

    def _close(self) -> None:
        self.alive = False
        self._wire.close()

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.abort()
            raise TransientDeliveryError(f"no progress within {self._target.timeout_s:g} s") from error
        except OSError as error:
            self._close()
            lost = TransientDeliveryError(self._wire.loss(error))
            raise (self._wire.refusal(error) or lost) from error
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

    def _answer_to(self, request: Command, deadline: float | None = None) -> Answer:
        answer = self._response(request, deadline)
        if answer.has_data_set:
            raise RemoteProtocolError("a response to something else")
        return Answer(status=answer.status or 0, comment=answer.error_comment)

    def _answer_to_store(self, request: Command) -> Answer:
        patience_s = self._target.answer_s or self._target.timeout_s
        try:
            return self._answer_to(request, time.monotonic() + patience_s)
        except TimeoutError as error:
            raise AnswerLate(f"no answer within {patience_s:g} s") from error

    def _response(self, request: Command, deadline: float | None = None) -> Command:
        collected = bytearray()
        deadline = self._wire.deadline() if deadline is None else deadline
        while True:
            event = self._wire.event(deadline)
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
