"""A real study the whole way: DCMTK as the scanner, the appliance, Orthanc as the PACS."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from appliance.engine_package import load
from tests.acceptance.conftest import Storescu
from tests.acceptance.orthanc import Orthanc
from tests.acceptance.rig import (
    ROOT,
    SCANNER,
    Appliance,
    Original,
    data_set,
    engines,
    hashes,
    node,
    report_texts,
    settings,
)
from tests.waiting import eventually

DCIODVFY = Path(sys.executable).with_name("dciodvfy")  # of the package dicom3tools
DCMCONV = Path("/usr/bin/dcmconv")
SOP_CLASSES = {"SR": "1.2.840.10008.5.1.4.1.1.88.34", "OT": "1.2.840.10008.5.1.4.1.1.7"}
VERIFIED_S = 90.0
ARRIVED_S = 90.0


def complaints(path: Path) -> set[str]:
    """What dciodvfy, an independent judge of IODs, has against an object."""
    judged = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, check=False, timeout=30)
    lines = (judged.stdout + judged.stderr).splitlines()
    ours = "Unrecognized defined term = <99SCANSIDE>"  # our own coding scheme is in none of its tables
    return {line for line in lines if line.startswith(("Error", "Warning")) and ours not in line}


def encoded_as_dcmtk_does(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The same with explicit lengths of sequences: storescu sends those, whatever it reads; here it changes nothing."""
    folder.mkdir()
    for path in paths:
        subprocess.run([DCMCONV, "+e", path, folder / path.name], check=True, timeout=30)
    return sorted(folder.iterdir())


@pytest.mark.promise("P3")
@pytest.mark.promise("P8")
@pytest.mark.promise("P10")
@pytest.mark.promise("P11")
@pytest.mark.timeout(240)
def test_a_real_study_arrives_byte_for_byte_and_its_results_are_clean(
    work: Path, lung_ct: Original, orthanc: Orthanc, storescu: Storescu, figure: Callable[[str], None]
) -> None:
    scans = encoded_as_dcmtk_does(lung_ct.write(work / "original"), work / "scans")
    config = settings(
        node("pacs", orthanc.port, accept_reference=True),
        engines=engines("publish"),
        series={"silence_s": {"CT": 2}},
    )
    with Appliance(work / "appliance", config) as appliance:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
        sent = storescu("-aet", SCANNER, "-aec", "SCANSIDE", "+sd", "127.0.0.1", appliance.port, work / "scans")
        assert sent.returncode == 0, sent.stderr
        eventually(lambda: len(orthanc.instances()) >= len(scans) + 2, ARRIVED_S, "images and results are in Orthanc")
        eventually(lambda: not appliance.owed(), 10)
        assert not appliance.number("SELECT count(*) FROM delivery WHERE state<>'delivered'")
        assert_history_tells_all_of_it(appliance, len(scans))
        assert_no_patient_data(appliance, dcmread(scans[0], stop_before_pixels=True))
        figure(f"real case: SR at the PACS {seconds_after_the_last_image(appliance):.2f} s after the last image")

    stored = {path: data_set(path) for path in orthanc.files(work / "stored")}
    results = [path for path, one in stored.items() if one.sop_instance_uid not in hashes(scans)]
    assert len(results) == 2
    images = {one.sop_instance_uid: one.sha256 for path, one in stored.items() if path not in results}
    assert images == hashes(scans)
    inherited = complaints(scans[0])  # patient and study attributes are copied as they are
    by_modality = {dcmread(path).Modality: path for path in results}
    assert {modality: dcmread(path).SOPClassUID for modality, path in by_modality.items()} == SOP_CLASSES
    for modality, path in by_modality.items():
        assert complaints(path) <= inherited, modality
        assert dcmread(path).StudyInstanceUID == dcmread(scans[0], stop_before_pixels=True).StudyInstanceUID
    told = report_texts(by_modality["SR"])
    assert any(text.startswith("Read: 99 slices") for text in told), "what was read is told"
    assert f"model sha256: {load(ROOT / 'engines' / 'ct-lesion').model_sha256}" in told, "and what read it"


def seconds_after_the_last_image(appliance: Appliance) -> float:
    row = appliance.query(
        "SELECT (SELECT max(d.settled_tick) FROM delivery d JOIN instance i ON i.id=d.instance WHERE i.kind='sr') - "
        "(SELECT max(tick) FROM instance WHERE kind='image')"
    )[0]
    return int(row[0]) / 1000


def assert_history_tells_all_of_it(appliance: Appliance, images: int) -> None:
    events = Counter(row["event"] for row in appliance.query("SELECT event FROM history"))
    once = ("job_waiting", "series_closed", "job_ready", "job_concluded", "job_reported")
    wanted = {"received": images, "delivered": images + 2, "result_built": 2} | dict.fromkeys(once, 1)
    assert {event: events[event] for event in wanted} == wanted


def assert_no_patient_data(appliance: Appliance, header: Dataset) -> None:
    """Neither in the log nor in the journal nor in what `status` reads; the spool holds the images themselves."""
    keywords = (
        "PatientName",
        "PatientID",
        "AccessionNumber",
        "StudyDescription",
        "SeriesDescription",
        "PatientBirthDate",
    )
    canaries = [str(header.get(keyword, "")).encode() for keyword in keywords]
    places = [appliance.log_path, *appliance.state.glob("journal.sqlite*"), *(appliance.state / "run").glob("*.json")]
    for place in places:
        content = place.read_bytes()
        assert not [canary for canary in canaries if len(canary) > 3 and canary in content], place.name
