"""scripts/bench.py: what it accepts and prints, and that what it measures with is what it says. Not the figures."""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from benchmarks import big_journal, machine, rig, studies
from benchmarks.report import BenchError, Report, quantile
from benchmarks.timeline import TIMER_TICK_MS, follow
from benchmarks.traffic import FRAME_BYTES, SPACING_MM, CtSeries, write_multiframe
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from appliance.dimse.header import part10
from appliance.journal import inbox, outbox
from appliance.journal.store import Journal, Subject
from appliance.spool import Reserve, Spool
from tests.missing import missing

BENCH = Path(__file__).parents[2] / "scripts" / "bench.py"


def bench(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_the_benchmarks_and_the_exit_codes() -> None:
    said = bench("--help")
    assert said.returncode == 0
    for words in ("latency", "scale", "--quick", "--json", "--data", "Exit codes"):
        assert words in said.stdout


@pytest.mark.parametrize("arguments", [[], ["no-such-benchmark"], ["scale", "--no-such-option"]])
def test_a_wrong_command_line_is_told(arguments: list[str]) -> None:
    said = bench(*arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert "usage: bench.py" in said.stderr


def test_it_refuses_a_disk_in_memory() -> None:
    memory = Path("/dev/shm")  # noqa: S108 - never written to
    if not memory.is_dir() or machine.file_system(memory) not in machine.IN_MEMORY:
        missing("no /dev/shm in memory here")
    said = bench("scale", TMPDIR=str(memory))
    assert said.returncode == 2
    assert "syncs cost nothing there. Set TMPDIR" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="are needed"):
        machine.need_disk(tmp_path, 1e18)


def test_a_missing_program_is_told_with_its_cure() -> None:
    with pytest.raises(BenchError, match=r"no-such-scu is not installed: .* apt-get install dcmtk"):
        rig.program("no-such-scu")


def test_facts_of_the_machine_are_measured_here(tmp_path: Path) -> None:
    facts = machine.facts(tmp_path)
    assert {"cores", "load_1min", "file_system", "fdatasync_ms"} <= facts.keys()
    assert float(facts["fdatasync_ms"]) > 0


def report() -> Report:
    made = Report()
    made.row("stages", "prepare", ct=12.5, cr=None)
    made.row("stages", "never measured", ct=math.nan, cr=3)
    made.goal("quick enough", 1.0, 0.25, "s")
    made.notes.append("one note")
    return made


def test_the_json_form() -> None:
    made = report()
    document = json.loads(made.as_json({"benchmark": "latency", "machine": {"cores": 2}}))
    assert document["machine"] == {"cores": 2}
    assert document["rows"] == [
        {"table": "stages", "name": "prepare", "ct": 12.5, "cr": None},
        {"table": "stages", "name": "never measured", "ct": None, "cr": 3},
    ]
    (goal,) = document["goals"]
    assert {key: goal[key] for key in ("name", "goal", "measured", "met")} == {
        "name": "quick enough",
        "goal": 1.0,
        "measured": 0.25,
        "met": True,
    }
    assert document["notes"] == ["one note"]


def test_a_goal_is_missed_by_more_and_by_no_measurement() -> None:
    made = report()
    assert made.met
    made.goal("too slow", 1.0, 1.01, "s")
    assert not made.met
    made = report()
    made.goal("not measured", 1.0, math.nan, "s")
    assert not made.met
    assert json.loads(made.as_json({}))["goals"][1]["measured"] is None


def test_the_tables_say_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    made = report()
    made.goal("too slow", 1.0, 1.01, "s")
    made.show({"machine": {"cores": 2}})
    said = capsys.readouterr().out
    for words in ("prepare", "12.5", "quick enough", "met", "too slow", "1.01 s", "MISSED", "one note", "cores 2"):
        assert words in said


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


def test_slices_of_a_made_series_differ_in_what_must_differ(tmp_path: Path) -> None:
    with closing(CtSeries(tmp_path, key=7)) as series:
        first = dcmread(series.slice(0).path)
        item = series.slice(1234)
        other = dcmread(item.path)
    assert first.SOPInstanceUID != other.SOPInstanceUID == item.sop_instance_uid
    assert (first.StudyInstanceUID, first.SeriesInstanceUID) == (other.StudyInstanceUID, other.SeriesInstanceUID)
    assert int(other.InstanceNumber) == 1234
    assert float(other.ImagePositionPatient[2]) - float(first.ImagePositionPatient[2]) == 1234 * SPACING_MM
    assert first.PixelData == other.PixelData
    assert list(tmp_path.iterdir()) == []


def test_a_made_multiframe_object_is_whole_and_takes_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "multiframe.dcm"
    write_multiframe(path, frames=64)
    made = dcmread(path, defer_size=1024)
    assert made.NumberOfFrames == 64
    assert len(made.PixelData) == 64 * FRAME_BYTES
    assert path.stat().st_blocks * 512 < FRAME_BYTES
    assert part10(path).size > 64 * FRAME_BYTES


@pytest.mark.parametrize("stated_count", [False, True])
def test_a_fresh_copy_is_the_same_image_under_new_uids(tmp_path: Path, *, stated_count: bool) -> None:
    case = studies.cr_case(tmp_path / "no-cases-here", tmp_path / "cr")
    study = studies.fresh_copy(case, tmp_path / "copy", stated_count=stated_count)
    before, after = dcmread(case.files[0]), dcmread(next((tmp_path / "copy").iterdir()))
    assert case.what == "phantom CR"
    assert after.StudyInstanceUID == study != before.StudyInstanceUID
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != before.SOPInstanceUID
    assert after.PixelData == before.PixelData
    assert after.get("NumberOfSeriesRelatedInstances") == (1 if stated_count else None)


def test_a_timeline_adds_up(tmp_path: Path) -> None:
    subject = Subject(study_instance_uid="1.2", series_instance_uid="1.2.3")
    report_of_it = Subject(study_instance_uid="1.2", series_instance_uid="1.2.4", sop_instance_uid="1.2.4.5")
    spent = {"prepare": 2.0, "infer": 3.0, "run": 1.0, "conclude": 0.5}
    with closing(Journal(tmp_path / "journal.sqlite", "test")) as journal:
        with journal.write(durable=False) as tx:
            begun = tx.tick
            for event, detail in (
                ("received", {}),
                ("series_closed", {"evidence": "count"}),
                ("job_ready", {}),
                ("job_running", {}),
                ("job_concluded", {"conclusion": "finding", "timings_ms": spent}),
            ):
                tx.history(event, subject, **detail)
            tx.history("result_built", report_of_it, kind="sr")
        (tmp_path / "SRc.1.2.4.5").touch()
        found = follow(journal, "1.2", tmp_path, silence_ms=5000.0)
        elapsed = journal.clock.tick() - begun
    assert (found.early, found.straddled, found.conclusion) == (False, False, "finding")
    assert found.timeline.wait_for_evidence == 0
    assert found.timeline.run == 1.0
    assert found.timeline.hand_over == 2.0
    # A file's time is that of the last timer tick: up to one too early.
    assert -TIMER_TICK_MS <= found.timeline.ours + found.timeline.run <= elapsed + TIMER_TICK_MS + 1


def test_the_journal_of_years_is_one_that_the_appliance_knows(tmp_path: Path) -> None:
    sizes = big_journal.Sizes(instances=900, owed=200)
    big_journal.build(tmp_path / "state", sizes)
    spool = Spool(tmp_path / "state" / "spool", "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
    with closing(Journal(tmp_path / "state" / "journal.sqlite", "test")) as journal:
        assert spool.owner() == journal.identity
        assert len(spool.files()) == 200
        assert inbox.unknown_files(journal, spool.files()) == []
        assert inbox.count_instances(journal) == 900
        owed = outbox.next_queued(journal, "pacs", 1000)
        assert len(owed) == 200
        assert all(spool.has(delivery.file) for delivery in owed)
        asked = Report()
        for question in big_journal.questions(journal, sizes):
            big_journal.ask(asked, question)
    assert len(asked.goals) == len(asked.rows) > 5


def test_dcmtk_is_dcmtk_though_pynetdicoms_tools_of_the_same_names_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(ours))
    for name in ("storescu", "storescp", "echoscu"):
        assert (ours / name).exists()
        assert rig.program(name).parent != ours
