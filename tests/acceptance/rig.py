"""What the acceptance tests share: the real appliance in real processes, a scanner that insists, real studies.

Nothing of the appliance is faked. It is started by its own command, watched through its journal, its run folder and
its sockets, and ended by process id.
"""

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import psutil
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from appliance.dimse.header import Part10, part10, read_header
from appliance.dimse.requestor import VERIFICATION_PAIR, RequestedAssociation, connect
from appliance.dimse.wire import Target
from appliance.errors import DeliveryError
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("SCANSIDE_FULL") == "1"
START_S = 40.0
STOP_S = 40.0
ANSWER_S = 90.0  # that a scanner waits, on a slow line too
SCANNER = "CT01"
PROBE = "PROBE"  # asks for C-ECHO only, so that its associations say nothing of the scanner's series
PROCESSES = ("receive", "analyse", "forward")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(*destinations: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration on loopback that one simulated scanner may send to."""
    return {
        "node": "acceptance",
        "state": "./var",
        "receive": {
            "bind": "127.0.0.1",
            "port": free_port(),
            "peers": [{"ae_title": title, "address": "127.0.0.1", "slots": 4} for title in (SCANNER, PROBE)],
        },
        "reserve": {"free_mb": 64, "free_inodes": 0, "journal_mb": 1},
        "engines_dir": str(ROOT / "engines"),
        "engines": [],
        "destinations": list(destinations),
    } | changes


def engines(mode: str, **changes: Any) -> list[dict[str, Any]]:
    """Every engine package of the repository, in this mode."""
    found = sorted(path.parent.name for path in (ROOT / "engines").glob("*/engine.yaml"))
    assert found, "no engine packages"
    return [{"id": name, "mode": mode} | changes for name in found]


def node(name: str, port: int, **changes: Any) -> dict[str, Any]:
    """A DICOM destination on loopback that takes everything."""
    kind = {"name": name, "kind": "dimse", "host": "127.0.0.1", "port": port, "called_ae": "PACS"}
    return {**kind, "takes": ["image", "sr", "sc"], "timeout_s": 10} | changes


def folder_destination(name: str, path: Path, **changes: Any) -> dict[str, Any]:
    path.mkdir(parents=True, exist_ok=True)
    return {"name": name, "kind": "folder", "path": str(path), "takes": ["image", "sr", "sc"]} | changes


class Appliance:
    """`scanside run` in a process group of its own."""

    def __init__(self, folder: Path, config: Mapping[str, Any] | str) -> None:
        """`config`: what `settings` gives, or the text of a configuration file."""
        self.folder = folder
        self.config_path = folder / "scanside.yaml"
        self.state = folder / "var"
        self._starts = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(config)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.show_log()
        self.stop()

    def show_log(self) -> None:
        """For pytest, which shows it with a failure; the folder is gone by then."""
        sys.stdout.write("".join(self.log_path.read_text().splitlines(keepends=True)[-60:]))

    def configure(self, config: Mapping[str, Any] | str) -> None:
        """Takes effect at the next start. JSON is YAML."""
        self.config_path.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))

    @property
    def log_path(self) -> Path:
        """What it said since it was started last."""
        return self.folder / f"log-{self._starts}"

    def start(self, *, wait: bool = True) -> None:
        self._forget_facts()
        self._starts += 1
        command = [sys.executable, "-m", "appliance", "run", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.show_log()
                self.kill()
                raise

    def _forget_facts(self) -> None:
        for name in ("receive", "engines"):
            (self.state / "run" / f"{name}.json").unlink(missing_ok=True)

    def wait_ready(self) -> None:
        """Until all processes have said that they are ready, and a scanner gets an answer."""
        eventually(self._all_ready, START_S, f"the appliance is ready; its log is {self.log_path}")
        eventually(self.answers, START_S, "C-ECHO is answered")

    def _all_ready(self) -> bool:
        assert self.running, f"ended with {self.exit_code}: {self.log_path.read_text()[-2000:]}"
        return any(line.get("event") == "ready" for line in self.log_lines())

    def stop(self) -> int:
        """End it as systemd would; returns its exit code. Leaves no process, whatever happens."""
        if self._supervisor is None:
            return 0
        family = self.family()
        try:
            self._supervisor.terminate()
            return self._supervisor.wait(STOP_S)
        finally:
            self._end(family)

    def kill(self) -> None:
        """SIGKILL of all its processes at once, as near to a pulled plug as a process can come."""
        family = self.family()
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        self._end(family)

    def kill_supervisor(self) -> None:
        """SIGKILL of the supervisor alone: the kernel must end all others."""
        family = self.family()
        assert self._supervisor is not None
        self._supervisor.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        left = [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        self._end(family)
        assert not left, f"processes outlived their supervisor: {left}"

    def _end(self, family: Sequence[psutil.Process]) -> None:
        for process in family:
            with suppress(psutil.Error):
                process.kill()
        if self._supervisor is not None:
            self._supervisor.wait(STOP_S)
        self._supervisor = None

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._supervisor.poll() if self._supervisor else None

    @property
    def supervisor_pid(self) -> int:
        assert self._supervisor is not None
        return self._supervisor.pid

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything it started, runtime children included."""
        if self._supervisor is None:
            return []
        try:
            supervisor = psutil.Process(self._supervisor.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def process(self, name: str) -> psutil.Process | None:
        """receive, analyse, forward, child: a runtime child, or reader. None: it does not run now."""
        program = {"child": "child.py", "reader": "reader_program.py"}.get(name)
        for process in self.family()[1:]:
            with suppress(psutil.Error):
                words = process.cmdline()
                if name in words or (program and any(word.endswith(program) for word in words)):
                    return process
        return None

    @property
    def port(self) -> int:
        return int(json.loads((self.state / "run" / "receive.json").read_text())["port"])

    def target(self, calling_ae: str = SCANNER, timeout_s: float = 30.0) -> Target:
        return Target(
            host="127.0.0.1", port=self.port, calling_ae=calling_ae, called_ae="SCANSIDE", timeout_s=timeout_s
        )

    def answers(self) -> bool:
        """Whether a scanner's C-ECHO succeeds now."""
        try:
            association = connect(self.target(PROBE, timeout_s=5.0), [VERIFICATION_PAIR])
        except (DeliveryError, OSError, ValueError):
            return False
        try:
            return association.echo().status == 0
        except DeliveryError:
            return False
        finally:
            association.release()

    def log_lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self.log_path.read_text().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def query(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """Read the journal from outside, without a lock on it."""
        with closing(sqlite3.connect(f"file:{self.state / 'journal.sqlite'}?mode=ro", uri=True, timeout=10)) as journal:
            journal.row_factory = sqlite3.Row
            return journal.execute(sql, parameters).fetchall()

    def pairs(self, sql: str, *parameters: Any) -> dict[str, str]:
        """The first column of a query -> the second."""
        return {str(row[0]): str(row[1]) for row in self.query(sql, *parameters)}

    def number(self, sql: str, *parameters: Any) -> int:
        return int(self.query(sql, *parameters)[0][0] or 0)

    def owed(self) -> int:
        """Deliveries that are queued."""
        return self.number("SELECT count(*) FROM delivery WHERE state='queued'")

    def engines_serve(self) -> bool:
        """Whether every configured engine has loaded and proved itself."""
        try:
            facts = json.loads((self.state / "run" / "engines.json").read_text())
        except (OSError, ValueError):
            return False
        wrong = {key: fact["reason"] for key, fact in facts.items() if not fact["serves"]}
        assert not wrong, f"engines do not serve: {wrong}"
        return bool(facts)


@dataclass(frozen=True, slots=True)
class DataSet:
    """What the PACS must get of a file: the bytes after its File Meta."""

    sop_instance_uid: str
    sha256: str


def data_set(path: Path) -> DataSet:
    stored = part10(path)
    return DataSet(stored.sop_instance_uid, hashlib.sha256(path.read_bytes()[stored.data_set_offset :]).hexdigest())


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SOP Instance UID -> SHA-256 of the data set."""
    return {one.sop_instance_uid: one.sha256 for one in map(data_set, paths)}


def pairs_of(items: Iterable[Part10]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items))


class SlowLine:
    """A line of so many bytes a second from a port of its own to the appliance; answers come back at once."""

    def __init__(self, to_port: int, bytes_per_s: float) -> None:
        self._to_port, self._bytes_per_s = to_port, bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._carry_one, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def _carry_one(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(("127.0.0.1", self._to_port)) as far:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            back = threading.Thread(target=_copy, args=(far, near, 0.0), daemon=True)
            back.start()
            _copy(near, far, 1 / self._bytes_per_s)
            back.join(10)


def _copy(source: socket.socket, target: socket.socket, s_per_byte: float) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 13):
            time.sleep(len(piece) * s_per_byte)
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass(slots=True)
class Scanner:
    """A scanner that counts an image as sent when, and only when, it was told Success."""

    appliance: Appliance
    port: int = 0  #: of a line to the appliance; 0: straight to it
    acknowledged: set[str] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)  #: SOP Instance UID -> the last status that was no success
    seconds: list[float] = field(default_factory=list)  #: from the last byte's way out to the answer, of each success

    def associate(self, items: Sequence[Part10]) -> RequestedAssociation:
        target = self.appliance.target(timeout_s=ANSWER_S)
        return connect(replace(target, port=self.port or target.port), pairs_of(items))

    def send(self, paths: Sequence[Path], *, abort: bool = False, pause: Callable[[], None] = lambda: None) -> None:
        """One association; `abort` ends it without a release. Raises DeliveryError or OSError when it breaks."""
        self._send([part10(path) for path in paths], abort=abort, pause=pause)

    def _send(self, items: Sequence[Part10], *, abort: bool = False, pause: Callable[[], None] = lambda: None) -> None:
        association = self.associate(items)
        for item in items:
            self.store(association, item)
            pause()
        if abort:
            association.abort()
        else:
            association.release()

    def store(self, association: RequestedAssociation, item: Part10) -> None:
        begun = time.monotonic()
        status = association.store(item).status
        if status == 0:
            self.seconds.append(time.monotonic() - begun)
            self.acknowledged.add(item.sop_instance_uid)
        else:
            self.refused[item.sop_instance_uid] = status

    def insist(self, paths: Sequence[Path], within_s: float, *, patience_s: float = 0.05) -> None:
        """Send until everything is acknowledged, with new associations after each failure, as scanners do."""
        until = time.monotonic() + within_s
        items = [part10(path) for path in paths]
        while left := [item for item in items if item.sop_instance_uid not in self.acknowledged]:
            assert time.monotonic() < until, f"{len(left)} images not acknowledged within {within_s:g} s"
            try:
                self._send(left)
            except (DeliveryError, OSError, ValueError):
                time.sleep(patience_s)


def report_texts(path: Path) -> list[str]:
    """The text values of a structured report, in their order."""
    return [str(element.value) for element in dcmread(path).iterall() if element.keyword == "TextValue"]


def wheel_file(name: str) -> Path:
    """One of pydicom's own test files that lie in its wheel."""
    return Path(str(get_testdata_file(name, download=False)))


def small_series(folder: Path, count: int) -> list[Path]:
    """One series of small CT images, made from a file of pydicom's, each with an identity and bytes of its own."""
    folder.mkdir(parents=True)
    image = dcmread(wheel_file("CT_small.dcm"))
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    for number in range(count):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.InstanceNumber = number + 1
        image.save_as(folder / f"{number:04d}.dcm")
    return sorted(folder.iterdir())


@dataclass(frozen=True, slots=True)
class Study:
    """A copy of a real study under identifiers of its own."""

    study_instance_uid: str
    series_instance_uid: str
    paths: list[Path]

    def hashes(self) -> dict[str, str]:
        return hashes(self.paths)


class Original:
    """A real single-series study in memory, from which copies are made that differ in their identifiers alone."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive, "r|*") as tar:  # as a stream: to go back in it is to decompress it again
            files = {
                Path(member.name).name: stream.read()
                for member in tar
                if member.isfile() and member.name.endswith(".dcm") and (stream := tar.extractfile(member))
            }
        self._files = dict(sorted(files.items()))

    def __len__(self) -> int:
        return len(self._files)

    def write(self, folder: Path) -> list[Path]:
        """The files as they are."""
        folder.mkdir(parents=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        return sorted(folder.iterdir())

    def copy(self, folder: Path, salt: str) -> Study:
        """A study of its own: each Study, Series and SOP Instance UID replaced by another of the same length."""
        names = self.write(folder)
        old = {path: _uids(path) for path in names}
        for path, uids in old.items():
            content = path.read_bytes()
            for uid in uids:
                content = content.replace(uid.encode(), relabelled(uid, salt).encode())
            path.write_bytes(content)
        study, series, _ = _uids(names[0])
        return Study(study, series, names)


def _uids(path: Path) -> tuple[str, str, str]:
    stored = part10(path)
    header = read_header(path, stored.data_set_offset, stored.transfer_syntax_uid)
    return header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid


def relabelled(uid: str, salt: str) -> str:
    """Another UID of the same length, always the same for the same two."""
    digits = str(int(hashlib.sha256(f"{salt}|{uid}".encode()).hexdigest(), 16))
    head = "1.2.826.0.1.3680043.8.498.1"  # pydicom's root; the 1 keeps the component from beginning with 0
    return head + digits[: len(uid) - len(head)]
