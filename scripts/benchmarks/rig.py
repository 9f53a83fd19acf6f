"""What benchmarks are made of: the real daemon on a state folder of its own, with DCMTK's programs around it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, cast

from appliance.journal import overview
from appliance.journal.store import Journal
from appliance.wiring.common import PROCESSES
from benchmarks.report import BenchError

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
STOP_S = 30.0
SERVES_S = 180.0
IDLE_S = 300.0
POLL_S = 0.02
LOOPBACK = "127.0.0.1"

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked of a benchmark."""

    quick: bool
    data: Path  #: real cases; may be absent
    temp: Path  #: where state folders go


@contextmanager
def scratch(options: Options) -> Iterator[Path]:
    with TemporaryDirectory(prefix="scanside-bench-", dir=options.temp) as folder:
        yield Path(folder)


def program(name: str) -> Path:
    """A program of DCMTK, never one of the same name that pynetdicom puts beside our Python. Raises BenchError."""
    ours = str(Path(sys.executable).parent)
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder != ours]
    found = shutil.which(name, path=os.pathsep.join(["/usr/bin", "/usr/local/bin", *folders]))
    if not found:
        raise BenchError(f"DCMTK's {name} is not installed: on Debian or Ubuntu, apt-get install dcmtk")
    return Path(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Log:
    """The daemon's log lines, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[Line] = []
        self._tail: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, event: str, timeout_s: float, fits: Callable[[Line], bool] = lambda _: True) -> Line:
        """The first line with this event that fits. Raises BenchError where none comes."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = next((line for line in self._lines if line["event"] == event and fits(line)), None)
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    tail = "\n".join(self._tail[-5:])
                    raise BenchError(f"the daemon said no {event!r} within {timeout_s:g} s; its last words:\n{tail}")
                self._changed.wait(left)

    def all(self, event: str) -> list[Line]:
        with self._changed:
            return [line for line in self._lines if line["event"] == event]

    def _read(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - opened as a pipe
        with self._process.stderr as said:
            for text in said:
                line = _parsed(text)
                with self._changed:
                    self._tail.append(text.rstrip())
                    if line:
                        self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _parsed(text: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and "event" in line else {}


class Appliance:
    """The real daemon: a supervisor and its processes. `with` starts it, waits until it is ready, and ends it."""

    def __init__(self, folder: Path, options: Mapping[str, object]) -> None:
        """`options`: of the config file, without state and the port; those of `receive` are added to the rig's own."""
        self.folder = folder
        self.port = free_port()
        self.ready_s = 0.0  #: from the start of the supervisor until all its processes were ready
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "scanside.yaml"
        peers = [{"ae_title": title, "address": LOOPBACK, "slots": 4} for title in ("BENCH", "STEADY")]
        common = {
            "state": str(folder / "state"),
            "engines_dir": str(ROOT / "engines"),
        }
        receive = {"port": self.port, "peers": peers, **cast(Mapping[str, object], options.get("receive", {}))}
        self.config.write_text(json.dumps({**common, **options, "receive": receive}))

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def __enter__(self) -> Self:
        begun = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "run", "--config", str(self.config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = Log(self._process)
        try:
            self.log.wait_for("ready", START_S, lambda line: line["process"] == "supervisor")
        except BaseException:
            self._end()
            raise
        self.ready_s = time.monotonic() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def journal(self) -> Journal:
        """A reader's way to its journal; the caller closes it."""
        return Journal(self.state / "journal.sqlite", "bench")

    @property
    def supervisor_pid(self) -> int:
        return self._process.pid

    def pid(self, name: str) -> int:
        return int(self.log.all("started")[PROCESSES.index(name)]["pid"])

    def peak_mb(self, name: str) -> float:
        """Most memory a process was resident with (VmHWM), in units of 10**6 bytes. Raises BenchError if it died."""
        if any(line["child"] == name for line in self.log.all("ended")):
            raise BenchError(f"the {name} process died during the benchmark")
        status = Path(f"/proc/{self.pid(name)}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def storescp(folder: Path | None) -> Iterator[int]:
    """DCMTK's storage SCP as the PACS; keeps files in `folder`, or nothing. Gives its port."""
    port = free_port()
    keep = ["--ignore"] if folder is None else ["+B", "-od", str(folder)]
    command = [str(program("storescp")), "-pdu", "131072", "+xa", *keep, str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), 10.0, "storescp listens")
        yield port
    finally:
        process.terminate()
        process.wait()


def scanner(port: int, folder: Path) -> None:
    """Send a folder and its folders with DCMTK's storescu, not held up by Nagle's algorithm. Raises BenchError."""
    command = [str(program("storescu")), "+sd", "+r", "-pdu", "131072", "-aet", "BENCH", "-aec", "SCANSIDE"]
    done = subprocess.run(
        [*command, LOOPBACK, str(port), str(folder)],
        env={**os.environ, "TCP_NODELAY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"storescu ended with status {done.returncode}: {done.stderr.strip()[-300:]}")


def check_engines(appliance: Appliance) -> None:
    """Wait until the engines are verified. Raises BenchError where one does not serve."""
    facts = appliance.state / "run" / "engines.json"
    wait_until(facts.exists, SERVES_S, "the engines are verified")
    for engine, fact in json.loads(facts.read_text()).items():
        if not fact["serves"]:
            raise BenchError(f"the engine {engine} does not serve: {fact['reason']}")


def pacs(port: int) -> dict[str, object]:
    """Config of a destination that takes everything, results of reference engines included."""
    return {
        "name": "pacs",
        "kind": "dimse",
        "host": LOOPBACK,
        "port": port,
        "called_ae": "STORESCP",
        "takes": ["image", "sr", "sc"],
        "accept_reference": True,
    }


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look every 20 ms. Raises BenchError where it does not come true."""
    never = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {timeout_s:g} s in vain until {what}")
        never.wait(POLL_S)


def reported(journal: Journal, study: str) -> bool:
    """Whether an engine's answer for a study is built and owed."""
    return bool(journal.one("SELECT 1 FROM job WHERE study_instance_uid=? AND state='reported' LIMIT 1", study))


def idle(journal: Journal) -> None:
    """Wait until nothing is owed to anybody. Raises BenchError where something is held."""

    def nothing_owed() -> bool:
        owed = overview.overview(journal).owed
        if held := [one for one in owed if one.state == "held"]:
            raise BenchError(f"{held[0].count} objects are held: {held[0].reason}")
        return not owed

    wait_until(nothing_owed, IDLE_S, "everything is delivered")


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
