"""What is fuzzed: each function takes any bytes, feeds them to one reader of a peer's bytes, and checks what must hold.

Not only that nothing but the documented error escapes: also that what is accepted is bounded, comes out the same
however it was cut, and is the same after another trip through our own encoder. Time and memory are watched by whoever
calls (`watched`).
"""

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.dimse import association, command, data_set, header, pdu
from appliance.dimse.association import AcceptedContext
from appliance.dimse.data_set import DataSet, Tag
from appliance.dimse.pdu import Control, PduReader
from appliance.dimse.sop_classes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
)
from appliance.errors import CannotAnalyse, DataSetRefused, RemoteProtocolError
from appliance.model import Header
from tests.fuzz.conversation import MAX_PDU, SMALL_BUFFER, converse

BASE_S, S_PER_BYTE = 0.5, 50e-6  #: of CPU for one input; a walk that is quadratic is beyond it with a few kB
SYNTAXES = (
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    "1.2.840.10008.1.2.4.70",
)
_UID = re.compile(r"[0-9.]{0,64}", re.ASCII)


class TooSlow(AssertionError):
    """An input cost more time than its length allows."""


def watched(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target within its time. The clock is this thread's CPU time, so that a busy machine changes nothing."""
    begun = time.thread_time()
    target(data)
    if (took := time.thread_time() - begun) > BASE_S + S_PER_BYTE * len(data):
        raise TooSlow(f"{took:.2f} s for {len(data)} bytes")


def read_pdus(data: bytes) -> None:
    """The first byte says how the rest is cut. Cut or whole, the same events come, and the same refusal."""
    step, stream = (data[0] or 1, data[1:]) if data else (1, b"")
    cut, whole = _Heard.all_of(stream, step), _Heard.all_of(stream, SMALL_BUFFER)
    assert cut == whole, "the cut changes what is read"
    assert sum(len(piece) for _, piece in whole.said) <= len(stream)


class _Heard:
    """What a reader makes of a stream: whole PDVs and control PDUs, and whether it was refused."""

    def __init__(self) -> None:
        self.said: list[tuple[tuple[int, ...], bytes]] = []
        self.refused = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Heard) and (self.said, self.refused) == (other.said, other.refused)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def all_of(cls, stream: bytes, step: int) -> "_Heard":
        heard = cls()
        try:
            for event in _events(PduReader(max_pdu=MAX_PDU, size=SMALL_BUFFER), stream, step):
                heard.hear(event)
        except RemoteProtocolError:
            heard.refused = True
        if not heard.refused and heard.said and not heard.said[-1][0][-1]:
            heard.said.pop()  # unfinished: how much of it came depends on the cut
        return heard

    def hear(self, event: pdu.Event) -> None:
        if isinstance(event, Control):
            assert pdu.encode_control(event.type, bytes(event.body))[6:] == event.body
            self.said.append(((event.type, True), bytes(event.body)))
            return
        key = (event.context_id, event.is_command, event.is_last, event.whole)
        if self.said and len(self.said[-1][0]) == 4 and not self.said[-1][0][-1]:
            assert self.said[-1][0][:3] == key[:3], "a PDV changed while it came"
            self.said[-1] = (key, self.said[-1][1] + bytes(event.view))
        else:
            self.said.append((key, bytes(event.view)))
        if not event.whole:
            assert len(event.view), "an empty piece of an unfinished PDV"


def _events(reader: PduReader, stream: bytes, step: int) -> Iterator[pdu.Event]:
    """As a socket would bring it, `step` bytes at a time and never more than there is space."""
    at = 0
    while at < len(stream):
        space = reader.space()
        assert len(space), "no space for what comes next"
        piece = stream[at : at + min(step, len(space))]
        space[: len(piece)] = piece
        at += len(piece)
        yield from reader.received(len(piece))
        assert reader.pdu_size <= max(MAX_PDU, SMALL_BUFFER) + pdu.TOLERANCE + 6


def read_associations(data: bytes) -> None:
    """Bodies of A-ASSOCIATE-RQ, -AC, -RJ and A-ABORT; what is accepted is the same after our own encoder."""
    try:
        request = association.decode_request(data)
    except RemoteProtocolError:
        pass
    else:
        assert 0 < len(request.contexts) <= association.MAX_CONTEXTS
        assert all(len(one.transfer_syntaxes) <= association.MAX_TRANSFER_SYNTAXES for one in request.contexts)
        answers = association.negotiate(request, lambda uid: uid != VERIFICATION)
        assert [one.id for one in answers] == [one.id for one in request.contexts]
        if request.application_context:  # without one it is rejected, not encoded
            assert association.decode_request(association.encode_request(request)[6:]) == request
    _read_accept(data)
    with _refusing():
        association.decode_reject(data)
    assert pdu.decode_abort(data)


