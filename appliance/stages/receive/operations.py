"""What receive answers beside C-STORE: the normalised services, by SOP class."""

from collections.abc import Mapping

from appliance.dimse.command import CommandField
from appliance.dimse.operations import Allowance, Operations
from appliance.dimse.sop_classes import MODALITY_PERFORMED_PROCEDURE_STEP, STORAGE_COMMITMENT_PUSH
from appliance.stages.receive.commitment import CommitmentRequests
from appliance.stages.receive.context import Inbox
from appliance.stages.receive.performed import PerformedSteps
from appliance.stages.receive.proofs import CommitmentService, Reporting
from appliance.stages.receive.stage import Receiver


def operations(box: Inbox, receiver: Receiver, reporting: Reporting | None = None) -> Mapping[str, Operations]:
    """All that are built; which of them a peer may ask for, negotiation decides. None: nobody reports to us."""
    allowance = Allowance()
    requests = CommitmentRequests(box, receiver.check_trusted)
    commitment = CommitmentService(box, receiver.check_trusted, requests, reporting) if reporting else requests
    answers = [CommandField.N_ACTION, *([CommandField.N_EVENT_REPORT] if reporting else [])]
    steps = PerformedSteps(box, receiver.check_trusted, receiver.closer.look)
    return {
        STORAGE_COMMITMENT_PUSH: Operations(answers, commitment, allowance),
        MODALITY_PERFORMED_PROCEDURE_STEP: Operations([CommandField.N_CREATE, CommandField.N_SET], steps, allowance),
    }
