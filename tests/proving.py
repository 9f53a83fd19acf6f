"""A PACS of pynetdicom's that is asked to prove what it got: storage, commitment, queries, and ways to fail at them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from tests.journals import CT_IMAGE
from tests.waiting import eventually

WAIT_S = 15.0
NO_SUCH_INSTANCE = 0x0112


@dataclass(frozen=True, slots=True)
class Asked:
    transaction_uid: str
    instances: list[str]


@dataclass
class Archive:
    """`has` are the SOP Instance UIDs it answers for. N-ACTIONs are answered with `answers`, and then with success.

    Its reports go to `reports_to`, a port of this machine; 0: on the association that asked; None: when told to.
    """

    ae_title: str = "PACS"
    port: int = 0
    reports_to: int | None = None
    keeps: bool = True  #: what it is sent; False: it says so and loses it
    commits: bool = True  #: False: it refuses the context
    finds: bool = True  #: as well
    has: set[str] = field(default_factory=set)
    reason: int = NO_SUCH_INSTANCE  #: of what it has not
    answers: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    queries: list[tuple[str, str]] = field(default_factory=list)  #: Study and Series Instance UID
    stored: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  #: that its reports were answered with
    on_query: Callable[[], int] = lambda: 0  #: status of a query's end

    @contextmanager
    def listening(self) -> Iterator[int]:
        """It serves, on the same port each time."""
        ae = AE(self.ae_title)
        ae.add_supported_context(Verification)
        ae.add_supported_context(CT_IMAGE, [str(uid) for uid in AllTransferSyntaxes])
        if self.finds:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if self.commits:
            ae.add_supported_context(StorageCommitmentPushModel)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_C_FIND, self._on_find),
        ]
        server: Any = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = server.server_address[1]
        try:
            yield self.port
        finally:
            server.shutdown()

    def request(self, number: int = 1, within_s: float = WAIT_S) -> Asked:
        """The request of this number, counted from 1, when it has come."""
        eventually(lambda: len(self.asked) >= number, within_s, f"request {number} for commitment")
        return self.asked[number - 1]

    def report(self, asked: Asked, port: int, *, calling_ae: str = "") -> int | None:
        """What it says of a request, on an association of its own; the status, or None: it was not let in."""
        ae = AE(calling_ae or self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        roles: Any = [build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)]
        association: Any = ae.associate("127.0.0.1", port, ae_title="SCANSIDE", ext_neg=roles)
        if not association.is_established:
            return None
        try:
            return self._say(association, asked)
        finally:
            association.release()

    def _say(self, association: Any, asked: Asked) -> int:
        there = [uid for uid in asked.instances if uid in self.has]
        failed = [uid for uid in asked.instances if uid not in self.has]
        report = Dataset()
        report.TransactionUID = asked.transaction_uid
        if there:
            report.ReferencedSOPSequence = [_item(uid) for uid in there]
        if failed:
            report.FailedSOPSequence = [_item(uid, self.reason) for uid in failed]
        status, _ = association.send_n_event_report(
            report, 2 if failed else 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.statuses.append(int(status.Status))
        return self.statuses[-1]

    def _on_store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.stored.append(uid)
        if self.keeps:
            self.has.add(uid)
        return 0

    def _on_action(self, event: Any) -> tuple[int, None]:
        answer = self.answers.pop(0) if self.answers else 0
        information = event.action_information
        asked = Asked(
            str(information.TransactionUID),
            [str(item.ReferencedSOPInstanceUID) for item in information.ReferencedSOPSequence],
        )
        self.asked.append(asked)
        if answer < 0:
            event.assoc.abort()
        elif answer == 0 and self.reports_to is not None:
            arguments: Sequence[Any] = (event.assoc, asked) if self.reports_to == 0 else (asked, self.reports_to)
            threading.Thread(target=self.report if self.reports_to else self._say, args=arguments, daemon=True).start()
        return abs(answer), None

    def _on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        self.queries.append((str(wanted.StudyInstanceUID), str(wanted.SeriesInstanceUID)))
        for uid in sorted(self.has):
            if uid.startswith(str(wanted.SeriesInstanceUID)):
                match = Dataset()
                match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
                yield 0xFF00, match
        yield self.on_query(), None


def _item(uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT_IMAGE, uid
    if reason is not None:
        item.FailureReason = reason
    return item
