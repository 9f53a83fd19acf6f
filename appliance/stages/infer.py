"""Infer: runs engines on ready jobs, one at a time, in a runtime child with a deadline.

One at a time, whichever engine it is of: a GPU never has two studies at once. Those that somebody waits for go first;
of others one has its turn after a few of them, so that none starves. What only runs in shadow waits for what is sent,
until half of its time has passed: then one has its turn in the same way. Every claimed job ends in a committed outcome:
findings, none, or "not analysed: reason". While nothing is ready, jobs whose inputs look complete are run early; their
outcome is kept with the job until the evidence holds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.errors import CannotAnalyse, OutOfResources, RuntimeCancelled, RuntimeFailed
from appliance.imaging import analysis
from appliance.imaging.patches import RanOn
from appliance.imaging.reading import ImageReader
from appliance.journal import jobs, urgency
from appliance.model import Conclusion, EngineIdentity, Instance, Job, Outcome, Reason
from appliance.ports import LoadedEngine, StudyBound
from appliance.stages.desk import Desk, EarlyRun, EngineOnDuty, identity_of, unknown_identity
from appliance.states import Event, JobState

MAX_ATTEMPTS = 3
FAILING_FROM = 2  # jobs in a row: one may be at fault itself
MOST_FAULTS = 1000  # studies that are remembered of an engine
URGENT_IN_A_ROW = 4  # jobs, while others wait
SENT_IN_A_ROW = 4  # jobs, while one in shadow has waited so long
SHADOW_WAITS = 0.5  # of its engine's deadline
FAIR_SHARE = 0.5  # of its deadline: an engine that was given less is not at fault for being late


Cancelled = Callable[[], bool]


def _never() -> bool:
    return False


class EngineAtFault(RuntimeFailed):
    """The engine itself failed on inputs that were fit for it, not what is around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Of an engine: on how many studies in a row, which job was the last, and what was said of it."""

    count: int
    job: Job
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of one engine."""

    engine: EngineOnDuty
    loaded: LoadedEngine
    reader: ImageReader
    deadline_s: float
    cancelled: Cancelled
    check_scratch: Callable[[int], None]

    def read(self, paths: Sequence[Path], folder: Path) -> Outcome:
        """Files to outcome. Raises CannotAnalyse, RuntimeFailed, OutOfResources for want of scratch; EngineAtFault."""
        begun = time.monotonic()
        prepared = analysis.prepare(self.engine.package, paths, folder, self.reader, self.check_scratch)
        try:
            return self._answer(prepared, begun)
        except RuntimeCancelled:
            raise
        except RuntimeFailed as error:
            late = error.reason == Reason.DEADLINE
            if late and self.deadline_s < FAIR_SHARE * self.engine.deadline_ms / 1000:
                raise
            raise EngineAtFault(error.reason, str(error)) from error

    def _answer(self, prepared: analysis.Prepared, begun: float) -> Outcome:
        prepared_at = time.monotonic()
        if isinstance(self.loaded, StudyBound):
            self.loaded.begin(self.deadline_s)
        answer = analysis.ask(self.engine.package, prepared, self.loaded, self.deadline_s, self.cancelled)
        ran_at = time.monotonic()
        try:
            reading = analysis.conclude(self.engine.package, prepared, answer.outputs)
        except RuntimeFailed as error:
            self.loaded.doubt(str(error))
            raise
        return Outcome(
            conclusion=reading.conclusion,
            findings=reading.findings,
            measures=dict(reading.measures),
            unlisted=reading.unlisted,
            extent=prepared.extent,
            engine=_on(identity_of(self.engine), answer.ran_on, answer.degraded),
            timings_ms={
                "prepare": _ms(begun, prepared_at),
                "infer": _ms(prepared_at, ran_at),
                "run": round(answer.run_ms, 1),
                "conclude": _ms(ran_at, time.monotonic()),
            },
        )


def _ms(begun: float, ended: float) -> float:
    return round((ended - begun) * 1000, 1)


