"""The coded concepts of our results (PS3.16 Annex D, SNOMED CT, LOINC), and how a conclusion is coded.

Two different questions have two different codes, as in the CAD templates (PS3.16 TID 4001, TID 4120):

- Did the analysis run? (111065, DCM, "Summary of Analyses"), value from CID 6042.
- What did it find? (111017, DCM, "CAD Processing and Findings Summary"), value from CID 6047. Each code of that
  group states "with findings" or "without findings". The item is therefore left out wherever we state neither:
  for a reference engine without candidates, and for everything that was not analysed, where the standard's only
  code reads "No algorithms succeeded; without findings" and could be taken for a negative.
"""

from dataclasses import dataclass
from typing import Final

from pydicom.sr.coding import Code

from appliance.model import Conclusion, Outcome, Reason

PRIVATE_SCHEME: Final = "99SCANSIDE"

SUMMARY_OF_ANALYSES: Final = Code("111065", "DCM", "Summary of Analyses")
SUCCEEDED: Final = Code("111222", "DCM", "Succeeded")
FAILED: Final = Code("111224", "DCM", "Failed")
NOT_ATTEMPTED: Final = Code("111225", "DCM", "Not Attempted")

FINDINGS_SUMMARY: Final = Code("111017", "DCM", "CAD Processing and Findings Summary")
WITH_FINDINGS: Final = Code("111242", "DCM", "All algorithms succeeded; with findings")
WITHOUT_FINDINGS: Final = Code("111241", "DCM", "All algorithms succeeded; without findings")

#: The standard has values for it (CID 9300, 9303) but no concept name outside a procedure step.
REASON_NOT_ANALYSED: Final = Code("NOT-ANALYSED", PRIVATE_SCHEME, "Reason not analysed")

QUALITY_ASSESSMENT: Final = Code("111050", "DCM", "Quality Assessment")
UNUSABLE: Final = Code("111235", "DCM", "Unusable - Quality renders image unusable")

CONCLUSION: Final = Code("121077", "DCM", "Conclusion")
COMMENT: Final = Code("121106", "DCM", "Comment")
REPORT_TITLE: Final = Code("126000", "DCM", "Imaging Measurement Report")
IMAGE_LIBRARY: Final = Code("111028", "DCM", "Image Library")
PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")
DEVICE: Final = Code("121007", "DCM", "Device")
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
ENGLISH_UK: Final = Code("en-GB", "RFC5646", "English (United Kingdom)")

ABNORMAL_STRUCTURE: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG: Final = Code("39607008", "SCT", "Lung")
RIGHT: Final = Code("24028007", "SCT", "Right")
LEFT: Final = Code("7771000", "SCT", "Left")
CERTAINTY: Final = Code("111012", "DCM", "Certainty of Finding")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
SHORT_AXIS: Final = Code("103340004", "SCT", "Short axis")
VOLUME: Final = Code("118565006", "SCT", "Volume")

PERCENT: Final = Code("%", "UCUM", "Percent")
MILLIMETRE: Final = Code("mm", "UCUM", "mm")
CUBIC_MILLIMETRE: Final = Code("mm3", "UCUM", "cubic millimeter")

#: PS3.16 CID 100: what was done to the patient, by modality of the images.
PROCEDURE: Final = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "CR": Code("43468-8", "LN", "XR unspecified body region"),
    "DX": Code("43468-8", "LN", "XR unspecified body region"),
}
ANY_PROCEDURE: Final = Code("363679005", "SCT", "Imaging procedure")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCodes:
    """How one model.Reason is coded, and its words for people."""

    analysis: Code  #: value of Summary of Analyses
    reason: Code  #: value of Reason not analysed
    words: str


#: PS3.16 CID 9300 Procedure Discontinuation Reasons and CID 9303; nearest code, the detail stands beside as text.
REASONS: Final = {
    Reason.DEADLINE: ReasonCodes(
        analysis=FAILED, reason=Code("110533", "DCM", "Workitem expired"), words="deadline passed"
    ),
    Reason.INCOMPLETE: ReasonCodes(
        analysis=NOT_ATTEMPTED, reason=Code("110523", "DCM", "Object Set incomplete"), words="images are missing"
    ),
    Reason.GEOMETRY: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110522", "DCM", "Object Types not supported"),
        words="the images do not form one usable stack",
    ),
    Reason.UNSUITABLE: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110522", "DCM", "Object Types not supported"),
        words="outside what this engine is for",
    ),
    Reason.UNDECODABLE: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110521", "DCM", "Objects incorrectly formatted"),
        words="an image cannot be read",
    ),
    Reason.QUALITY: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110531", "DCM", "Insufficient quality for interpretation"),
        words="the image quality is not sufficient",
    ),
    # The likely cause is a wrong worklist entry (110514), but that is for a person to find out.
    Reason.MIXED_IDENTITY: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110513", "DCM", "Discontinued for unspecified reason"),
        words="more than one patient identity in the study",
    ),
    Reason.ENGINE_FAILED: ReasonCodes(
        analysis=FAILED, reason=Code("110501", "DCM", "Equipment failure"), words="the engine failed"
    ),
    Reason.NO_ENGINE: ReasonCodes(
        analysis=NOT_ATTEMPTED, reason=Code("110527", "DCM", "Resource inadequate"), words="no engine is able to run"
    ),
    Reason.NO_ROOM: ReasonCodes(
        analysis=NOT_ATTEMPTED,
        reason=Code("110527", "DCM", "Resource inadequate"),
        words="the disk has no room for it",
    ),
}


def reason_codes(outcome: Outcome) -> ReasonCodes:
    """Codes of an outcome that was not analysed; one without a reason is taken for a failure of the engine."""
    return REASONS[outcome.reason or Reason.ENGINE_FAILED]


def accepted(outcome: Outcome) -> bool:
    """Whether a site has signed for the engine; anything else counts as a reference engine."""
    return outcome.engine.status == "site_accepted"


def states_negative(outcome: Outcome) -> bool:
    """Whether this outcome may say "no finding" (P6): only an accepted engine, and only of a stated extent."""
    return outcome.conclusion is Conclusion.NO_FINDING and accepted(outcome) and outcome.extent is not None


def coded_conclusion(outcome: Outcome) -> list[tuple[Code, Code]]:
    """The conclusion as (concept name, value) pairs, in the order in which they stand in the report."""
    if outcome.conclusion is Conclusion.NOT_ANALYSED:
        coded = reason_codes(outcome)
        pairs = [(SUMMARY_OF_ANALYSES, coded.analysis), (REASON_NOT_ANALYSED, coded.reason)]
        if outcome.reason is Reason.QUALITY:
            pairs.append((QUALITY_ASSESSMENT, UNUSABLE))
        return pairs
    pairs = [(SUMMARY_OF_ANALYSES, SUCCEEDED)]
    if outcome.conclusion is Conclusion.FINDING:
        pairs.append((FINDINGS_SUMMARY, WITH_FINDINGS))
    elif states_negative(outcome):
        pairs.append((FINDINGS_SUMMARY, WITHOUT_FINDINGS))
    return pairs
