"""Which jobs somebody waits for: of a study of which an image was urgent, as its sender said, or a finding.

Nothing new is kept for it: the order of sending, which the deliveries have, says both (P7).
"""

from collections.abc import Iterable

from appliance.journal.store import Journal
from appliance.model import Job, Urgency

#: In the words of the index `delivery_urgent`, or it is not used. A journal that has none is only slower.
_URGENT = ", ".join(str(int(one)) for one in (Urgency.URGENT_SR, Urgency.URGENT_RESULT, Urgency.URGENT_IMAGE))
IN_STUDY = (
    "SELECT 1 FROM instance i CROSS JOIN delivery d ON d.instance=i.id"
    f" WHERE i.study_instance_uid=? AND d.urgency IN ({_URGENT}) LIMIT 1"
)


def urgent(journal: Journal, some: Iterable[Job]) -> frozenset[int]:
    """Ids of those of `some` that are. Each study is asked of once."""
    jobs = list(some)
    studies = {study for study in {job.study_instance_uid for job in jobs} if journal.one(IN_STUDY, study)}
    return frozenset(job.id for job in jobs if job.study_instance_uid in studies)
