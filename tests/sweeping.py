"""The receive process on a disk of which one call fails: which calls there are, and what becomes of it (P1).

An undisturbed run under strace tells every call that could fail. Each is then made to fail in a run of its own, while a
scanner sends five images and counts what it was told; then the process is started again, sound, and what it holds is
compared with what the scanner counted.
"""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import yaml

from appliance.dimse.association import AssociateAccept
from appliance.dimse.command import Command
from appliance.journal.store import Journal
from appliance.wiring.common import EX_LATCHED, EX_OK
from tests.journals import SERIES
from tests.scanner import Client, data_set, store_message
from tests.tracing import STRACE, environment
from tests.waiting import eventually

#: What can fail on its way to a disk. A name that this machine's kernel or strace does not have would be an error.
CALLS = (
    "openat,write,pwrite64,writev,pwritev,sendfile,copy_file_range,splice,fsync,fdatasync,sync_file_range,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,fallocate"
)
LARGE = 3  # times a write-back window: this one's bytes are written back while they come
LARGE_IMAGE, REPEATED = 2, 1
SENT = (REPEATED, LARGE_IMAGE, 3, REPEATED, 4)  # a repeat's file is removed again
AFTERWARDS = 9  # sent to the sound start
READY_S, ANSWER_S, END_S = 60.0, 60.0, 60.0
ENDING_S = 5.0  # for who has closed its door

Status = int | str  # of a C-STORE; "closed" where the connection ended before an answer


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """The `number`-th call of this name on this path (relative to the folder) that one thread makes."""

    name: str
    path: str
    number: int
    among: int  #: the number of the call among that thread's calls of this name, whatever their path

    @property
    def kind(self) -> tuple[str, str]:
        """What is done to what: files and folders that differ in their number are one."""
        return self.name, re.sub(r"\.\d+", ".P", re.sub(r"\d{9}", "N", re.sub(r"\d{6}(?=/|$)", "F", self.path)))

    @property
    def has_process_id(self) -> bool:
        """Whether its path is another one in the next run."""
        return ".P" in self.kind[1]

    def __str__(self) -> str:
        return f"{self.name}({self.path}) #{self.number}"


@dataclass(slots=True)
class Run:
    """What a scanner was told, and how the process ended."""

    told: list[tuple[int, Status]] = field(default_factory=list)  #: number of the image, status
    exit_code: int = 0
    latched: bool = False  #: anew
    calls: list[Call] = field(default_factory=list)

    @property
    def acknowledged(self) -> set[int]:
        return {number for number, status in self.told if status == 0}

    @property
    def summary(self) -> str:
        if not self.told:
            return f"refused to start, exit {self.exit_code}"
        if self.latched or self.exit_code == EX_LATCHED:
            return "latched, exit 75" if self.exit_code == EX_LATCHED else f"latched, exit {self.exit_code}"
        if self.exit_code != EX_OK:
            return f"ended, exit {self.exit_code}"
        refused = sum(status != 0 for _, status in self.told)
        return "0xA700, and went on" if refused else "did without"


def image(number: int) -> bytes:
    """The data set of image `number`."""
    return data_set(number, b"pixel" * (LARGE * 210_000 if number == LARGE_IMAGE else 200))


