"""What somebody outside was told last, so that a restart neither forgets nor repeats it. Owner: forward."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from appliance.journal import outbox
from appliance.journal.store import Journal

KEY = "alerts told"
OTHER = "refused"
_STATUS = re.compile(r"0x[0-9A-Fa-f]{4}")
_CLASSES: Mapping[str, str] = {
    outbox.DESTINATION_GONE: "destination gone",
    outbox.COPY_MISSING: "local copy missing",
    "unrouted": "unrouted",
    "presentation context not accepted": "presentation context not accepted",
    "AE title not recognised": "AE title not recognised",
    "TLS": "TLS",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is held for one destination for one class of reasons."""

    destination: str  #: "": nobody takes it
    reason: str  #: its class: what a PACS writes beside its status may name a patient
    count: int
    bytes: int
    oldest_tick: int
    newest: int  #: delivery id


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The last message that arrived."""

    held: Mapping[str, tuple[int, int]]  #: destination and reason -> count, newest delivery
    suspended: Sequence[str] = ()
    number: int = 0


def held(journal: Journal) -> list[Held]:
    """By the index of what is held."""
    found: dict[tuple[str, str], Held] = {}
    for row in journal.query(
        "SELECT destination, reason, count(*) AS count, sum(size) AS bytes, min(created_tick) AS oldest,"
        " max(id) AS newest FROM delivery INDEXED BY delivery_held WHERE state='held' GROUP BY destination, reason"
    ):
        key = row["destination"], reason_class(row["reason"])
        before = found.get(key)
        found[key] = Held(
            destination=key[0],
            reason=key[1],
            count=row["count"] + (before.count if before else 0),
            bytes=row["bytes"] + (before.bytes if before else 0),
            oldest_tick=min(row["oldest"], before.oldest_tick) if before else row["oldest"],
            newest=max(row["newest"], before.newest) if before else row["newest"],
        )
    return list(found.values())


def reason_class(reason: str) -> str:
    """What may leave the box of a reason: a status, or words of our own."""
    for begins, name in _CLASSES.items():
        if begins in reason:
            return name
    status = _STATUS.search(reason)
    return f"status {status[0]}" if status else OTHER


def told(journal: Journal) -> Told:
    row = journal.one("SELECT value FROM meta WHERE key=?", KEY)
    if row is None:
        return Told(held={})
    value = json.loads(row["value"])
    return Told(
        held={key: (count, newest) for key, (count, newest) in value["held"].items()},
        suspended=tuple(value["suspended"]),
        number=value["number"],
    )


def note(journal: Journal, now: Told) -> None:
    """Not synced: to tell it again after a power cut does no harm. Raises StoreFailed, OutOfResources."""
    with journal.write(durable=False) as tx:
        tx.sql("INSERT OR REPLACE INTO meta VALUES (?,?)", (KEY, json.dumps(asdict(now), separators=(",", ":"))))
