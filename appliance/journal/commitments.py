"""Storage commitment asked of us (PS3.4 Annex J): the promise to report, and how far the report has come.

Receive writes the request, durably, before it is answered; from then on forward judges it, once, and reports it until
the peer has taken the report. Each of the two tables has one writer. See custody.py for what is judged.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.journal.packing import packed, unpacked
from appliance.journal.store import NOTHING, Journal, Subject, Transaction
from appliance.model import Reference
from appliance.states import REPORT, Event, ReportState

MAX_REFERENCES = 20_000  # of one request
MAX_OPEN = 1_000  # requests of one peer that are not reported
KEEP_REPORTED_MS = 7 * 86_400_000
CHUNK = 500
MAX_STUDIES = 50  # of one request, that get a line of history

_OPEN = (
    "FROM commitment_request r LEFT JOIN commitment_report p ON p.request=r.id"
    f" WHERE r.calling_ae=? AND coalesce(p.state, '')<>'{ReportState.REPORTED}'"
)

Failures = Mapping[int, int]  #: position among the references -> Failure Reason (0008,1197)


class Answer(StrEnum):
    """What becomes of a request for commitment."""

    TAKEN = "taken"
    REPEATED = "repeated"  #: the same request is known: its report comes, or came, once
    OTHER = "other"  #: the Transaction UID stands for another request
    TOO_MANY = "too_many"  #: of this peer's are open


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for commitment."""

    calling_ae: str
    called_ae: str
    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A request that is not reported yet; `failures` is None until it is judged."""

    id: int
    asked: Asked
    tick: int
    failures: Failures | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What one peer still waits for, for `status`."""

    calling_ae: str
    count: int
    oldest_tick: int


def ask(journal: Journal, asked: Asked) -> Answer:
    """Record a request durably: after this the peer may be told that a report will come."""
    refs, studies = packed(asked.references), _studies(journal, asked.references)
    with journal.write(durable=True) as tx:
        known = tx.sql(
            "SELECT refs FROM commitment_request WHERE calling_ae=? AND transaction_uid=?",
            (asked.calling_ae, asked.transaction_uid),
        ).fetchone()
        if known is not None:
            same = sorted(unpacked(known["refs"])) == sorted(map(list, asked.references))
            return Answer.REPEATED if same else Answer.OTHER
        if len(tx.sql(f"SELECT r.id {_OPEN} LIMIT ?", (asked.calling_ae, MAX_OPEN)).fetchall()) >= MAX_OPEN:
            return Answer.TOO_MANY
        tx.sql(
            "INSERT INTO commitment_request (calling_ae, called_ae, transaction_uid, count, tick, at, refs)"
            " VALUES (?,?,?,?,?,?,?)",
            (asked.calling_ae, asked.called_ae, asked.transaction_uid, len(asked.references), tx.tick, tx.at, refs),
        )
        _tell(tx, studies, "commitment_requested", asked, instances=len(asked.references))
    return Answer.TAKEN


def open_ids(journal: Journal, calling_ae: str) -> list[int]:
    """The requests of this peer that are not reported yet, oldest first."""
    rows = journal.query(f"SELECT r.id {_OPEN} ORDER BY r.id LIMIT ?", calling_ae, MAX_OPEN)
    return [row["id"] for row in rows]


def promise(journal: Journal, request: int) -> Promise | None:
    row = journal.one(
        "SELECT r.*, p.failed FROM commitment_request r LEFT JOIN commitment_report p ON p.request=r.id WHERE r.id=?",
        request,
    )
    return _promise(row) if row else None


def _promise(row: sqlite3.Row) -> Promise:
    return Promise(
        id=row["id"],
        asked=Asked(
            calling_ae=row["calling_ae"],
            called_ae=row["called_ae"],
            transaction_uid=row["transaction_uid"],
            references=tuple((sop_class, instance) for sop_class, instance in unpacked(row["refs"])),
        ),
        tick=row["tick"],
        failures=None if row["failed"] is None else dict(unpacked(row["failed"])),
    )