class Station:
    """`python -m appliance.daemon receive` on a folder of its own; and its scanner."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "var"
        # An address of its own: on one that others share, the next may be given the port that this one is about to use,
        # and its scanner be answered by somebody else's receiver.
        self.host = str(IPv4Address("127.1.0.0") + int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:2]))
        self.port = 0

    @classmethod
    def new(cls, folder: Path) -> "Station":
        (folder / "engines").mkdir(parents=True)
        return cls(folder)

    def copy(self, folder: Path) -> "Station":
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.bell"))  # sockets
        return Station(folder)

    @property
    def latch(self) -> Path:
        return self.state / "spool" / "latched"

    def _command(self) -> list[str]:
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = int(probe.getsockname()[1])
        settings = {
            "state": str(self.state),
            "engines_dir": str(self.folder / "engines"),
            "receive": {
                "bind": self.host,
                "port": self.port,
                "peers": [{"ae_title": "CT01", "address": "127.0.0.0/8"}],
            },
            "reserve": {"free_mb": 1, "free_inodes": 0, "journal_mb": 1},
            "destinations": [{"name": "pacs", "kind": "folder", "path": str(self.folder), "takes": ["image"]}],
        }
        config = self.folder / "scanside.yaml"
        config.write_text(yaml.safe_dump(settings))
        return [sys.executable, "-m", "appliance.daemon", "receive", "--config", str(config)]

    def disturbed(
        self, numbers: Sequence[int], call: Call | None = None, error: str = "", *, heals: bool = False
    ) -> Run:
        """Start it, send these images, end it. `call` fails with `error`; without one, all calls are listed.

        With `heals` each image is sent until it is taken.
        """
        log, run, before = self.folder / "calls", Run(), self._reason()
        command = [*self._strace(log, call, error), *self._command()]
        with self._process(command) as tracer:
            if (client := self._connect(tracer)) is not None:
                with client:
                    if before:
                        eventually(lambda: self._healed_or_not(tracer), READY_S, "it has tried to heal")
                    if heals:
                        _insist(client, numbers, run)
                    else:
                        _send(client, numbers, run)
                run.latched = self._reason() not in ("", before)
            else:
                with suppress(subprocess.TimeoutExpired):
                    tracer.wait(ENDING_S)
            if not run.latched:  # or else it must end by itself
                _terminate(tracer)
            run.exit_code = tracer.wait(END_S)
        run.latched = self._reason() not in ("", before)
        if run.latched and run.exit_code == -signal.SIGTERM:
            run.exit_code = EX_LATCHED  # it was ending by itself, and Python heeded the signal no more
        run.calls = list(_calls(log, self.folder)) if call is None else []
        return run

    def _reason(self) -> str:
        return self.latch.read_text() or "unknown" if self.latch.exists() else ""

    def _healed_or_not(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether it has tried to heal from what a run before it left. It would try again after some seconds."""
        return not self.latch.exists() or "still_latched" in self.log() or process.poll() is not None

    def _strace(self, log: Path, call: Call | None, error: str) -> list[str]:
        assert STRACE is not None, "strace is not installed: see scripts/test"
        options = [STRACE, "-f", "--seccomp-bpf", "-qq", "-yy", "-s", "0", "-o", str(log)]
        if call is None:
            return [*options, "-e", f"trace={CALLS}"]
        options += ["-e", f"trace={call.name}"]
        inject = f"inject={call.name}:error={error}:when="
        if call.has_process_id:
            return [*options, "-e", f"{inject}{call.among}"]
        return [*options, "-e", f"{inject}{call.number}", "-P", str(self.folder / call.path)]

    @contextmanager
    def _process(self, command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children():
                    child.kill()
            process.kill()
            process.wait()

    def _connect(self, process: "subprocess.Popen[bytes]") -> Client | None:
        """An association; None where it ended before it listened, or accepted none."""

        def attempt() -> Client | bool:
            try:
                return Client(self.port, ANSWER_S, self.host)
            except ConnectionError:
                return process.poll() is not None

        found = eventually(attempt, READY_S, "it listens, or ends")
        if not isinstance(found, Client):
            return None
        try:
            assert isinstance(found.associate(), AssociateAccept)
        except (ConnectionError, EOFError):
            found.socket.close()
            return None
        return found

    def sound(self, numbers: Sequence[int]) -> Run:
        """Start it on a sound disk, wait until it has healed, send these images, end it."""
        run = Run()
        with self._process(self._command()) as process:
            client = self._connect(process)
            assert client is not None, f"the next start fails: {self.log()}"
            with client:
                _insist(client, numbers, run)
            process.terminate()
            run.exit_code = process.wait(END_S)
        return run

    def log(self) -> str:
        return (self.folder / "log").read_text()[-2000:]

    def faults(self, acknowledged: set[int]) -> list[str]:
        """What is wrong with what it holds; nothing may be."""
        journal = Journal(self.state / "journal.sqlite", "test")
        try:
            rows = journal.query(
                "SELECT i.sop_instance_uid AS uid, i.size, c.file, (SELECT count(*) FROM delivery d"
                " WHERE d.instance=i.id) AS deliveries FROM instance i LEFT JOIN copy c ON c.instance=i.id"
            )
        finally:
            journal.close()
        found = []
        spool = self.state / "spool"
        kept = Counter(int(row["uid"].removeprefix(f"{SERIES}.")) for row in rows)
        found += [f"image {number} was acknowledged and is lost" for number in sorted(acknowledged - kept.keys())]
        found += [f"image {number} is held {count} times" for number, count in kept.items() if count > 1]
        for row in rows:
            number = int(row["uid"].removeprefix(f"{SERIES}."))
            file = spool / (row["file"] or "nothing")
            if not file.is_file():
                found.append(f"image {number} has a row and no file")
            elif file.read_bytes()[-row["size"] :] != image(number):
                found.append(f"image {number} is torn")
            if row["deliveries"] != 1:
                found.append(f"image {number} has {row['deliveries']} deliveries")
        known = {row["file"] for row in rows}
        there = {str(path.relative_to(spool)) for path in spool.glob("*/*/*.dcm")}
        found += [f"{file} has no row" for file in sorted(there - known)]
        found += [f"{name} was left" for name in ("latched", "probe", "quarantine") if (spool / name).exists()]
        return found


def _terminate(tracer: "subprocess.Popen[bytes]") -> None:
    """End the traced process as its supervisor would."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(tracer.pid).children():
            child.send_signal(signal.SIGTERM)


def _send(client: Client, numbers: Sequence[int], run: Run, *, release: bool = True) -> None:
    """One image after another, as long as the connection lasts."""
    for number in numbers:
        try:
            client.send(store_message(number, image(number), piece=100_000))
            run.told.append((number, _status(client.response())))
        except (ConnectionError, EOFError):
            run.told.append((number, "closed"))
            return
    if release:
        with suppress(ConnectionError, EOFError):
            client.release()


def _insist(client: Client, numbers: Sequence[int], run: Run) -> None:
    for number in numbers:
        eventually(partial(_stored, client, number, run), READY_S, "it takes images again")


def _stored(client: Client, number: int, run: Run) -> bool:
    _send(client, [number], run, release=False)
    return run.told[-1] == (number, 0)


def _status(response: Command) -> Status:
    return response.status if response.status is not None else "none"


_LINE = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)")
_PATH = re.compile(r'"(/[^"]*)"')
_DESCRIPTOR = re.compile(r"\d+<(/[^>]*)>")


def _calls(log: Path, folder: Path) -> Iterator[Call]:
    """The calls on files of this folder that a run made, in the order of time."""
    seen: Counter[tuple[str, str, str]] = Counter()
    in_all: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        if (match := _LINE.match(line)) is None:
            continue  # a signal, an exit, or the second half of a call
        thread, name = match["thread"], match["name"]
        in_all[thread, name] += 1
        first = match["arguments"].partition(" = ")[0]
        path = _PATH.search(first) or _DESCRIPTOR.match(first)
        if path is None or not path[1].startswith(f"{folder}{os.sep}var"):
            continue
        key = thread, name, path[1]
        seen[key] += 1
        yield Call(name, os.path.relpath(path[1], folder), seen[key], in_all[thread, name])
