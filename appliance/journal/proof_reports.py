"""What destinations report of storage commitment: noted by receive, durably, before they are told so; read by forward.

Only what was asked for is kept of a report, so that a row is bounded by our own question, whatever a peer says.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from appliance.journal.packing import packed, unpacked
from appliance.journal.store import Journal
from appliance.model import CommitmentAnswer

MAX_WAITING = 16  # reports of one transaction that forward has not read yet


class Answer(StrEnum):
    """What becomes of a report."""

    TAKEN = "taken"  #: or it was known
    UNKNOWN = "unknown"  #: these destinations were asked nothing in this transaction, or it is long past
    TOO_MANY = "too_many"  #: of this transaction's wait to be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """A report that forward has not drawn the consequences of; position among the references -> reason, or 0."""

    id: int
    request: int
    outcomes: Mapping[int, int]


def outcomes_of(references: Collection[tuple[int, str, str]], answer: CommitmentAnswer) -> dict[int, int]:
    """What it says of what was asked, by position: the reason, or 0; of the rest, nothing."""
    said = {**dict.fromkeys(answer.committed, 0), **{uid: reason or 1 for uid, reason in answer.failed.items()}}
    return {number: said[uid] for number, (_, _, uid) in enumerate(references) if uid in said}


def note(journal: Journal, told: CommitmentAnswer, calling_ae: str, destinations: Collection[str]) -> Answer:
    """Keep a report of one of these destinations, durably: after this it may be told that it is taken."""
    names = sorted(destinations)
    asked = journal.one(
        f"SELECT id, refs FROM proof_request WHERE transaction_uid=? AND destination IN ({','.join('?' * len(names))})",
        told.transaction_uid,
        *names,
    )
    if asked is None:
        return Answer.UNKNOWN
    outcomes = packed(sorted(outcomes_of(unpacked(asked["refs"]), told).items()))
    with journal.write(durable=True) as tx:
        waiting = tx.sql("SELECT outcomes FROM proof_report WHERE request=?", (asked["id"],)).fetchall()
        if any(row["outcomes"] == outcomes for row in waiting):
            return Answer.TAKEN
        if len(waiting) >= MAX_WAITING:
            return Answer.TOO_MANY
        tx.sql("INSERT INTO proof_report (request, tick, outcomes) VALUES (?,?,?)", (asked["id"], tx.tick, outcomes))
        tx.history(
            "proof_reported",
            calling_ae=calling_ae,
            transaction=told.transaction_uid,
            committed=len(told.committed),
            failed=len(told.failed),
        )
    return Answer.TAKEN


def unread(journal: Journal, destination: str, limit: int) -> list[Noted]:
    """Reports of this destination whose consequences are not drawn, oldest first."""
    rows = journal.query(
        "SELECT t.id, t.request, t.outcomes FROM proof_report t JOIN proof_request r ON r.id=t.request"
        " WHERE r.destination=? ORDER BY t.id LIMIT ?",
        destination,
        limit,
    )
    return [Noted(id=row["id"], request=row["request"], outcomes=dict(unpacked(row["outcomes"]))) for row in rows]
