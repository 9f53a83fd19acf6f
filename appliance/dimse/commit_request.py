"""Asking a node to answer for what it got: N-ACTION of storage commitment as SCU (PS3.4 J.3.2), on our association.

Its report, an N-EVENT-REPORT, may come on the same association, even before it has answered; more often it comes on
one that the node asks us for (see stages.receive).
"""

from collections.abc import Callable, Sequence

from appliance.dimse import command as dimse
from appliance.dimse import commitment
from appliance.dimse.command import Command, CommandField
from appliance.dimse.commitment import REQUEST_STORAGE_COMMITMENT, report_of
from appliance.dimse.exchange import ExchangingAssociation, Message, ReleasedByPeer
from appliance.dimse.operations import Status
from appliance.dimse.sop_classes import STORAGE_COMMITMENT_INSTANCE, STORAGE_COMMITMENT_PUSH
from appliance.dimse.wire import Target
from appliance.errors import DataSetRefused, DestinationRefused, OutOfResources
from appliance.model import CommitmentAnswer, Reference

Hear = Callable[[CommitmentAnswer], None]  #: notes it, durably; raises DataSetRefused or OutOfResources


class CommittingAssociation(ExchangingAssociation):
    """An association to ask for storage commitment on. See RequestedAssociation."""

    def __init__(self, target: Target) -> None:
        """Raises as requestor.connect, and DestinationRefused where the node does not take storage commitment."""
        super().__init__(target, STORAGE_COMMITMENT_PUSH)
        if not self.taken:
            self.release()
            raise DestinationRefused("it does not take storage commitment from us")

    def request(self, transaction_uid: str, asked: Sequence[Reference], hear: Hear) -> int:
        """N-ACTION; returns the status of the answer. Raises TransientDeliveryError: it may have been taken or not."""
        action = Command(
            field=CommandField.N_ACTION,
            message_id=self.next_message_id(),
            sop_class_uid=STORAGE_COMMITMENT_PUSH,
            sop_instance_uid=STORAGE_COMMITMENT_INSTANCE,
            action_type_id=REQUEST_STORAGE_COMMITMENT,
            has_data_set=True,
        )
        data_set = commitment.request(transaction_uid, asked)
        return self.ask(action, data_set, lambda message: self._serve(message, hear)).command.status or 0

    def listen(self, within_s: float, hear: Hear) -> bool:
        """Serve one report that comes within this time; whether the association is still worth listening to.

        Raises TransientDeliveryError.
        """
        try:
            message = self.hear_within(within_s)
        except ReleasedByPeer:
            return False
        if message is not None:
            self._serve(message, hear)
        return self.alive

    def _report(self, message: Message) -> CommitmentAnswer:
        asked = message.command
        if asked.field != CommandField.N_EVENT_REPORT:
            raise DataSetRefused(dimse.UNRECOGNISED_OPERATION, "only N-EVENT-REPORT is expected")
        data_set = self.read(message) if message.data else {}
        return report_of(asked.sop_instance_uid, asked.event_type_id, data_set)

    def _serve(self, message: Message, hear: Hear) -> None:
        """Answer what the node asks of us: success only after `hear` has noted it."""
        status = dimse.SUCCESS
        try:
            hear(self._report(message))
        except DataSetRefused as error:
            status = error.status
        except OutOfResources:
            status = Status.RESOURCE_LIMITATION
        self.answer(message, status)
