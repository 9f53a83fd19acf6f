"""What an accepted association may ask of us: C-ECHO, C-STORE (PS3.7 9.1, PS3.4 Annex B) and what `Services` names.

A `Conversation` takes fragments and gives responses; it knows no socket. A data set goes to its sink in the pieces it
arrives in, undecoded. One bad object is answered with its status and drained: it never costs the association.
Normalised services (storage commitment, MPPS) are sinks, too: see operations.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from appliance.dimse import command as dimse_command
from appliance.dimse.command import Command, CommandField
from appliance.dimse.pdu import Fragment
from appliance.dimse.sop_classes import VERIFICATION
from appliance.errors import DataSetRefused, OutOfResources, RemoteProtocolError, StoreFailed

OUT_OF_RESOURCES = 0xA700
SOP_CLASS_NOT_SUPPORTED = 0x0122
CANNOT_UNDERSTAND = 0xC000
RESOURCE_LIMITATION = 0x0213  # what out of resources is called where nothing is stored (PS3.7 C.5)
MAX_PENDING = 64  # pieces: of a data set in PDVs of a byte each, a full buffer would make 7 MB of views


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The other side of an association."""

    number: int  #: of the association in this process
    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


class Sink(Protocol):
    """Where one data set goes."""

    def write(self, views: Sequence[memoryview]) -> None:
        """Take pieces; they are valid only during the call. Raises OutOfResources or StoreFailed."""
        ...

    def finish(self) -> int:
        """The data set is whole: make it durable and give the status. Raises as write, and DataSetRefused."""
        ...

    def discard(self) -> None:
        """The data set will not be finished: forget it."""
        ...


class StorageHandler(Protocol):
    """Who keeps what is stored. Called from many threads."""

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        """Room for one data set. Raises OutOfResources, DataSetRefused, StoreFailed."""
        ...

    def failed(self, reason: str) -> None:
        """A write or sync failed: nothing may be acknowledged any more."""
        ...


class OperationService(Protocol):
    """Who serves one SOP class that is asked, not stored. Called from many threads."""

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        """Room for what comes with this request, perhaps nothing. Raises as StorageHandler.begin."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Who does what is asked, by abstract syntax. C-ECHO needs nobody."""

    storage: StorageHandler
    operations: Mapping[str, OperationService] = field(default_factory=dict)


class Conversation:
    """One association after its negotiation."""

    def __init__(self, caller: Caller, contexts: Mapping[int, Context], services: Services) -> None:
        self._caller = caller
        self._contexts = contexts
        self._services = services
        self._command_bytes = bytearray()
        self._request: Command | None = None
        self._context_id = 0
        self._sink: Sink | None = None
        self._refusal: tuple[int, str] | None = None
        self._exhausted = OUT_OF_RESOURCES
        self._pending: list[memoryview] = []
        self.stored = 0  #: data sets acknowledged with success

    @property
    def mid_message(self) -> bool:
        return bool(self._command_bytes) or self._request is not None

    def feed(self, fragment: Fragment) -> bytes:
        """One fragment; returns what is to be sent, b"" for nothing yet. Raises RemoteProtocolError."""
        if fragment.context_id not in self._contexts:
            raise RemoteProtocolError(f"presentation context {fragment.context_id} was not accepted")
        if fragment.is_command:
            return self._feed_command(fragment)
        return self._feed_data(fragment)

    def flush(self) -> None:
        """Hand pending pieces to the sink: they die when the next bytes are read."""
        pending, self._pending = self._pending, []
        if self._sink is None or not pending:
            return
        try:
            self._sink.write(pending)
        except (OutOfResources, StoreFailed) as error:
            self._refuse(error)

    def close(self) -> None:
        """The association has ended, perhaps in mid data set."""
        self._pending = []
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _feed_command(self, fragment: Fragment) -> bytes:
        if self._request is not None:
            raise RemoteProtocolError("a command inside a data set")
        self._command_bytes += fragment.view
        if len(self._command_bytes) > dimse_command.MAX_COMMAND_SET:
            raise RemoteProtocolError("command set too long")
        if not (fragment.is_last and fragment.whole):
            return b""
        request = dimse_command.decode(self._command_bytes)
        self._command_bytes.clear()
        self._context_id = fragment.context_id
        return self._begin(request)

    def _begin(self, request: Command) -> bytes:
        context = self._contexts[self._context_id]
        if request.is_response or request.field == CommandField.C_CANCEL:
            raise RemoteProtocolError("neither a response nor a cancel is expected here")
        if request.field == CommandField.C_ECHO and context.abstract_syntax == VERIFICATION:
            return self._respond(request, dimse_command.SUCCESS)
        self._exhausted = OUT_OF_RESOURCES if request.field == CommandField.C_STORE else RESOURCE_LIMITATION
        if context.abstract_syntax in self._services.operations:
            self._open_sink(self._services.operations[context.abstract_syntax], context, request)
        elif request.field != CommandField.C_STORE:
            self._refusal = (dimse_command.UNRECOGNISED_OPERATION, "operation not supported")
        elif request.sop_class_uid != context.abstract_syntax:
            self._refusal = (SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the context")
        elif not request.sop_instance_uid:
            self._refusal = (CANNOT_UNDERSTAND, "no valid SOP Instance UID in the command")
        else:
            self._open_sink(self._services.storage, context, request)
        if request.has_data_set:
            self._request = request
            return b""
        if self._sink is not None and request.field != CommandField.C_STORE:
            return self._finish(request, self._sink)
        if self._sink is not None:
            self._refuse(DataSetRefused(CANNOT_UNDERSTAND, "C-STORE without a data set"))
        return self._refused(request)

    def _open_sink(self, handler: StorageHandler | OperationService, context: Context, request: Command) -> None:
        try:
            self._sink = handler.begin(self._caller, context, request)
        except (OutOfResources, DataSetRefused, StoreFailed) as error:
            self._refuse(error)

    def _feed_data(self, fragment: Fragment) -> bytes:
        if self._request is None or fragment.context_id != self._context_id:
            raise RemoteProtocolError("a data set without its command")
        if len(fragment.view) and self._sink is not None:
            self._pending.append(fragment.view)
            if len(self._pending) == MAX_PENDING:
                self.flush()
        if not (fragment.is_last and fragment.whole):
            return b""
        self.flush()
        request, self._request = self._request, None
        if self._sink is None:
            return self._refused(request)
        return self._finish(request, self._sink)

    def _finish(self, request: Command, sink: Sink) -> bytes:
        try:
            status = sink.finish()
        except (OutOfResources, DataSetRefused, StoreFailed) as error:
            self._refuse(error)
            return self._refused(request)
        self._sink = None
        self.stored += request.field == CommandField.C_STORE
        return self._respond(request, status)

    def _refuse(self, error: OutOfResources | DataSetRefused | StoreFailed) -> None:
        """Forget the object; the rest of its data set is drained and then answered."""
        if isinstance(error, StoreFailed):
            self._services.storage.failed(str(error))
        status = error.status if isinstance(error, DataSetRefused) else self._exhausted
        self._refusal = (status, str(error))
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _refused(self, request: Command) -> bytes:
        status, reason = self._refusal or (CANNOT_UNDERSTAND, "refused")
        self._refusal = None
        return self._respond(request, status, reason)

    def _respond(self, request: Command, status: int, comment: str = "") -> bytes:
        return dimse_command.encode(dimse_command.response(request, status, comment), self._context_id)
