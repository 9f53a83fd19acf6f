"""Acknowledged is durable, proven by the power-cut rig: its own command, a short run of everything it can do."""

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from power_cuts.guest import missing_parts

from tests.acceptance.rig import ROOT
from tests.missing import missing

CUTS, POINTS, FAULTS = 10, 60, 1
RUNS_WITHIN_S = 600

pytestmark = pytest.mark.timeout(RUNS_WITHIN_S + 30)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the rig printed."""

    status: int
    document: dict[str, Any]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.document["rows"] if row["kind"] == kind]

    def total(self, column: str, name: str) -> int:
        """Of a column, over the product's rows of this name."""
        return sum(row[column] for row in self.rows("product") if name in row["name"])


@pytest.fixture(scope="module")
def rig() -> Run:
    if platform.machine() != "x86_64":
        pytest.skip("there is no User-mode Linux for this processor")
    if parts := missing_parts():
        missing(f"the power-cut rig needs {', '.join(parts)}")
    arguments = ["--cuts", str(CUTS), "--points", str(POINTS), "--faults", str(FAULTS), "--jobs", "2", "--json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "powercut", *arguments],
        capture_output=True,
        text=True,
        timeout=RUNS_WITHIN_S,
        check=False,
    )
    assert done.stdout, done.stderr
    return Run(done.returncode, json.loads(done.stdout))


def test_the_rig_proved_what_it_set_out_to_prove(rig: Run) -> None:
    assert [goal for goal in rig.document["goals"] if not goal["met"]] == []
    assert rig.status == 0
    assert rig.document["seed"]
    assert rig.document["date"]


@pytest.mark.promise("P1")
def test_nothing_acknowledged_is_lost_or_torn_by_a_power_cut(rig: Run) -> None:
    assert rig.total("trials", "power cuts") == CUTS
    assert rig.total("acked", "power cuts") > CUTS
    assert rig.total("lost", "power cuts") == rig.total("torn", "power cuts") == 0


@pytest.mark.promise("P12")
def test_every_start_after_a_cut_ends_well_with_nothing_half_visible(rig: Run) -> None:
    for column in ("starts_failed", "half_visible", "unsound", "unclean"):
        assert rig.total(column, "") == 0, column


@pytest.mark.promise("P1")
@pytest.mark.parametrize("order", ["in order", "reordered"])
def test_nothing_acknowledged_is_missing_at_any_write_of_a_recording(rig: Run, order: str) -> None:
    assert rig.total("trials", f"crash points {order}") >= POINTS
    assert rig.total("acked", f"crash points {order}") > 0
    assert rig.total("lost", f"crash points {order}") == rig.total("torn", f"crash points {order}") == 0


@pytest.mark.promise("P1")
def test_nothing_is_acknowledged_by_a_disk_that_fails_its_syncs_nor_lost_once_it_is_whole(rig: Run) -> None:
    assert rig.total("acked", "failing disks") > 0
    assert rig.total("lost", "failing disks") == rig.total("torn", "failing disks") == 0
    measured = {goal["name"]: goal["measured"] for goal in rig.document["goals"]}
    assert measured["failing disks: refusals"] > 0
    assert measured["failing disks: acknowledged after the first refusal"] == 0
    assert measured["failing disks: did not end as latched"] == 0


@pytest.mark.parametrize(
    "control", ["no fsync", "rename, no directory fsync", "synchronous=NORMAL", "a disk that lies"]
)
def test_each_control_loses_what_it_acknowledged(rig: Run, control: str) -> None:
    found = [row for row in rig.rows("control") if control in row["name"]]
    assert found
    assert all(row["lost"] + row["torn"] > 0 for row in found)
