"""The systemd unit: what the promises need of it, and how exposed it is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.missing import missing

UNIT = Path(__file__).resolve().parents[2] / "config" / "scanside.service"


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "WatchdogSec=30",
        "OOMPolicy=continue",
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "StartLimitIntervalSec=0",
        "ProtectSystem=strict",
        "DevicePolicy=closed",
        "IPAddressDeny=any",
        "CapabilityBoundingSet=",
        pytest.param("LimitCORE=0", marks=pytest.mark.promise("P10")),
    ],
)
def test_the_unit_says(line: str) -> None:
    assert line in UNIT.read_text().splitlines()


def test_no_comment_shares_a_line_with_a_value() -> None:
    """systemd would take it for a part of the value."""
    assert [line for line in UNIT.read_text().splitlines() if not line.startswith("#") and " #" in line] == []


def test_systemd_knows_every_key_and_finds_the_unit_little_exposed() -> None:
    if not shutil.which("systemd-analyze"):
        missing("no systemd-analyze here")
    said = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False).stderr
    assert not re.search("Unknown|Failed to parse|ignoring", said)  # its exit status says nothing of unknown keys
    security = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(UNIT)]
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0
