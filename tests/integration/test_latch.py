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
from appliance.disk import forget_pages
from appliance.errors import StoreFailed
from appliance.journal.store import Journal
from appliance.latch import MEMORY
from appliance.wiring.common import EX_LATCHED, EX_OK, latching, open_spool
from tests.journals import TO_PACS, arrival, receive
from tests.scanner import part10
from tests.small_disks import ext4, memory, needs_root, run
from tests.sweeping import Call, Station
from tests.tracing import STRACE, environment
from tests.waiting import eventually

REASON = "cannot sync received/000000/000000007.dcm: Input/output error"
IN_TIME_S = 60.0  # a process has loaded all it needs by then, on a busy machine, too


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
        whole, _, _ = (self.folder / "log").read_text().rpartition("\n")  # the last line may still be under way
        return [json.loads(line) for line in whole.splitlines()]

    def delivered(self) -> int:
        return len(list(self.pacs.rglob("*.dcm")))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("name", "at_work"), [("forward", "forwarding"), ("analyse", "analysing")])
def test_whoever_runs_ends_when_another_latches(box: Box, name: str, at_work: str) -> None:
    with box.process(name) as process:
        eventually(lambda: box.said(at_work), IN_TIME_S, "it is at work")
        box.latch.write_text(REASON)
        assert process.wait(IN_TIME_S) == EX_LATCHED
    assert box.latch.read_text() == REASON


@pytest.mark.promise("P1")
@pytest.mark.parametrize("name", ["forward", "analyse"])
def test_who_is_started_while_it_is_latched_writes_nothing_until_it_is_proved(box: Box, name: str) -> None:
    box.latch.write_text(REASON)
    journal = [box.state / "journal.sqlite", box.state / "journal.sqlite-wal"]
    before = [file.read_bytes() for file in journal if file.exists()]
    with box.process(name) as process:
        eventually(lambda: box.said("latched"), IN_TIME_S, "it waits")
        assert [line["reason"] for line in box.lines()] == [REASON]
        assert [file.read_bytes() for file in journal if file.exists()] == before
        assert box.delivered() == 0
        box.latch.unlink()
        eventually(lambda: box.said("forwarding" if name == "forward" else "analysing"), IN_TIME_S, "it goes to work")
        if name == "forward":
            eventually(lambda: box.delivered() == 1, IN_TIME_S, "what is owed is delivered")
        process.terminate()
        assert process.wait(IN_TIME_S) == EX_OK


@pytest.mark.promise("P1")
def test_who_waits_for_the_proof_can_be_told_to_end(box: Box) -> None:
    box.latch.write_text(REASON)
    with box.process("forward") as process:
        eventually(lambda: box.said("latched"), IN_TIME_S, "it waits")
        process.terminate()
        assert process.wait(IN_TIME_S) == EX_OK
    assert box.latch.exists()


@pytest.mark.promise("P1")
@pytest.mark.parametrize("name", ["forward", "analyse"])
def test_a_sync_that_fails_in_any_process_latches_for_all(box: Box, name: str) -> None:
    assert STRACE is not None
    wal = str(box.state / "journal.sqlite-wal")
    inject = ["-e", "trace=fdatasync,pwrite64", "-e", "inject=fdatasync,pwrite64:error=EIO", "-P", wal]
    with box.process(name, STRACE, "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, *inject) as process:
        if name == "analyse":
            eventually(lambda: box.said("analysing") or process.poll() is not None, IN_TIME_S, "it is at work")
        assert process.wait(IN_TIME_S) not in (EX_OK, None)
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


# Where the disk takes not even the latch


def in_memory() -> set[Path]:
    return set((MEMORY / f"scanside-{os.geteuid()}").glob("*-*-*"))


@pytest.fixture
def marks() -> Iterator[set[Path]]:
    """What a test leaves in memory goes with it."""
    before = in_memory()
    yield before
    for one in in_memory() - before:
        one.unlink()


@pytest.mark.promise("P1")
def test_a_disk_that_is_read_only_by_now_is_latched_for_all_the_same(tmp_path: Path, marks: set[Path]) -> None:
    with memory(tmp_path / "disk", 8, 200):
        spool = open_spool(Config(state=tmp_path / "disk"), "received")
        run("mount", "-o", "remount,ro", tmp_path / "disk")
        spool.latch(REASON)
        assert not (spool.root / "latched").exists()
        code = (
            "import sys; from pathlib import Path; from appliance.latch import latched; print(latched(Path('spool')))"
        )
        said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path / "disk", env=environment())
        assert said.decode().strip() == REASON
        with pytest.raises(StoreFailed, match="Read-only"):
            spool.prove(spool.latched_at())
        assert spool.latched() == REASON
        run("mount", "-o", "remount,rw", tmp_path / "disk")
        spool.prove(spool.latched_at())
        assert spool.latched() == ""
    assert in_memory() == marks


