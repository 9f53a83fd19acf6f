"""Whether we answer for an instance that a peer asks about: what our word rests on, read from the journal."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from appliance.journal.store import Journal
from appliance.model import Commitment, Reference
from appliance.states import DeliveryState


class FailureReason(IntEnum):
    """Why we do not answer for an instance: (0008,1197), PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110  #: it is owed, and somebody must look before it is delivered, if ever
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119  #: known, but of another SOP class


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What our word means to one peer."""

    meaning: Commitment
    holds: Callable[[str], bool]  #: whether the spool still has a file
    committing: frozenset[str]  #: destinations that must have committed, delivered is not enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`settled` False: not yet to be said. `failure` None: we answer for it."""

    settled: bool = True
    failure: FailureReason | None = None


def verdict(journal: Journal, reference: Reference, terms: Terms) -> Verdict:
    """Of several versions under one UID the newest counts: it is what the peer has."""
    sop_class, instance = reference
    rows = journal.query("SELECT id, sop_class_uid FROM instance WHERE sop_instance_uid=? ORDER BY id", instance)
    if not rows:
        return Verdict(failure=FailureReason.NO_SUCH_OBJECT_INSTANCE)
    same_class = [row["id"] for row in rows if row["sop_class_uid"] == sop_class]
    if not same_class:
        return Verdict(failure=FailureReason.CLASS_INSTANCE_CONFLICT)
    states = _deliveries(journal, same_class[-1])
    if terms.meaning is Commitment.CUSTODY:
        return _custody(journal, same_class[-1], states, terms)
    return _delivered(states, terms)


def _deliveries(journal: Journal, instance: int) -> dict[str, str]:
    """Destination -> state of the latest delivery to it."""
    rows = journal.query("SELECT destination, state FROM delivery WHERE instance=? ORDER BY id", instance)
    return {row["destination"]: row["state"] for row in rows}


def _custody(journal: Journal, instance: int, states: dict[str, str], terms: Terms) -> Verdict:
    copies = journal.query("SELECT file FROM copy WHERE instance=?", instance)
    if any(terms.holds(row["file"]) for row in copies):
        return Verdict()
    if {DeliveryState.DELIVERED, DeliveryState.COMMITTED} & set(states.values()):
        return Verdict()
    return Verdict(failure=FailureReason.NO_SUCH_OBJECT_INSTANCE)


def _delivered(states: dict[str, str], terms: Terms) -> Verdict:
    if not states or {DeliveryState.HELD, DeliveryState.ABANDONED} & set(states.values()):
        return Verdict(failure=FailureReason.PROCESSING_FAILURE)
    return Verdict(settled=all(_has_it(destination, state, terms) for destination, state in states.items()))


def _has_it(destination: str, state: str, terms: Terms) -> bool:
    if destination in terms.committing:
        return state == DeliveryState.COMMITTED
    return state in (DeliveryState.DELIVERED, DeliveryState.COMMITTED)
