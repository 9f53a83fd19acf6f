"""What forward writes: deliveries, and what becomes of them.

A claim lives in the memory of the one lane; here a delivery is queued until one row says how it was settled, with the
start and end of the attempt that did it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from appliance.journal.rows import DELIVERY_SELECT, delivery_of
from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Delivery
from appliance.states import DELIVERY, DeliveryState, Event

UNROUTED = ""
DESTINATION_GONE = "destination gone: it is no longer in the config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How one attempt ended for good: delivered (with a warning, perhaps) or refused (with the reason)."""

    delivery: Delivery
    event: Event  #: DELIVER or REFUSE
    reason: str = ""
    started_tick: int
    attempts: int


def next_queued(journal: Journal, destination: str, limit: int, *, skip: Collection[int] = ()) -> list[Delivery]:
    """The next deliveries of a lane, most urgent first, then oldest; `skip` are those backing off or in flight."""
    rows = journal.query(
        f"{DELIVERY_SELECT} WHERE d.state='queued' AND d.destination=? ORDER BY d.urgency, d.id LIMIT ?",
        destination,
        limit + len(skip),
    )
    return [delivery_of(row) for row in rows if row["id"] not in skip][:limit]


def oldest_queued(journal: Journal, destination: str) -> Delivery | None:
    """The delivery that has waited longest, whatever its urgency: so that nothing starves (P7)."""
    rows = journal.query(
        "SELECT urgency, min(id) AS id FROM delivery INDEXED BY delivery_queued"
        " WHERE state='queued' AND destination=? GROUP BY urgency",
        destination,
    )
    if not rows:
        return None
    row = journal.one(f"{DELIVERY_SELECT} WHERE d.id=? AND d.state='queued'", min(row["id"] for row in rows))
    return delivery_of(row) if row else None


def settle(journal: Journal, settlements: Sequence[Settlement]) -> None:
    """Record how attempts ended, durably: after this the destination's word is ours."""
    with journal.write(durable=True) as tx:
        for settlement in settlements:
            delivery = settlement.delivery
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
            )


def hold_destinations_gone(journal: Journal, configured: Iterable[str]) -> int:
    """Hold what is owed to destinations the config no longer has."""
    known = {*configured, UNROUTED}
    rows = journal.query("SELECT DISTINCT destination FROM delivery INDEXED BY delivery_queued WHERE state='queued'")
    gone = [row["destination"] for row in rows if row["destination"] not in known]
    held = 0
    for destination in gone:
        with journal.write(durable=True) as tx:
            count = tx.sql(
                "UPDATE delivery SET state=?, reason=? WHERE state=? AND destination=?",
                (
                    DELIVERY.step(DeliveryState.QUEUED, Event.REFUSE),
                    DESTINATION_GONE,
                    DeliveryState.QUEUED,
                    destination,
                ),
            ).rowcount
            tx.history("destination_gone", destination=destination, held=count)
            held += count
    return held


def requeue(journal: Journal, delivery_id: int, by: str) -> bool:
    """Queue a held delivery again. False: it is not held (any more)."""
    with journal.write(durable=True) as tx:
        row = tx.sql("SELECT instance, destination FROM delivery WHERE id=?", (delivery_id,)).fetchone()
        if row is None or not _step(tx, delivery_id, DeliveryState.HELD, Event.REQUEUE, ""):
            return False
        _tell(tx, row["instance"], "requeued", destination=row["destination"], by=by)
        return True


def abandon(journal: Journal, delivery_id: int, by: str, reason: str) -> bool:
    """Give a held delivery up, by a named person, with a reason (P4). False: it is not held (any more)."""
    with journal.write(durable=True) as tx:
        row = tx.sql("SELECT instance, destination FROM delivery WHERE id=?", (delivery_id,)).fetchone()
        if row is None or not _step(tx, delivery_id, DeliveryState.HELD, Event.ABANDON, f"{by}: {reason}"):
            return False
        tx.sql("UPDATE delivery SET settled_tick=? WHERE id=?", (tx.tick, delivery_id))
        _tell(tx, row["instance"], "abandoned", destination=row["destination"], by=by, reason=reason)
        return True


def reroute(journal: Journal, delivery_id: int, destinations: Sequence[str], by: str) -> bool:
    """Owe an unrouted, held delivery to the destinations that take it now."""
    with journal.write(durable=True) as tx:
        row = tx.sql("SELECT * FROM delivery WHERE id=? AND destination=''", (delivery_id,)).fetchone()
        if row is None or not destinations or not _step(tx, delivery_id, DeliveryState.HELD, Event.REQUEUE, ""):
            return False
        tx.sql("UPDATE delivery SET destination=? WHERE id=?", (destinations[0], delivery_id))
        for destination in destinations[1:]:
            tx.sql(
                "INSERT INTO delivery (instance, destination, urgency, size, state, attempts, reason, created_tick,"
                " started_tick, settled_tick) VALUES (?,?,?,?,?,0,'',?,0,0)",
                (row["instance"], destination, row["urgency"], row["size"], DELIVERY.initial, tx.tick),
            )
        _tell(tx, row["instance"], "rerouted", destinations=list(destinations), by=by)
        return True


def list_deliveries(journal: Journal, state: DeliveryState, limit: int, after: int = 0) -> list[Delivery]:
    """Deliveries in a state, oldest first, from the id after `after`."""
    rows = journal.query(
        f"{DELIVERY_SELECT} WHERE d.state=? AND d.id>? ORDER BY d.id LIMIT ?", str(state), after, limit
    )
    return [delivery_of(row) for row in rows]


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
