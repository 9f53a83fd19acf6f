"""Normalised services (PS3.7 section 10): requests with a small data set, collected in memory and handed over whole.

An `Operations` is one SOP class as services.py sees it; what is meant by a request its `OperationHandler` knows. What
all peers together may have in memory is bounded by one `Allowance`, and requests are decoded one at a time.
"""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from appliance.dimse import command as dimse
from appliance.dimse.command import Command, CommandField
from appliance.dimse.data_set import MAX_DATA_SET, DataSet, read
from appliance.dimse.services import Caller, Context, Sink
from appliance.errors import DataSetRefused, OutOfResources

MAX_IN_MEMORY = 8 << 20  # bytes of all requests under way


class Status(IntEnum):
    """What a normalised request is refused with (PS3.7 Annex C)."""

    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_SOP_INSTANCE = 0x0117
    NO_SUCH_SOP_CLASS = 0x0118
    MISSING_ATTRIBUTE = 0x0120
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORISED = 0x0124
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One normalised request, whole."""

    field: int  #: one of the service's CommandFields
    sop_instance_uid: str  #: "" where none, or none that is valid, was named
    action_type_id: int | None
    data_set: DataSet
    event_type_id: int | None = None


class OperationHandler(Protocol):
    """What requests of one SOP class mean. Called from many threads, one request at a time."""

    def perform(self, caller: Caller, operation: Operation) -> None:
        """Do it; on return it is as durable as success promises.

        Raises DataSetRefused with a `Status`, OutOfResources, StoreFailed.
        """
        ...


class Allowance:
    """Bytes that may be in memory at a time. Used by many threads."""

    def __init__(self, limit: int = MAX_IN_MEMORY) -> None:
        self._left = limit
        self._lock = threading.Lock()
        self.turn = threading.Lock()  #: to decode and perform: what is decoded is some times larger

    def take(self, size: int) -> bool:
        with self._lock:
            granted = size <= self._left
            self._left -= size if granted else 0
            return granted

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size


class Operations:
    """A services.OperationService: one normalised SOP class."""

    def __init__(self, fields: Collection[CommandField], handler: OperationHandler, allowance: Allowance) -> None:
        self._fields, self.handler, self.allowance = frozenset(fields), handler, allowance

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        if request.field not in self._fields:
            raise DataSetRefused(dimse.UNRECOGNISED_OPERATION, "operation not supported")
        if request.sop_class_uid != context.abstract_syntax:
            raise DataSetRefused(Status.NO_SUCH_SOP_CLASS, "SOP class is not that of the context")
        return _Request(self, caller, context, request)


class _Request:
    """A services.Sink: what comes with one request."""

    def __init__(self, service: Operations, caller: Caller, context: Context, request: Command) -> None:
        self._service, self._caller, self._context, self._request = service, caller, context, request
        self._data = bytearray()

    def write(self, views: Sequence[memoryview]) -> None:
        for view in views:
            if len(self._data) + len(view) > MAX_DATA_SET:
                raise OutOfResources("the data set is too long")
            if not self._service.allowance.take(len(view)):
                raise OutOfResources("too many requests at a time")
            self._data += view

    def finish(self) -> int:
        try:
            with self._service.allowance.turn:
                self._service.handler.perform(self._caller, self._operation())
        finally:
            self.discard()
        return dimse.SUCCESS

    def _operation(self) -> Operation:
        return Operation(
            field=self._request.field,
            sop_instance_uid=self._request.sop_instance_uid,
            action_type_id=self._request.action_type_id,
            data_set=read(self._data, self._context.transfer_syntax) if self._data else {},
            event_type_id=self._request.event_type_id,
        )

    def discard(self) -> None:
        self._service.allowance.give_back(len(self._data))
        self._data = bytearray()
