"""A bounded, sans-IO reader of DICOM upper layer PDUs (PS3.8 section 9.3) and encoders of the short ones.

Bytes go in as they come from a socket, events with views into one fixed buffer come out: a control PDU whole, a PDV
in the pieces it arrives in, so that a data set goes to its file without being held or copied. Memory per peer is the
buffer, whatever lengths the peer claims. Knows no sockets, files or time: deadlines, the association's state and
the cap on a command set are the caller's.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from appliance.errors import RemoteProtocolError

BUFFER_SIZE = 1 << 18
MAX_CONTROL_PDU = 1 << 17  # a full A-ASSOCIATE-RQ of 128 contexts with 64 transfer syntaxes is shorter
TOLERANCE = 12  # some senders leave the headers of PDU and PDV out of what they count
FREE_PDVS, LEAST_PDV = 1024, 32  # more PDVs than that must be so many bytes on average, or each byte costs us 5 us
PDV_OVERHEAD = 6  # item length, context id, control header: they count in the PDU's length (PS3.8 D.1)

_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
_P_DATA_HEADER = struct.Struct(">BxIIBB")
P_DATA_HEADER_SIZE = _P_DATA_HEADER.size


class PduType(IntEnum):
    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


_TYPES = {type_.value: type_ for type_ in PduType}


class Control(NamedTuple):
    """A PDU other than P-DATA, whole; `body` is what follows its six-byte header."""

    type: PduType
    body: memoryview


class Fragment(NamedTuple):
    """A piece of a PDV. The command or data set ends where `whole` and `is_last` are both true."""

    context_id: int
    is_command: bool
    is_last: bool  #: this PDV is the last of its command or data set
    view: memoryview
    whole: bool  #: the PDV ends with this piece


Event = Control | Fragment


class PduReader:
    """One peer's byte stream, cut into events.

        reader = PduReader(max_pdu=131072)
        while count := sock.recv_into(reader.space()):
            for event in reader.received(count): ...

    Views die at the next `space()`. For per-PDU deadlines: `inside` says whether an unfinished PDU is there, `begun`
    counts PDUs (a change means that another one began), `pdu_size` is the size on the wire of the current one.
    """

    def __init__(self, max_pdu: int, size: int = BUFFER_SIZE) -> None:
        """`max_pdu`: longest P-DATA body taken, bytes; `size`: of the buffer, which also caps control PDUs."""
        self._max_pdu = max_pdu
        self._max_control = min(MAX_CONTROL_PDU, size - _PDU_HEADER.size)
        self._view = memoryview(bytearray(size))
        self._read = self._written = 0
        self._type: PduType | None = None  # None: between PDUs, or inside a PDU header
        self._pdu_left = self._pdv_left = 0
        self._context_id = self._control = 0
        self._pdvs = self._pdv_bytes = 0
        self.begun = 0
        self._pdu_size = 0

    @property
    def inside(self) -> bool:
        """Whether bytes of an unfinished PDU have come, be it a part of its header."""
        return self._type is not None or self._written > self._read

    @property
    def pdu_size(self) -> int:
        """Bytes of the unfinished PDU, header included; just those of a header while that is incomplete."""
        return self._pdu_size if self._type is not None else _PDU_HEADER.size

    def space(self) -> memoryview:
        """Where the next bytes go; never empty. Ends the life of all views given before."""
        tail = self._written - self._read
        if self._read:
            self._view[:tail] = self._view[self._read : self._written]
            self._read, self._written = 0, tail
        return self._view[tail:]

    def received(self, count: int) -> Iterator[Event]:
        """Yield what `count` more bytes complete, lazily. Raises RemoteProtocolError; the reader is of no use then."""
        self._written += count
        while True:
            have = self._written - self._read
            if self._pdv_left:
                if not have:
                    return
                yield self._piece(min(have, self._pdv_left))
            elif self._type is None:
                if have < _PDU_HEADER.size:
                    return
                self._begin_pdu()
            elif self._type is PduType.P_DATA:
                if have < PDV_OVERHEAD:
                    return
                self._begin_pdv()
                if not self._pdv_left:
                    yield self._piece(0)
            else:
                if have < self._pdu_left:
                    return
                type_, self._type = self._type, None
                yield Control(type=type_, body=self._take(self._pdu_left))

    def _begin_pdu(self) -> None:
        number, length = _PDU_HEADER.unpack(self._take(_PDU_HEADER.size))
        type_ = _TYPES.get(number)
        if type_ is None:
            raise RemoteProtocolError("not a DICOM upper layer PDU")
        if type_ is PduType.P_DATA:
            if length > self._max_pdu + TOLERANCE:
                raise RemoteProtocolError(f"P-DATA PDU of {length} bytes, {self._max_pdu} are allowed")
            if length < PDV_OVERHEAD:
                raise RemoteProtocolError("P-DATA PDU without a PDV")
        elif length > self._max_control:
            raise RemoteProtocolError(f"{type_.name} PDU of {length} bytes")
        self._type, self._pdu_left, self._pdu_size = type_, length, length + _PDU_HEADER.size
        self.begun += 1

    def _begin_pdv(self) -> None:
        length, self._context_id, self._control = _PDV_HEADER.unpack(self._take(PDV_OVERHEAD))
        self._pdu_left -= PDV_OVERHEAD
        self._pdv_left = length - 2  # the length counts context id and control header
        left_behind = self._pdu_left - self._pdv_left
        if self._pdv_left < 0 or left_behind < 0 or 0 < left_behind < PDV_OVERHEAD:
            raise RemoteProtocolError("PDV does not fit its PDU")
        self._pdvs += 1
        self._pdv_bytes += self._pdv_left
        if self._pdvs > FREE_PDVS + self._pdv_bytes // LEAST_PDV:
            raise RemoteProtocolError("too many tiny PDVs")

    def _piece(self, size: int) -> Fragment:
        self._pdv_left -= size
        self._pdu_left -= size
        if not self._pdu_left:
            self._type = None
        return Fragment(
            context_id=self._context_id,
            is_command=bool(self._control & 1),
            is_last=bool(self._control & 2),
            view=self._take(size),
            whole=not self._pdv_left,
        )

    def _take(self, size: int) -> memoryview:
        self._read += size
        return self._view[self._read - size : self._read]


def p_data_header(context_id: int, *, is_command: bool, is_last: bool, size: int) -> bytes:
    """The header of a P-DATA PDU with one PDV of `size` bytes, which must follow it on the wire."""
    control = is_command | is_last << 1
    return _P_DATA_HEADER.pack(PduType.P_DATA, size + PDV_OVERHEAD, size + 2, context_id, control)


def encode_p_data(context_id: int, data: bytes, *, is_command: bool, is_last: bool = True) -> bytes:
    """A P-DATA PDU with one PDV, whole: two writes would meet Nagle and the delayed ACK."""
    return p_data_header(context_id, is_command=is_command, is_last=is_last, size=len(data)) + data


def encode_control(type_: PduType, body: bytes) -> bytes:
    return _PDU_HEADER.pack(type_, len(body)) + body


def encode_release_rq() -> bytes:
    return encode_control(PduType.RELEASE_RQ, bytes(4))


def encode_release_rp() -> bytes:
    return encode_control(PduType.RELEASE_RP, bytes(4))


def encode_abort(source: int, reason: int) -> bytes:
    """A-ABORT; source 0 = user, 2 = provider; reasons in PS3.8 Table 9-26."""
    return encode_control(PduType.ABORT, bytes((0, 0, source, reason)))


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ; the values are in PS3.8 Table 9-21."""
    return encode_control(PduType.ASSOCIATE_RJ, bytes((0, result, source, reason)))


def decode_abort(body: memoryview | bytes) -> str:
    """What an A-ABORT says, in words."""
    if len(body) < 4:  # a peer that ends the association badly still ends it
        return "aborted by the peer"
    source, reason = body[2], body[3]
    if source == 0:
        return "aborted by the peer's application"
    return f"aborted by the peer's DICOM layer: {_ABORT_REASONS.get(reason, f'reason {reason}')}"


_ABORT_REASONS = {
    0: "no reason given",
    1: "unrecognised PDU",
    2: "unexpected PDU",
    4: "unrecognised PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
