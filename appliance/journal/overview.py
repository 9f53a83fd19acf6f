"""What `status` tells of the journal: counts and bytes, each from an index."""

from dataclasses import dataclass

from appliance.journal import commitments, performed, proofs
from appliance.journal.commitments import Promised
from appliance.journal.identity import Alarm, alarms
from appliance.journal.performed import Awaited
from appliance.journal.proofs import Unproven
from appliance.journal.store import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What one destination is owed, or holds up."""

    destination: str
    state: str
    count: int
    bytes: int
    oldest_tick: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    instances: int
    open_series: int
    unsorted: int  #: kept instances without a readable Study or Series UID
    jobs: dict[str, int]  #: unfinished ones by state
    owed: tuple[Owed, ...]
    alarms: tuple[Alarm, ...]
    awaited: tuple[Awaited, ...]  #: series of which the scanner named more than has come
    commitments: tuple[Promised, ...]  #: requests for storage commitment that are not reported, by who asked
    unproven: tuple[Unproven, ...]  #: what destinations have got and do not answer for yet
    tick: int


def overview(journal: Journal) -> Overview:
    return Overview(
        instances=_number(journal, "SELECT coalesce(max(id), 0) FROM instance"),
        open_series=_number(journal, "SELECT count(*) FROM series WHERE state='open'"),
        unsorted=_number(
            journal, "SELECT count(*) FROM instance WHERE study_instance_uid='' AND series_instance_uid=''"
        ),
        jobs={
            row["state"]: row["count"]
            for row in journal.query(
                "SELECT state, count(*) AS count FROM job WHERE state NOT IN ('reported', 'superseded') GROUP BY state"
            )
        },
        owed=(*_queued(journal), *_held(journal)),
        alarms=tuple(alarms(journal)),
        awaited=tuple(performed.awaited(journal)),
        commitments=tuple(commitments.waiting(journal)),
        unproven=tuple(proofs.waiting(journal)),
        tick=journal.clock.tick(),
    )


def _queued(journal: Journal) -> list[Owed]:
    rows = journal.query(
        "SELECT destination, count(*) AS count, sum(size) AS bytes, min(id) AS oldest FROM delivery"
        " INDEXED BY delivery_queued WHERE state='queued' GROUP BY destination"
    )
    return [
        Owed(
            destination=row["destination"],
            state="queued",
            count=row["count"],
            bytes=row["bytes"],
            oldest_tick=_number(journal, "SELECT created_tick FROM delivery WHERE id=?", row["oldest"]),
        )
        for row in rows
    ]


def _held(journal: Journal) -> list[Owed]:
    rows = journal.query(
        "SELECT destination, reason, count(*) AS count, sum(size) AS bytes, min(created_tick) AS oldest FROM delivery"
        " INDEXED BY delivery_held WHERE state='held' GROUP BY destination, reason"
    )
    return [
        Owed(
            destination=row["destination"],
            state="held",
            count=row["count"],
            bytes=row["bytes"],
            oldest_tick=row["oldest"],
            reason=row["reason"],
        )
        for row in rows
    ]


def _number(journal: Journal, sql: str, *parameters: object) -> int:
    row = journal.one(sql, *parameters)
    return int(row[0]) if row else 0
