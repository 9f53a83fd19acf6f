"""`scanside rehearse` as a site runs it: drills that must pass, one that must not, and the page it files."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.rehearsal import acceptance
from appliance.rehearsal.acceptance import Verdict
from appliance.rehearsal.acceptance_report import Paper, html
from appliance.rehearsal.drills import DRILLS, Drill, Place
from appliance.rehearsal.stage import Cast
from tests.acceptance.rig import ROOT

SHORT = ("aborts in mid-file", "loses its answer", "forgets us")


class Page(HTMLParser):
    """Its table as text, its links, and whether every element that was opened was closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action", "data")]
        self.loads += [tag] if tag in ("script", "link", "img", "iframe") else []
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self._open and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] += data


@pytest.mark.promise("P3", "P7")
def test_the_drills_pass_and_the_report_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance", "rehearse", "--json", "--report", str(tmp_path / "report.html")]
    command += ["--config", str(ROOT / "config" / "scanside.yaml")]
    for name in SHORT:
        command += ["--drill", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["passed"] is True
    assert len(told["config_sha256"]) == 64
    found = {one["drill"]: one for one in told["verdicts"]}
    assert set(found) == set(SHORT)
    assert all((one["images"], one["results"], one["faults"]) == (9, 2, []) for one in found.values())
    assert [found[name]["happened"] for name in SHORT[:2]] == [2, 2]
    assert found["loses its answer"]["resent"] == 2
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert [row[0] for row in page.rows[1:]] == list(SHORT)
    assert {row[-1] for row in page.rows[1:]} == {"passed"}
    assert page.loads == []
    assert told["config_sha256"] in text
    assert "url(" not in text


def test_a_drill_that_does_not_hold_is_told(tmp_path: Path) -> None:
    """A PACS that refuses an object for good: it is held, and missing there."""

    def refuse(place: Place) -> None:
        place.pacs.refusal, place.pacs.full = 0xA900, 1

    drill = Drill(name="refuses one", what="The PACS refuses an object for good.", begin=refuse, must_happen=1)
    (verdict,) = acceptance.run(tmp_path / "run", Cast(engines_dir=ROOT / "engines"), [drill], lambda _: None)
    assert not verdict.passed
    assert any("held for pacs" in fault for fault in verdict.faults)
    assert "1 objects are not in the PACS" in verdict.faults


def test_the_page_escapes_what_it_is_told_and_a_failure_shows() -> None:
    counts = {"happened": 1, "objects": 2, "images": 1, "results": 1, "resent": 0}
    bad = Verdict(drill="<script>", what="a & b", drained_s=1.0, faults=("1 < 2",), **counts)
    paper = Paper(
        at="2026-01-01", host="h", node="n", version="1", config="<c>", config_sha256="", seconds=1.0, verdicts=[bad]
    )
    text = html(paper)
    page = Page(text)
    assert page.loads == []
    assert page.rows[1] == ["<script>", "a & b", "1", "2", "0", "1.0", "failed: 1 < 2"]
    assert "NOT ALL DRILLS PASSED" in text


def test_an_unknown_drill_names_those_there_are() -> None:
    command = [sys.executable, "-m", "appliance", "rehearse", "--drill", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert all(drill.name in done.stderr for drill in DRILLS)
