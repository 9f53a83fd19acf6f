"""What storage commitment says (PS3.4 Annex J), as values: the request, the report, and why an object is not kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from appliance.dimse.data_set import DataSet, Tag, items, references, uid
from appliance.dimse.operations import Status
from appliance.dimse.sop_classes import STORAGE_COMMITMENT_INSTANCE
from appliance.errors import DataSetRefused
from appliance.model import CommitmentAnswer, Reference

REQUEST_STORAGE_COMMITMENT = 1  # the one action type


class EventType(IntEnum):
    """PS3.4 Table J.3-3."""

    COMPLETE = 1
    FAILURES_EXIST = 2


class Remedy(StrEnum):
    """What may help where a destination does not answer for an object."""

    SEND_AGAIN = "send again"
    ASK_AGAIN = "ask again"  #: nothing was said of the object


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureMeaning:
    words: str
    remedy: Remedy = Remedy.SEND_AGAIN


#: Failure Reason (0008,1197): PS3.3 C.14.1.1. Where the object may be at fault it is sent again all the same: some
#: destinations say so of what they lost, and the third time it is held.
FAILURE_REASONS: Mapping[int, FailureMeaning] = {
    0x0110: FailureMeaning(words="processing failure"),
    0x0112: FailureMeaning(words="no such object instance"),
    0x0119: FailureMeaning(words="class and instance conflict"),
    0x0122: FailureMeaning(words="referenced SOP class not supported"),
    0x0131: FailureMeaning(words="duplicate transaction UID", remedy=Remedy.ASK_AGAIN),
    0x0213: FailureMeaning(words="resource limitation"),
}
UNKNOWN_REASON = FailureMeaning(words="a reason the standard does not know")
NO_REASON = 0x0110  # of an item that gives none


def meaning(reason: int) -> FailureMeaning:
    return FAILURE_REASONS.get(reason, UNKNOWN_REASON)


def request(transaction_uid: str, asked: Sequence[Reference]) -> DataSet:
    """The action information (PS3.4 Table J.3-1)."""
    return {Tag.TRANSACTION_UID: transaction_uid.encode(), Tag.REFERENCED_SOP_SEQUENCE: references(asked)}


def report_of(sop_instance_uid: str, event_type_id: int | None, data_set: DataSet) -> CommitmentAnswer:
    """The event information (PS3.4 Table J.3-3). Raises DataSetRefused with what N-EVENT-REPORT is answered with.

    What is named as failed counts as failed, whatever else is said of it.
    """
    if sop_instance_uid != STORAGE_COMMITMENT_INSTANCE:
        raise DataSetRefused(Status.NO_SUCH_SOP_INSTANCE, "not the well-known instance of storage commitment")
    if event_type_id not in set(EventType):
        raise DataSetRefused(Status.NO_SUCH_EVENT_TYPE, "the event type is neither 1 nor 2")
    transaction_uid = uid(data_set, Tag.TRANSACTION_UID)
    if not transaction_uid:
        raise DataSetRefused(Status.INVALID_ARGUMENT_VALUE, "no Transaction UID (0008,1195), or what is no UID")
    failed = {
        uid(item, Tag.REFERENCED_SOP_INSTANCE_UID): _reason(item) for item in items(data_set, Tag.FAILED_SOP_SEQUENCE)
    }
    committed = {uid(item, Tag.REFERENCED_SOP_INSTANCE_UID) for item in items(data_set, Tag.REFERENCED_SOP_SEQUENCE)}
    if "" in committed or "" in failed:
        raise DataSetRefused(Status.INVALID_ARGUMENT_VALUE, "a reference without SOP Instance UID")
    return CommitmentAnswer(
        transaction_uid=transaction_uid, committed=frozenset(committed - failed.keys()), failed=failed
    )


def _reason(item: DataSet) -> int:
    value = item.get(Tag.FAILURE_REASON, b"")
    return int.from_bytes(value, "little") if isinstance(value, bytes) and len(value) == 2 else NO_REASON
