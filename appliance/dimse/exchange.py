"""Messages with small data sets on an association that we asked for: what storage commitment and query need.

Bounded both ways: a data set is written whole and read whole, MAX_DATA_SET bytes of it at most.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from appliance.dimse import command as dimse
from appliance.dimse.association import Role
from appliance.dimse.command import Command
from appliance.dimse.data_set import MAX_DATA_SET, TRANSFER_SYNTAXES, DataSet, read, write
from appliance.dimse.pdu import Control, Event, PduType, encode_release_rp, p_data_header
from appliance.dimse.requestor import RequestedAssociation
from appliance.dimse.wire import Target, Wire
from appliance.errors import RemoteProtocolError, TransientDeliveryError


class ReleasedByPeer(TransientDeliveryError):
    """The peer ended the association in order, between two messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A command with the bytes that came with it, b"" where none did."""

    command: Command
    context_id: int
    data: bytes


Served = Callable[[Message], None]


class ExchangingAssociation(RequestedAssociation):
    """An association for one SOP class whose data sets are read and written here. Used by one thread."""

    def __init__(self, target: Target, sop_class_uid: str, roles: Sequence[Role] = ()) -> None:
        """Open it. Raises as requestor.connect; what the peer accepted is asked with `taken`."""
        super().__init__(target, Wire(target))
        self.sop_class_uid = sop_class_uid
        self.negotiate([(sop_class_uid, syntax) for syntax in TRANSFER_SYNTAXES], roles)

    @property
    def syntax(self) -> str:
        """The transfer syntax of what we say: the first of those accepted."""
        return next((uid for uid in TRANSFER_SYNTAXES if self.accepted(self.sop_class_uid, uid)), TRANSFER_SYNTAXES[0])

    @property
    def context_id(self) -> int:
        """Raises ObjectRefused where the peer accepted no context, TransientDeliveryError after the end."""
        return self._context_of((self.sop_class_uid, self.syntax))

    def next_message_id(self) -> int:
        return self._next_message_id()

    def say(self, command: Command, data_set: DataSet | None = None) -> None:
        """Send one message, its data set encoded as the context has it. Raises TransientDeliveryError."""
        context_id = self.context_id
        parts: list[bytes | memoryview] = [dimse.encode(command, context_id)]
        if data_set is not None:
            parts += self._cut(write(data_set, self.syntax), context_id)
        with self._ends_on_error():
            self._wire.send(parts)

    def ask(self, command: Command, data_set: DataSet | None = None, served: Served | None = None) -> Message:
        """Say it, and hear the response to it; what the peer asks meanwhile goes to `served`.

        Raises TransientDeliveryError: the association is over.
        """
        self.say(command, data_set)
        return self.response_to(command, served)

    def response_to(self, command: Command, served: Served | None = None) -> Message:
        """The next response to this command. See `ask`."""
        while True:
            message = self.hear()
            answer = message.command
            if served is not None and not answer.is_response:
                served(message)
            elif answer.responded_to == command.message_id and answer.field == command.field | 0x8000:
                return message
            else:
                with self._ends_on_error():
                    raise RemoteProtocolError("a response to something else")

    def read(self, message: Message) -> DataSet:
        """The data set of a message. Raises DataSetRefused."""
        syntax = next((pair[1] for pair, id_ in self._accepted.items() if id_ == message.context_id), "")
        return read(message.data, syntax)

    def answer(self, message: Message, status: int) -> None:
        """Respond to what the peer asked, in its context. Raises TransientDeliveryError."""
        with self._ends_on_error():
            self._wire.send([dimse.encode(dimse.response(message.command, status), message.context_id)])

    def hear(self) -> Message:
        """The next message. Raises TransientDeliveryError; ReleasedByPeer where the peer said goodbye instead."""
        with self._ends_on_error():
            return self._message(self._wire.event(self._wire.deadline()))

    def hear_within(self, seconds: float) -> Message | None:
        """As `hear`, but nothing may come. None: nothing did, and the association goes on."""
        with self._ends_on_error():
            try:
                first = self._wire.event(time.monotonic() + seconds)
            except TimeoutError:
                return None
            return self._message(first)

    def _message(self, event: Event) -> Message:
        """The message that begins with this event."""
        deadline, collected, context_id = self._wire.deadline(), bytearray(), 0
        while True:
            if isinstance(event, Control):
                self._ended_by(event, between=not collected)
            elif not event.is_command or len(collected) + len(event.view) > dimse.MAX_COMMAND_SET:
                raise RemoteProtocolError("not a command")
            else:
                collected += event.view
                context_id = event.context_id
                if event.is_last and event.whole:
                    break
            event = self._wire.event(deadline)
        command = dimse.decode(collected)
        data = self._data(deadline, context_id) if command.has_data_set else b""
        return Message(command=command, context_id=context_id, data=data)

    def _data(self, deadline: float, context_id: int) -> bytes:
        collected = bytearray()
        while True:
            event = self._wire.event(deadline)
            if isinstance(event, Control) or event.is_command or event.context_id != context_id:
                raise RemoteProtocolError("not the data set of a message")
            if len(collected) + len(event.view) > MAX_DATA_SET:
                raise RemoteProtocolError("the data set of a message is too long")
            collected += event.view
            if event.is_last and event.whole:
                break
        return bytes(collected)

    def _ended_by(self, event: Control, *, between: bool) -> NoReturn:
        if event.type is PduType.RELEASE_RQ and between:
            self._wire.send([encode_release_rp()])
            self._close()
            raise ReleasedByPeer("the peer released the association")
        raise RemoteProtocolError(f"{event.type.name} instead of a message")

    def _cut(self, data: bytes, context_id: int) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        for at in range(0, len(data), self._piece):
            piece = memoryview(data)[at : at + self._piece]
            is_last = at + len(piece) == len(data)
            parts += [p_data_header(context_id, is_command=False, is_last=is_last, size=len(piece)), piece]
        return parts
