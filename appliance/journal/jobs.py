"""What analyse writes: jobs and their outcomes.

A job is one engine's duty to one subject (an instance, series or study) in one revision of its inputs. Inputs are not
listed: they are the newest versions of the subject's instances up to an id, so that what arrives later never slips in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.journal.identity import AlarmEvent, raise_alarm
from appliance.journal.rows import (
    INSTANCE_SELECT,
    JOB_COLUMNS,
    OUTCOME,
    SERIES_COLUMNS,
    instance_of,
    job_of,
    series_of,
)
from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Evidence, Instance, Job, Outcome, Reason, Series
from appliance.states import JOB, Event, JobState

CURSOR = "assembled"
#: Why something was not analysed, where the words are of the engine alone and quote nothing of an image (P10).
OF_THE_ENGINE = frozenset({Reason.ENGINE_FAILED, Reason.NO_ENGINE, Reason.DEADLINE})
UNFINISHED = (JobState.WAITING, JobState.READY, JobState.RUNNING, JobState.CONCLUDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """That an engine must look at a subject, because of an instance that arrived."""

    engine: str  #: id@version
    scope: str
    study_instance_uid: str
    series_instance_uid: str  #: "" for scope study
    sop_instance_uid: str  #: "" but for scope instance
    subject: str  #: the UID of what the scope says
    instance_id: int
    deadline_ms: int


def arrived(journal: Journal, limit: int) -> list[Instance]:
    """Received instances that no duty was looked up for yet, oldest first."""
    rows = journal.query(
        f"{INSTANCE_SELECT} WHERE i.id > coalesce((SELECT value FROM cursor WHERE name=?), 0) AND i.origin='received'"
        " ORDER BY i.id LIMIT ?",
        CURSOR,
        limit,
    )
    return [instance_of(row) for row in rows]


def take_on(journal: Journal, duties: Sequence[Duty], looked_up_to: int) -> None:
    """Give each duty a waiting job, and move the cursor past the instances they came from."""
    with journal.write(durable=False) as tx:
        for duty in duties:
            _take_on(tx, duty)
        tx.sql("INSERT OR REPLACE INTO cursor VALUES (?,?)", (CURSOR, looked_up_to))


def _take_on(tx: Transaction, duty: Duty) -> None:
    latest = tx.sql(
        f"SELECT {JOB_COLUMNS} FROM job WHERE engine=? AND subject=? AND study_instance_uid=?"
        " ORDER BY revision DESC LIMIT 1",
        (duty.engine, duty.subject, duty.study_instance_uid),
    ).fetchone()
    if latest is not None and latest["state"] == JobState.WAITING:
        tx.sql(
            "UPDATE job SET last_instance_id=max(last_instance_id, ?), deadline_tick=? WHERE id=?",
            (duty.instance_id, tx.tick + duty.deadline_ms, latest["id"]),
        )
        return
    if latest is not None and latest["state"] in UNFINISHED:
        step(tx, latest["id"], JobState(latest["state"]), Event.SUPERSEDE)
        tx.history("job_superseded", subject_of(duty), engine=duty.engine, revision=latest["revision"])
    revision = _next_revision(tx, duty.engine, duty.subject)
    insert(tx, duty, revision)
    tx.history("job_waiting", subject_of(duty), engine=duty.engine, revision=revision)


def _next_revision(tx: Transaction, engine: str, subject: str) -> int:
    """Counted over all studies: a subject's UID that is met again in another study is a duty of its own there."""
    row = tx.sql("SELECT max(revision) AS last FROM job WHERE engine=? AND subject=?", (engine, subject)).fetchone()
    return int(row["last"] or 0) + 1


def hand_over(journal: Journal, job: Job, duties: Sequence[Duty]) -> bool:
    """Give a job's duty to the engine that took its engine's place. False: it is concluded, or overtaken, already."""
    with journal.write(durable=False) as tx:
        if not step(tx, job.id, JobState(job.state), Event.SUPERSEDE):
            return False
        tx.history("job_superseded", subject_of(job), engine=job.engine, revision=job.revision, why="engine replaced")
        for duty in duties:
            _take_on(tx, duty)
        return True


