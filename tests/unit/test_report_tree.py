"""What stands in a structured report: the demands of OHIF, findings, evidence, statements, flags and times."""

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

from appliance.model import Conclusion, EngineIdentity, Extent, Finding, Instance, Kind, Origin, Outcome, Reason
from appliance.stages.report import Label, ReportContext
from appliance.stages.report.codes import REASONS
from appliance.stages.report.headers import bare_header
from appliance.stages.report.picture import build_picture
from appliance.stages.report.sr import build_sr

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
MEASUREMENTS, GROUP, LIBRARY = "126010", "125007", "111028"
TRACKING_IDENTIFIER, TRACKING_UID, CONCLUSION, COMMENT = "112039", "112040", "121077", "121106"
ALGORITHM_NAME, ALGORITHM_VERSION, PARAMETERS = "111001", "111003", "111002"
ANALYSES, FINDINGS_SUMMARY, NOT_ANALYSED = "111065", "111017", "NOT-ANALYSED"
CATEGORY, FINDING, SITE, LATERALITY = "276214006", "121071", "363698007", "272741003"


def header(number: int, sop_class_uid: str = CTImageStorage, modality: str = "CT") -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, f"{SERIES}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "ZZTEST^Zoe", "9990000018", "RXX0001234"
    dataset.Modality, dataset.InstanceNumber, dataset.Rows, dataset.Columns = modality, number, 512, 512
    if modality == "CT":
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.6, 0.6], 3
    return dataset


def headers() -> list[Dataset]:
    return [header(number) for number in range(1, 9)]


def finding(number: int, score: float = 0.7, **values: object) -> Finding:
    facts: dict[str, object] = {
        "label": "lesion",
        "score": score,
        "sop_instance_uid": f"{SERIES}.{number}",
        "box": (76.5, 138, 136, 198),
        "laterality": "R",
        "long_axis_mm": 14.24,
        "short_axis_mm": 9.81,
        "volume_mm3": 811.7,
    } | values
    return Finding(**facts)  # type: ignore[arg-type]


def context(findings: Sequence[Finding] = (), status: str = "site_accepted", **outcome: object) -> ReportContext:
    facts: dict[str, object] = {
        "conclusion": Conclusion.FINDING if findings else Conclusion.NO_FINDING,
        "findings": tuple(findings),
        "extent": Extent(series_instance_uid=SERIES, instances=8, first_mm=3, last_mm=24, text="8 slices, 21 mm"),
        "engine": EngineIdentity(
            id="ct-lesion",
            version="0.1.0",
            status=status,
            package_sha256="a" * 64,
            model_sha256="b" * 64,
            runtime="onnx",
            runtime_version="1.20.0",
            device="CPU (test)",
        ),
    } | outcome
    return ReportContext(
        node="box-1",
        outcome=Outcome(**facts),  # type: ignore[arg-type]
        title="Solid lung lesion candidates",
        labels={"lesion": Label(text="Nodule", code=Code("27925004", "SCT", "Nodule"), threshold=0.5)},
        study_instance_uid=STUDY,
        engine_key="ct-lesion@0.1.0",
        input_digest="c" * 64,
        revision=1,
        concluded_at=datetime(2026, 11, 24, 2, 15, 7, tzinfo=UTC),
    )


def report_of(case: ReportContext, sources: Sequence[Dataset] | None = None) -> Dataset:
    return pydicom.dcmread(io.BytesIO(build_sr(case, headers() if sources is None else sources).file_bytes))


def name_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def children(item: Dataset, code: str = "", value_type: str = "") -> list[Dataset]:
    return [
        child
        for child in item.get("ContentSequence", ())
        if code in ("", name_of(child)) and value_type in ("", child.ValueType)
    ]


def groups_of(report: Dataset) -> list[Dataset]:
    (measurements,) = children(report, MEASUREMENTS)
    return children(measurements, GROUP)


def library_of(report: Dataset) -> list[Dataset]:
    (library,) = children(report, LIBRARY)
    return [image for group in children(library) for image in children(group, value_type="IMAGE")]


