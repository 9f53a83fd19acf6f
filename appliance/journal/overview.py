"""What `status` tells of the journal: counts and bytes, each from an index."""

from dataclasses import dataclass

from appliance.journal import commitments, performed, proofs
from appliance.journal.commitments import Promised
from appliance.journal.identity import Alarm, alarms
from appliance.journal.performed import Awaited
from appliance.journal.proofs import Unproven
from appliance.journal.store import Journal
from appliance.model import Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What one destination is owed, or holds up."""

    destination: str
    state: str
    count: int
    bytes: int
    oldest_tick: int
    reason: str = ""
    results: int = 0  #: of those in the queue
    results_bytes: int = 0
    oldest_result_tick: int | None = None


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
        "SELECT destination, sum(count) AS count, sum(bytes) AS bytes, min(oldest) AS oldest,"
        " coalesce(sum(count) FILTER (WHERE urgency<=?1), 0) AS results,"
        " coalesce(sum(bytes) FILTER (WHERE urgency<=?1), 0) AS results_bytes,"
        " min(oldest) FILTER (WHERE urgency<=?1) AS oldest_result FROM"
        " (SELECT destination, urgency, count(*) AS count, sum(size) AS bytes, min(id) AS oldest FROM delivery"
        " INDEXED BY delivery_queued WHERE state='queued' GROUP BY destination, urgency) GROUP BY destination",
        int(Urgency.RESULT),
    )
    return [
        Owed(
            destination=row["destination"],
            state="queued",
            count=row["count"],
            bytes=row["bytes"],
            oldest_tick=_created(journal, row["oldest"]),
            results=row["results"],
            results_bytes=row["results_bytes"],
            oldest_result_tick=_created(journal, row["oldest_result"]) if row["oldest_result"] else None,
        )
        for row in rows
    ]


def _created(journal: Journal, delivery: int) -> int:
    return _number(journal, "SELECT created_tick FROM delivery WHERE id=?", delivery)


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