@pytest.mark.promise("P1")
def test_the_next_start_proves_the_disk_where_the_latch_could_not_be_written(box: Box, marks: set[Path]) -> None:
    assert STRACE is not None
    box.latch.symlink_to("/nowhere/latched")  # cannot be written, whoever tries
    wal = str(box.state / "journal.sqlite-wal")
    inject = ["-e", "trace=fdatasync,pwrite64", "-e", "inject=fdatasync,pwrite64:error=EIO", "-P", wal]
    with box.process("analyse") as other:
        eventually(lambda: box.said("analysing"), IN_TIME_S, "it is at work")
        with box.process("forward", STRACE, "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, *inject) as failing:
            assert failing.wait(IN_TIME_S) not in (EX_OK, None)
        assert other.wait(IN_TIME_S) == EX_LATCHED
    assert "disk I/O error" in box.spool.latched()
    with box.process("forward") as waiting, box.process("receive") as receive:
        eventually(lambda: box.said("healed"), IN_TIME_S, "the disk is proved")
        eventually(lambda: box.delivered() == 1, IN_TIME_S, "what is owed is delivered")
        for process in (waiting, receive):
            process.terminate()
            assert process.wait(IN_TIME_S) == EX_OK
    assert [line["event"] for line in box.lines() if line["event"] in ("latched", "healed")][-1] == "healed"
    assert in_memory() == marks


@pytest.mark.promise("P9")
def test_a_mark_that_a_stranger_made_is_not_believed(tmp_path: Path, marks: set[Path]) -> None:
    needs_root()
    spool = open_spool(Config(state=tmp_path), "received")
    (spool.root / "latched").symlink_to("/nowhere/latched")
    spool.latch(REASON)
    assert spool.latched() == REASON
    mine = MEMORY / f"scanside-{os.geteuid()}"
    try:
        mine.chmod(0o777)  # anybody could have made it
        assert spool.latched() == ""
        spool.prove(spool.latched_at())
        assert in_memory() - marks
    finally:
        mine.chmod(0o700)
    assert spool.latched() == REASON


def test_a_latch_in_no_known_encoding_is_a_latch(tmp_path: Path) -> None:
    spool = open_spool(Config(state=tmp_path), "received")
    (spool.root / "latched").write_bytes(b"\xff\xfe broken")
    assert "broken" in spool.latched()
    spool.prove(spool.latched_at())
    assert spool.latched() == ""
    spool.latch("\udcff surrogates \N{SNOWMAN}")
    assert "surrogates" in spool.latched()


@pytest.mark.promise("P1")
def test_a_mark_is_as_good_as_a_latch(tmp_path: Path, marks: set[Path]) -> None:
    """One that is set while the disk is proved stays; who dies while it is lifted has proved nothing."""
    spool = open_spool(Config(state=tmp_path), "received")
    (spool.root / "latched").symlink_to("/nowhere/latched")
    spool.latch("")
    begun = spool.latched_at()
    spool.latch("again, and\nagain " + "x" * 5000)
    assert begun != spool.latched_at()
    with pytest.raises(StoreFailed, match="meanwhile a write failed again: again, and again"):
        spool.prove(begun)
    (mark,) = in_memory() - marks
    mark.rename(mark.with_name(mark.name.replace("latched", "lifted")))  # as far as it came
    again = open_spool(Config(state=tmp_path), "received")
    assert again.latched().startswith("again, and again")
    again.prove(again.latched_at())
    assert open_spool(Config(state=tmp_path), "received").latched() == ""


@pytest.mark.promise("P1")
def test_after_a_failed_sync_recover_asks_the_disk_and_not_memory(tmp_path: Path) -> None:
    """What memory has of a file may be what the disk never got."""
    with ext4(tmp_path / "disk", 16):
        file = part10(tmp_path / "disk", 1, bytes(1_000_000))
        assert pages_in_memory(file) > 200
        forget_pages(file)
        assert pages_in_memory(file) == 0
        spool = open_spool(Config(state=tmp_path / "disk" / "var"), "received")
        folder = spool.path("received/000000")
        folder.mkdir()
        file.rename(folder / "000000000.dcm")
        spool.latch(REASON)
        calls = tmp_path / "calls"
        config = tmp_path / "disk" / "scanside.yaml"
        config.write_text("state: ./var\nengines_dir: ./engines\nengines: []\n")
        assert STRACE is not None
        trace = [STRACE, "-f", "-qq", "-y", "-o", str(calls), "-e", "trace=fadvise64"]
        recover = [sys.executable, "-m", "appliance", "recover", "--yes", "--config", str(config), "--json"]
        said = subprocess.check_output([*trace, *recover], env=environment())
    assert json.loads(said)["instances"] == 1
    assert "000000000.dcm>, 0, 0, POSIX_FADV_DONTNEED" in calls.read_text()


def pages_in_memory(file: Path) -> int:
    return int(subprocess.check_output(["fincore", "--noheadings", "--output", "PAGES", str(file)]))
