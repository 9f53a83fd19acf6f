"""Infer: runs engines on ready jobs, one at a time, in a runtime child with a deadline.

Every claimed job ends in a committed outcome: findings, none, or "not analysed: reason". While nothing is ready, jobs
whose inputs look complete are run early; their outcome is kept with the job until the evidence holds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from appliance.errors import CannotAnalyse, RuntimeCancelled, RuntimeFailed
from appliance.imaging import analysis
from appliance.journal import jobs
from appliance.model import Conclusion, EngineIdentity, Instance, Job, Outcome, Reason
from appliance.ports import LoadedEngine
from appliance.stages.desk import Desk, EarlyRun, EngineOnDuty, identity_of, unknown_identity
from appliance.states import Event, JobState

MAX_ATTEMPTS = 3
GOLDEN_DEADLINE_S = 120.0


Cancelled = Callable[[], bool]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of one engine."""

    engine: EngineOnDuty
    loaded: LoadedEngine
    deadline_s: float
    cancelled: Cancelled

    def read(self, paths: Sequence[Path], folder: Path) -> Outcome:
        """Files to outcome. Raises CannotAnalyse, RuntimeFailed."""
        begun = time.monotonic()
        prepared = analysis.prepare(self.engine.package, paths, folder)
        prepared_at = time.monotonic()
        outputs = self.loaded.infer(prepared.inputs, self.deadline_s, self.cancelled)
        ran_at = time.monotonic()
        reading = analysis.conclude(self.engine.package, prepared, outputs)
        return Outcome(
            conclusion=reading.conclusion,
            findings=reading.findings,
            measures=dict(reading.measures),
            extent=prepared.extent,
            engine=_on(identity_of(self.engine), self.loaded),
            timings_ms={
                "prepare": _ms(begun, prepared_at),
                "infer": _ms(prepared_at, ran_at),
                "run": round(self.loaded.last_run_ms, 1),
                "conclude": _ms(ran_at, time.monotonic()),
            },
        )


def _ms(begun: float, ended: float) -> float:
    return round((ended - begun) * 1000, 1)


class Inferrer:
    """`loaded` has an entry for each engine that may serve; why another may not is in `unfit`."""

    def __init__(self, desk: Desk, loaded: Mapping[str, LoadedEngine], unfit: Mapping[str, str], workdir: Path) -> None:
        self._desk, self._loaded, self._unfit, self._workdir = desk, loaded, unfit, workdir
        self._tried_early: dict[int, str] = {}  # job id -> its inputs then

    def recover(self) -> None:
        """At start: what was running when the process died is tried again, or given up after too many deaths."""
        for job in jobs.unfinished(self._desk.journal, JobState.RUNNING):
            if job.attempts < MAX_ATTEMPTS:
                jobs.defer(self._desk.journal, job, "the process ended while it ran")
            else:
                outcome = self._not_analysed(job, Reason.ENGINE_FAILED, f"ended the process {job.attempts} times")
                jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)

    def step(self, early: Callable[[], list[EarlyRun]]) -> bool:
        """Run at most one job; says whether it did anything."""
        ready = jobs.unfinished(self._desk.journal, JobState.READY)
        if ready:
            self._run_ready(ready[0])
            return True
        for run in early():  # as assemble saw it last: some may be done or overtaken by now
            if self._tried_early.get(run.job.id) != run.digest and not jobs.overtaken(self._desk.journal, run.job):
                self._run_early(run)
                return True
        return False

    def _run_ready(self, job: Job) -> None:
        if job.outcome is not None and job.provisional_digest == job.input_digest:
            outcome = replace(job.outcome, evidence=job.evidence)
            jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome)
            return
        if not jobs.claim(self._desk.journal, job):
            return
        job = replace(job, state=JobState.RUNNING, attempts=job.attempts + 1)
        instances = jobs.inputs(self._desk.journal, job)
        try:
            outcome = self._outcome(job, instances)
        except RuntimeFailed as error:
            if error.reason != Reason.DEADLINE and job.attempts < MAX_ATTEMPTS:
                jobs.defer(self._desk.journal, job, str(error))
                return
            outcome = self._not_analysed(job, Reason(error.reason), str(error))
        outcome = replace(outcome, evidence=job.evidence)
        if not jobs.conclude(self._desk.journal, job, Event.CONCLUDE, outcome):
            jobs.conclude_late(self._desk.journal, job, replace(outcome, late=True))

    def _run_early(self, run: EarlyRun) -> None:
        """An early run that fails leaves no trace: the real one will tell. It never makes another job wait."""
        instances = jobs.inputs(self._desk.journal, run.job, run.series_instance_uid)
        try:
            outcome = self._outcome(run.job, instances, lambda: jobs.overtaken(self._desk.journal, run.job))
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
            return self._not_analysed(job, Reason.NO_ENGINE, why)
        if len({instance.patient for instance in instances}) > 1:
            return self._not_analysed(job, Reason.MIXED_IDENTITY, "the images name more than one patient")
        left_s = max(1.0, (job.deadline_tick - self._desk.journal.clock.tick()) / 1000)
        run = _Run(engine=engine, loaded=loaded, deadline_s=left_s, cancelled=cancelled)
        try:
            with TemporaryDirectory(dir=self._workdir) as folder:
                return replace(run.read(self._desk.paths(instances), Path(folder)), evidence=job.evidence)
        except CannotAnalyse as error:
            return self._not_analysed(job, Reason(error.reason), str(error))

    def _not_analysed(self, job: Job, reason: Reason, detail: str) -> Outcome:
        engine = self._desk.engine(job.engine)
        identity = identity_of(engine) if engine else unknown_identity(job.engine)
        loaded = self._loaded.get(job.engine)
        return Outcome(
            conclusion=Conclusion.NOT_ANALYSED,
            reason=reason,
            detail=detail,
            engine=_on(identity, loaded) if loaded else identity,
            evidence=job.evidence,
        )


def _on(identity: EngineIdentity, loaded: LoadedEngine) -> EngineIdentity:
    return replace(identity, runtime=loaded.runtime, runtime_version=loaded.runtime_version, device=loaded.device)


def golden_fault(engine: EngineOnDuty, loaded: LoadedEngine) -> str:
    """Run the package's golden cases; "" if every number is within its tolerance, else what is wrong (P8)."""
    outputs = [tensor.name for tensor in engine.package.manifest.outputs]
    for golden in engine.package.manifest.golden:
        with np.load(engine.package.folder / golden.case, allow_pickle=False) as case:
            got = loaded.infer({key: case[key] for key in case.files if key not in outputs}, GOLDEN_DEADLINE_S)
            for name in outputs:
                if not np.allclose(got[name], case[name], rtol=golden.rtol, atol=golden.atol):
                    return f"golden case {golden.case}: output {name} differs from what it must be"
    return ""
