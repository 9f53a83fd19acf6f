"""Result objects against tools that are not ours (dciodvfy, dcmtk), against real headers, and the same bytes (P3).

Run as a program it prints digests of results: the determinism test does so in another time zone, later.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from appliance.model import Conclusion, EngineIdentity, Extent, Finding, Kind, Outcome, Reason
from appliance.stages.report.context import Built, Label, ReportContext
from appliance.stages.report.picture import build_picture
from appliance.stages.report.sr import build_sr
from tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
DCIODVFY = Path(sys.executable).with_name("dciodvfy")  # a console script of the package dicom3tools


def header(sop_class_uid: str, modality: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = f"{SERIES}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientName, dataset.PatientID = "ZZTEST^Zoë", "9990000018"
    dataset.PatientBirthDate, dataset.PatientSex = "19500101", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20261124", "020000", "S1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "RXX0001234", "Doe^Jo"
    dataset.Modality, dataset.Manufacturer, dataset.BodyPartExamined = modality, "Maker", "CHEST"
    dataset.InstanceNumber, dataset.Rows, dataset.Columns = number, 512, 512
    return dataset


def ct_headers(count: int = 12) -> list[Dataset]:
    headers = [header(CTImageStorage, "CT", number) for number in range(1, count + 1)]
    for number, dataset in enumerate(headers):
        dataset.ImagePositionPatient = [-150, -150, 3 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.6, 0.6], 3
        dataset.FrameOfReferenceUID = f"{STUDY}.9"
    return headers


def film(sop_class_uid: str, modality: str, photometric: str) -> list[Dataset]:
    dataset = header(sop_class_uid, modality, 1)
    dataset.PhotometricInterpretation = photometric
    dataset.PatientOrientation, dataset.ImagerPixelSpacing = ["L", "F"], [0.15, 0.15]
    return [dataset]


def finding(dataset: Dataset, score: float = 0.83) -> Finding:
    return Finding(
        label="lesion",
        score=score,
        sop_instance_uid=dataset.SOPInstanceUID,
        box=(76.5, 138, 136, 198),
        laterality="R",
        long_axis_mm=14.24,
        short_axis_mm=9.81,
        volume_mm3=811.7,
    )


def context(status: str = "site_accepted", findings: Sequence[Finding] = (), **outcome: object) -> ReportContext:
    engine = EngineIdentity(
        id="ct-lesion",
        version="0.1.0",
        status=status,
        package_sha256="a" * 64,
        model_sha256="b" * 64,
        runtime="onnx",
        runtime_version="1.20.0",
        device="CPU (test)",
    )
    facts: dict[str, object] = {
        "conclusion": Conclusion.FINDING if findings else Conclusion.NO_FINDING,
        "findings": tuple(findings),
        "extent": Extent(series_instance_uid=SERIES, instances=12, first_mm=0, last_mm=33, text="12 slices, 33 mm"),
        "evidence": "mpps",
        "measures": {"air": 0.25},
        "engine": engine,
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


def not_analysed(reason: Reason) -> ReportContext:
    return context(conclusion=Conclusion.NOT_ANALYSED, reason=reason, detail="slice 7 of 12", extent=None)


def key_image() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 255, (512, 512, 3), dtype=np.uint8)


def three_findings() -> tuple[ReportContext, list[Dataset]]:
    headers = ct_headers()
    return context(findings=[finding(headers[n], 0.9 - n / 10) for n in (2, 5, 7)]), headers


def parsed(built: Built) -> Dataset:
    return pydicom.dcmread(io.BytesIO(built.file_bytes))


def cases() -> Iterator[tuple[str, ReportContext, list[Dataset]]]:
    yield ("ct-three-findings", *three_findings())
    yield "ct-none", context(), ct_headers()
    yield "ct-reference-none", context("reference"), ct_headers()
    yield "ct-late-replaces", replace(context(late=True), predecessor="2.25.7", implausible_clock=True), ct_headers()
    for reason in Reason:
        yield f"ct-{reason}", not_analysed(reason), ct_headers()
    radiograph = film(ComputedRadiographyImageStorage, "CR", "MONOCHROME2")
    yield "cr-finding", context(findings=[finding(radiograph[0])]), radiograph
    inverted = film(ComputedRadiographyImageStorage, "CR", "MONOCHROME1")
    yield "cr-monochrome1", context("reference", findings=[finding(inverted[0])]), inverted
    digital = film(DigitalXRayImageStorageForPresentation, "DX", "MONOCHROME2")
    yield "dx-finding", context(findings=[finding(digital[0])]), digital


CASES = list(cases())
NAMES = [name for name, _, _ in CASES]


def complaints(built: Built, folder: Path) -> list[str]:
    """What dciodvfy finds wrong with an object."""
    path = folder / "object.dcm"
    path.write_bytes(built.file_bytes)
    answer = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False, timeout=30)
    lines = (answer.stdout + answer.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning")) and not allowed(line)]


def allowed(line: str) -> bool:
    """Our own coding scheme is in no table of dciodvfy's: it must call the designator unrecognised."""
    return "Unrecognized defined term = <99SCANSIDE>" in line


