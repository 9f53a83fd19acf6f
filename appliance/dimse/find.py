"""Asking a node what it has: C-FIND of the Study Root model at IMAGE level (PS3.4 C.4.1, C.6.2) as SCU."""

from appliance.dimse.command import Command, CommandField
from appliance.dimse.data_set import DataSet, Tag, uid
from appliance.dimse.exchange import ExchangingAssociation
from appliance.dimse.sop_classes import STUDY_ROOT_FIND
from appliance.dimse.wire import Target
from appliance.errors import DataSetRefused, DestinationRefused, TransientDeliveryError

PENDING = frozenset({0xFF00, 0xFF01})  # a match comes with it; 0xFF01: optional keys are not supported
SUCCESS = 0x0000
MAX_MATCHES = 50_000  # of one series


class FindingAssociation(ExchangingAssociation):
    """An association to query on. See RequestedAssociation."""

    def __init__(self, target: Target) -> None:
        """Raises as requestor.connect, and DestinationRefused where the node takes no such query."""
        super().__init__(target, STUDY_ROOT_FIND)
        if not self.taken:
            self.release()
            raise DestinationRefused("it takes no queries (C-FIND, Study Root) from us")

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of all that the node shows of a series.

        Raises TransientDeliveryError: with `status` where the node answered with a failure, else the association is
        over.
        """
        query = Command(
            field=CommandField.C_FIND,
            message_id=self.next_message_id(),
            sop_class_uid=STUDY_ROOT_FIND,
            priority=0,
            has_data_set=True,
        )
        message = self.ask(query, identifier(study_instance_uid, series_instance_uid))
        found: set[str] = set()
        while (status := message.command.status or 0) in PENDING:
            try:
                found.add(uid(self.read(message) if message.data else {}, Tag.SOP_INSTANCE_UID))
            except DataSetRefused as error:
                self.abort()
                raise TransientDeliveryError(f"a match that cannot be read: {error}") from error
            if len(found) > MAX_MATCHES:
                self.abort()
                raise TransientDeliveryError(f"more than {MAX_MATCHES} instances in one series")
            message = self.response_to(query)
        if status != SUCCESS:
            raise TransientDeliveryError(f"C-FIND answered 0x{status:04X}", status)
        return frozenset(found - {""})


def identifier(study_instance_uid: str, series_instance_uid: str) -> DataSet:
    """Unique keys above, and the one return key: universal matching of SOP Instance UIDs (PS3.4 C.2.2.2.3)."""
    return {
        Tag.SOP_INSTANCE_UID: b"",
        Tag.QUERY_RETRIEVE_LEVEL: b"IMAGE",
        Tag.STUDY_INSTANCE_UID: study_instance_uid.encode(),
        Tag.SERIES_INSTANCE_UID: series_instance_uid.encode(),
    }
