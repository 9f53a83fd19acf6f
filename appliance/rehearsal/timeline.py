"""What happened when, from the last byte in to the result at the PACS: read from the journal, and from the PACS."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from appliance.journal import history, lookup
from appliance.journal.store import Journal
from appliance.model import Conclusion, HistoryLine, Job, Kind

ARRIVALS = ("received", "repeated", "other_bytes_under_known_uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    name: str  #: for machines
    ms: int  #: after the last byte in
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    engine: str
    subject: str
    moments: tuple[Moment, ...]  #: in the order of time


def timeline(journal: Journal, job: Job, at_pacs_ms: Mapping[str, int]) -> Timeline:
    """Of one reported job. `at_pacs_ms`: when objects arrived at the PACS, on the boot-time clock of this machine."""
    lines = [line for line in history.trace(journal, job.study_instance_uid) if _concerns(line, job)]
    reports = {one.sop_instance_uid for one in lookup.results_of(journal, job.id) if one.kind is Kind.SR}
    zero = max((line.tick for line in lines if line.event in ARRIVALS), default=0)
    found = [Moment(name="last_byte_in", ms=0, text="last byte in, and safe on disk")]
    found += [moment for line in lines if (moment := _of_line(line, line.tick - zero, job, reports)) is not None]
    found += [
        Moment(name="pacs_ack", ms=at_pacs_ms[uid] + journal.clock.base_ms - zero, text="the PACS has the report")
        for uid in reports & at_pacs_ms.keys()
    ]
    in_order = sorted(found, key=lambda moment: moment.ms)
    return Timeline(engine=job.engine, subject=job.subject, moments=tuple(in_order))


def _concerns(line: HistoryLine, job: Job) -> bool:
    """Leaves out other engines' lines, and arrivals of images that this job did not read."""
    if "engine" in line.detail and line.detail["engine"] != job.engine:
        return False
    if line.event in ARRIVALS or line.event == "series_closed":
        one_of_series = line.series_instance_uid == job.series_instance_uid
        return one_of_series and job.sop_instance_uid in ("", line.sop_instance_uid or job.sop_instance_uid)
    return job.sop_instance_uid in ("", line.sop_instance_uid) or line.event in ("result_built", "delivered")


def _of_line(line: HistoryLine, ms: int, job: Job, reports: AbstractSet[str]) -> Moment | None:
    detail, is_report = line.detail, line.sop_instance_uid in reports
    match line.event:
        case "series_closed":
            return Moment(name="evidence", ms=ms, text=f"complete, by the evidence of {detail['evidence']}")
        case "provisional_outcome" if detail.get("kept"):
            return Moment(name="early_run", ms=ms, text="read early; kept inside until the evidence holds")
        case "job_concluded":
            return Moment(name="inferred", ms=ms, text=f"read: {_conclusion(job)}")
        case "result_built" if is_report:
            return Moment(name="result_built", ms=ms, text="report built")
        case "delivered" if is_report:
            return Moment(name="sr_sent", ms=ms - int(detail["ms"]), text="report on its way to the PACS")
        case _:
            return None


def _conclusion(job: Job) -> str:
    """In words that nobody can take for "normal" (P6)."""
    outcome = job.outcome
    if outcome is None or outcome.conclusion is Conclusion.NOT_ANALYSED:
        return f"not analysed: {outcome.reason}: {outcome.detail}" if outcome else "not analysed"
    if outcome.findings:
        more = f", at least {outcome.unlisted} more not listed" if outcome.unlisted else ""
        return f"{len(outcome.findings)} finding{'' if len(outcome.findings) == 1 else 's'}{more}"
    accepted = outcome.engine.status == "site_accepted"
    return "no finding above threshold" if accepted else "reference engine: no statement"


def as_numbers(timelines: Sequence[Timeline]) -> dict[str, dict[str, int]]:
    """{engine: {moment: ms}}; of an engine that read several subjects, the last one's."""
    return {one.engine: {moment.name: moment.ms for moment in one.moments} for one in timelines}
