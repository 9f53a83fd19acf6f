"""Same facts, same bytes (P3): identifiers from content, times from the conclusion, one way to write a file.

highdicom writes the current time into several attributes; `stamp` overwrites them all. Nothing here reads a clock.
"""

import hashlib
import json
import struct
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from appliance.model import Kind, Outcome
from appliance.stages.report.context import Built, ReportContext

_NAMESPACE = uuid.UUID("0a14be70-4869-4c5e-b5f4-e34eecb628bf")  # never change: results would get new identities
_DATES = ("InstanceCreationDate", "ContentDate", "SeriesDate", "DateOfSecondaryCapture")
_TIMES = ("InstanceCreationTime", "ContentTime", "SeriesTime", "TimeOfSecondaryCapture")
_GROUP_LENGTH_AT = 128 + 4 + 8  # preamble, prefix, then tag, VR and length of (0002,0000)


def uid_for(*parts: str) -> str:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` and on nothing else."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"


def outcome_hash(outcome: Outcome) -> str:
    """SHA-256 over what the outcome states, in hex.

    How long it took is left out: the same statement made again, after a lost journal say, is the same result.
    """
    stated = asdict(outcome)
    del stated["timings_ms"]
    if not stated["unlisted"]:  # then the hash is that of a release which did not know it
        del stated["unlisted"]
    for finding in stated["findings"]:
        if finding["has_score"]:  # as it is with nearly all: the same
            del finding["has_score"]
    return hashlib.sha256(json.dumps(_canonical(stated), sort_keys=True).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """JSON with one spelling per value: a journal may give 5 back for 5.0, and a list for a tuple."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(float(value))
    return value


def result_uid(context: ReportContext, kind: Kind, *parts: str) -> str:
    """The identity of one result object, or of a part of it named by `parts` (a tracked finding, say)."""
    return uid_for(
        context.engine_key,
        context.study_instance_uid,
        context.subject,
        context.input_digest,
        outcome_hash(context.outcome),
        kind.value,
        str(context.revision),
        *parts,
    )


def series_uid(sop_instance_uid: str) -> str:
    """The series of a result: each has one of its own, since OHIF shows only the last report of a series."""
    return uid_for("series", sop_instance_uid)


def stamp(dataset: Dataset, local: datetime) -> None:
    """Set every date and time of the object itself, of its series and of its equipment to the conclusion's.

    `local` is in the source's zone, so that the dates agree with the images' (PS3.3 C.12.1.1.8).
    """
    for keyword in _DATES:
        if keyword in dataset:
            setattr(dataset, keyword, f"{local:%Y%m%d}")
    for keyword in _TIMES:
        if keyword in dataset:
            setattr(dataset, keyword, f"{local:%H%M%S}")
    for item in dataset.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = f"{local:%Y%m%d%H%M%S%z}"


def write(dataset: Dataset, kind: Kind) -> Built:
    """The object as a PS3.10 file in memory, under our own implementation identity."""
    dataset.file_meta.ImplementationClassUID = UID(uid_for("implementation"))
    dataset.file_meta.ImplementationVersionName = "SCANSIDE"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    file_bytes = buffer.getvalue()
    (group_length,) = struct.unpack_from("<I", file_bytes, _GROUP_LENGTH_AT)
    return Built(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        file_bytes=file_bytes,
        data_set_offset=_GROUP_LENGTH_AT + 4 + group_length,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings in: their texts quote header values, and those are patient data (P10)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
