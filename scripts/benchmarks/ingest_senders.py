"""The sending side: DCMTK's storescu, one process per association, or the plain TCP sender."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ingest_receivers import NODELAY, Receiver, Running
from benchmarks.ingest_tls import Credentials
from benchmarks.report import BenchError
from benchmarks.rig import LOOPBACK, program

TITLES = ("-aet", "BENCH", "-aec", "SCANSIDE")
RAW = Path(__file__).with_name("ingest_raw.py")
SEND_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What is sent, and how."""

    folders: Sequence[Path]  #: one association each
    nodelay: bool = False  #: without it the sender is held up by Nagle's algorithm, as DCMTK is by default
    tls: Credentials | None = None
    repeat: int = 1  #: times; the SOP Instance UIDs are new each time then


def warm_up(receiver: Receiver, running: Running, tls: Credentials | None = None) -> None:
    """One C-ECHO: a receiver may load what it needs only when it is first spoken to."""
    if receiver.dicom:
        _finish([_start([program("echoscu"), *_secured(tls), *TITLES, LOOPBACK, running.port], nodelay=True)])
    else:
        _finish([_start_raw(running, [], 1)])


def send(receiver: Receiver, running: Running, sending: Sending) -> None:
    """Returns when all is acknowledged. Raises BenchError where a sender says that it is not."""
    if receiver.dicom:
        _finish([_start_storescu(running, folder, sending) for folder in sending.folders])
    else:
        _finish([_start_raw(running, sorted(folder.iterdir()), sending.repeat) for folder in sending.folders])


def _start_storescu(running: Running, folder: Path, sending: Sending) -> "subprocess.Popen[bytes]":
    again = ["--repeat", sending.repeat, "+II"] if sending.repeat > 1 else []
    command = [program("storescu"), "+sd", *again, *_secured(sending.tls), *TITLES, LOOPBACK, running.port, folder]
    return _start(command, nodelay=sending.nodelay)


def _secured(tls: Credentials | None) -> tuple[object, ...]:
    return tls.dcmtk if tls is not None else ()


def _start_raw(running: Running, files: Sequence[Path], repeat: int) -> "subprocess.Popen[bytes]":
    return _start([sys.executable, "-I", "-S", RAW, "send", running.port, repeat, *files], nodelay=True)


def _start(command: Sequence[object], *, nodelay: bool) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name not in NODELAY}
    environment |= NODELAY if nodelay else {}
    return subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        _, said = process.communicate(timeout=SEND_S)
        if process.returncode:
            last = said.decode(errors="replace").strip()[-300:]
            raise BenchError(f"a sender ended with status {process.returncode}: {last}")
