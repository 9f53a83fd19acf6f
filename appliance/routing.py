"""Which destination gets what: pure functions of the configuration and a few facts of one object.

A destination gets an object if it takes its kind and each of its non-empty conditions names the object's value.
The configuration is known here only by what is read of it, so this module stands beside it, not above.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from appliance.model import Header, Kind, Owed, Priority, Urgency

UNROUTED = "unrouted: no destination takes it"
_SITE_ACCEPTED = "site_accepted"
_URGENT_WORDS = frozenset({"STAT", "HIGH", "S", "A"})


class Conditions(Protocol):
    """Conditions of a destination; an empty list always holds."""

    @property
    def calling_ae(self) -> Sequence[str]: ...
    @property
    def modality(self) -> Sequence[str]: ...
    @property
    def sop_class(self) -> Sequence[str]: ...
    @property
    def engine(self) -> Sequence[str]: ...
    @property
    def priority(self) -> Sequence[Priority]: ...


class Taker(Protocol):
    """A destination, as far as routing is concerned."""

    @property
    def name(self) -> str: ...
    @property
    def takes(self) -> Sequence[Kind]: ...
    @property
    def when(self) -> Conditions: ...
    @property
    def accept_reference(self) -> bool: ...


class Routes(Protocol):
    """The part of the configuration that routing reads."""

    @property
    def destinations(self) -> Sequence[Taker]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What decides where one object goes. For a result, calling AE and modality are those of its source images."""

    kind: Kind
    calling_ae: str
    modality: str
    sop_class_uid: str
    engine: str = ""  #: id, with or without "@version"; "" for received objects
    engine_status: str = ""  #: as in the engine's manifest: "reference" or "site_accepted"
    priority: Priority = Priority.ROUTINE


def deliveries_for_received(config: Routes, facts: Routed) -> tuple[Owed, ...]:
    """Where a received object is owed. Never empty: what nobody takes is held, and told (P4)."""
    urgency = Urgency.URGENT_IMAGE if facts.priority is Priority.URGENT else Urgency.IMAGE
    names = [taker.name for taker in config.destinations if _takes(taker, facts)]
    if not names:
        return (Owed(destination="", urgency=urgency, held=UNROUTED),)
    return tuple(Owed(destination=name, urgency=urgency) for name in names)


def deliveries_for_result(config: Routes, facts: Routed) -> tuple[Owed, ...]:
    """Where a result is owed; may be nowhere. An engine the site has not accepted counts as a reference engine."""
    urgency = _urgency_of_result(facts)
    return tuple(
        Owed(destination=taker.name, urgency=urgency)
        for taker in config.destinations
        if _takes(taker, facts)
        and _one_of(facts.engine.partition("@")[0], taker.when.engine)
        and (facts.engine_status == _SITE_ACCEPTED or taker.accept_reference)
    )


def stated_priority(header: Header) -> Priority:
    """What the sender says of (0040,1003) Requested Procedure Priority, in DICOM's words or HL7's (table 0027)."""
    urgent = header.requested_priority.strip(" \0").upper() in _URGENT_WORDS
    return Priority.URGENT if urgent else Priority.ROUTINE


def _urgency_of_result(facts: Routed) -> Urgency:
    if facts.priority is not Priority.URGENT:
        return Urgency.RESULT
    return Urgency.URGENT_SR if facts.kind is Kind.SR else Urgency.URGENT_RESULT


def _takes(taker: Taker, facts: Routed) -> bool:
    """Whether kind and conditions fit; whether the engine does is asked for results only."""
    when = taker.when
    return (
        facts.kind in taker.takes
        and _one_of(facts.calling_ae.strip(" "), when.calling_ae)
        and _one_of(facts.modality.strip(" ").upper(), [modality.upper() for modality in when.modality])
        and _one_of(facts.sop_class_uid, when.sop_class)
        and _one_of(facts.priority, when.priority)
    )


def _one_of(value: str, allowed: Sequence[str]) -> bool:
    return not allowed or value in allowed