def referred(item: Dataset) -> tuple[str, str]:
    reference = item.ReferencedSOPSequence[0]
    return str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)


def texts(item: Dataset, code: str) -> list[str]:
    return [str(child.TextValue) for child in children(item, code, "TEXT")]


def coded(item: Dataset) -> dict[str, str]:
    return {name_of(child): str(child.ConceptCodeSequence[0].CodeValue) for child in children(item, value_type="CODE")}


def evidence(report: Dataset) -> list[tuple[str, str, str, str]]:
    return sorted(
        (study.StudyInstanceUID, series.SeriesInstanceUID, item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    )


def not_analysed(reason: Reason) -> ReportContext:
    return context(conclusion=Conclusion.NOT_ANALYSED, reason=reason, detail="slice 7 of 12", extent=None)


@pytest.mark.parametrize(
    "case",
    [
        context([finding(2), finding(5), finding(5)]),
        context(),
        context(status="reference"),
        not_analysed(Reason.QUALITY),
    ],
    ids=["findings", "none", "reference", "not analysed"],
)
def test_ohif_can_load_every_report(case: ReportContext) -> None:
    report = report_of(case)
    assert name_of(report) == "126000"
    assert library_of(report), "OHIF fails without an image library"
    groups = groups_of(report)
    assert len(groups) == 1 + len(case.outcome.findings)
    assert len({children(group, TRACKING_UID)[0].UID for group in groups}) == len(groups), "it merges groups by UID"
    for group in groups:
        assert all("ConceptNameCodeSequence" in child for child in children(group)), "it reads every name"
        assert texts(group, TRACKING_IDENTIFIER)
        if children(group, value_type="NUM"):
            (region,) = children(group, value_type="SCOORD")
            assert region.GraphicData[:2] == region.GraphicData[-2:], "closed"
            assert children(region, value_type="IMAGE")


def test_a_finding_carries_outline_score_measurements_and_site() -> None:
    group = groups_of(report_of(context([finding(3)])))[1]
    values = [(name_of(item), item.MeasuredValueSequence[0]) for item in children(group, value_type="NUM")]
    assert {name: (float(v.NumericValue), v.MeasurementUnitsCodeSequence[0].CodeValue) for name, v in values} == {
        "111012": (70.0, "%"),
        "103339001": (14.2, "mm"),
        "103340004": (9.8, "mm"),
        "118565006": (812.0, "mm3"),
    }
    region = children(group, value_type="SCOORD")[0]
    assert list(region.GraphicData) == [76.5, 138, 136, 138, 136, 198, 76.5, 198, 76.5, 138]
    assert referred(children(region, value_type="IMAGE")[0]) == (CTImageStorage, f"{SERIES}.3")
    assert coded(group).items() >= {CATEGORY: "49755003", FINDING: "27925004", SITE: "39607008"}.items()
    assert coded(children(group, SITE)[0]) == {LATERALITY: "24028007"}


def test_a_finding_without_measurements_or_place_and_with_a_private_code() -> None:
    bare = finding(3, laterality="", long_axis_mm=None, short_axis_mm=None, volume_mm3=None)
    label = Label(text="Rotated", code=Code("ROT", "99SITE", "Rotated film"), threshold=0.5)
    report = report_of(replace(context([bare]), labels={"lesion": label}, finding_site=None))
    group = groups_of(report)[1]
    assert len(children(group, value_type="NUM")) == 1
    assert coded(group)[FINDING] == "ROT"
    assert not {CATEGORY, SITE} & coded(group).keys()
    assert [item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence] == ["99SITE"]


@pytest.mark.promise("P6")
def test_no_certainty_is_stated_that_the_model_did_not_state() -> None:
    group = groups_of(report_of(context([finding(2, score=1.0, has_score=False)])))[1]
    names = [name_of(item) for item in children(group, value_type="NUM")]
    assert names == ["103339001", "103340004", "118565006"]


def test_a_finding_whose_label_is_not_in_the_manifest_is_not_lost() -> None:
    assert coded(groups_of(report_of(context([finding(3, label="unheard of")])))[1])[FINDING] == "49755003"


@pytest.mark.promise("P8")
@pytest.mark.parametrize("case", [context([finding(2), finding(3)]), not_analysed(Reason.NO_ENGINE)])
def test_every_group_names_the_engine_its_hashes_the_runtime_and_the_device(case: ReportContext) -> None:
    for group in groups_of(report_of(case)):
        assert (texts(group, ALGORITHM_NAME), texts(group, ALGORITHM_VERSION)) == (["ct-lesion"], ["0.1.0"])
        assert texts(group, PARAMETERS) == [
            "threshold: lesion >= 0.5",
            "status: site_accepted",
            f"engine package sha256: {'a' * 64}",
            f"model sha256: {'b' * 64}",
            "runtime: onnx 1.20.0",
            "device: CPU (test)",
        ]


@pytest.mark.promise("P8")
def test_the_plan_that_ran_stands_beside_its_model() -> None:
    case = context([finding(2)])
    engine = replace(case.outcome.engine, runtime="tensorrt", plan_sha256="c" * 64)
    planned = replace(case, outcome=replace(case.outcome, engine=engine))
    for group in groups_of(report_of(planned)):
        assert texts(group, PARAMETERS)[3:5] == [f"model sha256: {'b' * 64}", f"plan sha256: {'c' * 64}"]


@pytest.mark.promise("P8")
def test_that_it_did_not_run_where_it_should_stands_beside_the_device() -> None:
    case = context([finding(2)])
    engine = replace(case.outcome.engine, degraded="the server is away")
    degraded = replace(case, outcome=replace(case.outcome, engine=engine))
    for group in groups_of(report_of(degraded)):
        assert texts(group, PARAMETERS)[-2:] == ["device: CPU (test)", "degraded: the server is away"]


@pytest.mark.promise("P6")
@pytest.mark.parametrize("reason", Reason)
def test_not_analysed_is_a_statement_with_its_reason(reason: Reason) -> None:
    report = report_of(not_analysed(reason))
    (status,) = groups_of(report)
    assert coded(status)[NOT_ANALYSED] == REASONS[reason].reason.value
    assert texts(status, CONCLUSION) == [f"Not analysed: {REASONS[reason].words}"]
    assert texts(status, COMMENT)[:2] == ["slice 7 of 12", "Read: nothing"]
    assert report.CompletionFlag == "PARTIAL"


@pytest.mark.promise("P6")
def test_a_reference_engine_states_no_negative_and_an_accepted_one_its_extent() -> None:
    (reference,) = groups_of(report_of(context(status="reference")))
    assert texts(reference, CONCLUSION) == ["Reference engine: no statement"]
    assert coded(reference) == {ANALYSES: "111222", "111000": "123110"}
    (accepted,) = groups_of(report_of(context()))
    assert texts(accepted, CONCLUSION) == ["No finding above threshold"]
    assert coded(accepted)[FINDINGS_SUMMARY] == "111241"
    assert "Read: 8 slices, 21 mm (from 3.0 to 24.0 mm)" in texts(accepted, COMMENT)


def test_late_clock_evidence_and_measures_are_told() -> None:
    case = replace(context(late=True, evidence="mpps", measures={"air": 0.25}), implausible_clock=True)
    (status,) = groups_of(report_of(case))
    assert texts(status, CONCLUSION) == ["LATE RESULT - No finding above threshold"]
    assert texts(status, COMMENT)[1:] == [
        "Evidence of completeness: the scanner reported the examination as completed (MPPS)",
        "Measure air: 0.25",
        "Late: concluded after the deadline of its study",
        "Implausible clock: the dates and times of this result may be wrong",
        "Concluded 2026-11-24 02:15:07 +0000",
    ]


def test_flags_identity_and_times_in_the_zone_of_the_source() -> None:
    sources = headers()
    for dataset in sources:
        dataset.TimezoneOffsetFromUTC = "-0500"
    report = report_of(context([finding(2)]), sources)
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert report.SeriesDescription == "AI - NOT FOR PRIMARY DIAGNOSIS - Solid lung lesion candidates"
    assert (report.PatientName, report.PatientID) == ("ZZTEST^Zoe", "9990000018")
    assert (report.StudyInstanceUID, report.AccessionNumber) == (STUDY, "RXX0001234")
    assert report.SeriesInstanceUID != SERIES
    times = (report.ContentDate, report.ContentTime, report.InstanceCreationDate, report.InstanceCreationTime)
    assert times == ("20261123", "211507") * 2
    assert report.TimezoneOffsetFromUTC == "-0500"
    assert "Concluded 2026-11-23 21:15:07 -0500" in texts(groups_of(report)[0], COMMENT)
    (ours,) = [item for item in report.ContributingEquipmentSequence if item.Manufacturer == "Scanside"]
    assert (ours.DeviceSerialNumber, ours.ContributionDateTime) == ("box-1", "20261123211507-0500")


@pytest.mark.parametrize("bare", [False, True], ids=["all headers", "bare headers beside the key images"])
def test_all_images_are_evidence_and_only_key_images_in_the_library(bare: bool) -> None:
    keys = {2, 5}
    sources = [bare_header(instance(n)) if bare and n not in keys else header(n) for n in range(1, 9)]
    report = report_of(context([finding(number) for number in sorted(keys)]), sources)
    assert evidence(report) == [(STUDY, SERIES, CTImageStorage, f"{SERIES}.{n}") for n in range(1, 9)]
    assert [referred(image)[1] for image in library_of(report)] == [f"{SERIES}.{n}" for n in sorted(keys)]
    assert report.PatientID == "9990000018"


def instance(number: int) -> Instance:
    """What the journal knows of an image."""
    return Instance(
        id=number,
        origin=Origin.RECEIVED,
        kind=Kind.IMAGE,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=f"{SERIES}.{number}",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        digest=b"",
        size=0,
        file="",
        study_instance_uid=STUDY,
        series_instance_uid=SERIES,
        modality="CT",
        patient=b"",
        calling_ae="CT01",
    )


def test_a_new_revision_names_its_predecessor() -> None:
    first = build_sr(context(), headers())
    second = report_of(replace(context(), revision=2, predecessor=first.sop_instance_uid))
    item = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert item.SeriesInstanceUID == first.series_instance_uid
    assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.sop_instance_uid
    assert second.SOPInstanceUID != first.sop_instance_uid
    told = report_of(replace(context(), predecessor="2.25.7", predecessor_series="2.25.8"))
    assert told.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID == "2.25.8"
    assert "PredecessorDocumentsSequence" not in report_of(context())


def test_what_was_invented_to_please_the_library_is_not_reported() -> None:
    film = header(3, ComputedRadiographyImageStorage, "CR")
    film.ImagerPixelSpacing = [0, 0]
    (image,) = library_of(report_of(context([finding(3)]), [film]))
    assert {name_of(item) for item in children(image)} == {"121139", "110910", "110911"}


def test_an_image_of_an_unknown_class_is_referred_to_by_its_own() -> None:
    odd = header(3, "1.2.826.0.1.3680043.8.498.77", "OT")
    del odd.Rows
    report = report_of(context([finding(3)]), [odd])
    own = (str(odd.SOPClassUID), f"{SERIES}.3")
    assert evidence(report) == [(STUDY, SERIES, *own)]
    region = children(groups_of(report)[1], value_type="SCOORD")[0]
    (image,) = library_of(report)
    assert referred(children(region)[0]) == referred(image) == own
    assert "ContentSequence" not in image, "nothing is known of it"


@pytest.mark.promise("P10")
def test_header_values_reach_neither_warnings_nor_logs(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = headers()
    for dataset in sources:
        dataset.PatientName = "SECRETNAME"  # one component: highdicom warns about such names
    build_sr(context([finding(2)]), sources)
    build_picture(context([finding(2)]), sources, None)
    assert not recwarn.list
    assert "SECRETNAME" not in caplog.text + "".join(capfd.readouterr())
