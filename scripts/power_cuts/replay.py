"""Every crash point of one recording: dm-log-writes notes each block write, flush and ack, and each prefix is a crash.

What a power cut of a guest cannot show, this does: writes that were under way, on a drive that reorders what it has not
been told to flush.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from power_cuts.controls import Alteration, preload
from power_cuts.disk import copy_sparse, make_ext4
from power_cuts.guest import Boot, Guest, python_job
from power_cuts.ledger import Ledger, acknowledged
from power_cuts.trial import STATE, Tally, judge, workplace
from power_cuts.write_log import apply, crash_points

RECORD_S = 300.0
DISK, LOG = 64 << 20, 1 << 30  # bytes; the log's image is sparse
DEVICE = "recorded"
MODULES = ("dm-mod", "dm-log-writes")
_SET_UP = f"""
sectors=$(/bin/busybox blockdev --getsz /dev/ubda)
echo "0 $sectors log-writes /dev/ubda /dev/ubdb" | dmsetup create {DEVICE} --noudevsync || exit 1
/bin/busybox mount -t ext4 /dev/dm-0 /run/disk || exit 1
"""
_TAKE_DOWN = f"""
status=$?
/bin/busybox umount /run/disk || exit 1
dmsetup remove --noudevsync {DEVICE} || exit 1
exit $status
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording on the host: the disk before it, the log, and what was acknowledged."""

    base: Path
    log: Path
    ledger: Ledger
    points: int
    alteration: Alteration


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to record, and where to put it."""

    folder: Path
    images: int
    alteration: Alteration = Alteration.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Crash points `start`, `start + step`, ... of a recording, for one worker; `seed` "" is in order."""

    recording: Recording
    start: int
    step: int
    seed: str


def record(order: Order) -> Recording:
    """Record the product, or a control, receiving so many images over one association; in a worker. Raises RigError."""
    work = workplace()
    base, disk, log = (work / name for name in ("base.img", "disk.img", "log.img"))
    make_ext4(base, DISK)
    copy_sparse(base, disk)
    log.touch()
    with log.open("r+b") as file:
        file.truncate(LOG)
    program = python_job(
        "power_cuts.inside",
        *("--state", f"/run/disk/{STATE}", "--alteration", order.alteration),
        *("--associations", "1", "--count", str(order.images), "--marks", DEVICE),
        preload=preload(order.alteration),
    )
    with Guest(Boot(job=_SET_UP + program + _TAKE_DOWN, disks=[disk, log], modules=MODULES), work) as guest:
        guest.run_to_end(RECORD_S)
        ledger = acknowledged(guest.console)
    for image in (base, log):
        copy_sparse(image, order.folder / image.name)
    for image in (base, disk, log):
        image.unlink()
    with (order.folder / log.name).open("rb") as recorded:
        points = sum(1 for _ in crash_points(recorded))
    return Recording(
        base=order.folder / base.name,
        log=order.folder / log.name,
        ledger=ledger,
        points=points,
        alteration=order.alteration,
    )


def replay(stretch: Stretch) -> Tally:
    """Crash at each point of a stretch and judge what is there, in a worker. `acked` is not counted."""
    work = workplace()
    settled, trial = work / "settled.img", work / "trial.img"
    shutil.rmtree(work / "mount", ignore_errors=True)
    copy_sparse(stretch.recording.base, settled)
    total = Tally()
    product = stretch.recording.alteration is Alteration.NONE
    with stretch.recording.log.open("rb") as log:
        for point in crash_points(log, stretch.seed):
            apply(point.settled, log, settled)
            if point.number < stretch.start or (point.number - stretch.start) % stretch.step:
                continue
            copy_sparse(settled, trial)
            apply(point.in_flight, log, trial)
            promised = {uid: stretch.recording.ledger[uid] for uid in point.acked}
            total += judge(trial, promised, work, product=product)[0]
    return total


def stretches(recording: Recording, points: int, seed: str, pieces: int) -> Iterator[Stretch]:
    """Up to so many crash points, evenly spread over the recording, in pieces of equal size."""
    every = max(1, recording.points // points) if points else 1
    pieces = min(pieces, max(1, recording.points // every))
    for piece in range(pieces):
        yield Stretch(recording=recording, start=piece * every, step=every * pieces, seed=seed)
