"""Whose images a study holds, and what analyse writes when that is not, or no longer, one patient.

Identities are compared by hash and never named: an alarm says which study, not which patient. `status` shows alarms
for a week; their line of history stays.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Instance, Job

SHOWN_MS = 7 * 86_400_000
SHOWN = 20  # at a time


class AlarmEvent(StrEnum):
    """Also the name of its line in history."""

    CHANGED = "patient_identity_changed"  #: after a result was published, images name another patient than it does
    MIXED = "patient_identity_mixed"  #: the images of one study name more than one patient: not analysed


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    event: str
    study_instance_uid: str
    tick: int


def of_inputs(instances: Iterable[Instance]) -> bytes:
    """A hash for the patient identity of a set of inputs; that of several patients is like no single one's."""
    found = sorted({instance.patient for instance in instances})
    return found[0] if len(found) == 1 else hashlib.sha256(b"\0".join(found)).digest()


def note_changes(journal: Journal, arrived: Sequence[Instance]) -> list[str]:
    """Raise the alarm where a result was published for another patient than these instances name.

    Returns the studies that it was raised for, in order; each is told once for each newcomer.
    """
    pairs = dict.fromkeys((one.study_instance_uid, one.patient) for one in arrived)
    changed = [pair for pair in pairs if _published_for_another(journal, *pair)]
    if not changed:
        return []
    with journal.write(durable=True) as tx:
        return [study for study, patient in changed if raise_alarm(tx, AlarmEvent.CHANGED, study, patient)]


def _published_for_another(journal: Journal, study_instance_uid: str, patient: bytes) -> bool:
    row = journal.one(
        "SELECT 1 FROM instance INDEXED BY result_of_study"
        " WHERE study_instance_uid=? AND origin='result' AND patient<>? LIMIT 1",
        study_instance_uid,
        patient,
    )
    return row is not None


def raise_alarm(tx: Transaction, event: AlarmEvent, study_instance_uid: str, patient: bytes = b"") -> bool:
    """False: it is raised already. What was shown long enough goes."""
    tx.sql("DELETE FROM alarm WHERE tick<?", (tx.tick - SHOWN_MS,))
    raised = tx.sql("INSERT OR IGNORE INTO alarm VALUES (?,?,?,?)", (event, study_instance_uid, patient, tx.tick))
    if not raised.rowcount:
        return False
    tx.history(event, Subject(study_instance_uid=study_instance_uid))
    return True


def alarms(journal: Journal) -> list[Alarm]:
    """The newest of the last week, one a study and event."""
    rows = journal.query(
        "SELECT event, study_instance_uid, max(tick) AS tick FROM alarm WHERE tick>=?"
        " GROUP BY event, study_instance_uid ORDER BY max(tick) DESC LIMIT ?",
        journal.clock.tick() - SHOWN_MS,
        SHOWN,
    )
    return [Alarm(**dict(row)) for row in rows]


def differs_from_earlier(journal: Journal, job: Job, patient: bytes) -> bool:
    """Whether an earlier SR for the job's subject was published for another patient."""
    row = journal.one(
        "SELECT 1 FROM job j JOIN instance i ON i.job=j.id AND i.kind='sr' WHERE j.engine=? AND j.subject=?"
        " AND j.study_instance_uid=? AND j.revision<? AND i.patient<>? LIMIT 1",
        job.engine,
        job.subject,
        job.study_instance_uid,
        job.revision,
        patient,
    )
    return row is not None
