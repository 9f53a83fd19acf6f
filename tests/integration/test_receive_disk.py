"""Receive as a process, on a disk that fails: what it says, how it ends, and what its next start makes of it (P1)."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.dimse.association import AssociateAccept
from appliance.journal import copies
from appliance.journal.store import Journal
from appliance.wiring.receive import FILES_AHEAD
from tests.journals import SERIES
from tests.scanner import Client, data_set
from tests.tracing import environment, traced
from tests.waiting import eventually

EX_FAILED, EX_LATCHED = 70, 75
FIRST_FILE = "spool/received/000000/000000000.dcm"


@dataclass(frozen=True, slots=True)
class Scan:
    exit_code: int
    statuses: list[int | None]
    calls: list[str]


class Process:
    """`python -m appliance.daemon receive` on a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "var"
        (folder / "engines").mkdir()
        self.config = folder / "scanside.yaml"
        settings = {
            "state": str(self.state),
            "engines_dir": str(folder / "engines"),
            "receive": {"port": 0, "peers": [{"ae_title": "CT01", "address": "127.0.0.1"}]},
            "reserve": {"free_mb": 1, "free_inodes": 0, "journal_mb": 1},
            "destinations": [
                {"name": "pacs", "kind": "folder", "path": str(folder / "pacs"), "takes": ["image"]},
            ],
        }
        self.config.write_text(yaml.safe_dump(settings))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "appliance.daemon", "receive", "--config", str(self.config)]

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        with subprocess.Popen(self.command, env=environment(), stderr=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.terminate()

    def make_journal(self) -> None:
        """So that the first thing the process writes to it is an arrival."""
        self.state.mkdir()
        Journal(self.state / "journal.sqlite", "test").close()

    def facts(self) -> dict[str, int]:
        """Its port and its pid, once."""
        file = self.state / "run" / "receive.json"
        eventually(file.exists, 20.0, "it listens")
        facts: dict[str, int] = json.loads(file.read_text())
        file.unlink()
        return facts

    def client(self) -> Client:
        client = Client(self.facts()["port"], 20.0)
        assert isinstance(client.associate(), AssociateAccept)
        return client

    def once(self, *numbers: int) -> list[int | None]:
        """Run it, store these images, stop it; returns their statuses."""
        with self.running() as process:
            with self.client() as client:
                eventually(lambda: not self.latch.exists(), what="it has healed")
                statuses = [self._patiently(client, number) for number in numbers]
                client.release()
            process.terminate()
            assert process.wait(10) == 0
        return statuses

    def _patiently(self, client: Client, number: int) -> int | None:
        """As a scanner does: again where there was no room. The latch goes a moment before anything is taken."""
        answers = (client.store(number).status for _ in range(1000))
        return next((status for status in answers if status != 0xA700), 0xA700)

    def traced(
        self, *numbers: int, calls: str = "", inject: str = "", path: str = "", end: int = signal.SIGTERM
    ) -> "Scan":
        """Run it under strace, store these images, end it if it has not ended by itself."""
        statuses: list[int | None] = []

        def scan() -> None:
            facts = self.facts()
            with Client(facts["port"], 20.0) as client:
                assert isinstance(client.associate(), AssociateAccept)
                statuses.extend(client.store(number).status for number in numbers)
                with suppress(ProcessLookupError):
                    os.kill(facts["pid"], end)

        scanner = threading.Thread(target=scan, daemon=True)
        scanner.start()
        run = traced(self.folder, self.command, calls=calls, inject=inject, path=path)
        scanner.join(5.0)
        return Scan(run.status, statuses, run.calls)

    @property
    def latch(self) -> Path:
        return self.state / "spool" / "latched"

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        journal = Journal(self.state / "journal.sqlite", "test")
        try:
            return [tuple(row) for row in journal.query(sql)]
        finally:
            journal.close()

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.state / "spool").glob("received/*/*.dcm"))


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


def test_the_process_receives_and_ends_when_told(process: Process) -> None:
    assert process.once(1, 2) == [0, 0]
    assert process.rows("SELECT destination, state FROM delivery") == [("pacs", "queued")] * 2
    assert len(process.files()) == 2


@pytest.mark.promise("P1")
def test_success_is_the_last_of_all_things(process: Process) -> None:
    run = process.traced(1, 2, calls="openat,writev,fdatasync,fsync,sendto,unlink,rename")
    assert (run.exit_code, run.statuses) == (0, [0, 0])
    steps = [step for call in run.calls if (step := _step(call))]
    first, send = steps.index("create file"), steps.index("send", steps.index("write file"))
    assert steps[first - 1] == "sync area"
    assert steps[first : first + FILES_AHEAD + 1] == ["create file"] * FILES_AHEAD + ["sync folder"]
    stored = ["write file", "write file", "sync file", "sync journal", "send"]
    assert steps[send + 1 : send + 6] == stored
    assert "create file" not in steps[first + FILES_AHEAD + 1 :]
    assert not [call for call in run.calls if "rename" in call and ".dcm" in call]


