"""A lane to a PACS that takes only Implicit VR Little Endian: what history says was sent, and what a bad file costs."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from appliance.config import load
from appliance.destinations.dimse import DimseNode
from appliance.destinations.reencoding import Reencoder, Workshop
from appliance.destinations.reencoding_rules import Rules
from appliance.dimse.wire import Target
from appliance.journal.history import trace
from appliance.journal.store import Journal
from appliance.runtimes.recoder import ChildRecoder, RecoderSettings
from appliance.stages.forward import Lane, Outbox
from appliance.wiring.lanes import lanes
from tests.integration.test_overtaking import running
from tests.journals import arrival, open_journal, receive
from tests.missing import missing
from tests.slices import ct_slice, save
from tests.waiting import eventually, listens_at


@pytest.fixture
def implicit_pacs(tmp_path: Path) -> Iterator[int]:
    program = Path("/usr/bin/storescp")
    if not program.exists():
        missing("DCMTK's storescp is not installed")
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    (tmp_path / "pacs").mkdir()
    command = [str(program), "+B", "+uf", "+xi", "-od", str(tmp_path / "pacs"), str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens_at(port), 10)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def owe(journal: Journal, folder: Path, number: int, syntax: UID, *, damaged: bool = False) -> Path:
    pixels = np.random.default_rng(number).integers(0, 4096, (64, 64), np.uint16)
    one = arrival(number, transfer_syntax_uid=str(syntax))
    dataset = ct_slice(number, pixels, SOPInstanceUID=one.sop_instance_uid)
    if syntax == JPEGLSLossless:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    (folder / one.file).parent.mkdir(parents=True, exist_ok=True)
    path = save(folder / one.file, dataset)
    if damaged:
        whole = path.read_bytes()
        path.write_bytes(whole[:-2000] + bytes(1000) + whole[-1000:])
    receive(journal, one)
    return path


@pytest.mark.promise("P3")
@pytest.mark.promise("P11")
def test_history_says_what_was_sent_and_a_damaged_image_holds_only_itself(tmp_path: Path, implicit_pacs: int) -> None:
    journal = open_journal(tmp_path / "journal.db")
    stored = [
        owe(journal, tmp_path, 1, JPEGLSLossless),
        owe(journal, tmp_path, 2, JPEGLSLossless, damaged=True),
        owe(journal, tmp_path, 3, ImplicitVRLittleEndian),
        owe(journal, tmp_path, 4, ExplicitVRLittleEndian),
    ]
    target = Target(host="127.0.0.1", port=implicit_pacs, calling_ae="SCANSIDE", called_ae="PACS", timeout_s=10)
    recoder = ChildRecoder(RecoderSettings(memory_mb=1024, idle_s=0.1))
    shop = Workshop(recoder=recoder, folder=tmp_path / "scratch", check_scratch=lambda _: None)
    box = Outbox(journal=journal, path=lambda file: tmp_path / file, log=lambda *_, **__: None, changed=lambda: None)
    lane = Lane("pacs", DimseNode(target, Reencoder(Rules(), shop)), box)

    def settled() -> bool:
        row = journal.one("SELECT count(*) FROM delivery WHERE state='queued'")
        return row is not None and row[0] == 0

    with running(lane):
        eventually(settled, 20)
    lines = {number: trace(journal, f"1.2.3.4.{number}")[-1] for number in (1, 2, 3, 4)}
    assert [lines[number].event for number in (1, 2, 3, 4)] == ["delivered", "held", "delivered", "delivered"]
    for number in (1, 4):
        assert lines[number].detail["sent_as"] == ImplicitVRLittleEndian
        assert lines[number].detail["sent_bytes"] > 64 * 64 * 2
        assert lines[number].detail["reason"] == ""
    assert "sent_as" not in lines[3].detail
    assert lines[2].detail["reason"].startswith("not taken as stored, and cannot be re-encoded: ")
    arrived = {one.SOPInstanceUID: one for one in map(dcmread, (tmp_path / "pacs").iterdir())}
    assert len(arrived) == 3
    for path in (stored[0], stored[2], stored[3]):
        ours = dcmread(path)
        assert np.array_equal(arrived[ours.SOPInstanceUID].pixel_array, ours.pixel_array)
    eventually(lambda: recoder.pid is None, 5)
    assert list((tmp_path / "scratch").iterdir()) == []
    journal.close()


@pytest.mark.promise("P12")
def test_what_a_start_finds_of_an_earlier_one_is_removed_and_nobody_is_started(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text(
        "state: ./var\nengines: []\ndestinations:\n"
        "  - {name: pacs, kind: dimse, host: 192.0.2.1, port: 104, called_ae: PACS, takes: [image],"
        " compress: lossless}\n"
    )
    config = load(file)
    left = config.state_dir / "recoded" / "pacs" / "7.dcm"
    left.parent.mkdir(parents=True)
    left.touch()
    journal = open_journal(tmp_path / "journal.db")
    box = Outbox(journal=journal, path=lambda file: tmp_path / file, log=lambda *_, **__: None, changed=lambda: None)
    before = {child.pid for child in psutil.Process().children()}
    (lane,) = lanes(config, box, lambda _: None)
    assert not left.exists()
    assert {child.pid for child in psutil.Process().children()} == before
    lane.close()
    journal.close()
