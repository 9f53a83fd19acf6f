"""What retain writes: which local copies are let go.

A copy may go when every delivery of its instance has its proof and its keep-time is over, no job may still read it, and
its series is not open (P4). Keep-times count appliance time: a box that was off has not kept anything waiting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.journal.store import Journal

CHUNK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What frees a copy at one destination."""

    commitment: bool  #: delivered is not enough, it must be committed
    keep_ms: int  #: after that


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    file: str
    instance: int


def releasable(journal: Journal, keeps: Mapping[str, Keep], unowed_keep_ms: int, after: str) -> tuple[list[Copy], str]:
    """One chunk of copies that may go, and the file name to go on after ("" at the end)."""
    rows = journal.query(
        "SELECT c.file, c.instance, i.tick, i.study_instance_uid, i.series_instance_uid FROM copy c"
        " JOIN instance i ON i.id=c.instance WHERE c.file > ? ORDER BY c.file LIMIT ?",
        after,
        CHUNK,
    )
    now = journal.clock.tick()
    found = [
        Copy(file=row["file"], instance=row["instance"])
        for row in rows
        if _free(journal, row["instance"], keeps, now, row["tick"] + unowed_keep_ms)
        and not _needed(journal, row["study_instance_uid"], row["series_instance_uid"])
    ]
    return found, rows[-1]["file"] if len(rows) == CHUNK else ""


def _free(journal: Journal, instance: int, keeps: Mapping[str, Keep], now: int, unowed_until: int) -> bool:
    deliveries = journal.query("SELECT destination, state, settled_tick FROM delivery WHERE instance=?", instance)
    if not deliveries:
        return now >= unowed_until
    return all(
        row["state"] == "abandoned" or _proven(row["state"], row["settled_tick"], keeps.get(row["destination"]), now)
        for row in deliveries
    )


def _proven(state: str, settled_tick: int, keep: Keep | None, now: int) -> bool:
    if keep is None:  # a destination the config no longer has: its proof is unknown, so only commitment frees
        return state == "committed"
    proofs = ("committed",) if keep.commitment else ("delivered", "committed")
    return state in proofs and now >= settled_tick + keep.keep_ms


def _needed(journal: Journal, study_instance_uid: str, series_instance_uid: str) -> bool:
    return bool(
        journal.one(
            "SELECT 1 FROM job WHERE study_instance_uid=? AND state NOT IN ('reported', 'superseded') LIMIT 1",
            study_instance_uid,
        )
        or journal.one(
            "SELECT 1 FROM series WHERE study_instance_uid=? AND series_instance_uid=? AND state='open'",
            study_instance_uid,
            series_instance_uid,
        )
    )


def release(journal: Journal, copies: Sequence[Copy]) -> None:
    """Forget copies, durably; the files go after this, and a file left by a crash in between is swept at start."""
    with journal.write(durable=True) as tx:
        for copy in copies:
            tx.sql("DELETE FROM copy WHERE file=?", (copy.file,))
        tx.history("copies_released", count=len(copies), instances=[copy.instance for copy in copies])


def note_tick(journal: Journal) -> None:
    """Let appliance time survive a boot although nothing happens."""
    with journal.write(durable=False) as tx:
        tx.sql("INSERT OR REPLACE INTO meta VALUES ('last_tick', ?)", (str(tx.tick),))
