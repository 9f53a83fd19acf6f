"""How long a result takes to the PACS while a large study goes out over a thin line; ours, and what others have."""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from appliance.model import Urgency
from benchmarks.forward_orthanc import Orthanc
from benchmarks.forward_place import TUNED, Cargo, Looker, Pacs, algorithms, storescp
from benchmarks.forward_queue import Queue
from benchmarks.forward_senders import CUBIC, UNASKED, destination, finish, storescu
from benchmarks.report import Report, quantile
from benchmarks.rig import Appliance
from benchmarks.wan import FAR, NEAR, Shape, Wan

LINE = Shape(delay_ms=50, rate=2e6)
SR, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.7"
SR_BYTES = 60 << 10
SR_GOAL_S, RESULT_GOAL = 2.0, 1.2
ARRIVED_S = 600.0
OURS, BESIDE, ORTHANC = "ours", "storescu, a second one beside", "Orthanc, a second job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    study: int  #: bytes that wait
    reports: int  #: of ours
    others: int  #: of each other sender
    every_s: float  #: on average
    results: int  #: larger ones
    result_bytes: int
    warm_s: float = 3.0  #: from the study's first byte to the first report
    orthanc: bool = True  #: is compared, too


FULL = Sizes(study=500_000_000, reports=120, others=20, every_s=4.0, results=12, result_bytes=1_000_000)
QUICK = Sizes(
    study=6_000_000, reports=2, others=1, every_s=1.0, results=1, result_bytes=200_000, warm_s=1.0, orthanc=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    sizes: Sizes
    wan: Wan
    cargo: Cargo
    pacs: Pacs


def measure(report: Report, sizes: Sizes, wan: Wan, cargo: Cargo) -> None:
    with ExitStack() as stack:
        pacs = stack.enter_context(storescp(wan, FAR, TUNED, cargo.folder / "pacs-urgent"))
        stack.enter_context(wan.inside(NEAR))
        stand = _Stand(sizes=sizes, wan=wan, cargo=cargo, pacs=pacs)
        waits, ratios = _ours(report, stand)
        _tell(report, stand, OURS, waits)
        for name, beside in ((BESIDE, _storescu), (ORTHANC, _orthanc))[: 1 + sizes.orthanc]:
            wan.congest(NEAR, CUBIC)
            wan.reshape(LINE)
            _tell(report, stand, name, beside(stand))
        wan.congest(NEAR, "")
        wan.reshape(Shape())
    whole = sizes.study * 8 / LINE.rate
    report.row(
        _table(sizes), "one queue, first come first served (computed)", n=0, p50_s=whole / 2, p99_s=round(whole * 0.99)
    )
    name = f"SR of {SR_BYTES >> 10} KiB while a study goes out at 2 Mbit/s, p99 to the PACS's ack (n={len(waits)})"
    report.goal(name, SR_GOAL_S, round(quantile(waits, 0.99), 3), "s")
    name = f"result of {sizes.result_bytes / 1e6:g} MB meanwhile, to its bytes over the line's rate (n={len(ratios)})"
    report.goal(name, RESULT_GOAL, round(max(ratios), 3))


def _tell(report: Report, stand: _Stand, name: str, waits: Sequence[float]) -> None:
    report.row(
        _table(stand.sizes),
        name,
        n=len(waits),
        p50_s=round(median(waits), 2),
        p99_s=round(quantile(waits, 0.99), 2),
        max_s=round(max(waits), 2),
    )


def _table(sizes: Sizes) -> str:
    return f"from 'an SR exists' to the PACS's ack, {sizes.study / 1e6:g} MB going out over {LINE.words}"


def _ours(report: Report, stand: _Stand) -> tuple[list[float], list[float]]:
    """Seconds of reports; of larger results, their seconds over those that their bytes take on the line alone."""
    stand.wan.reshape(LINE)
    stand.wan.congest(NEAR, "")
    stand.wan.default_congestion(NEAR, UNASKED)
    options = {"destinations": [destination("pacs", stand.pacs)]}
    with Appliance(stand.cargo.folder / "urgent", options) as appliance, Queue(appliance) as queue:
        repeats = -(-stand.sizes.study // stand.cargo.bytes)
        files = stand.cargo.files[: max(1, stand.sizes.study * len(stand.cargo.files) // stand.cargo.bytes)]
        queue.hold(files, {"pacs": repeats})
        bulk = [key for _ in range(repeats) for key in queue.let_go("pacs")]
        looker = Looker(stand.wan, stand.pacs, algorithms(stand.wan))
        time.sleep(stand.sizes.warm_s)
        ids = []
        for pause in _pauses(stand.sizes.reports, stand.sizes.every_s):
            time.sleep(pause)
            file = write_object(stand.cargo.folder, SR, SR_BYTES)
            ids.append(queue.owe(file, "pacs", Urgency.URGENT_SR))
            looker.look()
        waits = [one.seconds for one in queue.wait(ids, within_s=ARRIVED_S)]
        ratios = [_result(stand, queue) for _ in range(stand.sizes.results)]
        left = queue.still_queued(bulk)
    report.notes.append(
        f"urgent: ours had {looker.congestion or 'an unknown congestion control'}, {looker.connections} connections at"
        f" most; {left} of {len(bulk)} objects of the study were still to be sent at the end"
    )
    return waits, ratios


def _result(stand: _Stand, queue: Queue) -> float:
    file = write_object(stand.cargo.folder, SECONDARY_CAPTURE, stand.sizes.result_bytes)
    (done,) = queue.wait([queue.owe(file, "pacs", Urgency.RESULT)], within_s=ARRIVED_S)
    return done.seconds / (stand.sizes.result_bytes * 8 / LINE.rate)


def _storescu(stand: _Stand) -> list[float]:
    """A second process while the first sends the study: the best that two of them can do, without an order."""
    (folder,) = stand.cargo.images.dealt(stand.cargo.folder, 1)
    bulk = storescu(stand.pacs, folder, nodelay=True)
    try:
        time.sleep(stand.sizes.warm_s)
        return _timed(stand, lambda file: finish([storescu(stand.pacs, file, nodelay=True)]))
    finally:
        bulk.kill()
        bulk.wait()


def _orthanc(stand: _Stand) -> list[float]:
    """A second job while the first sends the study; Orthanc runs two at a time unless told otherwise."""
    with Orthanc(stand.cargo.folder / "orthanc-urgent") as orthanc:
        study = orthanc.load(stand.cargo.files)
        job = orthanc.start_sending(study, stand.pacs.host, stand.pacs.port)
        time.sleep(stand.sizes.warm_s)

        def send(file: Path) -> None:
            orthanc.send(orthanc.load([file]), stand.pacs.host, stand.pacs.port)

        waits = _timed(stand, send)
        orthanc.cancel(job)
    return waits


def _timed(stand: _Stand, send: Callable[[Path], None]) -> list[float]:
    waits = []
    for pause in _pauses(stand.sizes.others, stand.sizes.every_s):
        time.sleep(pause)
        file = write_object(stand.cargo.folder, SR, SR_BYTES)
        begun = time.monotonic()
        send(file)
        waits.append(time.monotonic() - begun)
    return waits


def _pauses(count: int, every_s: float) -> list[float]:
    """Uneven, so that no rhythm of a sender is met again and again; the same each time."""
    draw = Random(1)  # noqa: S311 - of moments
    return [draw.uniform(0.5, 1.5) * every_s for _ in range(count)]


def write_object(folder: Path, sop_class_uid: str, size: int) -> Path:
    """An object of this class and of about so many bytes, with an identity of its own; its content says nothing."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    instance = dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.StudyDate, dataset.StudyTime = "Bench^Mark", "BENCH", "", ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "OT", 1, 1
    dataset.add_new((0x0099, 0x0010), "LO", "SCANSIDE BENCH")
    dataset.add_new((0x0099, 0x1001), "OB", secrets.token_bytes(size - size % 2))
    path = folder / f"{instance}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path