@pytest.mark.parametrize(("name", "case", "headers"), CASES, ids=NAMES)
def test_reports_conform(name: str, case: ReportContext, headers: list[Dataset], tmp_path: Path) -> None:
    built = build_sr(case, headers)
    assert (built.kind, built.sop_class_uid) == (Kind.SR, Comprehensive3DSRStorage)
    assert complaints(built, tmp_path) == [], name


@pytest.mark.parametrize("name", ["ct-three-findings", "ct-none", "ct-deadline", "cr-monochrome1", "dx-finding"])
def test_pictures_conform(name: str, tmp_path: Path) -> None:
    _, case, headers = CASES[NAMES.index(name)]
    built = build_picture(case, headers, None if name == "ct-deadline" else key_image())
    assert (built.kind, built.sop_class_uid) == (Kind.SC, SecondaryCaptureImageStorage)
    assert complaints(built, tmp_path) == []
    picture = parsed(built)
    assert list(picture.ImageType) == ["DERIVED", "SECONDARY"]
    assert (picture.ConversionType, picture.BurnedInAnnotation) == ("WSD", "YES")
    assert picture.pixel_array.shape == (picture.Rows, picture.Columns, 3)
    assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID in {h.SOPInstanceUID for h in headers}


def test_a_picture_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted"):
        build_picture(context(), ct_headers(), key_image()[..., 0])


@pytest.mark.parametrize("name", ["ct-three-findings", "ct-incomplete", "cr-finding"])
def test_dcmtk_reads_the_report(name: str, tmp_path: Path) -> None:
    dsrdump = Path("/usr/bin/dsrdump")
    if not dsrdump.exists():
        missing("dsrdump (Debian package dcmtk) is not installed")
    _, case, headers = CASES[NAMES.index(name)]
    path = tmp_path / "report.dcm"
    path.write_bytes(build_sr(case, headers).file_bytes)
    answer = subprocess.run([dsrdump, "+Pl", path], capture_output=True, text=True, check=True, timeout=30)
    assert "Comprehensive 3D SR Document" in answer.stdout
    assert "Conclusion" in answer.stdout
    assert "E: " not in answer.stderr


# --- the same bytes ----------------------------------------------------------------------------------------------


def digests() -> list[str]:
    """Digests of results that between them use everything a result can hold."""
    case, headers = three_findings()
    built = [build_sr(case, headers), build_picture(case, headers, key_image())]
    late = replace(not_analysed(Reason.QUALITY), predecessor="2.25.7", implausible_clock=True)
    built += [build_sr(late, ct_headers()), build_picture(late, ct_headers(), None)]
    return [sha256(one.file_bytes).hexdigest() for one in built]


