"""Storage Commitment Push Model as SCP (PS3.4 Annex J): requests are taken down, durably; forward reports on them."""

from collections.abc import Callable, Sequence

from appliance.dimse.data_set import DataSet, Tag, items, uid
from appliance.dimse.operations import Operation, Status
from appliance.dimse.services import Caller
from appliance.dimse.sop_classes import STORAGE_COMMITMENT_INSTANCE
from appliance.errors import DataSetRefused, OutOfResources
from appliance.journal import commitments
from appliance.journal.commitments import MAX_OPEN, MAX_REFERENCES, Answer, Asked
from appliance.model import Reference
from appliance.stages.receive.context import Inbox

REQUEST_STORAGE_COMMITMENT = 1  # the one action type


class CommitmentRequests:
    """An operations.OperationHandler for N-ACTION of the well-known instance."""

    def __init__(self, box: Inbox, check_sound: Callable[[], None]) -> None:
        """`check_sound` raises OutOfResources where nothing may be promised now."""
        self._box, self._check_sound = box, check_sound

    def perform(self, caller: Caller, operation: Operation) -> None:
        self._check_sound()
        if operation.sop_instance_uid != STORAGE_COMMITMENT_INSTANCE:
            raise DataSetRefused(Status.NO_SUCH_SOP_INSTANCE, "not the well-known instance of storage commitment")
        if operation.action_type_id != REQUEST_STORAGE_COMMITMENT:
            raise DataSetRefused(Status.NO_SUCH_ACTION, "the action type is not 1, request storage commitment")
        asked = Asked(
            calling_ae=caller.calling_ae,
            called_ae=caller.called_ae,
            transaction_uid=_transaction(operation.data_set),
            references=tuple(_references(operation.data_set)),
        )
        answer = commitments.ask(self._box.journal, asked)
        self._check_sound()  # a sync that failed meanwhile may be one that this promise relied on
        if answer is Answer.TOO_MANY:
            raise OutOfResources(f"{MAX_OPEN} requests are waiting to be reported already")
        if answer is Answer.OTHER:
            raise DataSetRefused(Status.PROCESSING_FAILURE, "the Transaction UID was used for another request")
        self._box.log("commitment_requested", calling_ae=caller.calling_ae, instances=len(asked.references))
        self._box.ring("forward")


def _transaction(data_set: DataSet) -> str:
    if Tag.TRANSACTION_UID not in data_set:
        raise DataSetRefused(Status.MISSING_ATTRIBUTE, "no Transaction UID (0008,1195)")
    transaction = uid(data_set, Tag.TRANSACTION_UID)
    if not transaction:
        raise DataSetRefused(Status.INVALID_ATTRIBUTE_VALUE, "the Transaction UID (0008,1195) is no UID")
    return transaction


def _references(data_set: DataSet) -> Sequence[Reference]:
    found = items(data_set, Tag.REFERENCED_SOP_SEQUENCE)
    if not found:
        raise DataSetRefused(Status.MISSING_ATTRIBUTE, "no item in Referenced SOP Sequence (0008,1199)")
    if len(found) > MAX_REFERENCES:
        raise OutOfResources(f"{len(found)} references, {MAX_REFERENCES} are taken in one request")
    pairs = [(uid(item, Tag.REFERENCED_SOP_CLASS_UID), uid(item, Tag.REFERENCED_SOP_INSTANCE_UID)) for item in found]
    if not all(sop_class and instance for sop_class, instance in pairs):
        raise DataSetRefused(Status.INVALID_ATTRIBUTE_VALUE, "a reference without SOP class and instance UIDs")
    return list(dict.fromkeys(pairs))