def insert(tx: Transaction, duty: Duty, revision: int) -> None:
    tx.sql(
        "INSERT INTO job (engine, scope, study_instance_uid, series_instance_uid, sop_instance_uid, subject, revision,"
        " state, input_digest, last_instance_id, attempts, deadline_tick, evidence, predecessor, provisional_digest,"
        " outcome, concluded_at, implausible_clock) VALUES (?,?,?,?,?,?,?,?,'',?,0,?,'',?,'',NULL,'',0)",
        (
            duty.engine,
            duty.scope,
            duty.study_instance_uid,
            duty.series_instance_uid,
            duty.sop_instance_uid,
            duty.subject,
            revision,
            JOB.initial,
            duty.instance_id,
            tx.tick + duty.deadline_ms,
            _published_sr(tx, duty),
        ),
    )


def _published_sr(tx: Transaction, duty: Duty) -> str:
    """The SR that a next one for this subject would replace."""
    row = tx.sql(
        "SELECT i.sop_instance_uid FROM job j JOIN instance i ON i.job=j.id AND i.kind='sr'"
        " WHERE j.engine=? AND j.subject=? AND j.study_instance_uid=? AND j.state='reported'"
        " ORDER BY j.revision DESC LIMIT 1",
        (duty.engine, duty.subject, duty.study_instance_uid),
    ).fetchone()
    return row["sop_instance_uid"] if row else ""


def unfinished(journal: Journal, *states: JobState) -> list[Job]:
    """Jobs in these states, oldest first."""
    marks = ",".join("?" * len(states))
    rows = journal.query(
        f"SELECT {JOB_COLUMNS} FROM job WHERE state NOT IN ('reported', 'superseded') AND state IN ({marks})"
        " ORDER BY id",
        *[str(state) for state in states],
    )
    return [job_of(row) for row in rows]


def is_any_of(journal: Journal, engine: str, package_sha256: str, *, reads: bool) -> bool:
    """Whether something is still to be reported that this package said; with `reads`, or to be said under its name.

    `engine`: id@version, which several packages may have; an outcome names the one that it is of.
    """
    for job in unfinished(journal, *UNFINISHED):
        said = job.outcome.engine.package_sha256 if job.outcome else ""
        if job.engine == engine and (said == package_sha256 if said else reads):
            return True
    return False


def is_any_due(journal: Journal) -> bool:
    """Whether a job is ready, or is run."""
    return bool(unfinished(journal, JobState.READY, JobState.RUNNING))


def overtaken(journal: Journal, job: Job) -> bool:
    """Whether an early run of this job is not worth going on with: its inputs changed, or another job is ready."""
    row = journal.one("SELECT last_instance_id, state FROM job WHERE id=?", job.id)
    if row is None or row["last_instance_id"] != job.last_instance_id:
        return True
    return journal.one("SELECT 1 FROM job WHERE state='ready' AND id<>? LIMIT 1", job.id) is not None


def series_of_study(journal: Journal, study_instance_uid: str) -> list[Series]:
    rows = journal.query(
        f"SELECT {SERIES_COLUMNS} FROM series WHERE study_instance_uid=? ORDER BY id", study_instance_uid
    )
    return [series_of(row) for row in rows]


def inputs(journal: Journal, job: Job, series_instance_uid: str = "") -> list[Instance]:
    """What the job reads: the newest version of each instance, of one series if it is named."""
    series = series_instance_uid or job.series_instance_uid
    rows = journal.query(
        f"{INSTANCE_SELECT} JOIN (SELECT max(id) AS id FROM instance WHERE origin='received'"
        " AND study_instance_uid=? AND (?='' OR series_instance_uid=?) AND (?='' OR sop_instance_uid=?) AND id<=?"
        " GROUP BY sop_instance_uid) newest ON newest.id=i.id ORDER BY i.id",
        job.study_instance_uid,
        series,
        series,
        job.sop_instance_uid,
        job.sop_instance_uid,
        job.last_instance_id,
    )
    return [instance_of(row) for row in rows]


