"""A DICOM node that takes storage commitment reports: N-EVENT-REPORT on an association of its own (PS3.4 J.3.3)."""

from dataclasses import replace

from appliance.dimse.data_set import DataSet, Tag, references
from appliance.dimse.event_report import connect_as_scp
from appliance.dimse.sop_classes import STORAGE_COMMITMENT_INSTANCE, STORAGE_COMMITMENT_PUSH
from appliance.dimse.wire import Target
from appliance.model import CommitmentReport

COMPLETE, FAILURES_EXIST = 1, 2  # event types


class ReportNode:
    """A ports.ReportTaker: a DICOM application entity that asked for storage commitment."""

    def __init__(self, target: Target) -> None:
        """`target.calling_ae` is replaced by the AE title the peer knows us by."""
        self._target = target

    def report(self, report: CommitmentReport) -> int:
        """See ports.ReportTaker."""
        target = replace(self._target, calling_ae=report.from_ae)
        event = FAILURES_EXIST if report.failed else COMPLETE
        with connect_as_scp(target, STORAGE_COMMITMENT_PUSH) as association:
            return association.report(STORAGE_COMMITMENT_INSTANCE, event, data_set_of(report))


def data_set_of(report: CommitmentReport) -> DataSet:
    """The event information (PS3.4 Table J.3-3): a sequence stands there only where it has an item."""
    data_set: DataSet = {Tag.TRANSACTION_UID: report.transaction_uid.encode()}
    if report.committed:
        data_set[Tag.REFERENCED_SOP_SEQUENCE] = references(report.committed)
    if report.failed:
        failed = references(reference for reference, _ in report.failed)
        for item, (_, reason) in zip(failed, report.failed, strict=True):
            item[Tag.FAILURE_REASON] = reason.to_bytes(2, "little")
        data_set[Tag.FAILED_SOP_SEQUENCE] = failed
    return data_set
