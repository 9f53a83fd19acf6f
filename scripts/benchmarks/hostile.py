"""A scanner stores image after image while peers misbehave: how many arrive, how long each takes, what memory it costs.

The appliance beside stock pynetdicom, the same attacks and the same honest sender, which makes a new association for
each image, because slots are what attacks go for.
"""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.dimse.header import Part10, part10
from appliance.dimse.requestor import connect
from appliance.dimse.wire import Target
from appliance.errors import DeliveryError
from benchmarks.attacks import CT_IMAGE, DEVICE, DEVICE_ADDRESS, SCANNER_ADDRESS, Attack, Front, attacks
from benchmarks.hostile_objects import identity
from benchmarks.machine import need_disk
from benchmarks.process_tree import Usage
from benchmarks.report import Report, quantile
from benchmarks.rig import Appliance, Options, free_port, scratch, wait_until

DISK = 6e9
ATTACK_S, QUICK_S = 10.0, 0.4
QUICK_EVERY = 4  # of the attacks is tried on the other receiver as well
SETTLE_S = 0.3  # that an attack has before the scanner begins
ANSWER_S = 5.0
EVERY_S = 0.02
MOST_MB = 80.0
START_S = 30.0
SCANNER = "CT01"
SYNTAX = "1.2.840.10008.1.2.1"
IMAGE_BYTES = 128 * 128 * 2
PEERS = (
    {"ae_title": SCANNER, "address": SCANNER_ADDRESS, "slots": 4},
    {"ae_title": DEVICE, "address": DEVICE_ADDRESS, "slots": 4},
)


@dataclass(slots=True)
class Tally:
    """What became of the scanner's images."""

    seconds: list[float] = field(default_factory=list)  #: of each that was acknowledged, its association included
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def success(self) -> float:
        """Percent; NaN of none."""
        tried = len(self.seconds) + self.failed.total()
        return 100 * len(self.seconds) / tried if tried else float("nan")


class HonestScanner:
    """Stores one image after the other, each on an association of its own, in a thread; `with` runs it."""

    def __init__(self, port: int, image: Part10) -> None:
        self.tally = Tally()
        self._target = Target(
            host=SCANNER_ADDRESS, port=port, calling_ae=SCANNER, called_ae="SCANSIDE", timeout_s=ANSWER_S
        )
        self._image = image
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                failure = self._store()
            except (DeliveryError, OSError) as error:
                failure = str(error)
            if failure:
                self.tally.failed[failure] += 1
            else:
                self.tally.seconds.append(time.monotonic() - begun)
            if self._stop.wait(EVERY_S):
                return

    def _store(self) -> str:
        """Why it was not acknowledged, "" if it was."""
        association = connect(self._target, [(CT_IMAGE, SYNTAX)])
        try:
            status = association.store(self._image).status
        finally:
            association.release()
        return f"0x{status:04X}" if status else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endured:
    """One attack on one receiver."""

    tally: Tally
    peak_mb: float
    done: int  #: by the attacker


def endure(attack: Attack, port: int, pid: int, image: Part10, seconds: float) -> Endured:
    """The scanner's images for so long while the attack goes on."""
    front = Front(port=port, called_ae="SCANSIDE")
    attacker = threading.Thread(target=attack.run, args=(front,), name=attack.name, daemon=True)
    with Usage(pid, whole_life=False) as usage:
        attacker.start()
        front.wait(SETTLE_S)
        with HonestScanner(port, image) as scanner:
            front.wait(seconds)
        front.stop.set()
        attacker.join()
    return Endured(tally=scanner.tally, peak_mb=usage.peak_mb, done=front.done)


def image_file(folder: Path) -> Part10:
    """A small CT image."""
    path = folder / "honest.dcm"
    meta = identity((0x00020002, b"UI", CT_IMAGE.encode()), (0x00020003, b"UI", b"1.2.3"))
    meta += identity((0x00020010, b"UI", SYNTAX.encode()))
    content = identity(
        (0x00080016, b"UI", CT_IMAGE.encode()), (0x00080018, b"UI", b"1.2.3"), (0x00080060, b"CS", b"CT")
    )
    content += identity((0x0020000D, b"UI", b"1.2"), (0x0020000E, b"UI", b"1.2.1"))
    pixels = b"\xe0\x7f\x10\0OW\0\0" + IMAGE_BYTES.to_bytes(4, "little") + bytes(IMAGE_BYTES)
    path.write_bytes(bytes(128) + b"DICM" + meta + content + pixels)
    return part10(path)


def run(options: Options) -> Report:
    """Raises BenchError."""
    need_disk(options.temp, DISK)
    report = Report()
    seconds = QUICK_S if options.quick else ATTACK_S
    with scratch(options) as folder:
        image = image_file(folder)
        config: Mapping[str, object] = {"receive": {"peers": PEERS}, "reserve": {"free_mb": 256}}
        with Appliance(folder / "ours", config) as ours:
            for number, attack in enumerate(attacks()):
                mine = endure(attack, ours.port, ours.pid("receive"), image, seconds)
                theirs = None
                if not options.quick or number % QUICK_EVERY == 0:
                    with pynetdicom(folder / "pynetdicom") as (port, pid):
                        theirs = endure(attack, port, pid, image, seconds)
                _tell(report, attack.name, mine, theirs)
            died = ours.log.all("ended")
    _goals(report, restarts=len(died))
    report.notes.append(
        "Each image on an association of its own; times in ms from connecting to the answer. Attacks without a login"
        " come from the scanner's own address. pynetdicom at its defaults, started anew for each attack, syncs nothing."
    )
    return report


def _tell(report: Report, name: str, mine: Endured, theirs: Endured | None) -> None:
    figures: dict[str, str | float | int | None] = {}
    for who, one in (("ours", mine), ("pynetdicom", theirs)):
        figures[f"{who}_%"] = round(one.tally.success, 1) if one else None
        figures[f"{who}_p99"] = round(quantile(one.tally.seconds, 0.99) * 1000, 1) if one else None
        figures[f"{who}_MB"] = round(one.peak_mb, 1) if one else None
        figures[f"{who}_attacks"] = one.done if one else None
    figures["ours_failed"] = "; ".join(f"{count} x {why}" for why, count in mine.tally.failed.items()) or "-"
    report.row("hostile peers", name, **figures)


def _goals(report: Report, restarts: int) -> None:
    rows = [row.figures for row in report.rows]

    def worst(column: str, choose: Callable[[list[float]], float]) -> float:
        return choose([float(row[column] or 0) for row in rows])

    report.goal_at_least("the scanner's images acknowledged, worst attack", 100.0, worst("ours_%", min), "%")
    report.goal("receive's memory, worst attack", MOST_MB, worst("ours_MB", max), "MB")
    report.goal("attacks that got nothing done", 0.0, sum(row["ours_attacks"] == 0 for row in rows), "")
    report.goal("processes that ended", 0.0, restarts, "")


@contextmanager
def pynetdicom(folder: Path) -> Iterator[tuple[int, int]]:
    """Stock pynetdicom in a process of its own: port, process id."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    script = Path(__file__).with_name("hostile_pynetdicom.py")
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-W", "ignore", str(script), str(port), str(folder)]
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        wait_until(lambda: f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(), START_S, "it listens")
        yield port, process.pid
    finally:
        process.kill()
        process.wait()
        for path in folder.iterdir():
            path.unlink()