class Inferrer:
    """`loaded` has an entry for each engine that may serve; why another may not is in `unfit`."""

    def __init__(
        self,
        desk: Desk,
        loaded: Mapping[str, LoadedEngine],
        unfit: Mapping[str, str],
        workdir: Path,
        stopping: Callable[[], bool] = _never,
    ) -> None:
        self._desk, self._loaded, self._unfit, self._workdir = desk, loaded, unfit, workdir
        self._stopping = stopping
        self._tried_early: dict[int, str] = {}  # job id -> its inputs then
        self._failures: dict[str, dict[int, str]] = {}  # engine -> the jobs that failed since it last answered, and why
        self._faults: dict[str, dict[str, tuple[Job, str]]] = {}  # engine -> studies, where it was itself at fault
        self._urgent_ran = 0  # in a row, while others waited
        self._sent_ran = 0  # in a row, while one in shadow had waited long
        self._unsettled: tuple[Job, Outcome] | None = None  # an outcome that the journal has not taken yet

    @property
    def failing(self) -> dict[str, str]:
        """Engines that fail again and again, with what was said last."""
        return {key: list(failed.values())[-1] for key, failed in self._failures.items() if len(failed) >= FAILING_FROM}

    @property
    def is_wanted(self) -> bool:
        """Whether a job is ready."""
        return self._unsettled is not None or bool(jobs.unfinished(self._desk.journal, JobState.READY))

    @property
    def faults(self) -> dict[str, Fault]:
        """Engines that were at fault since they last answered. One study is one fault, however often it was tried."""
        found = {}
        for key, faults in self._faults.items():
            job, why = list(faults.values())[-1]
            found[key] = Fault(count=len(faults), job=job, why=why)
        return found

    def forget(self, key: str) -> None:
        """Begin anew: another release is there."""
        self._failures.pop(key, None)
        self._faults.pop(key, None)

    def recover(self) -> None:
        """What is running but not here (the process died, or the journal was full) is tried again, or given up."""
        for job in jobs.unfinished(self._desk.journal, JobState.RUNNING):
            if job.attempts < MAX_ATTEMPTS:
                jobs.defer(self._desk.journal, job, "it was broken off")
            else:
                outcome = self._not_analysed(job, Reason.ENGINE_FAILED, f"it was broken off {job.attempts} times")
                jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)

    def step(self, early: Callable[[], list[EarlyRun]]) -> bool:
        """Run at most one job; says whether it did anything. Raises OutOfResources; what was found out is kept."""
        if self._unsettled is not None:
            self._settle(*self._unsettled)
            return True
        self.recover()
        ready = jobs.unfinished(self._desk.journal, JobState.READY)
        ready = [job for job in ready if self._desk.engine(job.engine)]  # the others are assemble's to replace
        if ready:
            self._run_ready(self._first(ready))
            return True
        waiting = early()  # as assemble saw it last: some may be done or overtaken by now
        hurry = urgency.urgent(self._desk.journal, [run.job for run in waiting])
        waiting = sorted(waiting, key=lambda run: run.job.id not in hurry)
        self._tried_early = {run.job.id: self._tried_early.get(run.job.id, "") for run in waiting}
        for run in waiting:
            if self._tried_early[run.job.id] != run.digest and not jobs.overtaken(self._desk.journal, run.job):
                self._run_early(run)
                return True
        return False

    def _first(self, ready: Sequence[Job]) -> Job:
        """Of jobs, oldest first, the one that is run now."""
        sent, kept_waiting = [job for job in ready if self._counts(job)], self._kept_waiting(ready)
        if sent and kept_waiting and self._sent_ran >= SENT_IN_A_ROW:
            self._sent_ran = 0
            return kept_waiting
        self._sent_ran = self._sent_ran + 1 if sent and kept_waiting else 0
        counting = sent or ready
        hurry = urgency.urgent(self._desk.journal, counting)
        urgent, others = ([job for job in counting if (job.id in hurry) is so] for so in (True, False))
        if urgent and (not others or self._urgent_ran < URGENT_IN_A_ROW):
            self._urgent_ran = self._urgent_ran + 1 if others else 0
            return urgent[0]
        self._urgent_ran = 0
        return others[0]

    def _counts(self, job: Job) -> bool:
        """What is sent goes before what only runs in shadow."""
        engine = self._desk.engine(job.engine)
        return engine is not None and engine.publish

    def _kept_waiting(self, ready: Sequence[Job]) -> Job | None:
        """In shadow, the first of those that have waited long."""
        now = self._desk.journal.clock.tick()
        for job in ready:
            engine = self._desk.engine(job.engine)
            if engine is None or engine.publish:
                continue
            if job.deadline_tick - now <= (1 - SHADOW_WAITS) * engine.deadline_ms:
                return job
        return None

    def _run_ready(self, job: Job) -> None:
        instances = jobs.inputs(self._desk.journal, job)
        early = job.outcome if job.provisional_digest == job.input_digest else None
        if early is not None and not self._is_mixed(job, instances):  # the study may have got others meanwhile
            jobs.conclude(self._desk.journal, job, Event.CONCLUDE, replace(early, evidence=job.evidence))
            return
        if not jobs.claim(self._desk.journal, job):
            return
        job = replace(job, state=JobState.RUNNING, attempts=job.attempts + 1)
        try:
            outcome = self._outcome(job, instances, self._stopping)
        except RuntimeCancelled:
            return  # it stays running: the next start takes it up
        except RuntimeFailed as error:
            if error.reason != Reason.DEADLINE and job.attempts < MAX_ATTEMPTS:
                jobs.defer(self._desk.journal, job, str(error))
                return
            outcome = self._not_analysed(job, Reason(error.reason), str(error))
        self._settle(job, replace(outcome, evidence=job.evidence))

    def _settle(self, job: Job, outcome: Outcome) -> None:
        """Commit an outcome. Where the deadline came first, only an answer is worth telling late: that the job was not
        analysed has been told.
        """
        self._unsettled = job, outcome
        concluded = jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)
        if concluded and outcome.reason is Reason.MIXED_IDENTITY:
            self._desk.log("patient_identity_mixed", study=job.study_instance_uid, engine=job.engine)
        if not concluded and outcome.conclusion is not Conclusion.NOT_ANALYSED:
            jobs.conclude_late(self._desk.journal, job, replace(outcome, late=True))
        self._unsettled = None

    def _run_early(self, run: EarlyRun) -> None:
        """An early run that fails leaves no trace: the real one will tell. Another job waits for no more than its
        preparation.
        """
        instances = jobs.inputs(self._desk.journal, run.job, run.series_instance_uid)
        try:
            outcome = self._outcome(
                run.job, instances, lambda: self._stopping() or jobs.overtaken(self._desk.journal, run.job)
            )
        except RuntimeCancelled:
            return
        except RuntimeFailed as error:
            self._desk.log("early_run_failed", engine=run.job.engine, reason=str(error))
            outcome = None
        if outcome is not None and outcome.conclusion is not Conclusion.NOT_ANALYSED:
            jobs.keep_provisional(self._desk.journal, run.job, run.digest, outcome)
        else:
            jobs.keep_provisional(self._desk.journal, run.job, run.digest, None)
        self._tried_early[run.job.id] = run.digest

    def _outcome(self, job: Job, instances: list[Instance], cancelled: Cancelled = _never) -> Outcome:
        """What the engine says of these inputs. Raises RuntimeFailed."""
        engine = self._desk.engine(job.engine)
        loaded = self._loaded.get(job.engine)
        if engine is None or loaded is None:
            why = self._unfit.get(job.engine, f"{job.engine} is no longer configured")
            return self._not_analysed(job, Reason.NO_ENGINE, why.partition("\n")[0])
        if self._is_mixed(job, instances):
            return self._not_analysed(job, Reason.MIXED_IDENTITY, "the images name more than one patient")
        left_s = max(1.0, (job.deadline_tick - self._desk.journal.clock.tick()) / 1000)
        check_scratch = self._desk.check_scratch
        run = _Run(
            engine=engine,
            loaded=loaded,
            reader=self._desk.reader(left_s),
            deadline_s=left_s,
            cancelled=cancelled,
            check_scratch=check_scratch,
        )
        try:
            check_scratch(0)
            with TemporaryDirectory(dir=self._workdir) as folder:
                outcome = replace(run.read(self._desk.paths(instances), Path(folder)), evidence=job.evidence)
        except CannotAnalyse as error:
            return self._not_analysed(job, Reason(error.reason), str(error))
        except OutOfResources as error:  # of the disk: images need what is left of it (P2)
            return self._not_analysed(job, Reason.NO_ROOM, str(error))
        except MemoryError:  # the limit of this process; a child that reaches its own says so itself
            return self._not_analysed(job, Reason.ENGINE_FAILED, "the images take more memory than may be used")
        except RuntimeCancelled:
            raise
        except RuntimeFailed as error:
            self._note_failure(job, str(error))
            if isinstance(error, EngineAtFault):
                self._note_fault(job, str(error))
            raise
        self.forget(job.engine)
        return outcome

    def _note_failure(self, job: Job, why: str) -> None:
        failed = self._failures.setdefault(job.engine, {})
        failed.pop(job.id, None)
        failed[job.id] = why
        while len(failed) > FAILING_FROM:
            del failed[next(iter(failed))]

    def _note_fault(self, job: Job, why: str) -> None:
        faults = self._faults.setdefault(job.engine, {})
        faults.pop(job.study_instance_uid, None)
        faults[job.study_instance_uid] = job, why
        while len(faults) > MOST_FAULTS:
            del faults[next(iter(faults))]

    def _is_mixed(self, job: Job, instances: Sequence[Instance]) -> bool:
        """Whether the inputs and what else of their study is the engine's name more than one patient: a result is
        filed by study.
        """
        engine = self._desk.engine(job.engine)
        study = jobs.inputs(self._desk.journal, replace(job, series_instance_uid="", sop_instance_uid=""))
        others = [one for one in study if engine is not None and engine.answers_for(one)]
        return len({one.patient for one in [*instances, *others]}) > 1

    def _not_analysed(self, job: Job, reason: Reason, detail: str) -> Outcome:
        engine = self._desk.engine(job.engine)
        identity = identity_of(engine) if engine else unknown_identity(job.engine)
        loaded = self._loaded.get(job.engine)
        return Outcome(
            conclusion=Conclusion.NOT_ANALYSED,
            reason=reason,
            detail=detail,
            engine=_on(identity, RanOn.of(loaded), loaded.degraded) if loaded else identity,
            evidence=job.evidence,
        )


def _on(identity: EngineIdentity, ran_on: RanOn, degraded: str) -> EngineIdentity:
    return replace(
        identity,
        model_sha256=ran_on.variant_sha256 or identity.model_sha256,
        runtime=ran_on.runtime,
        runtime_version=ran_on.runtime_version,
        device=ran_on.device,
        degraded=degraded,
        plan_sha256=ran_on.plan_sha256,
    )
