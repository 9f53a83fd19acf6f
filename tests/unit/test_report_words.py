"""Words, priority and identity of results: pure functions of the outcome."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.coding import Code

from appliance.journal.rows import OUTCOME
from appliance.model import Conclusion, EngineIdentity, Evidence, Extent, Finding, Kind, Outcome, Priority, Reason
from appliance.stages.report import Label, ReportContext, priority, wording
from appliance.stages.report.determinism import outcome_hash, result_uid, series_uid

EXTENT = Extent(series_instance_uid="1.2", instances=99, first_mm=-288, last_mm=6, text="99 slices, spacing 3.0 mm")
NODULE = Finding(
    label="lesion",
    score=0.83,
    sop_instance_uid="1.2.3",
    box=(10, 20, 30, 40),
    laterality="R",
    long_axis_mm=14.24,
    short_axis_mm=9.8,
    volume_mm3=811.7,
)


def context(status: str = "site_accepted", **outcome: object) -> ReportContext:
    engine = EngineIdentity(id="ct-lesion", version="0.1.0", status=status, package_sha256="a", model_sha256="b")
    facts: dict[str, object] = {"conclusion": Conclusion.NO_FINDING, "extent": EXTENT, "engine": engine} | outcome
    return ReportContext(
        node="box",
        outcome=Outcome(**facts),  # type: ignore[arg-type]
        title="Lesions",
        labels={"lesion": Label(text="Nodule", code=Code("27925004", "SCT", "Nodule"), threshold=0.5)},
        study_instance_uid="1.2",
        engine_key="ct-lesion@0.1.0",
        input_digest="c" * 64,
        revision=1,
        concluded_at=datetime(2026, 11, 24, 2, 15, tzinfo=UTC),
    )


def test_headline_of_each_conclusion() -> None:
    assert wording.headline(context()) == "No finding above threshold"
    assert wording.headline(context(conclusion=Conclusion.FINDING, findings=(NODULE,))) == "1 finding above threshold"
    missing = context(conclusion=Conclusion.NOT_ANALYSED, reason=Reason.INCOMPLETE)
    assert wording.headline(missing) == "Not analysed: images are missing"


@pytest.mark.promise("P6")
def test_a_reference_engine_makes_no_statement() -> None:
    assert wording.headline(context("reference")) == "Reference engine: no statement"
    found = wording.headline(context("reference", conclusion=Conclusion.FINDING, findings=(NODULE, NODULE)))
    assert found == "Reference engine: 2 candidates to look at, no statement beyond"


@pytest.mark.promise("P6")
def test_no_negative_without_the_extent_that_was_read() -> None:
    assert wording.headline(context(extent=None)).startswith("No statement")
    assert "Read: 99 slices, spacing 3.0 mm (from -288.0 to 6.0 mm)" in wording.remarks(context())


@pytest.mark.promise("P6")
@given(
    status=st.sampled_from(["reference", "site_accepted"]),
    conclusion=st.sampled_from(Conclusion),
    reason=st.sampled_from(Reason),
    late=st.booleans(),
    extent=st.sampled_from([EXTENT, None]),
)
def test_no_result_ever_says_normal_and_each_says_its_lateness(
    status: str, conclusion: Conclusion, reason: Reason, late: bool, extent: Extent | None
) -> None:
    case = context(status, conclusion=conclusion, reason=reason, late=late, extent=extent, findings=(NODULE,))
    said = " ".join([wording.headline(case), *wording.remarks(case), wording.engine(case)]).lower()
    assert "normal" not in said
    assert "negative" not in said
    assert ("late" in said) == late
    assert ("no finding" in said) == (
        status == "site_accepted" and conclusion is Conclusion.NO_FINDING and extent is not None
    )


@pytest.mark.parametrize("evidence", Evidence)
def test_evidence_of_completeness_is_told(evidence: Evidence) -> None:
    told = [line for line in wording.remarks(context(evidence=evidence.value)) if line.startswith("Evidence")]
    assert len(told) == 1
    assert not told[0].endswith("none")


def test_an_implausible_clock_and_a_revision_are_told() -> None:
    case = replace(context(), implausible_clock=True, predecessor="1.2.9", revision=3)
    said = wording.remarks(case)
    assert any(line.startswith("Implausible clock") for line in said)
    assert "Revision 3: replaces an earlier result of the same engine" in said


@pytest.mark.promise("P8")
def test_an_engine_that_did_not_run_where_it_should_is_a_warning() -> None:
    why = "ct-lesion at 192.0.2.30:8001 was not used, this box ran it instead: UNAVAILABLE"
    case = context()
    degraded = replace(case, outcome=replace(case.outcome, engine=replace(case.outcome.engine, degraded=why)))
    assert f"Degraded: {why}" in wording.warnings(degraded)
    assert f"Degraded: {why}" in wording.remarks(degraded)
    assert not [line for line in wording.remarks(case) if "egraded" in line]


def test_finding_line_rounds_to_what_can_be_told_apart() -> None:
    line = wording.finding_line(context(), 1, NODULE)
    assert line == "1  Nodule, right, score 83%, 14.2 x 9.8 mm, 812 mm3"
    bare = Finding(label="unknown", score=0.5, sop_instance_uid="1", box=(0, 0, 1, 1))
    assert wording.finding_line(context(), 2, bare) == "2  unknown, score 50%"


@pytest.mark.promise("P6")
def test_no_score_is_told_that_the_model_did_not_state() -> None:
    line = wording.finding_line(context(), 1, replace(NODULE, score=1.0, has_score=False))
    assert line == "1  Nodule, right, 14.2 x 9.8 mm, 812 mm3"


def test_time_is_said_with_its_zone() -> None:
    local = context().concluded_at.astimezone(timezone(timedelta(hours=-3, minutes=-30)))
    assert wording.concluded(local) == "Concluded 2026-11-23 22:45:00 -0330"


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(context(), concluded_at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_series_description_fits_its_value_representation() -> None:
    described = replace(context(), title="A very long title of an engine that does not fit").series_description
    assert described.startswith("AI - NOT FOR PRIMARY DIAGNOSIS - A very")
    assert len(described) <= 64


@dataclass(frozen=True)
class Rule:
    engine: str = "ct-lesion"
    label: str = "lesion"
    min_score: float = 0.8
    priority: str = "urgent"


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], Priority.ROUTINE),
        ([Rule()], Priority.URGENT),
        ([Rule(min_score=0.83)], Priority.URGENT),
        ([Rule(min_score=0.84)], Priority.ROUTINE),
        ([Rule(engine="other")], Priority.ROUTINE),
        ([Rule(label="other")], Priority.ROUTINE),
        ([Rule(priority="routine")], Priority.ROUTINE),
        ([Rule(), Rule(priority="routine")], Priority.URGENT),
    ],
)
def test_the_sites_rules_raise_and_never_lower(rules: list[Rule], expected: Priority) -> None:
    case = context(conclusion=Conclusion.FINDING, findings=(NODULE,))
    assert priority(case.outcome, rules) is expected


def test_a_late_finding_is_still_urgent() -> None:
    case = context(conclusion=Conclusion.FINDING, findings=(NODULE,), late=True)
    assert priority(case.outcome, [Rule()]) is Priority.URGENT


@pytest.mark.promise("P3")
def test_identity_depends_on_the_statement_and_not_on_the_time_it_took() -> None:
    case = context()
    slower = replace(case.outcome, timings_ms={"infer": 812.0})
    assert outcome_hash(slower) == outcome_hash(case.outcome)
    assert outcome_hash(replace(case.outcome, measures={"a": 5})) == outcome_hash(
        replace(case.outcome, measures={"a": 5.0})
    )
    assert outcome_hash(context(conclusion=Conclusion.FINDING, findings=(NODULE,)).outcome) == (
        "2d31aef8248a3a1c58d26c030ea15dbbe80725fa03fcb68b1a8d0afac59b53bf"  # of all releases, or each sends it anew
    )
    changes = (
        replace(case, outcome=replace(case.outcome, late=True)),
        replace(case, engine_key="ct-lesion@0.1.1"),
        replace(case, input_digest="d" * 64),
        replace(case, revision=2),
    )
    uids = {result_uid(one, Kind.SR) for one in (case, *changes)} | {result_uid(case, Kind.SC)}
    assert len(uids) == len(changes) + 2
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)
    later = replace(case, concluded_at=case.concluded_at + timedelta(days=1))
    assert result_uid(later, Kind.SR) == result_uid(case, Kind.SR)
    assert len({series_uid(uid) for uid in uids}) == len(uids)


@pytest.mark.promise("P6")
def test_what_is_not_listed_is_told_and_what_was_hashed_before_stays() -> None:
    outcome = context(conclusion=Conclusion.FINDING, findings=(NODULE,)).outcome
    more = context(conclusion=Conclusion.FINDING, findings=(NODULE,), unlisted=13)
    assert "Not listed: at least 13 more above threshold" in wording.warnings(more)
    assert "Not listed: at least 13 more above threshold" in wording.remarks(more)
    assert wording.headline(more) == "1 finding above threshold, at least 13 more not listed"
    assert outcome_hash(more.outcome) != outcome_hash(outcome)
    before = "2d31aef8248a3a1c58d26c030ea15dbbe80725fa03fcb68b1a8d0afac59b53bf"  # by a release that knew of neither
    assert outcome_hash(outcome) == before
    old = OUTCOME.dump_python(outcome, mode="json")
    del old["unlisted"]
    assert OUTCOME.validate_python(old).unlisted == 0
