"""Journals, arrivals and clocks for tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.digest import digest_of
from appliance.journal.inbox import Recorded, record
from appliance.journal.store import Journal
from appliance.model import Arrival, Header, Owed, Urgency

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY, SERIES = "1.2.3", "1.2.3.4"
TO_PACS = Owed(destination="pacs", urgency=Urgency.IMAGE)

ClosedLater = Callable[[Journal], Journal]


@dataclass
class Hands:
    """A boot-time clock that is moved by hand, in milliseconds."""

    ms: int = 0

    def __call__(self) -> int:
        return self.ms


def open_journal(path: Path, process: str = "test", hands: Hands | None = None) -> Journal:
    journal = Journal(path, process)
    if hands is not None:
        journal.clock = replace(journal.clock, base_ms=1_000_000, boot_time_ms=hands)
    return journal


def arrival(number: int, content: bytes | None = None, header: dict[str, Any] | None = None, **changes: Any) -> Arrival:
    """Instance `number` of one CT series; `header` and `changes` replace fields of its header and its own."""
    data = content if content is not None else b"data of %d" % number
    uid = f"{SERIES}.{number}"
    facts = {"study_instance_uid": STUDY, "series_instance_uid": SERIES, "modality": "CT", "patient": b"p" * 32}
    values: dict[str, Any] = {
        "sop_class_uid": CT_IMAGE,
        "sop_instance_uid": uid,
        "transfer_syntax_uid": EXPLICIT,
        "digest": digest_of(data),
        "size": len(data),
        "file": f"received/000000/{number:09d}.dcm",
        "calling_ae": "CT01",
        "called_ae": "SCANSIDE",
        "peer": "127.0.0.1",
        "association": 1,
        "header": Header(**facts | {"sop_instance_uid": uid} | (header or {})),
    }
    return Arrival(**values | changes)


def receive(journal: Journal, *arrivals: Arrival, owed: tuple[Owed, ...] = (TO_PACS,)) -> list[Recorded]:
    return record(journal, arrivals, lambda _: owed)


def count(journal: Journal, table: str) -> int:
    row = journal.one(f"SELECT count(*) FROM {table}")  # noqa: S608 - a name from the test
    return int(row[0]) if row else 0


def events(journal: Journal, **about: str) -> list[str]:
    """The events of history, in order; `about` narrows them to rows with these values."""
    where = "".join(f" AND {column}=?" for column in about)
    rows = journal.query(f"SELECT event FROM history WHERE 1=1{where} ORDER BY id", *about.values())  # noqa: S608
    return [row["event"] for row in rows]
