"""What a rehearsal has to say: facts, and whether everything held."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.model import Conclusion, Job
from appliance.rehearsal.material import Material
from appliance.rehearsal.outage import Outage
from appliance.rehearsal.proof import ImageProof, ResultProof
from appliance.rehearsal.timeline import Timeline, as_numbers
from appliance.rehearsal.truth import Planted, Said
from appliance.scanner import Sent

NO_DEVICE = "Scanside is no medical device, and its bundled engines are reference engines: their findings mean nothing."


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How it went until everything was delivered."""

    begun: float  #: monotonic seconds
    unfit: Mapping[str, str]  #: engine -> why it does not serve
    sent: Sequence[Sent]
    outage: Outage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    material: Material
    engines: tuple[str, ...]
    course: Course
    images: ImageProof
    results: tuple[ResultProof, ...]
    jobs: tuple[Job, ...]
    findings: tuple[Said, ...]
    planted: tuple[Planted, ...]
    timelines: tuple[Timeline, ...]
    held: tuple[str, ...]
    resent: int  #: objects the PACS was sent more than once
    seconds: float


def failures(report: Report) -> list[str]:
    """What did not hold, in words; empty: everything did."""
    return [
        *_unacknowledged(report.course.sent),
        *(f"{engine} does not serve: {why}" for engine, why in report.course.unfit.items()),
        *_images(report.images),
        *_results(report.results),
        *report.held,
        *(_synthetic(report) if report.material.synthetic else ()),
        *_drill(report.course.outage),
    ]


def _unacknowledged(sent: Sequence[Sent]) -> Iterator[str]:
    reasons = Counter(one.error or f"status 0x{one.status or 0:04X}" for one in sent if not one.stored)
    for reason, count in reasons.items():
        yield f"{count} of {len(sent)} images were not acknowledged to the scanner: {reason}"


def _images(proof: ImageProof) -> Iterator[str]:
    if proof.missing:
        yield f"{len(proof.missing)} of {proof.sent} images are not in the PACS, {proof.missing[0]} the first"
    if proof.altered:
        yield f"{len(proof.altered)} of {proof.sent} images are not what was sent, {proof.altered[0]} the first"


def _results(proofs: Sequence[ResultProof]) -> Iterator[str]:
    for proof in proofs:
        if not proof.byte_identical:
            what = "is not what was built" if proof.path else "is not in the PACS"
            yield f"{proof.kind} {proof.sop_instance_uid} of {proof.engine} {what}"


def _synthetic(report: Report) -> Iterator[str]:
    """Of images whose truth is known, more is asked."""
    spoken = {job.engine.partition("@")[0] for job in report.jobs}
    unfit = {engine.partition("@")[0] for engine in report.course.unfit}
    yield from (f"{engine} concluded nothing" for engine in report.engines if engine not in spoken | unfit)
    for job in report.jobs:
        if job.outcome is not None and job.outcome.conclusion is Conclusion.NOT_ANALYSED:
            yield f"{job.engine}: not analysed: {job.outcome.reason}: {job.outcome.detail}"
    for one in report.planted:
        if one.found is None and not report.course.unfit:
            yield f"the nodule of {one.nodule.diameter_mm:g} mm planted at {_place(one.nodule.centre_mm)} was not found"


def _drill(outage: Outage | None) -> Iterator[str]:
    if outage is None:
        return
    if not outage.owed_when_scanned:
        yield "nothing was owed while the PACS was gone: the drill proved nothing"
    if outage.owed_after_kill < outage.owed_when_scanned:
        yield f"{outage.owed_when_scanned} deliveries were owed before the kill, {outage.owed_after_kill} after it"


def _place(centre_mm: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in centre_mm) + ") mm"


def document(report: Report, *, files_stay: bool) -> dict[str, Any]:
    """The report for machines. Paths are given only where the files stay."""
    outage = report.course.outage
    return {
        "material": report.material.title,
        "images_sent": report.images.sent,
        "images_in_pacs": report.images.in_pacs,
        "byte_identical": report.images.holds and all(one.byte_identical for one in report.results),
        "results": [
            {
                "engine": one.engine,
                "kind": one.kind,
                "sop_instance_uid": one.sop_instance_uid,
                "bytes": one.size,
                "byte_identical": one.byte_identical,
                "path": str(one.path) if one.path and files_stay else None,
            }
            for one in report.results
        ],
        "conclusions": [_conclusion(job) for job in report.jobs],
        "findings": [{"engine": one.engine, "rank": one.rank, **asdict(one.finding)} for one in report.findings],
        "planted": [_planted(one) for one in report.planted],
        "timeline_ms": as_numbers(report.timelines),
        "objects_sent_twice": report.resent,
        "outage": asdict(outage) | {"resent": report.resent} if outage else None,
        "seconds": round(report.seconds, 1),
        "failures": failures(report),
        "notice": NO_DEVICE,
    }


def _conclusion(job: Job) -> dict[str, Any]:
    outcome = job.outcome
    return {
        "engine": job.engine,
        "subject": job.subject,
        "evidence": job.evidence,
        "conclusion": outcome.conclusion if outcome else None,
        "reason": outcome.reason if outcome else None,
        "detail": outcome.detail if outcome else "",
        "extent": outcome.extent.text if outcome and outcome.extent else "",
        "measures": outcome.measures if outcome else {},
        "engine_status": outcome.engine.status if outcome else "",
        "device": outcome.engine.device if outcome else "",
        "engine_ms": outcome.timings_ms if outcome else {},
    }


def _planted(one: Planted) -> dict[str, Any]:
    return {
        "centre_mm": one.nodule.centre_mm,
        "diameter_mm": one.nodule.diameter_mm,
        "found": one.found is not None,
        "distance_mm": round(one.distance_mm, 2) if one.distance_mm is not None else None,
        "score": one.found.finding.score if one.found else None,
        "rank": one.found.rank if one.found else None,
    }
