"""Scanners for benchmarks: series and multi-frame objects made while they are sent, each answer timed.

One template file is patched in place before each C-STORE, so a study of any size costs one image of disk.
"""

import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from appliance.dimse.command import Command
from appliance.dimse.header import Part10, part10
from appliance.dimse.requestor import Answer, RequestedAssociation
from appliance.dimse.wire import Target, Wire
from appliance.errors import ScansideError
from benchmarks.report import BenchError
from benchmarks.rig import LOOPBACK

SIZE = 512
FRAME_BYTES = SIZE * SIZE * 2
SPACING_MM = 1.0
WIRE_BYTES_PER_S = 117e6  # 1 Gbit/s Ethernet, headers taken off
OVERSLEPT_S = 0.001  # what a sleep was too long may be made up for
SYNTAX = str(ExplicitVRLittleEndian)
#: What stands before the values that change from slice to slice, as encoded (PS3.5 7.1.2).
_PATCHED = {
    "instance": b"\x08\x00\x18\x00UI\x26\x00",
    "number": b"\x20\x00\x13\x00IS\x06\x00",
    "z": b"\x20\x00\x32\x00DS\x14\x00-200\\-200\\",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """One answered C-STORE. Times in seconds, `begun` on the monotonic clock."""

    begun: float
    waited: float  #: from the last byte, when it had been handed to the kernel, to the answer


class PacedWire(Wire):
    """Sends no faster than a wire would carry it.

    The sender shares the cores with what it measures; a scanner sits at the other end of a cable.
    """

    _free_at = 0.0

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        for at in range(0, len(parts), 2):  # a PDU or two at a time: its last byte leaves in time to a millisecond
            some = parts[at : at + 2]
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            super().send(some)
            size = sum(len(part) for part in some)
            self._free_at = max(self._free_at, time.monotonic() - OVERSLEPT_S) + size / WIRE_BYTES_PER_S


class TimedAssociation(RequestedAssociation):
    """Notes when the last byte of a request has left."""

    sent_at = 0.0

    def _answer_to(self, request: Command, deadline: float | None = None) -> Answer:
        self.sent_at = time.monotonic()
        return super()._answer_to(request, deadline)


def associate(port: int, calling_ae: str, sop_class_uid: str) -> TimedAssociation:
    target = Target(host=LOOPBACK, port=port, calling_ae=calling_ae, called_ae="SCANSIDE")
    association = TimedAssociation(target, PacedWire(target))
    association.negotiate([(sop_class_uid, SYNTAX)])
    return association


def store(association: TimedAssociation, item: Part10) -> Ack:
    """Raises BenchError for any answer but success."""
    begun = time.monotonic()
    status = association.store(item).status
    ended = time.monotonic()
    if status:
        raise BenchError(f"the appliance answered 0x{status:04X} to a C-STORE")
    return Ack(begun=begun, waited=ended - association.sent_at)


class CtSeries:
    """An endless CT series in one file: `slice` patches it to any instance. Equal `key`, equal UIDs."""

    def __init__(self, folder: Path, key: int) -> None:
        self._path = folder / f"template-{secrets.token_hex(8)}.dcm"
        self._key = key
        _write_ct(self._path, *(self._uid(kind, 0) for kind in range(3)))
        self._item = part10(self._path)
        content = self._path.read_bytes()
        self._offsets = {name: content.index(element) + len(element) for name, element in _PATCHED.items()}
        self._file = os.open(self._path, os.O_WRONLY)

    def slice(self, number: int) -> Part10:
        uid = self._uid(2, number)
        self._patch("instance", uid)
        self._patch("number", f"{number % 10**6:06d}")
        self._patch("z", f"{number * SPACING_MM % 10**5:+09.2f}")
        return replace(self._item, sop_instance_uid=uid)

    def close(self) -> None:
        os.close(self._file)
        self._path.unlink()

    def _patch(self, name: str, value: str) -> None:
        os.pwrite(self._file, value.encode(), self._offsets[name])

    def _uid(self, kind: int, number: int) -> str:
        return _uid(self._key, kind, number)


def send_series(port: int, folder: Path, key: int, slices: range) -> list[Ack]:
    """Slices of a CT over one association, as fast as they are taken."""
    series = CtSeries(folder, key)
    association = associate(port, "BENCH", str(CTImageStorage))
    try:
        return [store(association, series.slice(number)) for number in slices]
    finally:
        association.release()
        series.close()


def send_multiframe(port: int, folder: Path, size: int) -> list[Ack]:
    """One enhanced CT of about `size` bytes; its pixels are a hole in a file, so only the receiver's disk is used."""
    path = folder / f"multiframe-{secrets.token_hex(8)}.dcm"
    write_multiframe(path, frames=size // FRAME_BYTES)
    association = associate(port, "BENCH", str(EnhancedCTImageStorage))
    try:
        return [store(association, part10(path))]
    finally:
        association.release()
        path.unlink()


class SteadySender:
    """A scanner that stores one CT image at a steady pace, on one association, in a thread; `with` runs it."""

    def __init__(self, port: int, folder: Path, every_s: float) -> None:
        self._series = CtSeries(folder, new_key())
        self._every_s = every_s
        self._association = associate(port, "STEADY", str(CTImageStorage))
        self._acks: list[Ack] = []
        self._error: Exception | None = None  #: told by `between`
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._association.release()
        self._series.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def pause(self, seconds: float) -> None:
        """Let it go on alone for so long."""
        self._stop.wait(seconds)

    def between(self, begun: float, ended: float) -> list[Ack]:
        """Answers to what was begun in this span. Raises BenchError where the sender has failed."""
        if self._error is not None:
            raise BenchError(f"the steady sender failed: {self._error}")
        return [ack for ack in list(self._acks) if begun <= ack.begun < ended]

    def _run(self) -> None:
        due, number = time.monotonic(), 0
        try:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                self._acks.append(store(self._association, self._series.slice(number)))
                number += 1
                due = max(due + self._every_s, time.monotonic())
        except (ScansideError, BenchError, OSError) as error:
            self._error = error


def _write_ct(path: Path, study: str, series: str, instance: str) -> None:
    dataset = _image(str(CTImageStorage), instance, study, series)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = "000000"
    dataset.ImagePositionPatient = ["-200", "-200", "+00000.00"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.75, 0.75]
    dataset.SliceThickness = SPACING_MM
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    noise = np.random.default_rng(1).integers(0, 4096, (SIZE, SIZE), np.uint16)
    dataset.PixelData = noise.tobytes()
    _save(path, dataset)


def write_multiframe(path: Path, frames: int) -> None:
    key = new_key()
    study, series, instance = (_uid(key, kind, 0) for kind in range(3))
    dataset = _image(str(EnhancedCTImageStorage), instance, study, series)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = frames
    dataset.SharedFunctionalGroupsSequence = DicomSequence([Dataset()])
    dataset.PixelData = b""
    _save(path, dataset)
    with path.open("r+b") as file:  # Pixel Data is the last element: give it its length, and the file a hole
        end = file.seek(0, os.SEEK_END)
        file.seek(end - 4)
        file.write((frames * FRAME_BYTES).to_bytes(4, "little"))
        file.truncate(end + frames * FRAME_BYTES)


def _image(sop_class_uid: str, instance: str, study: str, series: str) -> Dataset:
    values: dict[str, Any] = {
        "SOPClassUID": sop_class_uid,
        "SOPInstanceUID": instance,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "Modality": "CT",
        "PatientName": "Bench^Mark",
        "PatientID": "BENCH",
        "BodyPartExamined": "CHEST",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": SIZE,
        "Columns": SIZE,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
    }
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _save(path: Path, dataset: Dataset) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dcmwrite(path, dataset, enforce_file_format=True)


def new_key() -> int:
    return secrets.randbelow(10**14)


def _uid(key: int, kind: int, number: int) -> str:
    """Of constant length, so that it can be patched in place."""
    return f"2.25.1{key:014d}{kind:02d}{number:016d}"


def waits_ms(acks: Sequence[Ack]) -> list[float]:
    """How long each answer was waited for, in ms."""
    return [ack.waited * 1000 for ack in acks]
