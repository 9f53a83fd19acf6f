"""A latch that one process sets stops all of them, and none writes until receive has proved the disk (P1)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.config import Config
from appliance.errors import StoreFailed
from appliance.journal.store import Journal
from appliance.wiring.common import EX_LATCHED, EX_OK, latching, open_spool
from tests.journals import TO_PACS, arrival, receive
from tests.scanner import part10
from tests.sweeping import Call, Station
from tests.tracing import STRACE, environment
from tests.waiting import eventually

REASON = "cannot sync received/000000/000000007.dcm: Input/output error"


class Box:
    """A state folder in which one image is owed to a folder, and single processes on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.pacs = folder, folder / "var", folder / "pacs"
        self.latch = self.state / "spool" / "latched"
        self.pacs.mkdir()
        settings = {
            "state": str(self.state),
            "engines_dir": str(folder),
            "reserve": {"free_mb": 1, "free_inodes": 0, "journal_mb": 1},
            "receive": {"port": 0},
            "destinations": [{"name": "pacs", "kind": "folder", "path": str(self.pacs), "takes": ["image"]}],
        }
        (folder / "scanside.yaml").write_text(yaml.safe_dump(settings))
        self.spool = open_spool(Config.model_validate(settings | {"destinations": []}), "received")
        (self.state / "run").mkdir()
        self.owe(1)

    def owe(self, number: int) -> None:
        folder = self.spool.path("received/000000")
        folder.mkdir(exist_ok=True)
        file = part10(folder, number)
        journal = Journal(self.state / "journal.sqlite", "test")
        self.spool.own(journal.identity)
        receive(journal, arrival(number, file=f"received/000000/{file.name}"), owed=(TO_PACS,))
        journal.close()

    @contextmanager
    def process(self, name: str, *before: str) -> Iterator["subprocess.Popen[bytes]"]:
        command = [
            *before,
            sys.executable,
            "-m",
            "appliance.daemon",
            name,
            "--config",
            str(self.folder / "scanside.yaml"),
        ]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment(), stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def said(self, event: str) -> bool:
        return any(line["event"] == event for line in self.lines())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def delivered(self) -> int:
        return len(list(self.pacs.rglob("*.dcm")))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("name", "at_work"), [("forward", "forwarding"), ("analyse", "analysing")])
def test_whoever_runs_ends_when_another_latches(box: Box, name: str, at_work: str) -> None:
    with box.process(name) as process:
        eventually(lambda: box.said(at_work), 20.0, "it is at work")
        box.latch.write_text(REASON)
        assert process.wait(20.0) == EX_LATCHED
    assert box.latch.read_text() == REASON


@pytest.mark.promise("P1")
@pytest.mark.parametrize("name", ["forward", "analyse"])
def test_who_is_started_while_it_is_latched_writes_nothing_until_it_is_proved(box: Box, name: str) -> None:
    box.latch.write_text(REASON)
    journal = [box.state / "journal.sqlite", box.state / "journal.sqlite-wal"]
    before = [file.read_bytes() for file in journal if file.exists()]
    with box.process(name) as process:
        eventually(lambda: box.said("latched"), 20.0, "it waits")
        assert [line["reason"] for line in box.lines()] == [REASON]
        assert [file.read_bytes() for file in journal if file.exists()] == before
        assert box.delivered() == 0
        box.latch.unlink()
        eventually(lambda: box.said("forwarding" if name == "forward" else "analysing"), 20.0, "it goes to work")
        if name == "forward":
            eventually(lambda: box.delivered() == 1, 20.0, "what is owed is delivered")
        process.terminate()
        assert process.wait(20.0) == EX_OK


@pytest.mark.promise("P1")
def test_who_waits_for_the_proof_can_be_told_to_end(box: Box) -> None:
    box.latch.write_text(REASON)
    with box.process("forward") as process:
        eventually(lambda: box.said("latched"), 20.0, "it waits")
        process.terminate()
        assert process.wait(20.0) == EX_OK
    assert box.latch.exists()


@pytest.mark.promise("P1")
@pytest.mark.parametrize("name", ["forward", "analyse"])
def test_a_sync_that_fails_in_any_process_latches_for_all(box: Box, name: str) -> None:
    assert STRACE is not None
    wal = str(box.state / "journal.sqlite-wal")
    inject = ["-e", "trace=fdatasync,pwrite64", "-e", "inject=fdatasync,pwrite64:error=EIO", "-P", wal]
    with box.process(name, STRACE, "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, *inject) as process:
        if name == "analyse":
            eventually(lambda: box.said("analysing") or process.poll() is not None, 30.0, "it is at work")
        assert process.wait(30.0) not in (EX_OK, None)
    assert "disk I/O error" in box.latch.read_text()


@pytest.mark.promise("P1")
def test_a_failure_before_there_are_workers_latches_unless_it_is_another_journals(tmp_path: Path) -> None:
    spool = open_spool(Config(state=tmp_path), "received")
    with pytest.raises(StoreFailed), latching(spool):
        raise StoreFailed("the spool's files belong to another journal")
    with pytest.raises(PermissionError), latching(spool):
        raise PermissionError(13, "not yours")
    assert spool.latched() == ""
    with pytest.raises(OSError, match="Input/output"), latching(spool):
        raise OSError(5, "Input/output error")
    assert "Input/output" in spool.latched()
    spool.prove(spool.latched_at())
    failed = StoreFailed("cannot sync")
    failed.__cause__ = OSError(5, "Input/output error")
    with pytest.raises(StoreFailed), latching(spool):
        raise failed
    assert spool.latched() == "cannot sync"


@pytest.mark.promise("P1")
def test_a_disk_that_fails_again_while_it_is_proved_is_proved_again(tmp_path: Path) -> None:
    """All the while images are refused; then the same process goes on to take them."""
    station = Station.new(tmp_path / "station")
    assert station.sound([1]).acknowledged == {1}
    station.latch.write_text(REASON)
    run = station.disturbed([2], Call("fsync", "var/spool/probe", 1, 1), "EIO", heals=True)
    assert {status for _, status in run.told} == {0xA700, 0}
    assert run.told[-1] == (2, 0)
    assert run.exit_code == EX_OK
    assert station.log().count("still_latched") == 1
    assert station.faults({1, 2}) == []
