"""Source headers: anything a file may hold is taken, what was invented is known, and identity is carried over."""

from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage

from appliance.model import Conclusion, EngineIdentity, Finding, Outcome
from appliance.stages.report import ReportContext
from appliance.stages.report.determinism import quiet
from appliance.stages.report.headers import read_sources, stand_in
from appliance.stages.report.picture import build_picture
from appliance.stages.report.raw_values import encodings_of, numbers, text, unsigned_short
from appliance.stages.report.sr import build_sr

STUDY = "1.2.826.0.1.1"


def raw(keyword: str, value: bytes, vr: str | None = None, *, little: bool = True) -> RawDataElement:
    return RawDataElement(Tag(keyword), vr or dictionary_VR(keyword), len(value), value, 0, False, little)


def header(values: dict[str, bytes] | None = None, sop_class_uid: str = CTImageStorage, number: int = 1) -> Dataset:
    """A header as read from a file: nothing in it is converted yet."""
    uids = {
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": "1.2.826.0.1.2",
        "SOPInstanceUID": f"1.2.826.0.1.3.{number}",
        "SOPClassUID": sop_class_uid,
        "InstanceNumber": str(number),
    }
    dataset = Dataset()
    for keyword, value in ({key: uid.encode() for key, uid in uids.items()} | (values or {})).items():
        dataset[Tag(keyword)] = raw(keyword, value + b"\0" * (len(value) % 2))
    return dataset


CT_GEOMETRY = {
    "ImagePositionPatient": b"-1\\2\\3",
    "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0 ",
    "PixelSpacing": b"0.5\\0.5 ",
    "Rows": b"\x00\x02",
    "Columns": b"\x00\x02",
}


def describe(dataset: Dataset) -> tuple[Dataset, frozenset[str]]:
    seen = stand_in(read_sources([dataset], STUDY).images[0])
    return seen.dataset, seen.invented


def test_images_are_ordered_by_number_whatever_the_order_of_arrival() -> None:
    headers = [header(number=number) for number in (10, 2, 1)]
    ordered = [image.number for image in read_sources(headers, STUDY).images]
    assert ordered == [1, 2, 10]


def test_without_findings_the_middle_described_image_is_the_key_image() -> None:
    headers = [header({"PatientID": b"1 "}, number=number) for number in (1, 2, 3)] + [
        header(number=n) for n in range(4, 20)
    ]
    sources = read_sources(headers, STUDY)
    assert [image.number for image in sources.key_images([])] == [2]
    assert len(sources.images) == 19


def test_key_images_are_those_of_the_findings_each_once() -> None:
    sources = read_sources([header(number=number) for number in (1, 2, 3)], STUDY)
    named = ["1.2.826.0.1.3.3", "1.2.826.0.1.3.1", "1.2.826.0.1.3.3"]
    assert [image.number for image in sources.key_images(named)] == [3, 1]
    with pytest.raises(ValueError, match="not among the sources"):
        sources.key_images(["1.2.3"])


def test_headers_that_cannot_be_referred_to_are_left_out() -> None:
    assert len(read_sources([Dataset(), header()], STUDY).images) == 1
    with pytest.raises(ValueError, match="no source header"):
        read_sources([Dataset()], STUDY)


def test_identifiers_are_carried_over_as_received_and_the_rest_if_legal() -> None:
    identity = read_sources(
        [
            header(
                {
                    "PatientID": b"9990000018",
                    "PatientName": b"ZZTEST^Zo\xeb",
                    "SpecificCharacterSet": b"ISO_IR 100",
                    "AccessionNumber": b"RXX-0001234-TOO-LONG-FOR-AN-SH",
                    "PatientBirthDate": b"1950/01/01",
                    "PatientSex": b"Female",
                    "StudyDate": b"20261124",
                    "StudyTime": b"9:30",
                }
            )
        ],
        STUDY,
    ).identity
    assert identity.PatientID == "9990000018"
    assert identity.PatientName == "ZZTEST^Zoë"
    assert identity.AccessionNumber == "RXX-0001234-TOO-LONG-FOR-AN-SH"
    assert (identity.PatientBirthDate, identity.PatientSex, identity.StudyTime) == ("", "", "")
    assert identity.StudyDate == "20261124"
    assert identity.StudyID == ""
    assert identity.SpecificCharacterSet == "ISO_IR 192"
    assert "IssuerOfPatientID" not in identity


def test_a_name_in_several_character_sets() -> None:
    name = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
    dataset = header({"SpecificCharacterSet": b"\\ISO 2022 IR 87", "PatientName": name})
    assert read_sources([dataset], STUDY).identity.PatientName == "Yamada^Tarou=山田^太郎"


@pytest.mark.parametrize("name", [b"undefined", b"idna", b"hex", b"unicode_escape", b"ISO_IR 999", b"\\\\\\", b""])
def test_no_character_set_raises(name: bytes) -> None:
    with quiet():
        dataset = header({"SpecificCharacterSet": name, "PatientName": b"A\xff\x1b$)CB"})
        assert encodings_of(dataset)
        assert read_sources([dataset], STUDY).identity.PatientName


