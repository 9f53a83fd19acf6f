"""Codes: each constant is what the dictionaries say, and each conclusion is coded as P6 allows."""

from typing import cast

import pytest
from pydicom.sr import _concepts_dict
from pydicom.sr.coding import Code

from appliance.model import Conclusion, EngineIdentity, Extent, Outcome, Reason
from appliance.stages.report import codes

#: scheme -> keyword -> value -> (meaning, context groups)
DICTIONARY = cast("dict[str, dict[str, dict[str, tuple[str, list[int]]]]]", _concepts_dict.concepts)
# Neither scheme is in pydicom's dictionary: RFC 5646 is the language registry, 99SCANSIDE is ours.
UNLISTED = {"RFC5646", codes.PRIVATE_SCHEME}


def constants() -> dict[str, Code]:
    named = {name: value for name, value in vars(codes).items() if isinstance(value, Code)}
    named |= {f"PROCEDURE[{key}]": value for key, value in codes.PROCEDURE.items()}
    for reason, coded in codes.REASONS.items():
        named |= {f"{reason}.analysis": coded.analysis, f"{reason}.reason": coded.reason}
    return named


@pytest.mark.parametrize(("name", "code"), constants().items())
def test_value_and_meaning_agree_with_the_dictionary(name: str, code: Code) -> None:
    if code.scheme_designator in UNLISTED:
        return
    meanings = [entry[code.value][0] for entry in DICTIONARY[code.scheme_designator].values() if code.value in entry]
    assert code.meaning in meanings, f"{name}: {code.value} means {meanings}"
    assert len(code.value) <= 16
    assert len(code.meaning) <= 64


def test_discontinuation_reasons_come_from_the_context_groups_named() -> None:
    groups = {value: set(entry[value][1]) for entry in DICTIONARY["DCM"].values() for value in entry}
    for coded in codes.REASONS.values():
        assert groups[coded.reason.value] & {9300, 9303}
        assert 6042 in groups[coded.analysis.value]


def outcome(conclusion: Conclusion, status: str = "site_accepted", reason: Reason | None = None) -> Outcome:
    return Outcome(
        conclusion=conclusion,
        reason=reason,
        engine=EngineIdentity(id="e", version="1.0.0", status=status, package_sha256="", model_sha256=""),
        extent=Extent(series_instance_uid="1.2", instances=1),
    )


def test_each_reason_has_its_codes_and_words() -> None:
    assert set(codes.REASONS) == set(Reason)
    assert len({coded.words for coded in codes.REASONS.values()}) == len(Reason)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("reason", Reason)
def test_not_analysed_says_neither_with_nor_without_findings(reason: Reason) -> None:
    pairs = dict(codes.coded_conclusion(outcome(Conclusion.NOT_ANALYSED, reason=reason)))
    assert codes.FINDINGS_SUMMARY not in pairs
    assert pairs[codes.SUMMARY_OF_ANALYSES] in (codes.FAILED, codes.NOT_ATTEMPTED)
    assert pairs[codes.REASON_NOT_ANALYSED] == codes.REASONS[reason].reason
    assert (codes.QUALITY_ASSESSMENT in pairs) == (reason is Reason.QUALITY)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("status", ["reference", "", "something else"])
def test_only_an_accepted_engine_is_coded_without_findings(status: str) -> None:
    accepted = dict(codes.coded_conclusion(outcome(Conclusion.NO_FINDING)))
    assert accepted[codes.FINDINGS_SUMMARY] == codes.WITHOUT_FINDINGS
    other = dict(codes.coded_conclusion(outcome(Conclusion.NO_FINDING, status)))
    assert other == {codes.SUMMARY_OF_ANALYSES: codes.SUCCEEDED}


@pytest.mark.parametrize("status", ["reference", "site_accepted"])
def test_findings_are_coded_as_such_for_every_engine(status: str) -> None:
    pairs = dict(codes.coded_conclusion(outcome(Conclusion.FINDING, status)))
    assert pairs == {codes.SUMMARY_OF_ANALYSES: codes.SUCCEEDED, codes.FINDINGS_SUMMARY: codes.WITH_FINDINGS}


def test_a_missing_reason_reads_as_a_failure() -> None:
    assert codes.reason_codes(outcome(Conclusion.NOT_ANALYSED)) is codes.REASONS[Reason.ENGINE_FAILED]
