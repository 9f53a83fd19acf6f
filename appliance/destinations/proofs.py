"""DICOM nodes that are asked to prove what they got: by storage commitment, or by showing it to a query."""

from appliance.dimse.commit_request import CommittingAssociation
from appliance.dimse.find import FindingAssociation
from appliance.dimse.wire import Target


class CommitmentNode:
    """A ports.Committer: a DICOM application entity that does storage commitment as SCP."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def open(self) -> CommittingAssociation:
        """See ports.Committer."""
        return CommittingAssociation(self._target)


class QueryNode:
    """A ports.Catalogue: a DICOM application entity that answers queries (Study Root, C-FIND) as SCP."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def open(self) -> FindingAssociation:
        """See ports.Catalogue."""
        return FindingAssociation(self._target)