def digest_of(instances: Sequence[Instance]) -> str:
    """A name for a set of inputs: the same bytes under the same UIDs, in whatever order they came."""
    digest = hashlib.sha256()
    for sop_instance_uid, data in sorted((i.sop_instance_uid, i.digest) for i in instances):
        digest.update(sop_instance_uid.encode() + b"\0" + data)
    return digest.hexdigest()


def close_inputs(journal: Journal, job: Job, series_instance_uid: str, digest: str, evidence: Evidence) -> bool:
    """Waiting -> ready: the inputs are complete. The same inputs as the last result's need no second one.

    False: superseded for that reason, or something of the study came that no duty was looked up for yet.
    """
    with journal.write(durable=False) as tx:
        if _has_unseen(tx, job.study_instance_uid):  # it may be one of these inputs, and what closed its series
            return False
        done_before = _last_reported_digest(tx, job) == digest
        event = Event.SUPERSEDE if done_before else Event.INPUTS_CLOSED
        if not step(tx, job.id, JobState.WAITING, event, "last_instance_id=?", job.last_instance_id):
            return False
        tx.sql(
            "UPDATE job SET series_instance_uid=?, input_digest=?, evidence=? WHERE id=?",
            (series_instance_uid, digest, evidence, job.id),
        )
        name = "job_superseded" if done_before else "job_ready"
        detail = {"why": "inputs unchanged since the last result"} if done_before else {"evidence": evidence}
        tx.history(name, subject_of(job), engine=job.engine, revision=job.revision, **detail)
        return not done_before


def _has_unseen(tx: Transaction, study_instance_uid: str) -> bool:
    row = tx.sql(
        "SELECT 1 FROM instance WHERE study_instance_uid=? AND origin='received'"
        " AND id > coalesce((SELECT value FROM cursor WHERE name=?), 0) LIMIT 1",
        (study_instance_uid, CURSOR),
    ).fetchone()
    return row is not None


def _last_reported_digest(tx: Transaction, job: Job) -> str:
    row = tx.sql(
        "SELECT input_digest FROM job WHERE engine=? AND subject=? AND study_instance_uid=? AND id<>?"
        " AND state='reported' ORDER BY revision DESC LIMIT 1",
        (job.engine, job.subject, job.study_instance_uid, job.id),
    ).fetchone()
    return row["input_digest"] if row else ""


def claim(journal: Journal, job: Job) -> bool:
    """Ready -> running, counted: a job that brings the process down again and again is given up."""
    with journal.write(durable=False) as tx:
        if not step(tx, job.id, JobState.READY, Event.CLAIMED):
            return False
        tx.sql("UPDATE job SET attempts=attempts+1 WHERE id=?", (job.id,))
        tx.history("job_running", subject_of(job), engine=job.engine, attempt=job.attempts + 1)
        return True


def defer(journal: Journal, job: Job, why: str) -> bool:
    """Running -> ready: to be tried again."""
    with journal.write(durable=False) as tx:
        done = step(tx, job.id, JobState.RUNNING, Event.DEFERRED)
        if done:
            tx.history("job_deferred", subject_of(job), engine=job.engine, why=why)
        return done


def keep_provisional(journal: Journal, job: Job, digest: str, outcome: Outcome | None) -> None:
    """Keep the outcome of an early run with its job: used if nothing more comes, else overwritten.

    None: those inputs were tried early in vain, and need not be tried again before the evidence holds.
    """
    with journal.write(durable=False) as tx:
        kept = tx.sql(
            "UPDATE job SET provisional_digest=?, outcome=? WHERE id=? AND state IN (?, ?)",
            (
                digest,
                OUTCOME.dump_json(outcome).decode() if outcome else None,
                job.id,
                JobState.WAITING,
                JobState.READY,
            ),
        ).rowcount
        if kept:
            tx.history("provisional_outcome", subject_of(job), engine=job.engine, kept=outcome is not None)


