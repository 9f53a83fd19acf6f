"""Looking up single rows for people: deliveries, instances, and what came of a study. Read-only."""

from appliance.journal.rows import DELIVERY_SELECT, INSTANCE_SELECT, JOB_COLUMNS, delivery_of, instance_of, job_of
from appliance.journal.store import Journal
from appliance.model import Delivery, Instance, Job


def delivery(journal: Journal, delivery_id: int) -> Delivery | None:
    row = journal.one(f"{DELIVERY_SELECT} WHERE d.id=?", delivery_id)
    return delivery_of(row) if row else None


def instance(journal: Journal, instance_id: int) -> Instance | None:
    row = journal.one(f"{INSTANCE_SELECT} WHERE i.id=?", instance_id)
    return instance_of(row) if row else None


def source_of(journal: Journal, study_instance_uid: str, series_instance_uid: str = "") -> Instance | None:
    """The first received instance of a study, or of one of its series."""
    row = journal.one(
        f"{INSTANCE_SELECT} WHERE i.study_instance_uid=?1 AND (?2='' OR i.series_instance_uid=?2)"
        " AND i.origin='received' ORDER BY i.id LIMIT 1",
        study_instance_uid,
        series_instance_uid,
    )
    return instance_of(row) if row else None


def jobs_of(journal: Journal, study_instance_uid: str) -> list[Job]:
    """The study's jobs in all revisions, oldest first."""
    rows = journal.query(f"SELECT {JOB_COLUMNS} FROM job WHERE study_instance_uid=? ORDER BY id", study_instance_uid)
    return [job_of(row) for row in rows]


def results_of(journal: Journal, job_id: int) -> list[Instance]:
    """The result objects that were built for a job."""
    rows = journal.query(f"{INSTANCE_SELECT} WHERE i.job=? ORDER BY i.id", job_id)
    return [instance_of(row) for row in rows]
