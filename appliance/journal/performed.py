"""What modalities say of their own work (MPPS, PS3.4 Annex F), and what it says of series that are arriving.

Evidence, not a promise: nothing leaves on its account, and where it is lost silence decides, so writes are NORMAL.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.journal.packing import packed, unpacked
from appliance.journal.store import NOTHING, Journal, Subject, Transaction
from appliance.model import PerformedSeries
from appliance.states import STEP, Event, SeriesState, StepState

KEEP_MS = 30 * 86_400_000
MAX_STEPS = 10_000  # of one modality; the oldest go
PRUNED = 20  # with each new one
MAX_STUDIES = 16  # of one step
MAX_AWAITED = 20  # series that are told of

_ENDS = {StepState.COMPLETED: Event.COMPLETE, StepState.DISCONTINUED: Event.DISCONTINUE}


class Updated(StrEnum):
    """What became of a change to a step."""

    DONE = "done"
    UNKNOWN = "unknown"  #: there is no such step
    ENDED = "ended"  #: it is completed or discontinued: nothing more may change
    NOT_YOURS = "not_yours"  #: another AE title created it


class Stated(StrEnum):
    """What completed steps say of an open series."""

    NOTHING = "nothing"
    ALL_HERE = "all_here"  #: exactly the instances that they name have arrived
    MISSING = "missing"  #: instances that they name have not arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one N-SET changes; None: not that."""

    state: StepState | None = None
    series: tuple[PerformedSeries, ...] | None = None


def create(journal: Journal, sop_instance_uid: str, calling_ae: str, studies: Sequence[str]) -> bool:
    """A step begins. False: there is one of this UID already."""
    told = sorted(set(studies))[:MAX_STUDIES]
    with journal.write(durable=False) as tx:
        done = tx.sql(
            "INSERT OR IGNORE INTO performed_step (sop_instance_uid, calling_ae, studies, state, created_tick,"
            " ended_tick) VALUES (?,?,?,?,?,0)",
            (sop_instance_uid, calling_ae, json.dumps(told), STEP.initial, tx.tick),
        ).rowcount
        if done:
            _tell(tx, told, STEP.initial, calling_ae=calling_ae, step=sop_instance_uid)
            _prune(tx, calling_ae)
    return bool(done)


def update(journal: Journal, sop_instance_uid: str, calling_ae: str, change: Change) -> Updated:
    """A step goes on, or ends. The series given replace those given before (PS3.4 F.7.2.2)."""
    with journal.write(durable=False) as tx:
        step = tx.sql("SELECT * FROM performed_step WHERE sop_instance_uid=?", (sop_instance_uid,)).fetchone()
        if step is None:
            return Updated.UNKNOWN
        if step["calling_ae"] != calling_ae:
            return Updated.NOT_YOURS
        if step["state"] in STEP.final:
            return Updated.ENDED
        if change.series is not None:
            _replace_series(tx, step["id"], change.series)
        if change.state in _ENDS:
            _end(tx, step, STEP.step(StepState(step["state"]), _ENDS[change.state]))
    return Updated.DONE


def _replace_series(tx: Transaction, step: int, series: Sequence[PerformedSeries]) -> None:
    tx.sql("DELETE FROM performed_series WHERE step=?", (step,))
    for one in series:
        uids = one.sop_instance_uids
        tx.sql(
            "INSERT OR REPLACE INTO performed_series (step, series_instance_uid, count, instances) VALUES (?,?,?,?)",
            (step, one.series_instance_uid, len(uids), packed(uids)),
        )


def _end(tx: Transaction, step: sqlite3.Row, state: StepState) -> None:
    tx.sql("UPDATE performed_step SET state=?, ended_tick=? WHERE id=?", (state, tx.tick, step["id"]))
    named = tx.sql(
        "SELECT count(*) AS series, coalesce(sum(count), 0) AS instances FROM performed_series WHERE step=?",
        (step["id"],),
    ).fetchone()
    about = {"calling_ae": step["calling_ae"], "step": step["sop_instance_uid"], **dict(named)}
    _tell(tx, json.loads(step["studies"]), state, ms=tx.tick - step["created_tick"], **about)


def _prune(tx: Transaction, calling_ae: str) -> None:
    old = tx.sql("SELECT id, created_tick FROM performed_step ORDER BY id LIMIT ?", (PRUNED,)).fetchall()
    going = [row["id"] for row in old if row["created_tick"] < tx.tick - KEEP_MS]
    too_many = tx.sql(
        "SELECT id FROM performed_step WHERE calling_ae=? ORDER BY id DESC LIMIT ? OFFSET ?",
        (calling_ae, PRUNED, MAX_STEPS),
    )
    for step in {*going, *(row["id"] for row in too_many)}:
        tx.sql("DELETE FROM performed_series WHERE step=?", (step,))
        tx.sql("DELETE FROM performed_step WHERE id=?", (step,))