def conclude(journal: Journal, job: Job, event: Event, outcome: Outcome) -> bool:
    """Commit an outcome, durably: from here on the result is a function of what the journal holds.

    False: the job has moved on (superseded, or its deadline came first) and nothing was written.
    """
    with journal.write(durable=True) as tx:
        if not step(tx, job.id, JobState(job.state), event):
            return False
        _write_outcome(tx, job, outcome)
        return True


def conclude_late(journal: Journal, job: Job, outcome: Outcome) -> bool:
    """An outcome that came after its deadline: a revision of its own that says that it is late.

    Where the deadline was concluded but not told yet, it takes its place. False: the job was superseded.
    """
    with journal.write(durable=True) as tx:
        newest = tx.sql(
            "SELECT max(revision) AS revision FROM job WHERE engine=? AND subject=? AND study_instance_uid=?",
            (job.engine, job.subject, job.study_instance_uid),
        ).fetchone()["revision"]
        told = tx.sql("SELECT state FROM job WHERE id=?", (job.id,)).fetchone()["state"]
        if newest != job.revision or told not in (JobState.CONCLUDED, JobState.REPORTED):
            return False
        if told == JobState.CONCLUDED:
            step(tx, job.id, JobState.CONCLUDED, Event.SUPERSEDE)
            tx.history("job_superseded", subject_of(job), engine=job.engine, revision=job.revision)
        duty = Duty(
            engine=job.engine,
            scope=job.scope,
            study_instance_uid=job.study_instance_uid,
            series_instance_uid=job.series_instance_uid,
            sop_instance_uid=job.sop_instance_uid,
            subject=job.subject,
            instance_id=job.last_instance_id,
            deadline_ms=0,
        )
        revision = _next_revision(tx, job.engine, job.subject)
        insert(tx, duty, revision)
        row = tx.sql(
            f"SELECT {JOB_COLUMNS} FROM job WHERE engine=? AND subject=? AND revision=?",
            (job.engine, job.subject, revision),
        ).fetchone()
        late = job_of(row)
        tx.sql("UPDATE job SET input_digest=?, evidence=? WHERE id=?", (job.input_digest, job.evidence, late.id))
        step(tx, late.id, JobState.WAITING, Event.CONCLUDE)
        _write_outcome(tx, late, outcome)
        return True


def _write_outcome(tx: Transaction, job: Job, outcome: Outcome) -> None:
    tx.sql(
        "UPDATE job SET outcome=?, provisional_digest='', concluded_at=?, implausible_clock=? WHERE id=?",
        (OUTCOME.dump_json(outcome).decode(), tx.at, tx.clock_implausible, job.id),
    )
    tx.history(
        "job_concluded",
        subject_of(job),
        engine=job.engine,
        conclusion=outcome.conclusion,
        reason=outcome.reason or "",
        why=outcome.detail if outcome.reason in OF_THE_ENGINE else "",
        findings=len(outcome.findings),
        late=outcome.late,
        runtime=outcome.engine.runtime,
        device=outcome.engine.device,
        plan_sha256=outcome.engine.plan_sha256,
        degraded=outcome.engine.degraded,
        timings_ms=outcome.timings_ms,
    )
    if outcome.reason is Reason.MIXED_IDENTITY:
        raise_alarm(tx, AlarmEvent.MIXED, job.study_instance_uid)


def step(tx: Transaction, job_id: int, state: JobState, event: Event, also: str = "1=1", *parameters: object) -> bool:
    """Compare-and-set; False: the job is not in that state (any more) and nothing changed."""
    cursor = tx.sql(
        f"UPDATE job SET state=? WHERE id=? AND state=? AND {also}",
        (JOB.step(state, event), job_id, state, *parameters),
    )
    return bool(cursor.rowcount)


def subject_of(subject: Duty | Job) -> Subject:
    return Subject(
        study_instance_uid=subject.study_instance_uid,
        series_instance_uid=subject.series_instance_uid,
        sop_instance_uid=subject.sop_instance_uid,
    )
