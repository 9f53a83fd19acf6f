"""Reports of our destinations on storage commitment (N-EVENT-REPORT, PS3.4 J.3.3): noted, durably; forward reads them.

They come on associations that the destination asks us for, as SCP. Who may report may not ask for commitment for that,
and who may ask may not report.
"""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.dimse.command import CommandField
from appliance.dimse.commitment import report_of
from appliance.dimse.operations import Operation, OperationHandler, Status
from appliance.dimse.services import Caller
from appliance.errors import DataSetRefused, OutOfResources
from appliance.journal import proof_reports
from appliance.journal.proof_reports import MAX_WAITING, Answer
from appliance.stages.receive.context import Inbox

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An AE title at an address, and the destination it stands for; "" for one that asks us for commitment."""

    ae_title: str
    network: Network
    destination: str = ""

    def is_it(self, caller: Caller) -> bool:
        ip = ipaddress.ip_address(caller.address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return self.ae_title == caller.calling_ae and ip in self.network


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Who reports to us, as of now, and who asks."""

    reporters: Callable[[], Sequence[Node]]
    askers: Sequence[Node]

    def destinations(self, caller: Caller) -> frozenset[str]:
        return frozenset(node.destination for node in self.reporters() if node.is_it(caller))

    def may_ask(self, caller: Caller) -> bool:
        return any(node.is_it(caller) for node in self.askers)


class CommitmentService:
    """An operations.OperationHandler for both directions of storage commitment."""

    def __init__(
        self, box: Inbox, check_sound: Callable[[], None], requests: OperationHandler, reporting: Reporting
    ) -> None:
        """`requests` performs N-ACTION; `check_sound` raises OutOfResources where nothing may be taken down now."""
        self._box, self._check_sound, self._requests, self._reporting = box, check_sound, requests, reporting

    def perform(self, caller: Caller, operation: Operation) -> None:
        if operation.field == CommandField.N_EVENT_REPORT:
            self._report(caller, operation)
        elif self._reporting.may_ask(caller):
            self._requests.perform(caller, operation)
        else:
            raise DataSetRefused(Status.NOT_AUTHORISED, "this AE title may report to us, not ask")

    def _report(self, caller: Caller, operation: Operation) -> None:
        destinations = self._reporting.destinations(caller)
        if not destinations:
            raise DataSetRefused(Status.NOT_AUTHORISED, "this AE title was asked nothing")
        self._check_sound()
        report = report_of(operation.sop_instance_uid, operation.event_type_id, operation.data_set)
        answer = proof_reports.note(self._box.journal, report, caller.calling_ae, destinations)
        self._check_sound()  # a sync that failed meanwhile may be one that this answer relied on
        if answer is Answer.TOO_MANY:
            raise OutOfResources(f"{MAX_WAITING} reports of this transaction are not read yet")
        if answer is Answer.UNKNOWN:
            raise DataSetRefused(Status.INVALID_ARGUMENT_VALUE, "nothing was asked in this transaction")
        self._box.log("proof_reported", calling_ae=caller.calling_ae, failed=len(report.failed))
        self._box.ring("forward")
