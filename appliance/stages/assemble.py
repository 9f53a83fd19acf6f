"""Assemble: who must look at what arrived, and when all of it is there.

Each instance gives the engines that are responsible for it a waiting job. A job is ready when its inputs are closed on
evidence; before that, released associations and a closed geometry allow an early run whose outcome stays inside. A
deadline concludes what nobody else did, so silence never means normal (P6).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging import analysis
from appliance.imaging.reading import ImageReader, ReaderLost
from appliance.journal import identity, jobs
from appliance.journal.jobs import Duty
from appliance.model import (
    Conclusion,
    Evidence,
    Instance,
    Job,
    Outcome,
    Reason,
    Series,
)
from appliance.stages.desk import Desk, EarlyRun, EngineOnDuty, identity_of, unknown_identity
from appliance.states import Event, JobState, SeriesState

LOOK_AT = 500  # instances at a time
#: An early run waits for this much quiet: a sender with an association per image would start one at each.
EARLY_AFTER_MS = 500
LONGEST_REST_MS = 60_000
REMEMBERED = 256  # judgements of input sets
JUDGE_S = 60.0  # for the headers of one series
PUT_OFF_MS = 5_000  # of a job whose series nobody can read just now: the others have their turn

T = TypeVar("T")


class Assembler:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # By digest of the inputs: reading hundreds of headers for a verdict must not be done at each step.
        self._closed: dict[str, bool] = {}
        self._ranks: dict[str, tuple[int, object, int]] = {}
        self._lost = False  # whether a series cost the reader its life in this step
        self._due_ms = LONGEST_REST_MS
        self._put_off: dict[int, int] = {}  # job id -> tick
        self.early: list[EarlyRun] = []  #: for the infer stage, renewed by each step

    def step(self) -> bool:
        """Look at what is new, once; says whether anything changed, or was put off: a series on which reading hangs
        is enough for one step.
        """
        arrived = jobs.arrived(self._desk.journal, LOOK_AT)
        if arrived:
            duties = {instance.id: self._duties(instance) for instance in arrived}
            self._note_identities([instance for instance in arrived if duties[instance.id]])
            jobs.take_on(self._desk.journal, [duty for each in duties.values() for duty in each], arrived[-1].id)
            if len(arrived) == LOOK_AT:
                return True
        changed = bool(arrived)
        self._due_ms, self._lost = LONGEST_REST_MS, False
        early: list[EarlyRun] = []
        now = self._desk.journal.clock.tick()
        self._put_off = {job: until for job, until in self._put_off.items() if until > now}
        for job in jobs.unfinished(self._desk.journal, JobState.WAITING, JobState.READY, JobState.RUNNING):
            engine = self._desk.engine(job.engine)
            left_ms = job.deadline_tick - self._desk.journal.clock.tick()
            self._due_ms = min(self._due_ms, max(1, left_ms))
            if engine is None:
                changed |= self._replace_engine(job)
            elif left_ms <= 0:
                changed |= self._pass_deadline(job, engine)
            elif job.state == JobState.WAITING:
                changed |= self._try_to_close(job, engine, early)
            if self._lost:
                return True
        self.early = early
        return changed

    def next_due_s(self) -> float:
        """Seconds until a step is due, whatever rings: the next deadline, or the quiet before an early run."""
        return max(1, self._due_ms) / 1000

    def _duties(self, instance: Instance) -> list[Duty]:
        if not instance.study_instance_uid or not instance.series_instance_uid:
            return []  # unsorted: kept and forwarded, but no engine can say what it belongs to
        return [_duty(engine, instance) for engine in self._desk.engines if engine.answers_for(instance)]

    def _note_identities(self, arrived: Sequence[Instance]) -> None:
        for study in identity.note_changes(self._desk.journal, arrived):
            self._desk.log("patient_identity_changed_after_a_result_left", study=study)

    def _pass_deadline(self, job: Job, engine: EngineOnDuty) -> bool:
        outcome = Outcome(
            conclusion=Conclusion.NOT_ANALYSED,
            reason=Reason.DEADLINE,
            detail="not concluded in time",
            engine=identity_of(engine),
            evidence=job.evidence,
        )
        return jobs.conclude(self._desk.journal, job, Event.DEADLINE, outcome)

    def _try_to_close(self, job: Job, engine: EngineOnDuty, early: list[EarlyRun]) -> bool:
        """A moment without a reader must not decide which series is read: until there is one the answer is not yet, and
        the job's deadline bounds the wait.
        """
        now = self._desk.journal.clock.tick()
        if job.id not in self._put_off:
            try:
                return self._close_on_evidence(job, engine, early)
            except (ReaderLost, RuntimeFailed) as error:
                self._desk.log("series_not_compared", study=job.study_instance_uid, reason=str(error))
                self._put_off[job.id] = self._desk.journal.clock.tick() + PUT_OFF_MS
        self._due_ms = min(self._due_ms, max(1, self._put_off[job.id] - now))
        return False

    def _close_on_evidence(self, job: Job, engine: EngineOnDuty, early: list[EarlyRun]) -> bool:
        """Raises ReaderLost(DEADLINE), RuntimeFailed: of several series none can be preferred just now."""
        series = self._subject_series(job, engine)
        if not series:
            return self._no_series(job, engine)
        if job.scope == "instance" or all(one.state == SeriesState.CLOSED for one in series):
            return self._close(job, engine, series)
        if all(self._looks_complete(one) for one in series):
            self._consider_early_run(job, engine, series, early)
        return False

    def _replace_engine(self, job: Job) -> bool:
        """The config has this engine no longer: another version of it takes the duty over, else nobody can."""
        newer = self._desk.other_version(job.engine)
        if newer is None:
            return self._no_engine(job)
        instances = jobs.inputs(self._desk.journal, job)
        duties = [_duty(newer, instance) for instance in instances if newer.answers_for(instance)]
        return jobs.hand_over(self._desk.journal, job, duties) if duties else self._no_engine(job)

    def _no_engine(self, job: Job) -> bool:
        outcome = Outcome(
            conclusion=Conclusion.NOT_ANALYSED,
            reason=Reason.NO_ENGINE,
            detail=f"{job.engine} is no longer configured",
            engine=unknown_identity(job.engine),
        )
        return jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)

    def _no_series(self, job: Job, engine: EngineOnDuty) -> bool:
        """Of the right modality, but in a series whose first instance said another: nothing can be made of it."""
        outcome = Outcome(
            conclusion=Conclusion.NOT_ANALYSED,
            reason=Reason.UNSUITABLE,
            detail="no series of an accepted modality",
            engine=identity_of(engine),
        )
        return jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)

    def _subject_series(self, job: Job, engine: EngineOnDuty) -> list[Series]:
        """The series the job may read."""
        accepted = engine.package.manifest.accepts.modality
        return [
            series
            for series in jobs.series_of_study(self._desk.journal, job.study_instance_uid)
            if series.series_instance_uid == job.series_instance_uid
            or (job.scope == "study" and series.modality in accepted)
        ]

    def _close(self, job: Job, engine: EngineOnDuty, series: Sequence[Series]) -> bool:
        if job.scope == "instance":
            chosen, evidence = job.series_instance_uid, Evidence.SINGLE_IMAGE
        else:
            one = self._preferred(job, engine, series)
            chosen, evidence = one.series_instance_uid, Evidence(one.evidence)
        digest = jobs.digest_of(jobs.inputs(self._desk.journal, job, chosen))
        return jobs.close_inputs(self._desk.journal, job, chosen, digest, evidence)

    def _preferred(self, job: Job, engine: EngineOnDuty, series: Sequence[Series]) -> Series:
        """Of several reconstructions the one the manifest prefers among those that it can take."""
        if len(series) == 1:
            return series[0]
        return min(series, key=lambda one: self._rank(job, engine, one))

    def _rank(self, job: Job, engine: EngineOnDuty, series: Series) -> tuple[int, object, int]:
        instances = jobs.inputs(self._desk.journal, job, series.series_instance_uid)

        def judge() -> tuple[int, object, int]:
            with self._reader() as reader:
                return 0, analysis.preference(engine.package, self._desk.paths(instances), reader), series.id

        try:
            return _remembered(self._ranks, f"{engine.key} {series.id} {jobs.digest_of(instances)}", judge)
        except ReaderLost:
            raise
        except CannotAnalyse:  # files are gone, or their headers make no sense together
            return 1, -series.arrivals, series.id

    def _looks_complete(self, series: Series) -> bool:
        if series.state == SeriesState.CLOSED:
            return True
        quiet_ms = self._desk.journal.clock.tick() - series.last_tick
        if series.released and not series.interrupted and quiet_ms < EARLY_AFTER_MS:
            self._due_ms = min(self._due_ms, EARLY_AFTER_MS - quiet_ms)
        return series.released and not series.interrupted and quiet_ms >= EARLY_AFTER_MS

    def _consider_early_run(
        self, job: Job, engine: EngineOnDuty, series: Sequence[Series], early: list[EarlyRun]
    ) -> None:
        chosen = self._preferred(job, engine, series).series_instance_uid
        instances = jobs.inputs(self._desk.journal, job, chosen)
        digest = jobs.digest_of(instances)
        if digest == job.provisional_digest:
            return
        with suppress(RuntimeFailed):  # nobody to read them just now
            if _remembered(self._closed, digest, lambda: self._geometry_closed(instances)):
                early.append(EarlyRun(job=job, series_instance_uid=chosen, digest=digest))

    def _geometry_closed(self, instances: Sequence[Instance]) -> bool:
        try:
            with self._reader() as reader:
                return analysis.closed_geometry(self._desk.paths(instances), reader)
        except CannotAnalyse:
            return False

    @contextmanager
    def _reader(self) -> Iterator[ImageReader]:
        """For one judgement."""
        reader = self._desk.reader(JUDGE_S)
        try:
            yield reader
        finally:
            self._lost |= reader.lost


def _remembered(judged: dict[str, T], key: str, judge: Callable[[], T]) -> T:
    if key not in judged:
        if len(judged) >= REMEMBERED:
            judged.clear()
        judged[key] = judge()
    return judged[key]


def _duty(engine: EngineOnDuty, instance: Instance) -> Duty:
    subject = {
        "instance": instance.sop_instance_uid,
        "series": instance.series_instance_uid,
        "study": instance.study_instance_uid,
    }[engine.scope]
    return Duty(
        engine=engine.key,
        scope=engine.scope,
        study_instance_uid=instance.study_instance_uid,
        series_instance_uid="" if engine.scope == "study" else instance.series_instance_uid,
        sop_instance_uid=instance.sop_instance_uid if engine.scope == "instance" else "",
        subject=subject,
        instance_id=instance.id,
        deadline_ms=engine.deadline_ms,
    )