def stated(journal: Journal) -> dict[int, Stated]:
    """What steps say of open series, by the series' row; a series they say nothing of is not there.

    A step in progress may yet name more instances, a discontinued one says nothing, and where more have come than were
    named the statement does not cover the series.
    """
    rows = journal.query(
        "SELECT s.id, s.study_instance_uid, s.series_instance_uid, s.arrivals, p.step, p.count, t.state FROM series s"
        " JOIN performed_series p ON p.series_instance_uid=s.series_instance_uid"
        f" JOIN performed_step t ON t.id=p.step WHERE s.state='{SeriesState.OPEN}'"
        f" AND t.state<>'{StepState.DISCONTINUED}'"
    )
    by_series: defaultdict[int, list[sqlite3.Row]] = defaultdict(list)
    for row in rows:
        by_series[row["id"]].append(row)
    found = {series: _stated(journal, said) for series, said in by_series.items()}
    return {series: what for series, what in found.items() if what is not Stated.NOTHING}


def _stated(journal: Journal, said: Sequence[sqlite3.Row]) -> Stated:
    if any(row["state"] == StepState.IN_PROGRESS for row in said) or not any(row["count"] for row in said):
        return Stated.NOTHING
    series = said[0]
    if max(row["count"] for row in said) > series["arrivals"]:
        return Stated.MISSING  # without a look at the instances: this is asked at each arrival
    named, arrived = _named(journal, said), _arrived(journal, series)
    if named - arrived:
        return Stated.MISSING
    return Stated.NOTHING if arrived - named else Stated.ALL_HERE


def _named(journal: Journal, said: Sequence[sqlite3.Row]) -> set[str]:
    named: set[str] = set()
    for row in said:
        blob = journal.one(
            "SELECT instances FROM performed_series WHERE step=? AND series_instance_uid=?",
            row["step"],
            row["series_instance_uid"],
        )
        named.update(unpacked(blob["instances"]) if blob else ())
    return named


def _arrived(journal: Journal, series: sqlite3.Row) -> set[str]:
    rows = journal.query(
        "SELECT DISTINCT sop_instance_uid FROM instance WHERE study_instance_uid=? AND series_instance_uid=?",
        series["study_instance_uid"],
        series["series_instance_uid"],
    )
    return {row["sop_instance_uid"] for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """An open series of which the scanner named instances that have not come: until they do, nobody reads it."""

    study_instance_uid: str
    series_instance_uid: str
    calling_ae: str
    named: int
    missing: int
    since_tick: int  #: of the last thing that was heard of it


def awaited(journal: Journal) -> list[Awaited]:
    """For `status`: who waits for what, longest first, at most MAX_AWAITED."""
    rows = journal.query(
        "SELECT s.id, s.study_instance_uid, s.series_instance_uid, s.calling_ae, s.last_tick, p.step, t.ended_tick"
        " FROM series s JOIN performed_series p ON p.series_instance_uid=s.series_instance_uid"
        f" JOIN performed_step t ON t.id=p.step WHERE s.state='{SeriesState.OPEN}'"
        f" AND t.state='{StepState.COMPLETED}'"
    )
    by_series: defaultdict[int, list[sqlite3.Row]] = defaultdict(list)
    for row in rows:
        by_series[row["id"]].append(row)
    waiting = [series for series, what in stated(journal).items() if what is Stated.MISSING and series in by_series]
    longest = sorted(waiting, key=lambda series: _since(by_series[series]))[:MAX_AWAITED]
    return [_awaited(journal, by_series[series]) for series in longest]


def _since(said: Sequence[sqlite3.Row]) -> int:
    return max(int(said[0]["last_tick"]), *(int(row["ended_tick"]) for row in said))


def _awaited(journal: Journal, said: Sequence[sqlite3.Row]) -> Awaited:
    series, named = said[0], _named(journal, said)
    return Awaited(
        study_instance_uid=series["study_instance_uid"],
        series_instance_uid=series["series_instance_uid"],
        calling_ae=series["calling_ae"],
        named=len(named),
        missing=len(named - _arrived(journal, series)),
        since_tick=_since(said),
    )


def _tell(tx: Transaction, studies: Sequence[str], state: StepState, **detail: object) -> None:
    event = f"performed_step_{state.lower().replace(' ', '_')}"
    for subject in [Subject(study_instance_uid=study) for study in studies] or [NOTHING]:
        tx.history(event, subject, **detail)
