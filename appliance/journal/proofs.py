"""Proof of delivery: what destinations must still answer for, and what they were asked.

Only forward writes here. A row of `proof` is born by trigger when a lane settles a delivery, and goes with the state
that ends the wait: see proof_outcomes.py.
"""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from appliance.journal.packing import packed, unpacked
from appliance.journal.store import NOTHING, Journal, Subject, Transaction
from appliance.states import PROOF, DeliveryState, Event, ProofState

MAX_REFERENCES = 500  # of one transaction
KEEP_MS = 7 * 86_400_000  # transactions, for late and repeated reports
MAX_KEPT = 1024  # of one destination's that are not open any more, or never were answered
CHUNK = 100
PRUNE = 1000
MAX_STUDIES = 50  # of one transaction, that get a line of history


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivered object that its destination has not been asked about, or not in vain for good."""

    delivery: int
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    settled_tick: int  #: delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A transaction of storage commitment: each reference is (delivery, SOP class UID, SOP Instance UID)."""

    id: int
    destination: str
    transaction_uid: str
    state: ProofState
    tick: int
    references: tuple[tuple[int, str, str], ...]


def need(journal: Journal, proving: Collection[str], trusted: Collection[str]) -> None:
    """From now on these destinations must prove what they get, and those need not (any more)."""
    with journal.write(durable=True) as tx:
        for name in proving:
            tx.sql("INSERT OR IGNORE INTO proving VALUES (?, 0)", (name,))
        for name in trusted:
            tx.sql("DELETE FROM proving WHERE destination=?", (name,))
            tx.sql("DELETE FROM proof WHERE destination=?", (name,))
            tx.sql(
                "DELETE FROM proof_report WHERE request IN (SELECT id FROM proof_request WHERE destination=?)", (name,)
            )
            tx.sql("DELETE FROM proof_request WHERE destination=?", (name,))


def is_walked(journal: Journal, destination: str) -> bool:
    """Whether what was delivered before the destination had to prove it is looked after, too."""
    row = journal.one("SELECT walked FROM proving WHERE destination=?", destination)
    return row is None or bool(row["walked"])


def walk(journal: Journal, destination: str, after: str) -> str:
    """One chunk of that: of those copies that are still held. Returns where to go on, "" at the end."""
    files = [
        row["file"] for row in journal.query("SELECT file FROM copy WHERE file > ? ORDER BY file LIMIT ?", after, CHUNK)
    ]
    with journal.write(durable=False) as tx:
        tx.sql(
            "INSERT OR IGNORE INTO proof SELECT d.id, d.destination, 1, 0, 0 FROM copy c"
            f" JOIN delivery d ON d.instance=c.instance WHERE c.file IN ({_marks(files)})"
            " AND d.destination=? AND d.state=?",
            (*files, destination, DeliveryState.DELIVERED),
        )
        if len(files) < CHUNK:
            tx.sql("UPDATE proving SET walked=1 WHERE destination=?", (destination,))
    return files[-1] if len(files) == CHUNK else ""


def due(journal: Journal, destination: str, limit: int, after: int = 0) -> list[Due]:
    """What nobody asks about now, by id, from the one after `after`."""
    rows = journal.query(
        f"{_DUE} WHERE p.destination=? AND p.waiting=1 AND p.request=0 AND p.delivery>? ORDER BY p.delivery LIMIT ?",
        destination,
        after,
        limit,
    )
    return [Due(**dict(row)) for row in rows]


def due_ids(journal: Journal, destination: str, limit: int) -> list[int]:
    """The deliveries of `due`, for a look."""
    rows = journal.query(
        "SELECT delivery FROM proof INDEXED BY proof_due WHERE destination=? AND waiting=1 AND request=0"
        " ORDER BY delivery LIMIT ?",
        destination,
        limit,
    )
    return [row["delivery"] for row in rows]


def due_of_series(journal: Journal, destination: str, study: str, series: str) -> list[Due]:
    """As `due`, but all of one series."""
    rows = journal.query(
        f"SELECT * FROM ({_DUE_BY_SERIES} WHERE i.study_instance_uid=? AND i.series_instance_uid=?"
        " AND d.destination=? AND p.waiting=1 AND p.request=0) ORDER BY delivery",
        study,
        series,
        destination,
    )
    return [Due(**dict(row)) for row in rows]


_COLUMNS = (
    "SELECT d.id AS delivery, i.sop_class_uid, i.sop_instance_uid, i.study_instance_uid, i.series_instance_uid,"
    " d.settled_tick FROM"
)
_DUE = (
    f"{_COLUMNS} proof p INDEXED BY proof_due CROSS JOIN delivery d ON d.id=p.delivery"
    " CROSS JOIN instance i ON i.id=d.instance"
)
_DUE_BY_SERIES = (
    f"{_COLUMNS} instance i INDEXED BY instance_by_series CROSS JOIN delivery d ON d.instance=i.id"
    " CROSS JOIN proof p ON p.delivery=d.id"
)


