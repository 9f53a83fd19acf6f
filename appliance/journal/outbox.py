"""What forward writes: deliveries, and what becomes of them.

A claim lives in the memory of the one lane; here a delivery is queued until one row says how it was settled, with the
start and end of the attempt that did it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.journal.rows import DELIVERY_SELECT, delivery_of
from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Delivery, Owed, Sent, Urgency
from appliance.states import DELIVERY, DeliveryState, Event

UNROUTED = ""
DESTINATION_GONE = "destination gone: it is no longer in the config"
COPY_MISSING = "the local copy is missing"
CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How one attempt ended for good: delivered (with a warning, perhaps) or refused (with the reason)."""

    delivery: Delivery
    event: Event  #: DELIVER or REFUSE
    reason: str = ""
    started_tick: int
    attempts: int
    sent_as: Sent | None = None  #: what went out instead of the object as it is stored


def next_queued(journal: Journal, destination: str, limit: int, *, skip: Collection[int] = ()) -> list[Delivery]:
    """The next deliveries of a lane, most urgent first, then oldest; `skip` are those backing off or in flight."""
    rows = journal.query(
        "SELECT id FROM delivery INDEXED BY delivery_queued"
        " WHERE state='queued' AND destination=? ORDER BY urgency, id LIMIT ?",
        destination,
        limit + len(skip),
    )
    ids = [row["id"] for row in rows if row["id"] not in skip][:limit]
    chosen = journal.query(f"{DELIVERY_SELECT} WHERE d.id IN ({_marks(ids)}) AND d.state='queued'", *ids)
    return sorted(map(delivery_of, chosen), key=lambda delivery: (delivery.urgency, delivery.id))


def oldest_queued(journal: Journal, destination: str, *, skip: Collection[int] = ()) -> Delivery | None:
    """The delivery that has waited longest, whatever its urgency: so that nothing starves (P7)."""
    oldest = [
        row["id"]
        for urgency in Urgency
        for row in journal.query(
            "SELECT id FROM delivery INDEXED BY delivery_queued"
            " WHERE state='queued' AND destination=? AND urgency=? ORDER BY id LIMIT ?",
            destination,
            int(urgency),
            1 + len(skip),
        )
        if row["id"] not in skip
    ]
    row = journal.one(f"{DELIVERY_SELECT} WHERE d.id=? AND d.state='queued'", min(oldest, default=0))
    return delivery_of(row) if row else None


def settle(journal: Journal, settlements: Sequence[Settlement]) -> None:
    """Record how attempts ended, durably: after this the destination's word is ours."""
    with journal.write(durable=True) as tx:
        for settlement in settlements:
            delivery = settlement.delivery
            if settlement.reason == COPY_MISSING and _has_other_copy(tx, delivery):
                continue  # it came again meanwhile: still queued
            done = _step(tx, delivery.id, DeliveryState.QUEUED, settlement.event, settlement.reason)
            if not done:
                continue
            tx.sql(
                "UPDATE delivery SET attempts=?, started_tick=?, settled_tick=? WHERE id=?",
                (settlement.attempts, settlement.started_tick, tx.tick, delivery.id),
            )
            _tell(
                tx,
                delivery.instance_id,
                "delivered" if settlement.event is Event.DELIVER else "held",
                destination=delivery.destination,
                attempts=settlement.attempts,
                ms=tx.tick - settlement.started_tick,
                reason=settlement.reason,
                **_recoded(settlement.sent_as),
            )


def _recoded(sent: Sent | None) -> dict[str, object]:
    return {"sent_as": sent.transfer_syntax_uid, "sent_bytes": sent.size} if sent else {}


def _has_other_copy(tx: Transaction, delivery: Delivery) -> bool:
    row = tx.sql("SELECT 1 FROM copy WHERE instance=? AND file<>?", (delivery.instance_id, delivery.file)).fetchone()
    return row is not None


def hold_destinations_gone(journal: Journal, configured: Iterable[str]) -> int:
    """Hold what is owed to destinations the config no longer has."""
    known = {*configured, UNROUTED}
    rows = journal.query("SELECT DISTINCT destination FROM delivery INDEXED BY delivery_queued WHERE state='queued'")
    gone = [row["destination"] for row in rows if row["destination"] not in known]
    held = 0
    for destination in gone:
        while count := _hold_some(journal, destination):
            held += count
    return held


def _hold_some(journal: Journal, destination: str) -> int:
    with journal.write(durable=True) as tx:
        rows = tx.sql(
            "SELECT id, instance FROM delivery INDEXED BY delivery_queued"
            " WHERE state='queued' AND destination=? LIMIT ?",
            (destination, CHUNK),
        ).fetchall()
        for row in rows:
            _step(tx, row["id"], DeliveryState.QUEUED, Event.REFUSE, DESTINATION_GONE)
            _tell(tx, row["instance"], "held", destination=destination, reason=DESTINATION_GONE)
        return len(rows)