def judge(journal: Journal, promised: Promise, failures: Failures) -> None:
    """Record, durably, what will be reported: whatever happens then, the report is the same each time it is sent."""
    asked, state = promised.asked, REPORT.step(ReportState.ASKED, Event.JUDGE)
    studies, failed = _studies(journal, asked.references), packed(sorted(failures.items()))
    with journal.write(durable=True) as tx:
        done = tx.sql(
            "INSERT OR IGNORE INTO commitment_report (request, state, judged_tick, reported_tick, failed)"
            " VALUES (?,?,?,0,?)",
            (promised.id, state, tx.tick, failed),
        ).rowcount
        if done:
            committed = len(asked.references) - len(failures)
            _tell(tx, studies, "commitment_judged", asked, committed=committed, failed=len(failures))


def report_taken(journal: Journal, promised: Promise) -> None:
    """Record, durably, that the peer has taken the report."""
    studies = _studies(journal, promised.asked.references)
    with journal.write(durable=True) as tx:
        done = tx.sql(
            "UPDATE commitment_report SET state=?, reported_tick=? WHERE request=? AND state=?",
            (REPORT.step(ReportState.JUDGED, Event.REPORT_TAKEN), tx.tick, promised.id, ReportState.JUDGED),
        ).rowcount
        if done:
            _tell(tx, studies, "commitment_reported", promised.asked, ms=tx.tick - promised.tick)


def report_refused(journal: Journal, promised: Promise, status: int) -> None:
    """A line of history: the peer answered the report, and not with success."""
    studies = _studies(journal, promised.asked.references)
    with journal.write(durable=False) as tx:
        _tell(tx, studies, "commitment_report_refused", promised.asked, status=f"0x{status:04X}")


def prune(journal: Journal) -> int:
    """Forget some of those requests that were reported some days ago; returns how many."""
    horizon = journal.clock.tick() - KEEP_REPORTED_MS
    rows = journal.query(
        "SELECT request FROM commitment_report INDEXED BY commitment_reported"
        f" WHERE state='{ReportState.REPORTED}' AND reported_tick<? LIMIT ?",
        horizon,
        CHUNK,
    )
    if rows:
        with journal.write(durable=False) as tx:
            for row in rows:
                tx.sql("DELETE FROM commitment_request WHERE id=?", (row["request"],))
                tx.sql("DELETE FROM commitment_report WHERE request=?", (row["request"],))
    return len(rows)


def waiting(journal: Journal) -> list[Promised]:
    """What each peer still waits for."""
    rows = journal.query(
        "SELECT r.calling_ae, count(*) AS count, min(r.tick) AS oldest FROM commitment_request r"
        " LEFT JOIN commitment_report p ON p.request=r.id"
        f" WHERE coalesce(p.state, '')<>'{ReportState.REPORTED}' GROUP BY r.calling_ae"
    )
    return [Promised(calling_ae=row["calling_ae"], count=row["count"], oldest_tick=row["oldest"]) for row in rows]


def _studies(journal: Journal, references: Sequence[Reference]) -> list[str]:
    """The studies, known here, that references are of: those whose trace is to tell of it."""
    found: set[str] = set()
    for start in range(0, len(references), CHUNK):
        chunk = [instance for _, instance in references[start : start + CHUNK]]
        marks = ",".join("?" * len(chunk))
        rows = journal.query(
            f"SELECT DISTINCT study_instance_uid FROM instance WHERE sop_instance_uid IN ({marks})", *chunk
        )
        found |= {row["study_instance_uid"] for row in rows}
    return sorted(found - {""})[:MAX_STUDIES]


def _tell(tx: Transaction, studies: Iterable[str], event: str, asked: Asked, **detail: object) -> None:
    subjects = [Subject(study_instance_uid=study) for study in studies] or [NOTHING]
    for subject in subjects:
        tx.history(event, subject, calling_ae=asked.calling_ae, transaction=asked.transaction_uid, **detail)
