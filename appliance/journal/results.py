"""What analyse writes when a job is reported: result instances, and where they are owed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.journal import outbox
from appliance.journal.inbox import insert_delivery, insert_instance
from appliance.journal.jobs import Duty, insert, step, subject_of
from appliance.journal.rows import JOB_COLUMNS, job_of
from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Job, Kind, Origin, Owed, Result
from appliance.states import Event, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A result in the spool and where it is owed."""

    result: Result
    modality: str
    patient: bytes  #: identity.of_inputs of what it was built from
    owed: Sequence[Owed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A result found in the spool after the journal was lost, and what its file tells of the job it came from."""

    result: Result
    story: Mapping[str, Any]
    owed: Sequence[Owed]


def series_of_result(journal: Journal, sop_instance_uid: str) -> str:
    row = journal.one(
        "SELECT series_instance_uid FROM instance WHERE sop_instance_uid=? AND origin='result' LIMIT 1",
        sop_instance_uid,
    )
    return row["series_instance_uid"] if row else ""


def report(journal: Journal, job: Job, built: Sequence[Built], note: str, *, urgent: bool = False) -> bool:
    """Concluded -> reported, with the results and their deliveries, durably. The files are durable already."""
    with journal.write(durable=True) as tx:
        if not step(tx, job.id, JobState.CONCLUDED, Event.REPORT):
            return False
        for item in built:
            _record_result(tx, job, item)
        tx.sql("DELETE FROM cursor WHERE name=?", (f"report of job {job.id}",))
        if urgent:
            outbox.hasten(tx, job.study_instance_uid)
        tx.history("job_reported", subject_of(job), engine=job.engine, results=len(built), note=note)
        return True


def _record_result(tx: Transaction, job: Job, item: Built) -> None:
    result = item.result
    instance = insert_instance(
        tx,
        origin=Origin.RESULT,
        kind=result.kind,
        sop_class_uid=result.sop_class_uid,
        sop_instance_uid=result.sop_instance_uid,
        transfer_syntax_uid=result.transfer_syntax_uid,
        digest=result.digest,
        size=result.size,
        study_instance_uid=job.study_instance_uid,
        series_instance_uid=result.series_instance_uid,
        modality=item.modality,
        patient=item.patient,
        calling_ae="",
        job=job.id,
    )
    tx.sql("INSERT INTO copy (file, instance) VALUES (?,?)", (result.file, instance))
    for owed in item.owed:
        insert_delivery(tx, instance, result.size, owed)
    subject = Subject(
        study_instance_uid=job.study_instance_uid,
        series_instance_uid=result.series_instance_uid,
        sop_instance_uid=result.sop_instance_uid,
    )
    tx.history("result_built", subject, kind=result.kind, bytes=result.size, owed_to=[o.destination for o in item.owed])


def count_try(journal: Journal, job: Job) -> int:
    """Note that the results of a job are about to be built; how often that was noted, this time included."""
    name = f"report of job {job.id}"
    with journal.write(durable=False) as tx:
        tx.sql("INSERT INTO cursor VALUES (?, 1) ON CONFLICT DO UPDATE SET value=value+1", (name,))
        return int(tx.sql("SELECT value FROM cursor WHERE name=?", (name,)).fetchone()[0])


def restore(journal: Journal, restored: Restored) -> bool:
    """Owe a found result again, and note its job as reported, so that the same inputs are not read a second time.

    False: an equal one was restored before.
    """
    story = restored.story
    select = f"SELECT {JOB_COLUMNS} FROM job WHERE engine=? AND subject=? AND revision=?"
    key = (story["engine"], story["subject"], story["revision"])
    result = restored.result
    identity = (result.sop_instance_uid, result.digest, result.transfer_syntax_uid)
    with journal.write(durable=True) as tx:
        if tx.sql(
            "SELECT 1 FROM instance WHERE sop_instance_uid=? AND digest=? AND transfer_syntax_uid=?", identity
        ).fetchone():
            return False
        if tx.sql(select, key).fetchone() is None:
            insert(tx, _duty(story), story["revision"])
            tx.sql(
                "UPDATE job SET state=?, input_digest=? WHERE engine=? AND subject=? AND revision=?",
                (JobState.REPORTED, story["input_digest"], *key),
            )
        job = job_of(tx.sql(select, key).fetchone())
        modality = "SR" if result.kind is Kind.SR else "OT"
        patient = bytes.fromhex(story.get("patient", ""))
        _record_result(tx, job, Built(result=result, modality=modality, patient=patient, owed=restored.owed))
        return True


def _duty(story: Mapping[str, Any]) -> Duty:
    return Duty(
        engine=story["engine"],
        scope=story["scope"],
        study_instance_uid=story["study_instance_uid"],
        series_instance_uid=story["series_instance_uid"],
        sop_instance_uid=story["sop_instance_uid"],
        subject=story["subject"],
        instance_id=0,
        deadline_ms=0,
    )
