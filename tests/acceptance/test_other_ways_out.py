"""Other ways out, from scanner to somebody else's server: by STOW-RS, and while the network is down, on a stick."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.header import part10
from tests.acceptance.orthanc import Orthanc, dicom_web_plugin
from tests.acceptance.rig import ROOT, Appliance, Scanner, settings, small_series
from tests.waiting import eventually

IMAGES = 6
DRAINED_S = 40.0


def data_sets(files: list[Path]) -> dict[str, str]:
    """SOP Instance UID -> SHA-256 of the data set."""
    found = {}
    for file in files:
        head = part10(file)
        found[head.sop_instance_uid] = hashlib.sha256(file.read_bytes()[head.data_set_offset :]).hexdigest()
    return found


def web_destination(orthanc: Orthanc) -> dict[str, Any]:
    return {"name": "web", "kind": "stow", "url": orthanc.web_url, "takes": ["image", "sr", "sc"], "timeout_s": 10}


def export(appliance: Appliance, to: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "appliance", "export", "--owed", "--by", "a person", "--json", "--to", str(to)]
    ran = subprocess.run(
        [*command, "--config", str(appliance.config_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@pytest.mark.promise("P3")
@pytest.mark.promise("P11")
def test_an_outage_is_bridged_by_a_stick_and_ends_with_all_in_orthanc_byte_for_byte(work: Path) -> None:
    images = small_series(work / "images", IMAGES)
    sent = data_sets(images)
    orthanc = Orthanc(work / "orthanc", Plugins=[dicom_web_plugin()])  # not up yet
    with Appliance(work / "box", settings(web_destination(orthanc))) as appliance:
        Scanner(appliance).send(images)
        told = export(appliance, work / "stick")
        assert (told["objects"], told["failed"], told["noted"]) == (IMAGES, [], True)
        assert data_sets([file for file in (work / "stick").rglob("IM*") if file.is_file()]) == sent
        assert appliance.number("SELECT count(*) FROM delivery WHERE state='queued'") == IMAGES

        with orthanc:
            delivered = "SELECT count(*) FROM delivery WHERE state='delivered'"
            eventually(lambda: appliance.number(delivered) == IMAGES, DRAINED_S, "all is delivered, unaided")
            assert data_sets(orthanc.files(work / "got")) == sent
        assert appliance.number("SELECT count(*) FROM history WHERE event='exported'") == 1
