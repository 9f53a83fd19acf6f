"""What `status` says of proof of delivery: who does not prove what it got, and what waits for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.cli.tables import plural, span_of
from appliance.config import Config, DimseDestination
from appliance.journal.overview import Overview
from appliance.journal.proofs import Unproven
from appliance.wiring.common import HOUR_MS

LINE_IS_BAD = ("backing off", "suspended")  # states of a lane

Complaint = tuple[str, str]  #: what a person should know, and what they can do about it


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving:
    """What is known of it at this moment."""

    provers: Mapping[str, Any]  #: destination -> {state, reason}
    lanes: Mapping[str, Any]  #: destination -> {state, reason, ...}
    journal: Overview | None
    port: int  #: of our listener, 0: not listening


def complaints(config: Config, known: Proving) -> list[Complaint]:
    return [*_refused(known), *_not_asked(known), *_unanswered(config, known), *_gone(config, known)]


def _refused(known: Proving) -> Iterator[Complaint]:
    for name, fact in known.provers.items():
        if fact["state"] == "refused":
            yield (
                f"{name} does not prove what it gets, so none of it is freed: {fact['reason']}",
                "Images go there all the same. Let it do for our AE title what 'proof' asks, or set another 'proof'.",
            )


def _not_asked(known: Proving) -> Iterator[Complaint]:
    """Where it is the line that is bad, the lane says so."""
    for name, fact in known.provers.items():
        if fact["state"] == "backing off" and known.lanes.get(name, {}).get("state") not in LINE_IS_BAD:
            yield (
                f"{name} could not be asked whether it answers for what it got: {fact['reason']}",
                "We ask again by ourselves; nothing of it is freed meanwhile.",
            )


def _unanswered(config: Config, known: Proving) -> Iterator[Complaint]:
    if known.journal is None:
        return
    for one in known.journal.unproven:
        options = config.destination(one.destination)
        waits = known.journal.tick - one.oldest_tick
        if isinstance(options, DimseDestination) and waits > options.proof_timeout_h * HOUR_MS:
            where = f"AE title {options.calling_ae or config.ae_title}, our address, port {known.port or '?'}"
            yield (
                unproven_words(one, known.journal.tick),
                f"Check that it knows where to report: {where}."
                if one.asked
                else "Look whether it shows them; what it has lost is sent again by itself.",
            )


def _gone(config: Config, known: Proving) -> Iterator[Complaint]:
    configured = {one.name for one in config.destinations}
    for one in known.journal.unproven if known.journal is not None else ():
        if one.destination not in configured:
            what = plural(one.count, "delivery", "deliveries")
            yield (
                f"{what} to {one.destination}, which is no longer in the config, wait for its proof: never freed",
                "Give it back to the config, with another 'proof' perhaps, and restart.",
            )


def unproven_words(one: Unproven, tick: int) -> str:
    asked = f", {one.asked} of them asked for" if one.asked else ""
    return (
        f"{one.destination} has {plural(one.count, 'object')} that it does not answer for yet{asked}:"
        f" the oldest for {span_of(tick - one.oldest_tick)}"
    )
