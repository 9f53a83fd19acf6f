"""Who is compared: the appliance, DCMTK's storescp, Orthanc, pynetdicom, and a plain TCP receiver.

Each starts on an empty folder and is ready when `with` is entered. Nagle's algorithm is off in all of them: with it
the comparison would be one of delayed acknowledgements.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.ingest_tls import NAME, Credentials
from benchmarks.process_tree import cpu_s
from benchmarks.report import BenchError
from benchmarks.rig import LOOPBACK, Appliance, free_port, pacs, program, wait_until

HERE = Path(__file__).parent
START_S = 30.0
REST_S = 0.3
ASSOCIATIONS = 80
TUNED = ("--fork", "+B", "-pdu", "131072")
NODELAY = {"TCP_NODELAY": "1"}  # DCMTK's, and so Orthanc's


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A receiver that takes images."""

    port: int
    pid: int  #: of the process that receives, with all below it
    kept: Callable[[], int]  #: how many images it holds
    all_pid: int = 0  #: above that and its helpers, where there are any


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    name: str
    durable: str  #: in what sense an acknowledged image outlives a power cut
    start: Callable[[Path, Credentials | None], AbstractContextManager[Running]]
    dicom: bool = True
    tls: bool = False  #: can be measured with it


def receivers() -> Mapping[str, Receiver]:
    """All of them by name. Raises BenchError where one is not installed."""
    all_ = (
        Receiver(name="ours", durable="yes", start=_ours, tls=True),
        Receiver(name="storescp-nd", durable="no", start=partial(_storescp, ()), tls=True),
        Receiver(name="storescp-tuned", durable="no", start=partial(_storescp, TUNED), tls=True),
        Receiver(name="orthanc-nd", durable="file only", start=partial(_orthanc, _orthanc_program()), tls=True),
        Receiver(name="pynetdicom-stock", durable="no", start=partial(_pynetdicom, "stock")),
        Receiver(name="pynetdicom-best", durable="yes", start=partial(_pynetdicom, "best")),
        Receiver(name="raw-tcp", durable="yes", start=_raw, dicom=False),
    )
    for name in ("storescp", "storescu", "echoscu"):
        program(name)
    return {receiver.name: receiver for receiver in all_}


@contextmanager
def _ours(folder: Path, tls: Credentials | None) -> Iterator[Running]:
    """The whole daemon with a destination where nobody listens: deliveries are written, and stay."""
    receive: dict[str, object] = {"associations": ASSOCIATIONS, "associations_per_peer": ASSOCIATIONS}
    if tls is not None:
        receive["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key), "ca": str(tls.ca)}
        receive["peers"] = [{"ae_title": "BENCH", "address": LOOPBACK, "certificate": NAME}]
    with Appliance(folder, {"receive": receive, "destinations": [pacs(free_port())]}) as appliance:
        wait_until(partial(_rests, appliance.supervisor_pid), START_S, "the appliance has started all it has")
        kept = partial(_count, appliance.state / "spool" / "received", "*/*.dcm")
        yield Running(port=appliance.port, pid=appliance.pid("receive"), kept=kept, all_pid=appliance.supervisor_pid)


def _rests(pid: int) -> bool:
    """Whether its processes do nothing: a daemon that runs for weeks has long loaded what it loads at start."""
    before = cpu_s(pid)
    time.sleep(REST_S)
    return cpu_s(pid) <= before


@contextmanager
def _storescp(options: Sequence[str], folder: Path, tls: Credentials | None) -> Iterator[Running]:
    port = free_port()
    secured = tls.dcmtk if tls is not None else ()
    with _process([program("storescp"), *options, *secured, "-od", folder, port], port) as pid:
        yield Running(port=port, pid=pid, kept=partial(_count, folder, "*"))


@contextmanager
def _orthanc(orthanc: Path, folder: Path, tls: Credentials | None) -> Iterator[Running]:
    port, config = free_port(), folder / "orthanc.json"
    options: dict[str, object] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomPort": port,
        "HttpServerEnabled": False,
        "Plugins": [],
        "DicomCheckCalledAet": False,
        "UnknownSopClassAccepted": True,
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": 131072,
        "SyncStorageArea": True,
    }
    if tls is not None:
        options |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(tls.certificate),
            "DicomTlsPrivateKey": str(tls.key),
            "DicomTlsTrustedCertificates": str(tls.ca),
        }
    config.write_text(json.dumps(options))
    with _process([orthanc, config], port) as pid:
        yield Running(port=port, pid=pid, kept=partial(_count, folder / "storage", "*/*/*"))


@contextmanager
def _pynetdicom(kind: str, folder: Path, _: Credentials | None) -> Iterator[Running]:
    port = free_port()
    with _process([sys.executable, HERE / "ingest_pynetdicom.py", kind, port, folder], port) as pid:
        yield Running(port=port, pid=pid, kept=partial(_count, folder, "*.dcm"))


@contextmanager
def _raw(folder: Path, _: Credentials | None) -> Iterator[Running]:
    port = free_port()
    with _process([sys.executable, "-I", "-S", HERE / "ingest_raw.py", "receive", port, folder], port) as pid:
        yield Running(port=port, pid=pid, kept=partial(_count, folder, "*.dcm"))


@contextmanager
def _process(command: Sequence[object], port: int) -> Iterator[int]:
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **NODELAY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        if process.poll() is not None:
            raise BenchError(f"{command[0]} ended with status {process.returncode}")
        return _listens(port)

    try:
        wait_until(listens, START_S, f"{command[0]} listens")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    """Looked up, not tried: some receivers would serve the connection."""
    lines = [line for table in ("tcp", "tcp6") for line in _lines(Path("/proc/net") / table)]
    return any(words[3] == "0A" and words[1].endswith(f":{port:04X}") for words in map(str.split, lines))


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:] if table.exists() else []


def _count(folder: Path, pattern: str) -> int:
    """Files with something in them: ours are made before they are needed."""
    return sum(
        1 for path in folder.glob(pattern) if path.is_file() and path.stat().st_size and path.name not in _NO_IMAGES
    )


_NO_IMAGES = frozenset({"index", "index-wal", "index-shm"})


def _orthanc_program() -> Path:
    found = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not found:
        raise BenchError("Orthanc is not installed: on Debian or Ubuntu, RUNLEVEL=1 apt-get install orthanc")
    return Path(found)
