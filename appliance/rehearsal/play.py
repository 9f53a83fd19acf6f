"""The rehearsal from beginning to end."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.journal import lookup
from appliance.journal.overview import overview
from appliance.journal.store import Journal
from appliance.model import Job
from appliance.rehearsal.material import Material, given_study, synthetic_chest
from appliance.rehearsal.outage import Outage, drill
from appliance.rehearsal.patience import RehearsalFailed
from appliance.rehearsal.proof import prove_images, prove_results, resent
from appliance.rehearsal.report import Course, Report
from appliance.rehearsal.stage import Cast, Stage, Tell, held, set_up
from appliance.rehearsal.timeline import timeline
from appliance.rehearsal.truth import compare, said
from appliance.scanner import Sent
from appliance.states import JobState

COPIES = 4  # of the material that the disk must have room for
SPARE_BYTES = 300 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    folder: Path  #: empty; everything is written below it
    cast: Cast
    study: Path | None = None  #: None: the synthetic chest
    outage: bool = False


def rehearse(plan: Plan, tell: Tell) -> Report:
    """Play the rehearsal; `tell` hears of each step. Raises RehearsalFailed, NothingToSend, OSError."""
    begun = time.monotonic()
    material = _material(plan, tell)
    _check_room(plan.folder, material)
    with set_up(plan.folder, plan.cast, material, tell) as stage:
        unfit = _start(stage)
        journal = stage.box.journal()
        try:
            outage, sent = _scan(stage, journal, with_outage=plan.outage)
            stage.settle(journal)
            tell("everything is read and delivered")
            return _report(stage, journal, Course(begun=begun, unfit=unfit, sent=sent, outage=outage))
        finally:
            journal.close()


def _material(plan: Plan, tell: Tell) -> Material:
    if plan.study is not None:
        material = given_study(plan.study, plan.folder / "scanner")
        if skipped := material.found.skipped:
            tell(f"left out {len(skipped)} that are not DICOM, {skipped[0].name} the first: {skipped[0].why}")
        return material
    tell("making a synthetic chest CT and a film")
    return synthetic_chest(plan.folder / "scanner")


def _check_room(folder: Path, material: Material) -> None:
    free, need = shutil.disk_usage(folder).free, COPIES * material.found.size + SPARE_BYTES
    if free < need:
        raise RehearsalFailed(f"{folder}: {free >> 20} MB free, {need >> 20} MB needed. Set TMPDIR to a larger disk")


def _start(stage: Stage) -> dict[str, str]:
    """Start the appliance; returns the engines that do not serve, and why."""
    stage.tell("starting the appliance")
    stage.box.start()
    stage.tell("verifying the engines on their golden cases")
    return {engine: str(fact["reason"]) for engine, fact in stage.box.engines().items() if not fact["serves"]}


def _scan(stage: Stage, journal: Journal, *, with_outage: bool) -> tuple[Outage | None, list[Sent]]:
    count = len(stage.material.found.items)
    stage.tell(f"the scanner sends {count} image{'' if count == 1 else 's'}: {stage.material.title}")
    if with_outage:
        return drill(stage, journal)
    sent = stage.scan()
    stage.tell("the scanner has its last acknowledgement")
    return None, sent


def _report(stage: Stage, journal: Journal, course: Course) -> Report:
    received, jobs = stage.pacs.received(), _last_jobs(journal, stage.material)
    findings = said(jobs)
    return Report(
        material=stage.material,
        engines=stage.cast.engines,
        course=course,
        images=prove_images(stage.material, received),
        results=tuple(prove_results(journal, jobs, received)),
        jobs=tuple(jobs),
        findings=tuple(findings),
        planted=tuple(compare(stage.material.planted, findings)),
        timelines=tuple(timeline(journal, job, stage.pacs.arrived_ms) for job in jobs),
        held=tuple(held(overview(journal))),
        resent=resent(received),
        seconds=time.monotonic() - course.begun,
    )


def _last_jobs(journal: Journal, material: Material) -> list[Job]:
    """Of each engine and subject the last job that was reported."""
    last = {
        (job.engine, job.subject): job
        for study in material.studies
        for job in lookup.jobs_of(journal, study)
        if job.state == JobState.REPORTED
    }
    return list(last.values())
