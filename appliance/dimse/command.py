"""DIMSE command sets (PS3.7 section 9 and Annex E): Implicit VR Little Endian, group 0000 only.

`decode` takes what a peer sent, at most MAX_COMMAND_SET bytes, and raises RemoteProtocolError, nothing else.
`encode` gives one P-DATA PDU as one bytes object, for one `sendall`: two writes would meet Nagle's algorithm and the
delayed ACK.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from appliance.dimse.pdu import encode_p_data
from appliance.dimse.sop_classes import VERIFICATION
from appliance.errors import RemoteProtocolError

MAX_COMMAND_SET = 1 << 16
MAX_ERROR_COMMENT = 64  # characters of an LO

SUCCESS = 0x0000
UNRECOGNISED_OPERATION = 0x0211

_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_DATA_SET = 0x0102
_ELEMENT = struct.Struct("<HHI")
_UID = re.compile(rb"[0-9.]{1,64}")
_NOT_LO = re.compile(rb"[^ -\[\]-~]")


class CommandField(IntEnum):
    """The requests we know; a response has bit 15 set as well."""

    C_STORE = 0x0001
    C_GET = 0x0010
    C_FIND = 0x0020
    C_MOVE = 0x0021
    C_ECHO = 0x0030
    N_EVENT_REPORT = 0x0100
    N_GET = 0x0110
    N_SET = 0x0120
    N_ACTION = 0x0130
    N_CREATE = 0x0140
    N_DELETE = 0x0150
    C_CANCEL = 0x0FFF


# Their requests name what they act on "Requested", all other messages "Affected" (PS3.7 section 10.3).
_ON_REQUESTED = (CommandField.N_GET, CommandField.N_SET, CommandField.N_ACTION, CommandField.N_DELETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command set. `None` and "" stand for elements that are not there."""

    field: int  #: (0000,0100); not an enum: a peer may send any
    message_id: int = 0  #: (0000,0110), of a request
    responded_to: int = 0  #: (0000,0120), of a response
    sop_class_uid: str = ""  #: affected or requested
    sop_instance_uid: str = ""
    status: int | None = None
    has_data_set: bool = False
    priority: int | None = None  #: 0 = medium, 1 = high, 2 = low
    action_type_id: int | None = None
    event_type_id: int | None = None
    error_comment: str = ""

    @property
    def is_response(self) -> bool:
        return bool(self.field & _RESPONSE)


def decode(data: bytes | bytearray | memoryview) -> Command:
    """A command set from its bytes. Unknown elements are skipped, malformed lengths refused.

    A malformed UID counts as none: that object cannot be taken, but what comes after it on the association can.
    """
    values = dict(_elements(bytes(data)))
    if 0x0100 not in values:
        raise RemoteProtocolError("command set without a command field")
    field = _number(values, 0x0100) or 0
    message_id, responded_to = _number(values, 0x0110), _number(values, 0x0120)
    if field & _RESPONSE and (responded_to is None or 0x0900 not in values):
        raise RemoteProtocolError("response without a message id or a status")
    if not field & _RESPONSE and field != CommandField.C_CANCEL and message_id is None:
        raise RemoteProtocolError("request without a message id")
    return Command(
        field=field,
        message_id=message_id or 0,
        responded_to=responded_to or 0,
        sop_class_uid=_uid(values, 0x0002) or _uid(values, 0x0003),
        sop_instance_uid=_uid(values, 0x1000) or _uid(values, 0x1001),
        status=_number(values, 0x0900),
        has_data_set=_number(values, 0x0800) not in (None, _NO_DATA_SET),
        priority=_number(values, 0x0700),
        action_type_id=_number(values, 0x1008),
        event_type_id=_number(values, 0x1002),
        error_comment=_printable(values.get(0x0902, b"")),
    )


def encode(command: Command, context_id: int) -> bytes:
    """The command as one P-DATA PDU of one PDV."""
    body = b"".join(_element(tag, value) for tag, value in _parts(command))
    group_length = _element(0x0000, struct.pack("<I", len(body)))
    return encode_p_data(context_id, group_length + body, is_command=True)


def store_request(message_id: int, sop_class_uid: str, sop_instance_uid: str, *, priority: int = 0) -> Command:
    return Command(
        field=CommandField.C_STORE,
        message_id=message_id,
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        priority=priority,
        has_data_set=True,
    )


def echo_request(message_id: int) -> Command:
    return Command(field=CommandField.C_ECHO, message_id=message_id, sop_class_uid=VERIFICATION)


def response(request: Command, status: int, error_comment: str = "") -> Command:
    """The answer without a data set to any request: C-STORE-RSP, C-ECHO-RSP, a refusal (0x0211 and such)."""
    return Command(
        field=request.field | _RESPONSE,
        responded_to=request.message_id,
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        status=status,
        action_type_id=request.action_type_id,
        event_type_id=request.event_type_id,
        error_comment=error_comment,
    )


def _parts(command: Command) -> Iterator[tuple[int, bytes]]:
    """The elements that are there, in the order of their tags."""
    requested = command.field in _ON_REQUESTED
    sop_class, sop_instance = command.sop_class_uid.encode("ascii"), command.sop_instance_uid.encode("ascii")
    comment = _NOT_LO.sub(b"?", command.error_comment.encode("ascii", "replace"))[:MAX_ERROR_COMMENT]
    if sop_class:
        yield (0x0003 if requested else 0x0002), sop_class
    yield 0x0100, _us(command.field)
    if command.is_response:
        yield 0x0120, _us(command.responded_to)
    else:
        yield 0x0110, _us(command.message_id)
    if command.priority is not None:
        yield 0x0700, _us(command.priority)
    yield 0x0800, _us(_DATA_SET if command.has_data_set else _NO_DATA_SET)
    if command.status is not None:
        yield 0x0900, _us(command.status)
    if comment:
        yield 0x0902, comment + b" " * (len(comment) % 2)
    if sop_instance:
        yield (0x1001 if requested else 0x1000), sop_instance
    if command.event_type_id is not None:
        yield 0x1002, _us(command.event_type_id)
    if command.action_type_id is not None:
        yield 0x1008, _us(command.action_type_id)


def _element(tag: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return _ELEMENT.pack(0, tag, len(value)) + value


def _us(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) > MAX_COMMAND_SET:
        raise RemoteProtocolError("command set too long")
    at = 0
    while at < len(data):
        if len(data) - at < _ELEMENT.size:
            raise RemoteProtocolError("command set cut short")
        group, tag, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size
        if group or length > len(data) - at:
            raise RemoteProtocolError("malformed command set")
        yield tag, data[at : at + length]
        at += length


def _number(values: dict[int, bytes], tag: int) -> int | None:
    value = values.get(tag)
    if not value:
        return None
    if len(value) != 2:
        raise RemoteProtocolError("command element of wrong length")
    return int.from_bytes(value, "little")


def _uid(values: dict[int, bytes], tag: int) -> str:
    value = values.get(tag, b"").rstrip(b"\0 ")
    return value.decode("ascii") if _UID.fullmatch(value) else ""


def _printable(value: bytes) -> str:
    return _NOT_LO.sub(b"?", value.rstrip(b"\0 "))[:MAX_ERROR_COMMENT].decode("ascii")
