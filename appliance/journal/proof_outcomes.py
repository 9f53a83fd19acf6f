"""What follows from what a destination says of its deliveries: committed, queued again, or held (states.DELIVERY).

Only forward writes here. A negative word counts only of what was not sent anew since it was asked for, a positive one
always; so a report may be read, and come, more than once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.journal.proofs import Due, Request, turn
from appliance.journal.store import Journal, Subject, Transaction
from appliance.states import DELIVERY, DeliveryState, Event, ProofState

LAST_FAILURE = 3  # after which a delivery is held
CHUNK = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the destination says of one object. `failure` "": it answers for it."""

    failure: str = ""
    says_nothing_of_it: bool = False  #: the failure is the asking's, so sending it again would not help


ANSWERS_FOR_IT = Verdict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many deliveries were committed, queued again, to be asked for again, and held."""

    committed: int = 0
    queued: int = 0
    asked_again: int = 0
    held: int = 0

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            committed=self.committed + other.committed,
            queued=self.queued + other.queued,
            asked_again=self.asked_again + other.asked_again,
            held=self.held + other.held,
        )


def conclude(journal: Journal, asked: Request, verdicts: Mapping[int, Verdict], report: int = 0) -> Outcome:
    """Draw the consequences of a report, durably: `verdicts` are by position among the references.

    In small transactions, since scanners' acknowledgements wait for them: what a crash leaves out is done when the
    report is read again, by its row `report`, or comes again.
    """
    done = Outcome()
    chunks = list(_chunks(sorted(verdicts.items()))) or [[]]
    for number, chunk in enumerate(chunks, 1):
        is_last = number == len(chunks)
        with journal.write(durable=is_last) as tx:
            for position, verdict in chunk:
                done += _settle(tx, asked, asked.references[position][0], verdict)
            if is_last:
                tx.sql("DELETE FROM proof_report WHERE id=?", (report,))
                _close(tx, asked)
    return done


def _close(tx: Transaction, asked: Request) -> None:
    """Answered: nothing waits for it any more."""
    if tx.sql("SELECT 1 FROM proof WHERE request=? LIMIT 1", (asked.id,)).fetchone() is None:
        row = tx.sql("SELECT state FROM proof_request WHERE id=?", (asked.id,)).fetchone()
        if row is not None and row["state"] != ProofState.ANSWERED:
            turn(tx, asked.id, ProofState(row["state"]), Event.ANSWER)


def shown(journal: Journal, there: Sequence[Due]) -> Outcome:
    """A query shows these: the destination answers for them."""
    done = Outcome()
    for chunk in _chunks(there):
        with journal.write(durable=True) as tx:
            for one in chunk:
                done += _commit(tx, one.delivery, by="query")
    return done


def not_shown(journal: Journal, missing: Sequence[Due], words: str) -> Outcome:
    """Queries have not shown these for long enough."""
    done = Outcome()
    for chunk in _chunks(missing):
        with journal.write(durable=True) as tx:
            for one in chunk:
                done += _fail(tx, one.delivery, Verdict(failure=words))
    return done


def _settle(tx: Transaction, asked: Request, delivery: int, verdict: Verdict) -> Outcome:
    if not verdict.failure:
        return _commit(tx, delivery, by="storage commitment", transaction=asked.transaction_uid)
    row = tx.sql(
        "SELECT d.settled_tick, p.request FROM delivery d JOIN proof p ON p.delivery=d.id WHERE d.id=?", (delivery,)
    ).fetchone()
    if row is None or row["settled_tick"] > asked.tick:
        return Outcome()  # sent anew since: what is said is said of what was there before
    if verdict.says_nothing_of_it and row["request"] != asked.id:
        return Outcome()
    return _fail(tx, delivery, verdict, transaction=asked.transaction_uid)


def _commit(tx: Transaction, delivery: int, **how: object) -> Outcome:
    before = tx.sql("SELECT instance, destination, settled_tick FROM delivery WHERE id=?", (delivery,)).fetchone()
    after = DELIVERY.step(DeliveryState.DELIVERED, Event.COMMIT)
    done = tx.sql(
        "UPDATE delivery SET state=?, settled_tick=? WHERE id=? AND state=?",
        (after, tx.tick, delivery, DeliveryState.DELIVERED),
    ).rowcount
    if not done:
        return Outcome()
    ms = tx.tick - before["settled_tick"]
    tx.history("committed", _subject(tx, before["instance"]), destination=before["destination"], ms=ms, **how)
    return Outcome(committed=1)


def _fail(tx: Transaction, delivery: int, verdict: Verdict, **how: object) -> Outcome:
    row = tx.sql(
        "SELECT d.instance, d.destination, p.failures FROM delivery d JOIN proof p ON p.delivery=d.id"
        " WHERE d.id=? AND d.state=? AND p.waiting=1",
        (delivery, DeliveryState.DELIVERED),
    ).fetchone()
    if row is None:
        return Outcome()
    failures, subject = row["failures"] + 1, _subject(tx, row["instance"])
    told = {"destination": row["destination"], "failures": failures, **how}
    if failures >= LAST_FAILURE:
        reason = f"not proven after {failures} times: {verdict.failure}"
        _move(tx, delivery, Event.COMMITMENT_FAILED_FOR_GOOD, reason)
        tx.history("held", subject, reason=reason, **told)
        return Outcome(held=1)
    again = Outcome(asked_again=1) if verdict.says_nothing_of_it else Outcome(queued=1)
    tx.sql(
        "UPDATE proof SET waiting=?, request=0, failures=? WHERE delivery=?", (again.asked_again, failures, delivery)
    )
    if again.queued:
        _move(tx, delivery, Event.COMMITMENT_FAILED, "")
    tx.history("commitment_failed", subject, reason=verdict.failure, **told)
    return again


def _move(tx: Transaction, delivery: int, event: Event, reason: str) -> None:
    after = DELIVERY.step(DeliveryState.DELIVERED, event)
    tx.sql("UPDATE delivery SET state=?, reason=? WHERE id=?", (after, reason, delivery))


def _subject(tx: Transaction, instance: int) -> Subject:
    row = tx.sql(
        "SELECT study_instance_uid, series_instance_uid, sop_instance_uid FROM instance WHERE id=?", (instance,)
    ).fetchone()
    return Subject(**dict(row))


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