@pytest.mark.parametrize(
    ("stated", "expected"), [(b"+0100 ", "0315+0100"), (b"-0330 ", "2245-0330"), (b"GMT ", "0415+0200")]
)
def test_result_times_are_in_the_zone_of_the_source_or_else_of_the_box(stated: bytes, expected: str) -> None:
    sources = read_sources([header({"TimezoneOffsetFromUTC": stated})], STUDY)
    local = sources.local(datetime(2026, 11, 24, 2, 15, tzinfo=UTC), timedelta(hours=2))
    assert f"{local:%H%M%z}" == expected


def test_a_slice_is_described_from_its_header() -> None:
    dataset, invented = describe(header(CT_GEOMETRY | {"SliceThickness": b"3.0 "}))
    assert invented == frozenset()
    assert dataset.Modality == "CT"
    assert (dataset.Rows, dataset.SliceThickness, list(dataset.PixelSpacing)) == (512, 3.0, [0.5, 0.5])


def test_an_invented_slice_thickness_is_known() -> None:
    assert describe(header(CT_GEOMETRY | {"SliceThickness": b""}))[1] == {"112225"}


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_without_a_place_in_space_no_geometry_is_described(missing: str) -> None:
    dataset, invented = describe(header(CT_GEOMETRY | {"Modality": b"CT", missing: b"0\\nan"}))
    assert dataset.Modality == "OT"
    assert invented == frozenset()


def test_a_radiograph_without_orientation_and_with_zero_spacing() -> None:
    dataset, invented = describe(
        header(
            {"Modality": b"CR", "ImagerPixelSpacing": b"0.000\\0.000 ", "PatientOrientation": b""},
            ComputedRadiographyImageStorage,
        )
    )
    assert invented == {"111026", "111066", "111043", "111044", "110910", "110911"}
    assert len(dataset.PatientOrientation) == 2


def test_a_class_that_highdicom_does_not_know_keeps_its_true_uid() -> None:
    for uid in (MRImageStorage, "1.2.840.99999.1"):
        seen = stand_in(read_sources([header(None, uid)], STUDY).images[0])
        assert seen.dataset.SOPClassUID == SecondaryCaptureImageStorage
        assert seen.sop_class_uid == uid
        assert "121139" in seen.invented


def test_big_endian_and_converted_values() -> None:
    dataset = Dataset()
    dataset[Tag("Rows")] = raw("Rows", b"\x02\x00", little=False)
    assert unsigned_short(dataset, "Rows") == 512
    dataset.Columns = 256
    dataset.PixelSpacing = [0.5, 0.25]
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    assert unsigned_short(dataset, "Columns") == 256
    assert numbers(dataset, "PixelSpacing", 2) == [0.5, 0.25]
    assert numbers(dataset, "PixelSpacing", 3) == []
    assert text(dataset, "ImageType") == "ORIGINAL\\PRIMARY"


ANY_BYTES = st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda words: words.encode()))
READ = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "Modality",
    "BodyPartExamined",
    "Manufacturer",
    "StationName",
    "InstitutionName",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PatientOrientation",
    "ImagerPixelSpacing",
    "Rows",
    "Columns",
    "InstanceNumber",
)


def dirty_headers(values: dict[str, bytes], radiograph: bool) -> list[Dataset]:
    return [header(values, ComputedRadiographyImageStorage if radiograph else CTImageStorage)]


@settings(deadline=None)
@given(values=st.dictionaries(st.sampled_from(READ), ANY_BYTES), radiograph=st.booleans())
def test_no_content_of_a_header_raises(values: dict[str, bytes], radiograph: bool) -> None:
    with quiet():
        sources = read_sources(dirty_headers(values, radiograph), STUDY)
        dataset = stand_in(sources.images[0]).dataset
    assert dataset.PatientID == ""
    assert sources.identity.StudyInstanceUID == STUDY
    sources.local(datetime(2026, 1, 1, tzinfo=UTC), timedelta(0))


@settings(deadline=None, max_examples=10)
@given(values=st.fixed_dictionaries(dict.fromkeys(READ, ANY_BYTES)), radiograph=st.booleans())
def test_results_on_dirty_headers_can_be_written_and_read(values: dict[str, bytes], radiograph: bool) -> None:
    image = "1.2.826.0.1.3.1"
    engine = EngineIdentity(id="e", version="1.0.0", status="reference", package_sha256="", model_sha256="")
    finding = Finding(label="lesion", score=0.5, sop_instance_uid=image, box=(0, 0, 9, 9))
    case = ReportContext(
        node="box",
        outcome=Outcome(conclusion=Conclusion.FINDING, findings=(finding,), engine=engine),
        title="Lesions",
        labels={},
        study_instance_uid=STUDY,
        engine_key="e@1.0.0",
        input_digest="",
        revision=1,
        concluded_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    headers = dirty_headers(values, radiograph)
    for built in (build_sr(case, headers), build_picture(case, headers, None)):
        with quiet():
            result = dcmread(BytesIO(built.file_bytes))
            result.decode()
        assert result.StudyInstanceUID == STUDY
