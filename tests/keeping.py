"""A storage handler that keeps data sets in memory, and a server around it."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.dimse.association import AssociateAccept
from appliance.dimse.command import Command, encode
from appliance.dimse.services import Caller, Context, Sink
from appliance.dimse.sop_classes import VERIFICATION
from appliance.errors import DataSetRefused
from tests.scanner import Client, Listening, Witness

ECHO_CONTEXT = 3  # the client's, after one storage context


@dataclass
class Memory:
    """A storage handler that keeps data sets in memory, and can be told what to refuse."""

    kept: dict[str, bytes] = field(default_factory=dict)
    open: list["Kept"] = field(default_factory=list)
    refuse: Exception | None = None  #: at begin
    refuse_write: Exception | None = None
    failures: list[str] = field(default_factory=list)

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        assert (caller.calling_ae, context.abstract_syntax) == ("CT01", request.sop_class_uid)
        if self.refuse:
            raise self.refuse
        sink = Kept(self, request.sop_instance_uid)
        self.open.append(sink)
        return sink

    def failed(self, reason: str) -> None:
        self.failures.append(reason)


class Kept:
    def __init__(self, memory: Memory, uid: str) -> None:
        self._memory, self._uid, self._data = memory, uid, bytearray()

    def write(self, views: Sequence[memoryview]) -> None:
        if self._memory.refuse_write:
            raise self._memory.refuse_write
        for view in views:
            self._data += view

    def finish(self) -> int:
        self._memory.open.remove(self)
        if not self._data:
            raise DataSetRefused(0xA900, "the data set is empty")
        self._memory.kept[self._uid] = bytes(self._data)
        return 0x0000

    def discard(self) -> None:
        if self in self._memory.open:
            self._memory.open.remove(self)


@dataclass(frozen=True, slots=True)
class Server:
    memory: Memory
    witness: Witness
    listening: Listening

    @property
    def port(self) -> int:
        return self.listening.port

    def client(self) -> Client:
        client = Client(self.port)
        assert isinstance(client.associate(), AssociateAccept)
        return client

    def is_honest(self) -> bool:
        """Whether an honest peer is served, now."""
        with self.client() as client:
            answer = client.store(77)
            client.release()
        return answer.status == 0


def echo(context_id: int = ECHO_CONTEXT) -> bytes:
    return encode(Command(field=0x0030, message_id=9, sop_class_uid=VERIFICATION), context_id)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