def requeue(journal: Journal, again: Mapping[int, Sequence[Owed]], by: str) -> set[int]:
    """Queue held deliveries again, by id, all in one transaction; returns those that were.

    An unrouted one goes to what stands beside its id: those that take it now. Others need nothing there.
    """
    with journal.write(durable=True) as tx:
        return {delivery for delivery, owed in again.items() if _requeue(tx, delivery, owed, by)}


def _requeue(tx: Transaction, delivery_id: int, owed: Sequence[Owed], by: str) -> bool:
    row = tx.sql("SELECT instance, destination, size FROM delivery WHERE id=?", (delivery_id,)).fetchone()
    if row is None or (row["destination"] == UNROUTED and not owed):
        return False
    if not _step(tx, delivery_id, DeliveryState.HELD, Event.REQUEUE, ""):
        return False
    if row["destination"] != UNROUTED:
        _tell(tx, row["instance"], "requeued", destination=row["destination"], by=by)
        return True
    first, *others = owed
    tx.sql(
        "UPDATE delivery SET destination=?, urgency=? WHERE id=?", (first.destination, int(first.urgency), delivery_id)
    )
    for other in others:
        tx.sql(
            "INSERT INTO delivery (instance, destination, urgency, size, state, attempts, reason, created_tick,"
            " started_tick, settled_tick) VALUES (?,?,?,?,?,0,'',?,0,0)",
            (row["instance"], other.destination, int(other.urgency), row["size"], DELIVERY.initial, tx.tick),
        )
    _tell(tx, row["instance"], "rerouted", destinations=[one.destination for one in owed], by=by)
    return True


def requeue_found(tx: Transaction, instance: int) -> list[str]:
    """Queue again what was held for want of a local copy, now that there is one; returns where to.

    In the transaction that brings the copy: besides `hasten` all that another stage may change in a delivery.
    """
    rows = tx.sql(
        "SELECT id, destination FROM delivery WHERE instance=? AND state=? AND reason=? AND destination<>?",
        (instance, DeliveryState.HELD, COPY_MISSING, UNROUTED),
    ).fetchall()
    for row in rows:
        _step(tx, row["id"], DeliveryState.HELD, Event.REQUEUE, "")
        _tell(tx, instance, "requeued", destination=row["destination"], by="a copy that came again")
    return [row["destination"] for row in rows]


def abandon(journal: Journal, delivery_id: int, by: str, reason: str) -> bool:
    """Give a held delivery up, by a named person, with a reason (P4). False: it is not held (any more).

    Raises ValueError where nobody is named or no reason is given.
    """
    if not by.strip() or not reason.strip():
        raise ValueError("a delivery is abandoned by a named person, with a reason")
    with journal.write(durable=True) as tx:
        row = tx.sql("SELECT instance, destination FROM delivery WHERE id=?", (delivery_id,)).fetchone()
        if row is None or not _step(tx, delivery_id, DeliveryState.HELD, Event.ABANDON, f"{by}: {reason}"):
            return False
        tx.sql("UPDATE delivery SET settled_tick=? WHERE id=?", (tx.tick, delivery_id))
        _tell(tx, row["instance"], "abandoned", destination=row["destination"], by=by, reason=reason)
        return True


def hasten(tx: Transaction, study_instance_uid: str) -> None:
    """Move the queued images of an urgent study before routine ones (P7). An order of sending, not a transition."""
    tx.sql(
        "UPDATE delivery SET urgency=? WHERE state=? AND urgency=? AND instance IN"
        " (SELECT id FROM instance WHERE study_instance_uid=?)",
        (Urgency.URGENT_IMAGE, DeliveryState.QUEUED, Urgency.IMAGE, study_instance_uid),
    )


def list_deliveries(journal: Journal, state: DeliveryState, limit: int, after: int = 0) -> list[Delivery]:
    """Deliveries in a state, oldest first, from the id after `after`."""
    index = f"INDEXED BY delivery_{state}" if state in (DeliveryState.QUEUED, DeliveryState.HELD) else ""
    rows = journal.query(
        f"{DELIVERY_SELECT} WHERE d.id IN (SELECT id FROM delivery {index} WHERE state='{state}' AND id>?"
        " ORDER BY id LIMIT ?) ORDER BY d.id",
        after,
        limit,
    )
    return [delivery_of(row) for row in rows]


def _marks(values: Sequence[int]) -> str:
    return ",".join("?" * len(values))


def _step(tx: Transaction, delivery_id: int, state: DeliveryState, event: Event, reason: str) -> bool:
    """Compare-and-set; False: another owner was first and nothing changed."""
    cursor = tx.sql(
        "UPDATE delivery SET state=?, reason=? WHERE id=? AND state=?",
        (DELIVERY.step(state, event), reason, delivery_id, state),
    )
    return bool(cursor.rowcount)


def _tell(tx: Transaction, instance: int, event: str, **detail: object) -> None:
    row = tx.sql(
        "SELECT study_instance_uid, series_instance_uid, sop_instance_uid FROM instance WHERE id=?", (instance,)
    ).fetchone()
    tx.history(event, Subject(**dict(row)), **detail)
