"""Modality Performed Procedure Step as SCP (PS3.4 Annex F): what a modality says of its work is taken as evidence.

Only what says when a series is complete is kept: status, series and their instances. All else of a step, the patient
above all, is neither needed nor looked at, so a modality is not refused for it.
"""

from collections.abc import Callable

from appliance.dimse.command import CommandField
from appliance.dimse.data_set import DataSet, Tag, code_string, items, uid
from appliance.dimse.operations import Operation, Status
from appliance.dimse.services import Caller
from appliance.errors import DataSetRefused
from appliance.journal import performed
from appliance.journal.performed import Change, Updated
from appliance.model import PerformedSeries
from appliance.stages.receive.context import Inbox
from appliance.states import StepState

_REFERENCES = (Tag.REFERENCED_IMAGE_SEQUENCE, Tag.REFERENCED_NON_IMAGE_COMPOSITE_SOP_INSTANCE_SEQUENCE)
_REFUSALS = {
    Updated.UNKNOWN: (Status.NO_SUCH_SOP_INSTANCE, "no such performed procedure step"),
    Updated.ENDED: (Status.PROCESSING_FAILURE, "Performed Procedure Step Object may no longer be updated"),
    Updated.NOT_YOURS: (Status.NOT_AUTHORISED, "another AE title created this step"),
}


class PerformedSteps:
    """An operations.OperationHandler for N-CREATE and N-SET."""

    def __init__(self, box: Inbox, check_sound: Callable[[], None], look: Callable[[], None]) -> None:
        """`check_sound` raises OutOfResources where nothing may be taken now; `look` wakes who closes series."""
        self._box, self._check_sound, self._look = box, check_sound, look

    def perform(self, caller: Caller, operation: Operation) -> None:
        self._check_sound()
        if not operation.sop_instance_uid:
            raise DataSetRefused(Status.INVALID_SOP_INSTANCE, "no valid SOP Instance UID of a step")
        if operation.field == CommandField.N_CREATE:
            self._create(caller, operation)
        else:
            self._set(caller, operation)

    def _create(self, caller: Caller, operation: Operation) -> None:
        if _state(operation.data_set) is not StepState.IN_PROGRESS:
            raise DataSetRefused(*_wrong_status(operation.data_set, "a step begins IN PROGRESS"))
        scheduled = items(operation.data_set, Tag.SCHEDULED_STEP_ATTRIBUTES_SEQUENCE)
        if not scheduled:
            raise DataSetRefused(Status.MISSING_ATTRIBUTE, "no Scheduled Step Attributes Sequence (0040,0270)")
        studies = {uid(item, Tag.STUDY_INSTANCE_UID) for item in scheduled} - {""}
        if not performed.create(self._box.journal, operation.sop_instance_uid, caller.calling_ae, sorted(studies)):
            raise DataSetRefused(Status.DUPLICATE_SOP_INSTANCE, "the step exists already")
        self._box.log("performed_step_created", calling_ae=caller.calling_ae)

    def _set(self, caller: Caller, operation: Operation) -> None:
        data_set = operation.data_set
        state = _state(data_set)
        if state is None and Tag.PERFORMED_PROCEDURE_STEP_STATUS in data_set:
            raise DataSetRefused(*_wrong_status(data_set, "not IN PROGRESS, COMPLETED or DISCONTINUED"))
        series = _series(data_set) if Tag.PERFORMED_SERIES_SEQUENCE in data_set else None
        change = Change(state=state, series=series)
        answer = performed.update(self._box.journal, operation.sop_instance_uid, caller.calling_ae, change)
        if answer in _REFUSALS:
            raise DataSetRefused(*_REFUSALS[answer])
        self._box.log("performed_step_set", calling_ae=caller.calling_ae, state=state or "")
        self._look()


def _state(data_set: DataSet) -> StepState | None:
    said = code_string(data_set, Tag.PERFORMED_PROCEDURE_STEP_STATUS)
    return StepState(said) if said in set(StepState) else None


def _wrong_status(data_set: DataSet, why: str) -> tuple[int, str]:
    if Tag.PERFORMED_PROCEDURE_STEP_STATUS not in data_set:
        return Status.MISSING_ATTRIBUTE, "no Performed Procedure Step Status (0040,0252)"
    return Status.INVALID_ATTRIBUTE_VALUE, f"status (0040,0252): {why}"


def _series(data_set: DataSet) -> tuple[PerformedSeries, ...]:
    """The series named, each once, with all instances referenced; repeats of an instance count once."""
    named: dict[str, dict[str, None]] = {}
    for item in items(data_set, Tag.PERFORMED_SERIES_SEQUENCE):
        series = uid(item, Tag.SERIES_INSTANCE_UID)
        if not series:
            raise DataSetRefused(Status.INVALID_ATTRIBUTE_VALUE, "a series without a valid UID (0020,000E)")
        instances = named.setdefault(series, {})
        for reference in (reference for tag in _REFERENCES for reference in items(item, tag)):
            instance = uid(reference, Tag.REFERENCED_SOP_INSTANCE_UID)
            if not instance:
                raise DataSetRefused(Status.INVALID_ATTRIBUTE_VALUE, "a reference without a valid UID (0008,1155)")
            instances[instance] = None
    return tuple(PerformedSeries(series_instance_uid=key, sop_instance_uids=tuple(of)) for key, of in named.items())
