"""scripts/bench.py ingest: that what it sends, starts and counts is what it says. Not the figures."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import ingest, ingest_counts
from benchmarks.ingest import OURS, RAW, STORESCP, Cell, Measured
from benchmarks.ingest_images import CR_COLUMNS, CR_ROWS, CT_SIZE, Images, make_cr, make_ct
from benchmarks.ingest_receivers import receivers
from benchmarks.ingest_senders import Sending, send
from benchmarks.ingest_tls import make_credentials
from benchmarks.process_tree import Usage
from benchmarks.report import BenchError, Report
from pydicom import dcmread

from tests.missing import missing


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return make_ct(tmp_path_factory.mktemp("images") / "ct", 4)


def test_images_are_the_same_each_time_and_differ_among_themselves(ct: Images, tmp_path: Path) -> None:
    again = make_ct(tmp_path / "ct", 4)
    assert [file.read_bytes() for file in again.files] == [file.read_bytes() for file in ct.files]
    datasets = [dcmread(file) for file in ct.files]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 4
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
    assert len({hashlib.sha256(dataset.PixelData).digest() for dataset in datasets}) == 4
    assert {len(dataset.PixelData) for dataset in datasets} == {CT_SIZE * CT_SIZE * 2}
    (cr,) = make_cr(tmp_path / "cr", 1).files
    assert len(dcmread(cr).PixelData) == CR_ROWS * CR_COLUMNS * 2


def test_each_sender_gets_its_share(ct: Images, tmp_path: Path) -> None:
    folders = ct.dealt(tmp_path, 3)
    names = [path.name for folder in folders for path in folder.iterdir()]
    assert sorted(names) == [file.name for file in ct.files]
    assert [len(list(folder.iterdir())) for folder in ct.dealt(tmp_path, 3)] == [2, 1, 1]


@pytest.mark.parametrize("name", [RAW, STORESCP, "storescp-tuned"])
def test_one_measurement_of_a_receiver(ct: Images, tmp_path: Path, name: str) -> None:
    cell = Cell(images=ct, associations=1 if name == STORESCP else 2, nodelay=True, repeat=2)
    measured = ingest._once(cell, receivers()[name], tmp_path)
    assert measured.seconds > 0
    assert measured.peak_mb > 1
    assert not (tmp_path / "receiver").exists()


def test_what_is_sent_over_plain_tcp_arrives_whole(ct: Images, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    raw = receivers()[RAW]
    with raw.start(kept, None) as running:
        send(raw, running, Sending(folders=ct.dealt(tmp_path, 1)))
        assert sorted(path.read_bytes() for path in kept.iterdir()) == sorted(path.read_bytes() for path in ct.files)


def test_tls_is_spoken_with_the_certificates_made_for_it(ct: Images, tmp_path: Path) -> None:
    tls = make_credentials(tmp_path / "tls")
    cell = Cell(images=ct, associations=1, nodelay=True, tls=tls)
    assert cell.name.endswith("TLS")
    assert ingest._once(cell, receivers()[STORESCP], tmp_path).seconds > 0


def test_ours_is_the_whole_appliance_and_its_syncs_are_counted(ct: Images, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("strace may look at a daemon only as root")
    report = Report()
    ingest_counts.count(report, receivers()[OURS], ct.dealt(tmp_path, 1), tmp_path / "counted", 0.5)
    idle, syncs = report.rows
    assert float(str(idle.figures["percent_of_a_core"])) < 50
    assert float(str(syncs.figures["fdatasync"])) >= 2  # the file, and the journal
    assert float(str(syncs.figures["fsync"])) > 0


def test_a_sender_that_fails_is_told(ct: Images, tmp_path: Path) -> None:
    receiver = receivers()[STORESCP]
    (tmp_path / "kept").mkdir()
    with receiver.start(tmp_path / "kept", None) as running:
        nobody = type(running)(port=1, pid=running.pid, kept=running.kept)
        with pytest.raises(BenchError, match="a sender ended with status"):
            send(receiver, nobody, Sending(folders=ct.dealt(tmp_path, 1)))


def test_a_missing_program_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"openssl is not installed: .* apt-get install openssl"):
        make_credentials(tmp_path / "tls")
    with pytest.raises(BenchError, match=r"strace is not installed: .* apt-get install strace"):
        ingest_counts.count(Report(), receivers()[RAW], [], tmp_path, 0.0)


def test_the_processor_time_of_children_counts_once_they_have_ended() -> None:
    spend = "import time\nwhile time.process_time() < 0.3: pass"
    with Usage(os.getpid()) as usage:
        subprocess.run([sys.executable, "-c", spend], check=True)
    assert 0.25 < usage.cpu_s < 3
    assert usage.peak_mb > 1


def rounds(*seconds: float) -> Sequence[Measured]:
    return [Measured(seconds=one, cpu_s=one / 2, all_cpu_s=one, peak_mb=50.0) for one in seconds]


def test_a_ratio_is_one_of_the_same_round(ct: Images) -> None:
    found = {OURS: rounds(1.0, 4.0, 2.0), STORESCP: rounds(2.0, 10.0, 3.0), RAW: rounds(1.0, 1.0, 1.0)}
    assert ingest._ratio(found, OURS, STORESCP) == (1.5, 2.0, 2.5)
    report = Report()
    ingest._tell(report, Cell(images=ct, associations=1, nodelay=False), found)
    goals = {goal.name.rpartition(": ")[2]: (goal.text, goal.measured, goal.met) for goal in report.goals}
    assert goals["rate, ours to storescp-nd"] == ("at least 2", 2.0, True)
    assert goals["processor time, ours to storescp-nd"] == ("at most 1.5", 0.5, True)
    ours = next(row for row in report.rows if row.name == OURS)
    assert (ours.figures["durable"], ours.figures["of_storescp-nd"], ours.figures["range"]) == ("yes", 2.0, "1.50-2.50")
