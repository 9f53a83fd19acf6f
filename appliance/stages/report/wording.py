"""What a result says in words: one source for the structured report and the picture.

P6 decides every sentence: never "normal", a negative only from an engine that the site has accepted and only with
the extent that was read, and a reference engine makes no statement.
"""

from datetime import datetime

from appliance.model import Conclusion, Evidence, Finding, Outcome
from appliance.stages.report.codes import accepted, reason_codes, states_negative
from appliance.stages.report.context import ReportContext

NO_FINDING_TEXT = "No finding above threshold"
REFERENCE_TEXT = "Reference engine: no statement"
CORRECTION_TEXT = (
    "Correction of an earlier result of this engine, whose patient identity (Patient ID or its issuer) differed:"
    " do not use that one, this result replaces it"
)

_EVIDENCE = {
    Evidence.MPPS: "the scanner reported the examination as completed (MPPS)",
    Evidence.COUNT: "as many images as the headers state",
    Evidence.SINGLE_IMAGE: "single-image acquisition",
    Evidence.SILENCE: "no further image for longer than this sender is wont to pause",
    Evidence.RELEASE: "the sender released its associations and the slices form a closed stack",
}


def headline(context: ReportContext) -> str:
    """The conclusion in one sentence, marked when it comes late."""
    return ("LATE RESULT - " if context.outcome.late else "") + _conclusion(context.outcome)


def _conclusion(outcome: Outcome) -> str:
    if outcome.conclusion is Conclusion.NOT_ANALYSED:
        return f"Not analysed: {reason_codes(outcome).words}"
    if outcome.conclusion is Conclusion.FINDING:
        count = len(outcome.findings)
        more = f", at least {outcome.unlisted} more not listed" if outcome.unlisted else ""
        if accepted(outcome):
            return f"{count} {_plural(count, 'finding')} above threshold{more}"
        return f"Reference engine: {count} {_plural(count, 'candidate')} to look at{more}, no statement beyond"
    if states_negative(outcome):
        return NO_FINDING_TEXT
    return "No statement: the extent that was read is not recorded" if accepted(outcome) else REFERENCE_TEXT


def remarks(context: ReportContext) -> list[str]:
    """All that a reader must know besides the conclusion, one sentence each."""
    outcome = context.outcome
    lines = [outcome.detail] if outcome.detail else []
    lines += [extent(outcome), f"Evidence of completeness: {_evidence(outcome.evidence)}"]
    lines += [f"Measure {name}: {value:.4g}" for name, value in sorted(outcome.measures.items())]
    lines += warnings(context)
    if context.predecessor:
        lines.append(f"Revision {context.revision}: replaces an earlier result of the same engine")
    return lines


def warnings(context: ReportContext) -> list[str]:
    """Sentences that limit how far the result may be trusted."""
    lines = [CORRECTION_TEXT] if context.corrects_identity else []
    if more := context.outcome.unlisted:
        lines.append(f"Not listed: at least {more} more above threshold")
    if degraded := context.outcome.engine.degraded:
        lines.append(f"Degraded: {degraded}")
    if context.outcome.late:
        lines.append("Late: concluded after the deadline of its study")
    if context.implausible_clock:
        lines.append("Implausible clock: the dates and times of this result may be wrong")
    return lines


def extent(outcome: Outcome) -> str:
    """What was read, such as "Read: 99 slices, 294 mm, spacing 3.0 mm (from -288.0 to 6.0 mm)"."""
    read = outcome.extent
    if read is None:
        return "Read: nothing" if outcome.conclusion is Conclusion.NOT_ANALYSED else "Read: not recorded"
    words = read.text or f"{read.instances} {_plural(read.instances, 'image')}"
    if read.first_mm is None or read.last_mm is None:
        return f"Read: {words}"
    return f"Read: {words} (from {read.first_mm:.1f} to {read.last_mm:.1f} mm)"


def engine(context: ReportContext) -> str:
    """Which engine spoke and how far it is accepted."""
    identity = context.outcome.engine
    standing = "accepted by this site" if accepted(context.outcome) else "reference engine, not validated"
    return f"{context.title} - {identity.id} {identity.version} ({standing})"


def concluded(local: datetime) -> str:
    return f"Concluded {local:%Y-%m-%d %H:%M:%S %z}"


def size(finding: Finding) -> str:
    """Such as "14.2 x 9.8 mm, 812 mm3"; empty where nothing was measured."""
    parts = []
    if finding.long_axis_mm is not None and finding.short_axis_mm is not None:
        parts.append(f"{finding.long_axis_mm:.1f} x {finding.short_axis_mm:.1f} mm")
    elif finding.long_axis_mm is not None:
        parts.append(f"{finding.long_axis_mm:.1f} mm")
    if finding.volume_mm3 is not None:
        parts.append(f"{finding.volume_mm3:.0f} mm3")
    return ", ".join(parts)


def finding_line(context: ReportContext, number: int, finding: Finding) -> str:
    side = {"R": "right", "L": "left"}.get(finding.laterality, "")
    score = f"score {finding.score:.0%}" if finding.has_score else ""
    parts = [context.label(finding.label).text, side, score, size(finding)]
    return f"{number}  " + ", ".join(part for part in parts if part)


def _evidence(value: str) -> str:
    return _EVIDENCE[Evidence(value)] if value else "none"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