@pytest.mark.promise("P3")
def test_the_same_bytes_in_another_process_zone_and_moment() -> None:
    environment = {"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "LANG": "C"}
    child = subprocess.run(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        check=True,
        timeout=60,
    )
    assert child.stdout.split() == digests()


@pytest.mark.promise("P3")
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(6)))
def test_the_same_bytes_whatever_the_order_of_headers(order: list[int]) -> None:
    headers = ct_headers(6)
    case = context(findings=[finding(headers[3]), finding(headers[1], 0.6)])
    shuffled = [headers[index] for index in order]
    assert build_sr(case, shuffled).file_bytes == build_sr(case, headers).file_bytes


def test_the_file_is_part_10_and_says_where_its_data_set_begins() -> None:
    built = build_sr(*three_findings())
    assert built.file_bytes[:132] == bytes(128) + b"DICM"
    meta = pydicom.dcmread(io.BytesIO(built.file_bytes)).file_meta
    assert meta.TransferSyntaxUID == built.transfer_syntax_uid == ExplicitVRLittleEndian
    assert meta.ImplementationVersionName == "SCANSIDE"
    data_set = pydicom.filereader.read_dataset(
        io.BytesIO(built.file_bytes[built.data_set_offset :]), is_implicit_VR=False, is_little_endian=True
    )
    assert data_set.SOPInstanceUID == built.sop_instance_uid
    assert data_set.SeriesInstanceUID == built.series_instance_uid


def test_importing_the_package_does_not_load_highdicom() -> None:
    program = "import sys, appliance.stages.report as r; sys.exit('highdicom' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


# --- real files --------------------------------------------------------------------------------------------------

# Reading these files warns: that is what they are for.
reading_warns = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.fixture(scope="module")
def real_cases(real_data: Path) -> dict[str, list[Dataset]]:
    """Headers of each real case whose images an engine could be responsible for, by file name."""
    found: dict[str, list[Dataset]] = {}
    for archive in sorted((real_data / "ct").glob("*.tar.xz")):
        with tarfile.open(archive) as files:
            some = islice((member for member in files if member.isfile()), 30)  # to unpack all takes seconds
            opened = (files.extractfile(member) for member in some)
            found[archive.name] = [pydicom.dcmread(f, stop_before_pixels=True) for f in opened if f]
    for path in sorted([*(real_data / "cxr").glob("*.dcm"), *(real_data / "conformance").glob("*.dcm")]):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if str(dataset.get("Modality")) in ("CT", "CR", "DX", "None") and "StudyInstanceUID" in dataset:
            found[path.name] = [dataset]
    return found


def missing_attribute(line: str) -> bool:
    """Complaints about values that the images themselves leave empty or write so."""
    return "DICOMDIR" in line or "Retired Person Name form" in line


@reading_warns
def test_every_real_header_gives_a_report_and_a_picture(real_cases: dict[str, list[Dataset]]) -> None:
    assert len(real_cases) > 25
    for name, headers in real_cases.items():
        study = str(headers[0].StudyInstanceUID)
        found = replace(context("reference", findings=[finding(headers[0])]), study_instance_uid=study)
        for case in (found, replace(not_analysed(Reason.UNSUITABLE), study_instance_uid=study)):
            report = parsed(build_sr(case, headers))
            evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
            assert len(evidence.ReferencedSOPSequence) == len(headers), name
            assert str(report.PatientID) == str(headers[0].get("PatientID") or ""), name
            assert str(report.PatientName) == str(headers[0].get("PatientName") or ""), name
        picture = parsed(build_picture(found, headers, None))
        assert picture.StudyInstanceUID == study, name


@reading_warns
@pytest.mark.parametrize("name", ["C3N-00247_LUNG3mm.tar.xz", "RG1_UNCR_metastases.dcm", "SIIM_no-pneumothorax.dcm"])
def test_results_on_real_images_conform(name: str, real_cases: dict[str, list[Dataset]], tmp_path: Path) -> None:
    headers = real_cases[name]
    study = str(headers[0].StudyInstanceUID)
    case = replace(context("reference", findings=[finding(headers[0])]), study_instance_uid=study)
    for built in (build_sr(case, headers), build_picture(case, headers, key_image())):
        assert [line for line in complaints(built, tmp_path) if not missing_attribute(line)] == []


if __name__ == "__main__":
    sys.stdout.write("\n".join(digests()))
