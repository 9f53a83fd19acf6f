"""Telling a peer what it asked for: N-EVENT-REPORT (PS3.7 10.1.1) on an association that we request as the SCP.

Whoever requests an association is its SCU unless a role selection says otherwise (PS3.7 D.3.3.4), so we propose not to
be SCU but SCP. A peer that leaves the role out of its answer has, to the letter, made us SCU; many do so and take the
report all the same, so only a plain refusal counts.
"""

from appliance.dimse import command as dimse
from appliance.dimse.association import Role
from appliance.dimse.command import Command
from appliance.dimse.data_set import DataSet
from appliance.dimse.exchange import ExchangingAssociation
from appliance.dimse.wire import Target
from appliance.errors import ObjectRefused


def connect_as_scp(target: Target, sop_class_uid: str) -> "ReportingAssociation":
    """An association to report events of this SOP class on. Raises as requestor.connect."""
    return ReportingAssociation(target, sop_class_uid, [Role(sop_class_uid=sop_class_uid, scu=False, scp=True)])


class ReportingAssociation(ExchangingAssociation):
    """An association we asked for to report events on. See RequestedAssociation."""

    def report(self, sop_instance_uid: str, event_type_id: int, data_set: DataSet) -> int:
        """Send one event; returns the status of the answer, whose event reply, if any, is passed over.

        Raises TransientDeliveryError (the association is over), ObjectRefused where the peer accepts no context for it
        or not our role.
        """
        if any(role.sop_class_uid == self.sop_class_uid and not role.scp for role in self.roles):
            raise ObjectRefused("the peer does not accept us as SCP: role selection refused")
        request = Command(
            field=dimse.CommandField.N_EVENT_REPORT,
            message_id=self.next_message_id(),
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            event_type_id=event_type_id,
            has_data_set=True,
        )
        return self.ask(request, data_set).command.status or 0