def _step(call: str) -> str:
    path = call.partition("<")[2].partition(">")[0]
    if "O_EXCL" in call and ".dcm" in call:
        return "create file"
    if call.startswith("writev") and path.endswith(".dcm"):
        return "write file"
    if call.startswith("sendto") and "TCP:" in call:
        return "send"
    if not call.startswith(("fsync", "fdatasync")):
        return ""
    names = {
        ".dcm": "file",
        "received": "area",
        "journal.sqlite-wal": "journal",
        "/var": "journal's folder",
        "000000": "folder",
    }
    return "sync " + next((name for end, name in names.items() if path.endswith(end)), "other")


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    ("inject", "path"),
    [
        ("fdatasync:error=EIO", FIRST_FILE),
        ("fdatasync:error=ENOSPC", FIRST_FILE),  # too late for a mere shortage
        ("fsync:error=EIO", "spool/received/000000"),
        ("writev:error=EIO:when=2", FIRST_FILE),
        ("fdatasync:error=EIO", "journal.sqlite-wal"),
        ("pwrite64:error=EIO", "journal.sqlite-wal"),
    ],
    ids=[
        "sync of the bytes",
        "no space at the sync",
        "sync of the folder",
        "write",
        "sync of the journal",
        "journal write",
    ],
)
def test_a_failed_write_or_sync_is_final(process: Process, inject: str, path: str) -> None:
    """No success, not for what follows either; latched; ended; and healed at the next start."""
    process.make_journal()
    failing = process.traced(1, 2, 3, inject=inject, path=str(process.state / path))
    assert failing.statuses == [0xA700] * 3
    assert failing.exit_code == EX_LATCHED
    assert process.latch.read_text()

    assert process.once(1, 2) == [0, 0]
    assert not process.latch.exists()
    rows = process.rows(
        "SELECT i.sop_instance_uid, i.size, c.file FROM instance i JOIN copy c ON c.instance=i.id ORDER BY 1"
    )
    for uid, size, file in rows:
        number = int(uid.rpartition(".")[2])
        assert (process.state / "spool" / file).read_bytes()[-size:] == data_set(number)
    assert [row[0] for row in rows] == [f"{SERIES}.1", f"{SERIES}.2"]
    assert len(process.files()) == 2
    assert process.rows("SELECT instance, count(*) FROM delivery GROUP BY 1") == [(1, 1), (2, 1)]


@pytest.mark.promise("P1")
def test_a_commit_that_failed_and_is_found_again_has_its_file(process: Process) -> None:
    """The sync of the WAL failed, but what it was to sync came to the disk: the next start finds that commit in it."""
    process.make_journal()
    wal = str(process.state / "journal.sqlite-wal")
    failing = process.traced(1, inject="fdatasync:error=EIO:when=2", path=wal, end=signal.SIGKILL)
    assert failing.statuses == [0xA700]
    assert process.once() == []
    rows = process.rows("SELECT c.file FROM instance i JOIN copy c ON c.instance=i.id")
    assert len(rows) == 1, "SQLite's recovery was to find that commit"
    assert (process.state / "spool" / rows[0][0]).read_bytes().endswith(data_set(1))


@pytest.mark.promise("P1")
def test_a_full_disk_is_no_failure(process: Process) -> None:
    first = str(process.state / FIRST_FILE)
    run = process.traced(1, 2, inject="writev:error=ENOSPC", path=first)
    assert (run.exit_code, run.statuses) == (0, [0xA700, 0])
    assert not process.latch.exists()
    assert process.files() == ["000000001.dcm"]


# What a start finds


@pytest.mark.promise("P1")
def test_a_start_removes_what_was_never_acknowledged(process: Process) -> None:
    assert process.once(1) == [0]
    folder = process.state / "spool/received/000000"
    (folder / "000000777.dcm").write_bytes(b"half")
    assert process.once(2) == [0]
    assert process.files() == ["000000000.dcm", "000001000.dcm"]


@pytest.mark.promise("P4")
@pytest.mark.parametrize("lost", ["the journal", "most of the journal"])
def test_a_start_removes_nothing_when_the_journal_is_not_the_spools(process: Process, lost: str) -> None:
    assert process.once(1, 2) == [0, 0]
    if lost == "the journal":
        for file in process.state.glob("journal.sqlite*"):
            file.unlink()
    else:  # an old backup, say: the right journal, but it knows too little
        folder = process.state / "spool/received/000000"
        for number in range(100, 100 + 2 * 64 + FILES_AHEAD + copies.CHUNK + 1):
            (folder / f"{number:09d}.dcm").write_bytes(b"kept")
    files = process.files()
    with process.running() as running:
        assert running.wait(10) == EX_FAILED
        assert running.stderr is not None
        assert b"scanside recover" in running.stderr.read()
    assert process.files() == files


@pytest.mark.promise("P1")
def test_a_latch_set_by_another_process_ends_it_too(process: Process) -> None:
    with process.running() as running:
        with process.client() as client:
            assert client.store(1).status == 0
            process.latch.write_text("forward could not sync")
            assert client.store(2).status == 0xA700
        assert running.wait(10) == EX_LATCHED
    assert process.once(2) == [0]
    assert not process.latch.exists()


def test_receive_loads_no_runtime_and_no_imaging() -> None:
    """What it does not load cannot take it down, nor slow its start."""
    code = "import sys, appliance.wiring.receive; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "pydicom", "pynetdicom", "highdicom", "onnxruntime", "tensorrt", "scipy"}
