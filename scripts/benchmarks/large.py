"""A very large study and a very large object through receive and forward, while another scanner sends steadily."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from appliance.journal.store import Journal
from benchmarks import raw_disk
from benchmarks.report import Report, quantile
from benchmarks.rig import Appliance, idle, pacs, storescp
from benchmarks.traffic import FRAME_BYTES, Ack, SteadySender, new_key, send_multiframe, send_series, waits_ms

MB = 10**6
EVERY_S = 0.04
ACK_WITHIN_S = 2.0
SLOWED_AT_MOST = 1.5
ENOUGH_FOR_P99 = 100
PEAKS_MB = {"receive": 80.0, "forward": 120.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    slices: int
    slices_rounds: int  #: the series comes in so many parts, with the other scanner alone before each
    multiframe_bytes: int
    multiframe_rounds: int
    alone_s: float
    raw_s: float  #: how long to look at the disk without the appliance, twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent at once beside the steady scanner."""

    name: str
    size: int  #: bytes
    send: Callable[[], Future[list[Ack]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The steady scanner's answers in one round."""

    alone: Sequence[Ack]
    beside: Sequence[Ack]


@dataclass(slots=True, kw_only=True)
class Measured:
    """Of one kind of load, over its rounds."""

    sent: list[Ack] = field(default_factory=list)
    sent_bytes: int = 0
    sending_s: float = 0.0
    rounds: list[Compared] = field(default_factory=list)


def measure(report: Report, sizes: Sizes, folder: Path) -> None:
    with (
        storescp(None) as port,
        Appliance(folder / "large", {"destinations": [pacs(port)]}) as appliance,
        closing(appliance.journal()) as journal,
        SteadySender(appliance.port, folder, EVERY_S) as steady,
        _bulk_sender() as pool,
    ):
        found: dict[str, Measured] = {}
        for load in _loads(sizes, pool, appliance.port, folder):
            _round(load, found, steady, journal, sizes.alone_s)
        steady.stop()
        idle(journal)
        peaks = {name: appliance.peak_mb(name) for name in PEAKS_MB}
        raw_disk.measure(report, pool, folder, sizes.raw_s)
    for name, measured in found.items():
        _tell(report, name, measured)
    for name, peak in peaks.items():
        report.row("resident memory", name, peak_MB=round(peak, 1))
        report.goal(f"{name}: most memory while they pass", PEAKS_MB[name], round(peak, 1), "MB")


def _loads(sizes: Sizes, pool: ProcessPoolExecutor, port: int, folder: Path) -> Iterator[Load]:
    key, part = new_key(), sizes.slices // sizes.slices_rounds
    for start in range(0, part * sizes.slices_rounds, part):
        send = partial(pool.submit, send_series, port, folder, key, range(start, start + part))
        yield Load(name=f"CT of {sizes.slices} slices", size=part * FRAME_BYTES, send=send)
    for _ in range(sizes.multiframe_rounds):
        size = sizes.multiframe_bytes
        send = partial(pool.submit, send_multiframe, port, folder, size)
        yield Load(name=f"multi-frame of {size // MB} MB", size=size, send=send)


def _round(load: Load, found: dict[str, Measured], steady: SteadySender, journal: Journal, alone_s: float) -> None:
    measured = found.setdefault(load.name, Measured())
    idle(journal)
    begun = time.monotonic()
    steady.pause(alone_s)
    sending = time.monotonic()
    measured.sent += load.send().result()
    ended = time.monotonic()
    measured.sent_bytes += load.size
    measured.sending_s += ended - sending
    measured.rounds.append(Compared(alone=steady.between(begun, sending), beside=steady.between(sending, ended)))


def _tell(report: Report, name: str, measured: Measured) -> None:
    worst = max(ack.waited for ack in measured.sent)
    report.row(
        "what was sent at once",
        name,
        objects=len(measured.sent),
        objects_per_s=round(len(measured.sent) / measured.sending_s, 1),
        MB_per_s=round(measured.sent_bytes / MB / measured.sending_s, 1),
        longest_wait_for_ack_s=round(worst, 4),
    )
    report.goal(f"{name}: acknowledged after its last byte", ACK_WITHIN_S, round(worst, 4), "s")
    tell_compared(report, name, measured.rounds)


def tell_compared(report: Report, beside: str, rounds: Sequence[Compared]) -> None:
    """Rows of how long answers were waited for, and the goal for the ratio of the p99s over all rounds."""
    whole = Compared(
        alone=[ack for one in rounds for ack in one.alone], beside=[ack for one in rounds for ack in one.beside]
    )
    for name, acks in ((f"alone, before {beside}", whole.alone), (f"beside {beside}", whole.beside)):
        waits = waits_ms(acks)
        shares = {f"p{share}": round(quantile(waits, share / 100), 1) for share in (50, 90, 99)}
        report.row("acks of CT images sent at a steady pace, ms", name, count=len(waits), **shares)
    ratio = f"p99 of acks beside {beside}, to alone"
    if min(len(whole.alone), len(whole.beside)) < ENOUGH_FOR_P99:
        report.notes.append(f"{ratio}: not judged, fewer than {ENOUGH_FOR_P99} acks")
        return
    report.goal(ratio, SLOWED_AT_MOST, _slowed(whole))
    ratios = [_slowed(one) for one in rounds]
    report.notes.append(f"{ratio}: {min(ratios)} to {max(ratios)} in single rounds")


def _slowed(one: Compared) -> float:
    return round(quantile(waits_ms(one.beside), 0.99) / quantile(waits_ms(one.alone), 0.99), 2)


@contextmanager
def _bulk_sender() -> Iterator[ProcessPoolExecutor]:
    """One process of its own, started and warm, so that it takes nothing from the steady sender's interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(new_key).result()
        yield pool