def _read_accept(data: bytes) -> None:
    try:
        accept = association.decode_accept(data)
    except RemoteProtocolError:
        return
    assert len(accept.contexts) <= association.MAX_CONTEXTS
    again = association.decode_accept(association.encode_accept(accept)[6:])
    assert [_meaning(one) for one in again.contexts] == [_meaning(one) for one in accept.contexts]
    assert (again.called_ae, again.max_pdu, again.roles) == (accept.called_ae, accept.max_pdu, accept.roles)


def _meaning(context: AcceptedContext) -> tuple[int, int, str]:
    return context.id, context.result, context.transfer_syntax if context.result == association.ACCEPTED else ""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RemoteProtocolError:
        return


def read_commands(data: bytes) -> None:
    """A command set; once through our own encoder it does not change any more."""
    with _refusing():
        found = command.decode(data)
        assert len(found.error_comment) <= command.MAX_ERROR_COMMENT
        once = command.decode(command.encode(found, 1)[12:])
        assert command.encode(once, 1) == command.encode(found, 1)
        command.encode(command.response(found, 0x0000), 1)


def read_headers(data: bytes) -> None:
    """A data set in one of the plain transfer syntaxes; the first byte says in which."""
    syntax, content = _with_syntax(data)
    with _file(content) as path:
        found = header.read_header(path, 0, syntax)
        _check_header(found)
        if header.walk_to_end(path, 0, syntax):
            os.truncate(path, len(content) - 1)
            assert not header.walk_to_end(path, 0, syntax), "whole, and whole again with its last byte cut off"


def _with_syntax(data: bytes) -> tuple[str, bytes]:
    return SYNTAXES[data[0] % len(SYNTAXES)] if data else SYNTAXES[0], data[1:]


def _check_header(found: Header) -> None:
    uids = (found.sop_class_uid, found.sop_instance_uid, found.study_instance_uid, found.series_instance_uid)
    assert all(_UID.fullmatch(uid) for uid in uids), "no UID, and shown as one"
    assert len(found.patient) in (0, 32), "not a digest"
    assert 0 <= found.stated_count < 10**9
    assert len(found.modality) <= 16
    assert len(found.requested_priority) <= 16


def read_deflated(data: bytes) -> None:
    """A deflated data set. Bytes that we deflate ourselves have the header they have undeflated."""
    kind, content = (data[0], data[1:]) if data else (0, b"")
    syntax = DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    if kind < 128:
        with _file(content) as path:
            _check_header(header.read_header(path, 0, syntax))
            header.walk_to_end(path, 0, syntax)
        return
    packer = zlib.compressobj(kind % 10, zlib.DEFLATED, -zlib.MAX_WBITS)
    with _file(content) as plain, _file(packer.compress(content) + packer.flush()) as packed:
        assert header.read_header(packed, 0, syntax) == header.read_header(plain, 0, EXPLICIT_VR_LITTLE_ENDIAN)
        assert header.walk_to_end(packed, 0, syntax)


def read_part10(data: bytes) -> None:
    """A whole file, from its preamble."""
    with _file(data) as path:
        try:
            found = header.part10(path)
        except ValueError:
            return
        assert found.sop_class_uid
        assert found.sop_instance_uid
        assert found.transfer_syntax_uid
        assert found.data_set_offset + found.size == len(data)
        _check_header(header.read_header(path, found.data_set_offset, found.transfer_syntax_uid))


def read_data_sets(data: bytes) -> None:
    """What comes with a normalised request; what we know of it is the same after our own encoder."""
    syntax, content = SYNTAXES[data[0] & 1] if data else SYNTAXES[0], data[1:]
    try:
        found = _known(data_set.read(content, syntax))
    except DataSetRefused:
        return
    once = data_set.read(data_set.write(found, syntax), syntax)
    assert data_set.read(data_set.write(once, syntax), syntax) == once
    for tag in Tag:
        assert _UID.fullmatch(data_set.uid(once, tag))
        assert len(data_set.items(once, tag)) <= len(content) // 8


def _known(read: DataSet) -> DataSet:
    """The attributes that we can write."""
    kept: DataSet = {}
    for tag, value in read.items():
        if tag in data_set._VRS and isinstance(value, list) == (data_set._VRS[tag] == b"SQ"):
            kept[tag] = [_known(item) for item in value] if isinstance(value, list) else value
    return kept


def read_images(data: bytes) -> None:
    """After the ack, but as hostile: the image reader says CannotAnalyse, whatever the file holds."""
    from appliance.imaging import headers, pixels  # noqa: PLC0415 - the other targets start without NumPy

    with _file(data) as path:
        try:
            pixels.read_frame(headers.read_header(path))
        except CannotAnalyse:
            return


@contextmanager
def _file(content: bytes) -> Iterator[Path]:
    """A file in memory, with a path."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, content)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "pdu": read_pdus,
    "association": read_associations,
    "command": read_commands,
    "conversation": converse,
    "header": read_headers,
    "deflated": read_deflated,
    "part10": read_part10,
    "data_set": read_data_sets,
    "image": read_images,
}
