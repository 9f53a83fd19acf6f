"""What is counted in runs of their own: syncs per image, and what associations cost that do nothing."""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from appliance.dimse.requestor import connect
from appliance.dimse.sop_classes import VERIFICATION
from appliance.dimse.wire import Target
from benchmarks.ingest_receivers import Receiver, Running
from benchmarks.ingest_senders import Sending, send, warm_up
from benchmarks.process_tree import cpu_s
from benchmarks.report import BenchError, Report
from benchmarks.rig import LOOPBACK

IMAGES = 32
IDLE = 64
IDLE_PERCENT = 2.0
IMPLICIT = "1.2.840.10008.1.2"
SERVES_MANY = ("ours", "orthanc-nd", "pynetdicom-stock")
_SYNCS = ("fsync", "fdatasync", "msync", "syncfs", "sync_file_range")


def count(report: Report, receiver: Receiver, folders: Sequence[Path], place: Path, idle_s: float) -> None:
    """Start it once for both. Raises BenchError where strace is missing or may not look."""
    if not shutil.which("strace"):
        raise BenchError("strace is not installed: on Debian or Ubuntu, apt-get install strace")
    place.mkdir()
    with receiver.start(place, None) as running:
        warm_up(receiver, running)
        if receiver.name in SERVES_MANY:
            _idle(report, receiver, running, idle_s)
        calls = _traced(receiver, running, folders, place.with_suffix(".strace"))
    images = sum(1 for folder in folders for _ in folder.iterdir())
    counts = {name: round(calls.count(name) / images, 2) for name in _SYNCS}
    report.row("syncs per image, by strace", receiver.name, durable=receiver.durable, **counts)
    shutil.rmtree(place)


def _traced(receiver: Receiver, running: Running, folders: Sequence[Path], said: Path) -> list[str]:
    """The names of its syncs while one association stores."""
    command = ["strace", "-f", "-e", f"trace={','.join(_SYNCS)}", "-o", str(said), "-p", str(running.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None  # noqa: S101 - opened as a pipe
        try:
            if "attached" not in (first := tracer.stderr.readline()):
                raise BenchError(f"strace may not look at {receiver.name}: {first.strip()}. It needs root")
            send(receiver, running, Sending(folders=folders, nodelay=True))
        finally:
            tracer.terminate()
            tracer.communicate()
    return re.findall(rf"\b({'|'.join(_SYNCS)})\(", said.read_text())


def _idle(report: Report, receiver: Receiver, running: Running, seconds: float) -> None:
    """Processor time while associations are open and nobody says anything."""
    target = Target(host=LOOPBACK, port=running.port, calling_ae="BENCH", called_ae="SCANSIDE")
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(connect(target, [(VERIFICATION, IMPLICIT)]))
        before, begun = cpu_s(running.pid), time.monotonic()
        time.sleep(seconds)
        percent = round(100 * (cpu_s(running.pid) - before) / (time.monotonic() - begun), 2)
    report.row(f"{IDLE} idle associations", receiver.name, percent_of_a_core=percent)
    if receiver.name == "ours":
        report.goal(f"{IDLE} idle associations", IDLE_PERCENT, percent, "% of a core")
