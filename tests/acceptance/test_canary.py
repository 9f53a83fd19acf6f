"""P10: no patient data in log lines, standard error, `status`, `deliveries`, `trace`, files of the run, core files.

A study of marks (tests.canary) goes the whole way: received, refused, read by an engine, reported, delivered, refused
by a PACS that says the patient's name; every process is aborted with core files switched on.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from appliance import phantom
from appliance.dimse.admission import Peer
from appliance.dimse.command import Command
from appliance.dimse.header import part10
from appliance.dimse.services import Caller, Context, Sink
from appliance.errors import DataSetRefused
from tests.acceptance.rig import ROOT, SCANNER, Appliance, Scanner, engines, node, settings
from tests.canary import MARK, hits, hits_in_files, mark, marks_in
from tests.modality import Modality
from tests.scanner import Witness, listening
from tests.waiting import eventually

CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
COMMENT = "ZQPN00100010^ZQGIVEN 18470523"  # what the PACS says of what it refuses
NEEDED_MARKS = 1_000
VERIFIED_S, DONE_S = 90.0, 60.0
PROCESSES = ("receive", "reader", "analyse", "forward", "child")
REFUSED, TRY_AGAIN = 0xA900, 0x0110


class TellingPacs:
    """A storage handler that takes results, and refuses images while it says whose they are."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.refused: list[str] = []

    def begin(self, _: Caller, __: Context, request: Command) -> Sink:
        if request.sop_class_uid == CR_IMAGE:
            self.refused.append(request.sop_instance_uid)
            raise DataSetRefused(TRY_AGAIN if len(self.refused) == 1 else REFUSED, COMMENT)
        return _Kept(self.kept)

    def failed(self, reason: str) -> None:
        raise AssertionError(reason)


class _Kept:
    def __init__(self, kept: list[bytes]) -> None:
        self._kept, self._data = kept, b""

    def write(self, views: Sequence[memoryview]) -> None:
        self._data += b"".join(views)

    def finish(self) -> int:
        self._kept.append(self._data)
        return 0x0000

    def discard(self) -> None:
        self._data = b""


@contextmanager
def core_files_on() -> Iterator[None]:
    """For what is started inside, as far as the limit of this test run goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def core_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob("core*") if path.is_file()]


def films(folder: Path) -> dict[str, Path]:
    """One that an engine reads, and others that are wrong in ways of their own."""
    folder.mkdir()
    phantom.write_cr(folder / "cr", seed=7)
    (source,) = (path for path in (folder / "cr").rglob("*") if path.is_file())
    good = mark(dcmread(source))
    found = {"good": _save(good, folder / "good.dcm")}
    for number, name in enumerate(("cut", "lying", "odd"), 1):
        good.SOPInstanceUID = good.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.4711{number}")
        good.StudyInstanceUID = f"2.25.4712{number}"
        found[name] = _save(good, folder / f"{name}.dcm")
    cut, odd = found["cut"], found["odd"]
    cut.write_bytes(cut.read_bytes()[: part10(cut).data_set_offset + 20_000])
    odd.write_bytes(odd.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00"))
    lying = found["lying"]
    lying.write_bytes(lying.read_bytes().replace(b"2.25.47112", b"2.25.47119", 1))  # another UID than the data set's
    return found


def _save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path)
    return path


def command(appliance: Appliance, *words: str) -> bytes:
    """What one of our commands says, on both channels."""
    line = [sys.executable, "-m", "appliance", *words, "--config", str(appliance.config_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.stdout
    return done.stdout + done.stderr


def go_the_whole_way(appliance: Appliance, pacs: TellingPacs, found: dict[str, Path]) -> None:
    eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
    modality, step = Modality(SCANNER), "2.25.4713"
    told = {"PatientName": COMMENT[:20], "PatientID": "ZQLO00100020", "PatientBirthDate": "18470523"}
    assert modality.begin_step(appliance.port, step, **told) == 0
    assert modality.begin_step(appliance.port, step, **told) != 0  # once more: refused
    scanner = Scanner(appliance)
    for path in found.values():
        scanner.send([path])
    assert set(scanner.refused) == {"2.25.47119"}
    eventually(lambda: len(pacs.kept) >= 3, DONE_S, "the reports are delivered")
    held = "SELECT count(*) FROM delivery WHERE state='held'"
    eventually(lambda: appliance.number(held) >= 2, DONE_S, "the PACS has refused images")


def abort_every_process(appliance: Appliance) -> None:
    for name in PROCESSES:
        eventually(partial(appliance.process, name), 30.0, f"{name} runs")
        process = appliance.process(name)
        assert process is not None
        _abort(process)
    _abort(psutil.Process(appliance.supervisor_pid))


def _abort(process: psutil.Process) -> None:
    process.send_signal(signal.SIGABRT)
    eventually(lambda: not _lives(process), 10.0, "it has ended")


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.mark.promise("P10")
@pytest.mark.timeout(240)
def test_no_mark_of_a_patient_is_in_anything_but_the_objects(work: Path) -> None:
    found = films(work / "films")
    assert marks_in(found["good"]) > NEEDED_MARKS
    pacs = TellingPacs()
    us = Peer(ae_title="SCANSIDE", network=ip_network("127.0.0.1/32"), slots=4)
    with ExitStack() as stack:
        there = stack.enter_context(listening(pacs, Witness(), peers=(us,)))
        destination = node("pacs", there.port, called_ae="SCANSIDE", accept_reference=True)
        stack.enter_context(core_files_on())
        appliance = stack.enter_context(
            Appliance(work / "appliance", settings(destination, engines=engines("publish")))
        )
        go_the_whole_way(appliance, pacs, found)
        study = str(dcmread(found["good"]).StudyInstanceUID)
        words = [["status"], ["deliveries"], ["trace", study], ["trace", "2.25.47121"], ["trace", "2.25.47123"]]
        said = {" ".join(one): command(appliance, *one) for one in words}
        said |= {f"{' '.join(one)} --json": command(appliance, *one, "--json") for one in words}
        run = list((appliance.state / "run").glob("*.json"))
        told = hits_in_files(run)
        outcome = "SELECT outcome FROM job WHERE study_instance_uid=? AND engine LIKE 'cxr%'"
        concluded = json.loads(appliance.query(outcome, study)[0][0])["conclusion"]
        abort_every_process(appliance)
        log = appliance.log_path.read_bytes()
    assert {name: hits(text) for name, text in said.items() if hits(text)} == {}
    assert study.encode() in said[f"trace {study} --json"]  # by these a technician finds the object
    assert concluded in ("finding", "no_finding")
    assert study.encode() not in said["status"] + said["status --json"]
    assert run
    assert told == {}
    assert hits(log) == set()
    assert json.loads(log.splitlines()[0])["event"]  # it is the log
    assert hits_in_files(appliance.state.glob("journal.sqlite*")) == {}
    cores = core_files(ROOT, appliance.folder, appliance.state)
    for core in cores:
        core.unlink()
    assert cores == []
    assert any(MARK.search(report) for report in pacs.kept)  # in the results they must be


def test_a_process_that_does_nothing_about_it_leaves_a_core_file(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"core files go elsewhere here: {pattern}")
    with core_files_on():
        subprocess.run([sys.executable, "-c", "import os; os.abort()"], cwd=tmp_path, check=False)
    assert core_files(tmp_path)
    for core in core_files(tmp_path):
        core.unlink()
