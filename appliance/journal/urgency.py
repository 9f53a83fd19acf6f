"""Which jobs somebody waits for: of a study whose sender said so, or of which a finding was urgent.

Nothing new is kept for it: the order of sending, which the deliveries have, says both (P7).
"""

from collections.abc import Iterable

from appliance.journal.store import Journal
from appliance.model import Job, Urgency


def urgent(journal: Journal, some: Iterable[Job]) -> frozenset[int]:
    """Ids of those of `some` that are. Looked up in the newest image that each reads, and in its study's results."""
    return frozenset(job.id for job in some if _is_urgent(journal, job))


def _is_urgent(journal: Journal, job: Job) -> bool:
    row = journal.one(
        "SELECT 1 FROM delivery WHERE instance=? AND urgency=?"
        " UNION ALL SELECT 1 FROM instance i JOIN delivery d ON d.instance=i.id"
        " WHERE i.study_instance_uid=? AND i.origin='result' AND d.urgency IN (?, ?) LIMIT 1",
        job.last_instance_id,
        int(Urgency.URGENT_IMAGE),
        job.study_instance_uid,
        int(Urgency.URGENT_SR),
        int(Urgency.URGENT_RESULT),
    )
    return row is not None
