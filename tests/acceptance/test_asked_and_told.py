"""A modality that asks and tells: commitment is reported through kills and its own absence, MPPS closes its series."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.rig import ROOT, SCANNER, Appliance, folder_destination, free_port, settings
from tests.journals import STUDY
from tests.modality import Modality, image
from tests.scanner import Client
from tests.waiting import eventually

NUMBERS = (1, 2, 3)
AT_ONCE_S = 5.0  # silence would take 20


def site(folder: Path, modality: Modality) -> Appliance:
    config = settings(folder_destination("archive", folder / "archive"))
    for peer in config["receive"]["peers"]:
        if peer["ae_title"] == SCANNER:
            peer |= {"commitment": "delivered", "reports_to": f"127.0.0.1:{modality.port}"}
    return Appliance(folder, config)


def status(appliance: Appliance) -> dict[str, Any]:
    command = [sys.executable, "-m", "appliance", "status", "--json", "--config", str(appliance.config_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.promise("P12")
@pytest.mark.promise("P6")
def test_a_modality_is_answered_whoever_is_killed_or_off_meanwhile(tmp_path: Path) -> None:
    modality, step = Modality(SCANNER, port=free_port()), "1.2.3.99.1"
    with site(tmp_path, modality) as appliance:
        assert modality.begin_step(appliance.port, step) == 0
        with Client(appliance.port) as scanner:
            scanner.associate()
            assert [scanner.store(number).status for number in NUMBERS] == [0, 0, 0]
            scanner.release()
        assert modality.ask(appliance.port, [image(number) for number in NUMBERS]) == 0
        assert modality.end_step(appliance.port, step, "COMPLETED", NUMBERS) == 0
        closed = "SELECT evidence FROM series WHERE state='closed'"
        evidence = eventually(lambda: appliance.query(closed), AT_ONCE_S, "the series is closed")
        assert evidence[0][0] == "mpps"

        forward = appliance.process("forward")
        assert forward is not None
        forward.kill()  # whatever of it is done by now: judged, or tried in vain
        eventually(lambda: appliance.number("SELECT count(*) FROM commitment_report") == 1, 30.0, "it is judged")
        eventually(lambda: status(appliance)["reports"].get(SCANNER, {}).get("state") == "backing off", 20.0)
        told = status(appliance)
        assert [(one["calling_ae"], one["count"]) for one in told["journal"]["commitments"]] == [(SCANNER, 1)]
        assert any("does not take our storage commitment report" in one["what"] for one in told["attention"])
        appliance.kill()

        with modality.listening():
            appliance.start()
            report = modality.report()
            assert (report.event_type, sorted(report.committed)) == (1, [image(number) for number in NUMBERS])
            eventually(lambda: appliance.number("SELECT count(*) FROM commitment_report WHERE state='reported'") == 1)
        assert status(appliance)["journal"]["commitments"] == []
        trace = [sys.executable, "-m", "appliance", "trace", STUDY, "--config", str(appliance.config_path)]
        lines = subprocess.run(trace, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        for event in ("performed_step_completed", "commitment_requested", "commitment_judged", "commitment_reported"):
            assert event in lines
    assert len({told.transaction_uid for told in modality.told}) == 1
