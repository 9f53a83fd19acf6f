"""How quickly images are taken, ours durable with its journal, beside what else there is: interleaved, on one disk.

In a round each receiver starts on an empty folder, after a sync of all disks, is warmed up by one C-ECHO, and gets the
same images from DCMTK's storescu. A ratio is one of two rates in the same round; the median of the rounds counts.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from benchmarks import ingest_counts
from benchmarks.ingest_images import Images, make_cr, make_ct
from benchmarks.ingest_receivers import Receiver, Running, receivers
from benchmarks.ingest_senders import Sending, send, warm_up
from benchmarks.ingest_tls import Credentials, make_credentials
from benchmarks.machine import need_disk
from benchmarks.process_tree import Usage
from benchmarks.report import BenchError, Report
from benchmarks.rig import Options, scratch, wait_until

OURS, STORESCP, ORTHANC, RAW = "ours", "storescp-nd", "orthanc-nd", "raw-tcp"
GB = 10**9
DISK, QUICK_DISK = 14 * GB, 2 * GB
STEADY_BYTES = 4 * GB
KEPT_S = 10.0  # until files of what is acknowledged are there: some receivers close them later
CPU_RATIO, PEAK_MB = 1.5, 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way of sending."""

    images: Images
    associations: int
    nodelay: bool
    tls: Credentials | None = None
    repeat: int = 1

    @property
    def name(self) -> str:
        count = len(self.images.files) * self.repeat
        sender = "storescu with TCP_NODELAY=1" if self.nodelay else "storescu as it is"
        plural = "s" if self.associations > 1 else ""
        secured = ", TLS" if self.tls is not None else ""
        return f"{count} {self.images.modality}, {sender}, {self.associations} association{plural}{secured}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One receiver in one round of a cell."""

    seconds: float
    cpu_s: float
    all_cpu_s: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`ours` at least so many times as quick as another, in one kind of cell."""

    other: str
    associations: int
    nodelay: bool
    ratio: float


GOALS = (
    Goal(other=STORESCP, associations=1, nodelay=False, ratio=2.0),
    Goal(other=STORESCP, associations=4, nodelay=False, ratio=3.0),
    Goal(other=STORESCP, associations=1, nodelay=True, ratio=0.9),
    Goal(other=ORTHANC, associations=1, nodelay=False, ratio=4.0),
    Goal(other=ORTHANC, associations=4, nodelay=False, ratio=3.0),
    Goal(other=RAW, associations=1, nodelay=True, ratio=0.75),
    Goal(other=RAW, associations=4, nodelay=True, ratio=1.0),
)

NOTES = """\
durable: an acknowledged image outlives a power cut; 'file only': Orthanc syncs the file, not its folder, and its \
index may roll back. Durable and other receivers share a column: mind which is which
ours is the whole daemon with its journal, and a destination that is owed every image and does not answer; cpu_s is \
the receive process's, all_cpu_s that of all its processes
raw-tcp is no DICOM: sendfile to fdatasync, rename and fsync of the folder; its sender never waits for Nagle
storescp-nd serves one association at a time; senders and receivers share the cores""".splitlines()

Measurement = tuple[Cell, Sequence[str], int]  # with the receivers that are compared, in so many rounds
Found = Mapping[str, Sequence[Measured]]  # receiver -> one per round


def run(options: Options) -> Report:
    need_disk(options.temp, QUICK_DISK if options.quick else DISK)
    all_ = receivers()
    report = Report()
    with scratch(options) as folder:
        ct, cr = _images(folder, quick=options.quick)
        peaks = []
        secured = make_credentials(folder / "tls")
        cells = _quick_cells(ct, secured) if options.quick else _cells(ct, cr, secured)
        for cell, names, rounds in cells:
            found = _measure(cell, [all_[name] for name in names], folder, rounds)
            _tell(report, cell, found)
            peaks += [one.peak_mb for one in found[OURS]]
        report.goal("most memory of the receive process", PEAK_MB, round(max(peaks), 1), "MB")
        few = replace(ct, files=ct.files[: ingest_counts.IMAGES])
        for name in (OURS, RAW) if options.quick else all_:
            ingest_counts.count(
                report, all_[name], few.dealt(folder, 1), folder / "counted", 2.0 if options.quick else 10.0
            )
    _note(report, quick=options.quick)
    return report


def _images(folder: Path, *, quick: bool) -> tuple[Images, Images]:
    return make_ct(folder / "ct", 40 if quick else 300), make_cr(folder / "cr", 1 if quick else 20)


def _quick_cells(ct: Images, tls: Credentials) -> Iterator[Measurement]:
    """Few: to start the daemon takes longer than to send."""
    yield Cell(images=ct, associations=1, nodelay=False), tuple(receivers()), 1
    yield Cell(images=ct, associations=1, nodelay=True), (OURS, STORESCP, RAW), 1
    yield Cell(images=ct, associations=4, nodelay=True), (OURS, STORESCP, RAW), 1
    yield Cell(images=ct, associations=1, nodelay=True, tls=tls), (OURS, STORESCP), 1


def _cells(ct: Images, cr: Images, tls: Credentials) -> Iterator[Measurement]:
    everybody = tuple(receivers())
    able = tuple(receiver.name for receiver in receivers().values() if receiver.tls)
    for images, rounds, tls_rounds in ((ct, 5, 3), (cr, 3, 1)):
        for nodelay in (False, True):
            for associations in (1, 4):
                yield Cell(images=images, associations=associations, nodelay=nodelay), everybody, rounds
        for nodelay in (False, True):
            for associations in (1, 4):
                yield Cell(images=images, associations=associations, nodelay=nodelay, tls=tls), able, tls_rounds
    repeat = -(-STEADY_BYTES // ct.bytes)
    for associations in (1, 4):
        cell = Cell(images=ct, associations=associations, nodelay=True, repeat=repeat)
        yield cell, (OURS, "storescp-tuned", RAW), 1


def _measure(cell: Cell, compared: Sequence[Receiver], folder: Path, rounds: int) -> Found:
    """Rounds take the receivers in turn, each round beginning with another."""
    found = defaultdict(list)
    for number in range(rounds):
        first = number % len(compared)
        for receiver in [*compared[first:], *compared[:first]]:
            found[receiver.name].append(_once(cell, receiver, folder))
    return {receiver.name: found[receiver.name] for receiver in compared}


def _once(cell: Cell, receiver: Receiver, folder: Path) -> Measured:
    place = Path(mkdtemp(prefix="receiver-", dir=folder))
    sending = Sending(
        folders=cell.images.dealt(folder, cell.associations), nodelay=cell.nodelay, tls=cell.tls, repeat=cell.repeat
    )
    try:
        os.sync()
        with receiver.start(place, cell.tls) as running:
            warm_up(receiver, running, cell.tls)
            before = running.kept()
            measured = _send(receiver, running, sending)
            expected = before + len(cell.images.files) * cell.repeat
            _check_kept(receiver, running, expected)
        return measured
    finally:
        _empty(place)


def _empty(place: Path) -> None:
    """Give the room back, the inodes only at the end: ext4 without a journal does not use one again for minutes.

    Each file made meanwhile would search past all of those: 0.3 ms instead of 0.02 ms.
    """
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)


def _send(receiver: Receiver, running: Running, sending: Sending) -> Measured:
    with Usage(running.pid) as usage, Usage(running.all_pid or running.pid) as all_usage:
        begun = time.monotonic()
        send(receiver, running, sending)
        seconds = time.monotonic() - begun
    return Measured(seconds=seconds, cpu_s=usage.cpu_s, all_cpu_s=all_usage.cpu_s, peak_mb=usage.peak_mb)


def _check_kept(receiver: Receiver, running: Running, expected: int) -> None:
    wait_until(lambda: running.kept() >= expected, KEPT_S, f"{receiver.name} holds {expected} images")
    if (kept := running.kept()) != expected:
        raise BenchError(f"{receiver.name} holds {kept} images, {expected} were sent")


def _tell(report: Report, cell: Cell, found: Found) -> None:
    images = len(cell.images.files) * cell.repeat
    base = STORESCP if STORESCP in found else "storescp-tuned"
    for name, rounds in found.items():
        seconds = median(one.seconds for one in rounds)
        low, middle, high = _ratio(found, name, base)
        report.row(
            cell.name,
            name,
            durable=receivers()[name].durable,
            s=round(seconds, 2),
            images_s=round(images / seconds),
            mb_s=round(cell.images.bytes * cell.repeat / seconds / 1e6),
            **{f"of_{base}": round(middle, 2)},
            range=f"{low:.2f}-{high:.2f}",
            cpu_s=round(median(one.cpu_s for one in rounds), 2),
            all_cpu_s=round(median(one.all_cpu_s for one in rounds), 2),
            peak_mb=round(max(one.peak_mb for one in rounds), 1),
        )
    _tell_goals(report, cell, found)


def _tell_goals(report: Report, cell: Cell, found: Found) -> None:
    for name in (name for name in found if name != OURS):
        low, middle, high = _ratio(found, OURS, name)
        report.row("ours against the others", f"{cell.name}: {name}", ratio=round(middle, 2), low=low, high=high)
    if cell.images.modality != "CT" or cell.repeat > 1 or cell.tls is not None:
        return
    for goal in GOALS:
        if (goal.associations, goal.nodelay) == (cell.associations, cell.nodelay) and goal.other in found:
            name = f"{cell.name}: rate, ours to {goal.other}"
            report.goal_at_least(name, goal.ratio, round(_ratio(found, OURS, goal.other)[1], 2))
    if cell.associations == 1 and not cell.nodelay:
        used = median(
            mine.cpu_s / max(other.cpu_s, 0.01) for mine, other in zip(found[OURS], found[STORESCP], strict=True)
        )
        report.goal(f"{cell.name}: processor time, ours to {STORESCP}", CPU_RATIO, round(used, 2))


def _ratio(found: Found, name: str, base: str) -> tuple[float, float, float]:
    """Least, median and most of the rounds' ratios of two rates."""
    ratios = [other.seconds / one.seconds for one, other in zip(found[name], found[base], strict=True)]
    return round(min(ratios), 2), median(ratios), round(max(ratios), 2)


def _note(report: Report, *, quick: bool) -> None:
    report.notes += NOTES
    if quick:
        report.notes.append("--quick: few images and one round; the goals are meant for the full run")
