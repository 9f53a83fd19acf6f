"""What the disk itself does to small syncs while a large file is written: the same writes and syncs, no appliance.

Without it nobody could tell what of a slow acknowledgement beside a large object is ours.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from appliance.disk import begin_write_back, wait_for_write_back
from benchmarks.report import Report, quantile
from benchmarks.traffic import FRAME_BYTES, WIRE_BYTES_PER_S

WINDOW = 1 << 20
COMMIT_BYTES = 60_000  # about what the journal writes for an image
EVERY_S = 0.04


def measure(report: Report, pool: ProcessPoolExecutor, folder: Path, seconds: float) -> None:
    alone = _sync_images(folder, seconds)
    writing = pool.submit(_write_large, folder / "large-file", seconds)
    beside = _sync_images(folder, seconds)
    writing.result()
    for name, times in (("alone", alone), ("beside a file written at 1 Gbit/s", beside)):
        shares = {f"p{share}": round(quantile(times, share / 100), 1) for share in (50, 90, 99)}
        report.row("file, folder and journal synced without the appliance, ms", name, count=len(times), **shares)
    ratio = quantile(beside, 0.99) / quantile(alone, 0.99)
    report.notes.append(f"the disk alone, without the appliance, slows these syncs at the p99 by {ratio:.2f}")


def _sync_images(folder: Path, seconds: float) -> Sequence[float]:
    """Milliseconds that each of some files of a CT image's size took to be durable, as receive does it."""
    image, times, number = os.urandom(FRAME_BYTES), [], 0
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    journal = os.open(folder / "journal", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    due = time.monotonic()
    ends = due + seconds
    while due < ends:
        time.sleep(max(0.0, due - time.monotonic()))
        begun = time.perf_counter()
        path = folder / f"image-{number}"
        _write_durably(path, image)
        os.fsync(directory)
        os.write(journal, image[:COMMIT_BYTES])
        os.fdatasync(journal)
        times.append((time.perf_counter() - begun) * 1000)
        path.unlink()
        number += 1
        due += EVERY_S
    os.close(directory)
    os.close(journal)
    return times


def _write_durably(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(file, data)
        os.fdatasync(file)
    finally:
        os.close(file)


def _write_large(path: Path, seconds: float) -> None:
    """Write a file as the spool writes one, no faster than the wire, for so long."""
    data, size, begun = os.urandom(WINDOW), 0, time.monotonic()
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while time.monotonic() - begun < seconds:
            os.write(file, data)
            begin_write_back(file, size, WINDOW)
            wait_for_write_back(file, max(0, size - WINDOW), min(size, WINDOW))
            size += WINDOW
            time.sleep(max(0.0, begun + size / WIRE_BYTES_PER_S - time.monotonic()))
    finally:
        os.close(file)
        path.unlink()