def begin(journal: Journal, destination: str, transaction_uid: str, asking: Sequence[Due]) -> Request:
    """Note, durably, what a destination is about to be asked."""
    references = tuple((one.delivery, one.sop_class_uid, one.sop_instance_uid) for one in asking)
    studies = {one.study_instance_uid for one in asking}
    with journal.write(durable=True) as tx:
        id_ = tx.sql(
            "INSERT INTO proof_request (destination, transaction_uid, state, tick, refs) VALUES (?,?,?,?,?)",
            (destination, transaction_uid, PROOF.initial, tx.tick, packed(references)),
        ).lastrowid
        for one in asking:
            tx.sql("UPDATE proof SET request=? WHERE delivery=? AND waiting=1", (id_, one.delivery))
        request = Request(
            id=id_ or 0,
            destination=destination,
            transaction_uid=transaction_uid,
            state=PROOF.initial,
            tick=tx.tick,
            references=references,
        )
        _tell(tx, studies, "proof_requested", request, instances=len(asking))
    return request


def requests(journal: Journal, destination: str, *states: ProofState) -> list[tuple[int, int]]:
    """(id, tick) of this destination's transactions in these states, oldest first."""
    rows = journal.query(
        "SELECT id, tick FROM proof_request INDEXED BY proof_request_open WHERE destination=? AND state<>'answered'"
        f" AND state IN ({_marks(states)}) ORDER BY id",
        destination,
        *states,
    )
    return [(row["id"], row["tick"]) for row in rows]


def request(journal: Journal, id_: int) -> Request | None:
    return _request(journal.one("SELECT * FROM proof_request WHERE id=?", id_))


def request_of(journal: Journal, destination: str, transaction_uid: str) -> Request | None:
    return _request(
        journal.one(
            "SELECT * FROM proof_request WHERE transaction_uid=? AND destination=?", transaction_uid, destination
        )
    )


def _request(row: sqlite3.Row | None) -> Request | None:
    if row is None:
        return None
    references = tuple((delivery, sop_class, instance) for delivery, sop_class, instance in unpacked(row["refs"]))
    return Request(
        id=row["id"],
        destination=row["destination"],
        transaction_uid=row["transaction_uid"],
        state=ProofState(row["state"]),
        tick=row["tick"],
        references=references,
    )


def promised(journal: Journal, asked: Request) -> None:
    """The destination has promised a report, of what is there now. Nothing is lost with this: it is asked anew then."""
    with journal.write(durable=False) as tx:
        if turn(tx, asked.id, ProofState.NOTED, Event.PROMISE):
            tx.sql("UPDATE proof_request SET tick=? WHERE id=?", (tx.tick, asked.id))
            _tell(tx, _studies(journal, asked), "proof_promised", asked)


def lapse(journal: Journal, asked: Request, reason: str) -> None:
    """No answer is expected any more: all it has not spoken of is due again. A late one counts all the same."""
    with journal.write(durable=False) as tx:
        if turn(tx, asked.id, asked.state, Event.LAPSE):
            tx.sql("UPDATE proof SET request=0 WHERE request=?", (asked.id,))
            _tell(tx, _studies(journal, asked), "proof_lapsed", asked, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproven:
    """What one destination has got and does not answer for yet, for `status`."""

    destination: str
    count: int
    asked: int  #: of these, in a transaction whose answer is awaited
    oldest_tick: int  #: delivered


def waiting(journal: Journal) -> list[Unproven]:
    rows = journal.query(
        "SELECT p.destination, count(*) AS count, sum(p.request<>0) AS asked, min(p.delivery) AS oldest FROM proof p"
        " WHERE p.waiting=1 GROUP BY p.destination"
    )
    ticks = [journal.one("SELECT settled_tick FROM delivery WHERE id=?", row["oldest"]) for row in rows]
    return [
        Unproven(
            destination=row["destination"],
            count=row["count"],
            asked=row["asked"],
            oldest_tick=tick["settled_tick"] if tick else 0,
        )
        for row, tick in zip(rows, ticks, strict=True)
    ]


def prune(journal: Journal, destination: str) -> int:
    """Forget old transactions of a destination that nothing waits for; returns how many."""
    horizon = journal.clock.tick() - KEEP_MS
    rows = journal.query(
        "SELECT id, tick FROM proof_request WHERE destination=? AND state IN (?, ?) ORDER BY id DESC",
        destination,
        ProofState.ANSWERED,
        ProofState.LAPSED,
    )
    old = [row["id"] for number, row in enumerate(rows) if row["tick"] < horizon or number >= MAX_KEPT][-PRUNE:]
    if old:
        with journal.write(durable=False) as tx:
            for id_ in old:
                tx.sql("DELETE FROM proof_report WHERE request=?", (id_,))
                tx.sql("DELETE FROM proof_request WHERE id=?", (id_,))
    return len(old)


def turn(tx: Transaction, id_: int, state: ProofState, event: Event) -> bool:
    """Compare-and-set."""
    parameters = (PROOF.step(state, event), id_, state)
    return bool(tx.sql("UPDATE proof_request SET state=? WHERE id=? AND state=?", parameters).rowcount)


def _studies(journal: Journal, asked: Request) -> set[str]:
    ids = [delivery for delivery, _, _ in asked.references]
    rows = journal.query(
        "SELECT DISTINCT i.study_instance_uid AS study FROM delivery d JOIN instance i ON i.id=d.instance"
        f" WHERE d.id IN ({_marks(ids)})",
        *ids,
    )
    return {row["study"] for row in rows}


def _tell(tx: Transaction, studies: Iterable[str], event: str, asked: Request, **detail: object) -> None:
    named = sorted(set(studies) - {""})[:MAX_STUDIES]
    for subject in [Subject(study_instance_uid=study) for study in named] or [NOTHING]:
        tx.history(event, subject, destination=asked.destination, transaction=asked.transaction_uid, **detail)


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
