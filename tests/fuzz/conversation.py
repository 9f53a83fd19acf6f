"""Associations that are fuzzed: a peer's script or raw stream against our side of a conversation."""

from collections.abc import Iterator, Sequence

from appliance.dimse import command, pdu, services
from appliance.dimse.command import Command, CommandField
from appliance.dimse.operations import Allowance, Operation, Operations
from appliance.dimse.pdu import Control, PduReader
from appliance.dimse.services import Caller, Context, Conversation, Services, Sink
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_PUSH,
    VERIFICATION,
)
from appliance.errors import DataSetRefused, OutOfResources, RemoteProtocolError, StoreFailed

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SMALL_BUFFER, MAX_PDU = 512, 1 << 12
CONTEXTS = {
    1: Context(abstract_syntax=CT_IMAGE, transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN),
    3: Context(abstract_syntax=VERIFICATION, transfer_syntax=IMPLICIT_VR_LITTLE_ENDIAN),
    7: Context(abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntax=IMPLICIT_VR_LITTLE_ENDIAN),
}
ALLOWED = 300  #: bytes of normalised requests in memory
_COMMANDS = (
    command.store_request(1, CT_IMAGE, "1.2.3"),
    command.store_request(2, VERIFICATION, "1.2.3"),
    command.store_request(3, CT_IMAGE, ""),
    command.echo_request(4),
    Command(field=CommandField.N_ACTION, message_id=5, sop_class_uid=CT_IMAGE, has_data_set=True),
    Command(field=CommandField.N_ACTION, message_id=6, sop_class_uid=STORAGE_COMMITMENT_PUSH, has_data_set=True),
    Command(field=CommandField.N_ACTION, message_id=7, sop_class_uid=STORAGE_COMMITMENT_PUSH),
    Command(field=0x8001, responded_to=1, status=0),
)


def converse(data: bytes) -> None:
    """What a peer says on an association, as a script of steps or as a raw stream; what we make of it is consistent."""
    kind, rest = (data[0], data[1:]) if data else (0, b"")
    stream = rest if kind & 1 else b"".join(_script(rest))
    first = _talk(stream, kind, step=SMALL_BUFFER)
    assert first == _talk(stream, kind, step=1 + (kind >> 4)), "the cut changes what is kept"


def _script(data: bytes) -> Iterator[bytes]:
    """Each step two bytes, what and how long, and that many bytes: PDVs of commands, of data, or a canned command."""
    at = 0
    while at + 2 <= len(data):
        what, size = data[at], data[at + 1]
        content = data[at + 2 : at + 2 + size]
        at += 2 + size
        context_id = (1, 3, 7, 5)[what & 3]
        if what & 4:
            yield command.encode(_COMMANDS[size % len(_COMMANDS)], context_id)
        else:
            yield pdu.encode_p_data(context_id, content, is_command=bool(what & 8), is_last=bool(what & 16))


def _talk(stream: bytes, kind: int, step: int) -> tuple[list[bytes], list[bytes], bool]:
    """(responses, data sets kept, whether we aborted)."""
    keeper = _Keeper(kind)
    caller = Caller(number=1, calling_ae="CT01", called_ae="SCANSIDE", address="192.0.2.1")
    allowance = Allowance(ALLOWED)
    actions = Operations([CommandField.N_ACTION], _Doer(), allowance)
    served = Services(storage=keeper, operations={STORAGE_COMMITMENT_PUSH: actions})
    talk = Conversation(caller, CONTEXTS, served)
    answers: list[bytes] = []
    aborted = False
    reader = PduReader(max_pdu=MAX_PDU, size=SMALL_BUFFER)
    try:
        for event in _pieces(reader, stream, step, talk):
            if isinstance(event, Control):
                break
            if answer := talk.feed(event):
                answers.append(answer)
    except RemoteProtocolError:
        aborted = True
    talk.close()
    assert keeper.open == 0, "a data set is neither finished nor discarded"
    assert allowance.take(ALLOWED), "memory of a request is not given back"
    decoded = [command.decode(answer[12:]) for answer in answers]
    assert all(one.is_response and one.status is not None for one in decoded)
    stores = [one for one in decoded if one.field == CommandField.C_STORE | 0x8000]
    assert sum(one.status == 0 for one in stores) == talk.stored == len(keeper.kept), "acknowledged and not kept"
    assert keeper.taken <= len(stream)
    return answers, keeper.kept, aborted


def _pieces(reader: PduReader, stream: bytes, step: int, talk: Conversation) -> Iterator[pdu.Event]:
    at = 0
    while at < len(stream):
        space = reader.space()
        piece = stream[at : at + min(step, len(space))]
        space[: len(piece)] = piece
        at += len(piece)
        yield from reader.received(len(piece))
        talk.flush()


class _Doer:
    """An operation handler that does nothing."""

    def perform(self, caller: Caller, operation: Operation) -> None:
        assert caller.number == 1
        assert isinstance(operation.data_set, dict)


class _Keeper:
    """A storage handler that keeps, refuses or fails as it is told."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.open = self.taken = self.begun = 0
        self.kept: list[bytes] = []

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        assert context.abstract_syntax == request.sop_class_uid
        assert request.sop_instance_uid
        assert caller.number == 1
        self.begun += 1
        if self.kind & 2 and self.begun % 2:
            raise OutOfResources("full")
        self.open += 1
        return _Kept(self)

    def failed(self, reason: str) -> None:
        assert reason


class _Kept:
    def __init__(self, keeper: _Keeper) -> None:
        self._keeper, self._data = keeper, bytearray()

    def write(self, views: Sequence[memoryview]) -> None:
        assert len(views) <= services.MAX_PENDING, "more pieces than a conversation may hold"
        for view in views:
            assert len(view)
            self._data += view
        self._keeper.taken += sum(map(len, views))
        if self._keeper.kind & 4 and len(self._data) > 20:
            raise StoreFailed("EIO")

    def finish(self) -> int:
        if self._keeper.kind & 8 and not self._data:
            raise DataSetRefused(0xA900, "the data set is empty")
        self._keeper.open -= 1
        self._keeper.kept.append(bytes(self._data))
        return 0x0000

    def discard(self) -> None:
        self._keeper.open -= 1
