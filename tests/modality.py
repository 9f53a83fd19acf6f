"""A modality of pynetdicom's: asks for storage commitment, takes the reports, tells of its work (MPPS)."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityPerformedProcedureStep,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from appliance.model import Reference
from tests.journals import CT_IMAGE, SERIES, STUDY
from tests.waiting import eventually

WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Told:
    """A report as the modality got it."""

    event_type: int
    transaction_uid: str
    committed: list[Reference]
    failed: dict[str, int]  #: SOP Instance UID -> Failure Reason
    calling_ae: str
    association: int  #: tells associations apart


@dataclass
class Modality:
    """`answers` are what the next reports are answered with, success where it is empty; an error is an abort."""

    ae_title: str = "CT01"
    port: int = 0  #: of its listener, once it has listened
    answers: list[int | Exception] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    @contextmanager
    def listening(self, security: ssl.SSLContext | None = None) -> Iterator[int]:
        """It takes reports, on the same port each time; with `security` by TLS."""
        ae = AE(self.ae_title)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        server: Any = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)],
            ssl_context=security,
        )
        self.port = server.server_address[1]
        try:
            yield self.port
        finally:
            server.shutdown()

    def _on_report(self, event: Any) -> tuple[int, None]:
        report = event.event_information
        self.told.append(
            Told(
                event.event_type,
                str(report.TransactionUID),
                [_pair(item) for item in report.get("ReferencedSOPSequence", [])],
                {
                    str(item.ReferencedSOPInstanceUID): item.FailureReason
                    for item in report.get("FailedSOPSequence", [])
                },
                event.assoc.requestor.ae_title,
                id(event.assoc),
            )
        )
        answer = self.answers.pop(0) if self.answers else 0x0000
        if isinstance(answer, Exception):
            event.assoc.abort()
            return 0x0110, None
        return answer, None

    def report(self, number: int = 1) -> Told:
        """The report of this number, counted from 1, when it has come."""
        eventually(lambda: len(self.told) >= number, WAIT_S, f"report {number}")
        return self.told[number - 1]

    def ask(
        self, port: int, references: Sequence[Reference], transaction: str = "", action: int = 1, **changes: Any
    ) -> int:
        """N-ACTION; returns the status. `changes` replace attributes, None takes one away."""
        request = Dataset()
        request.TransactionUID = transaction or generate_uid()
        request.ReferencedSOPSequence = [_item(*reference) for reference in references]
        instance = changes.pop("instance", StorageCommitmentPushModelInstance)
        sop_class = changes.pop("sop_class", StorageCommitmentPushModel)
        _change(request, changes)
        with self._association(port, StorageCommitmentPushModel) as association:
            status, _ = association.send_n_action(
                request, action, sop_class, instance, meta_uid=StorageCommitmentPushModel
            )
            return int(status.Status)

    def begin_step(self, port: int, step: str, **changes: Any) -> int:
        """N-CREATE of a performed procedure step; returns the status."""
        request = Dataset()
        request.PerformedProcedureStepStatus = "IN PROGRESS"
        scheduled = Dataset()
        scheduled.StudyInstanceUID = STUDY
        request.ScheduledStepAttributesSequence = [scheduled]
        request.PatientName, request.PerformedProcedureStepID, request.Modality = "Some^One", "1", "CT"
        request.PerformedSeriesSequence = []
        _change(request, changes)
        with self._association(port, ModalityPerformedProcedureStep) as association:
            status, _ = association.send_n_create(request, ModalityPerformedProcedureStep, step)
            return int(status.Status)

    def end_step(self, port: int, step: str, state: str, numbers: Sequence[int], **changes: Any) -> int:
        """N-SET with these instances of the one series; returns the status."""
        request = Dataset()
        request.PerformedProcedureStepStatus = state
        series = Dataset()
        series.SeriesInstanceUID = SERIES
        series.ReferencedImageSequence = [_item(CT_IMAGE, f"{SERIES}.{number}") for number in numbers]
        series.ReferencedNonImageCompositeSOPInstanceSequence = []
        request.PerformedSeriesSequence = [series]
        _change(request, changes)
        with self._association(port, ModalityPerformedProcedureStep) as association:
            status, _ = association.send_n_set(request, ModalityPerformedProcedureStep, step)
            return int(status.Status)

    @contextmanager
    def _association(self, port: int, sop_class: str) -> Iterator[Any]:
        ae = AE(self.ae_title)
        ae.add_requested_context(sop_class)
        association = ae.associate(
            "127.0.0.1", port, ae_title="SCANSIDE", ext_neg=[build_role(sop_class, scu_role=True, scp_role=False)]
        )
        assert association.is_established, f"no association for {sop_class}"
        try:
            yield association
        finally:
            association.release()


def _pair(item: Dataset) -> Reference:
    return str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)


def _item(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _change(request: Dataset, changes: dict[str, Any]) -> None:
    for keyword, value in changes.items():
        if value is None:
            delattr(request, keyword)
        else:
            setattr(request, keyword, value)


def image(number: int) -> Reference:
    """CT image `number` of the tests' series."""
    return CT_IMAGE, f"{SERIES}.{number}"
