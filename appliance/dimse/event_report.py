"""Telling a peer what it asked for: N-EVENT-REPORT (PS3.7 10.1.1) on an association that we request as the SCP.

Whoever requests an association is its SCU unless a role selection says otherwise (PS3.7 D.3.3.4), so we propose not to
be SCU but SCP. A peer that leaves the role out of its answer has, to the letter, made us SCU; many do so and take the
report all the same, so only a plain refusal counts.
"""

from collections.abc import Sequence

from appliance.dimse import command as dimse
from appliance.dimse.association import Role
from appliance.dimse.command import Command
from appliance.dimse.data_set import TRANSFER_SYNTAXES, DataSet, write
from appliance.dimse.pdu import Control, p_data_header
from appliance.dimse.requestor import CHUNK, RequestedAssociation
from appliance.dimse.wire import Target, Wire
from appliance.errors import ObjectRefused, RemoteProtocolError


def connect_as_scp(target: Target, sop_class_uid: str) -> "ReportingAssociation":
    """An association to report events of this SOP class on. Raises as requestor.connect."""
    association = ReportingAssociation(target, Wire(target))
    role = Role(sop_class_uid=sop_class_uid, scu=False, scp=True)
    association.negotiate([(sop_class_uid, syntax) for syntax in TRANSFER_SYNTAXES], [role])
    return association


class ReportingAssociation(RequestedAssociation):
    """An association we asked for to report events on. See RequestedAssociation."""

    def report(self, sop_class_uid: str, sop_instance_uid: str, event_type_id: int, data_set: DataSet) -> int:
        """Send one event; returns the status of the answer.

        Raises TransientDeliveryError (the association is over), ObjectRefused where the peer accepts no context for it
        or not our role.
        """
        syntax = next((uid for uid in TRANSFER_SYNTAXES if self.accepted(sop_class_uid, uid)), TRANSFER_SYNTAXES[0])
        context_id = self._context_of((sop_class_uid, syntax))
        if any(role.sop_class_uid == sop_class_uid and not role.scp for role in self.roles):
            raise ObjectRefused("the peer does not accept us as SCP: role selection refused")
        request = Command(
            field=dimse.CommandField.N_EVENT_REPORT,
            message_id=self._next_message_id(),
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            event_type_id=event_type_id,
            has_data_set=True,
        )
        with self._ends_on_error():
            self._wire.send([dimse.encode(request, context_id), *self._pieces(write(data_set, syntax), context_id)])
            answer = self._response(request)
            if answer.has_data_set:  # an event reply: none is defined for the classes we serve
                self._pass_over()
            return answer.status or 0

    def _pieces(self, data: bytes, context_id: int) -> Sequence[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        for at in range(0, len(data), self._piece):
            piece = memoryview(data)[at : at + self._piece]
            is_last = at + len(piece) == len(data)
            parts += [p_data_header(context_id, is_command=False, is_last=is_last, size=len(piece)), piece]
        return parts

    def _pass_over(self) -> None:
        deadline, left = self._wire.deadline(), CHUNK
        while True:
            event = self._wire.event(deadline)
            if isinstance(event, Control) or event.is_command or len(event.view) > left:
                raise RemoteProtocolError("not the data set of a response")
            left -= len(event.view)
            if event.is_last and event.whole:
                return
