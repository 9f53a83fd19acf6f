"""What retain writes: which local copies are let go.

A copy may go when every delivery of its instance has its proof and its keep-time is over, no job may still read it, and
its series is not open (P4). Keep-times count appliance time: a box that was off has not kept anything waiting.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from appliance.errors import StoreFailed
from appliance.journal.jobs import CURSOR
from appliance.journal.store import Journal

CHUNK = 100
KEEP = "keep "  # of the keys in `meta`, before a destination's name
LINES = 10_000  # of history, looked at in one read
#: An engine's deadline is a day at most. What is older keeps nobody's copy: a dead engine must not fill the disk.
READ_WITHIN_MS = 2 * 86_400_000

#: A read: SQL and its parameters -> rows. A journal's, or a transaction's.
Query = Callable[..., Sequence[sqlite3.Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What frees a copy at one destination."""

    commitment: bool  #: delivered is not enough, it must be committed
    keep_ms: int  #: after that


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a copy may go."""

    keeps: Mapping[str, Keep]  #: by destination, those that the config has no longer included: see `remembered`
    unowed_keep_ms: int  #: of instances that are owed to nobody
    gone: Keep  #: of a destination that nothing is remembered of
    #: Scanners are refused for want of room: no copy waits for its series to close, since who is refused keeps it open.
    short_of_room: bool = False


def releasable(journal: Journal, rules: Rules, after: str) -> tuple[list[str], str]:
    """Files of one chunk of copies that may go, and the file name to go on after ("" at the end)."""
    rows = journal.query("SELECT file FROM copy WHERE file > ? ORDER BY file LIMIT ?", after, CHUNK)
    now = journal.clock.tick()
    found = [row["file"] for row in rows if _may_go(journal.query, rules, row["file"], now)]
    return found, rows[-1]["file"] if len(rows) == CHUNK else ""


def release(journal: Journal, rules: Rules, files: Sequence[str]) -> list[str]:
    """Forget those of these copies that may still go, durably; returns them.

    A repeat may have made one owed again since `releasable` saw it. The files go after this, and a file left by a
    crash in between is swept at start.
    """
    with journal.write(durable=True) as tx:

        def query(statement: str, *parameters: object) -> list[sqlite3.Row]:
            return tx.sql(statement, parameters).fetchall()

        going = [file for file in files if _may_go(query, rules, file, tx.tick)]
        for file in going:
            tx.sql("DELETE FROM copy WHERE file=?", (file,))
        if going:
            tx.history("copies_released", count=len(going), files=going)
    return going


def let_go(journal: Journal, files: Collection[str]) -> set[str]:
    """Which of these files history says were let go, or not kept because they were repeats.

    A power cut may bring a whole run of them back: removing a file is not synced. Reads as far back as it must.
    """
    last = journal.one("SELECT max(id) AS id FROM history")
    before = (last["id"] or 0) + 1 if last else 0
    missing, found = set(files), set[str]()
    while missing and before > 0:
        rows = journal.query(
            "SELECT event, detail FROM history WHERE id>=? AND id<? AND event IN ('copies_released', 'repeated')",
            before - LINES,
            before,
        )
        for row in rows:
            told = json.loads(row["detail"])
            found |= missing.intersection(told.get("files", told.get("not_kept", ())))
        missing -= found
        before -= LINES
    return found


def check_explained(journal: Journal, unknown: Collection[str], in_flight: int) -> None:
    """Before files without a row are removed: they must not be more than a crash can leave behind.

    `in_flight`: files that may have been unfinished at one time. Raises StoreFailed: it is not the spool's journal.
    """
    most = in_flight + CHUNK
    if len(unknown) <= most:
        return
    unexplained = len(unknown) - len(let_go(journal, unknown))
    if unexplained > most:
        raise StoreFailed(
            f"the spool holds {unexplained} files that the journal does not know: is it the right journal?"
            " `scanside recover` rebuilds it from the spool"
        )


def _may_go(query: Query, rules: Rules, file: str, now: int) -> bool:
    found = query(
        "SELECT i.id, i.tick, i.study_instance_uid, i.series_instance_uid FROM copy c"
        " JOIN instance i ON i.id=c.instance WHERE c.file=?",
        file,
    )
    return bool(found) and _is_free(query, rules, found[0], now) and not _is_needed(query, rules, found[0], now)


def _is_free(query: Query, rules: Rules, instance: sqlite3.Row, now: int) -> bool:
    deliveries = query("SELECT destination, state, settled_tick FROM delivery WHERE instance=?", instance["id"])
    if not deliveries:
        return bool(now >= instance["tick"] + rules.unowed_keep_ms)
    return all(
        row["state"] == "abandoned"
        or _is_proven(row["state"], row["settled_tick"], rules.keeps.get(row["destination"], rules.gone), now)
        for row in deliveries
    )


def _is_proven(state: str, settled_tick: int, keep: Keep, now: int) -> bool:
    proofs = ("committed",) if keep.commitment else ("delivered", "committed")
    return state in proofs and now >= settled_tick + keep.keep_ms


def _is_needed(query: Query, rules: Rules, instance: sqlite3.Row, now: int) -> bool:
    """Whether an engine may still read it; so does analyse, as long as it has not looked at it at all."""
    if now >= instance["tick"] + READ_WITHIN_MS:
        return False
    looked_at = query("SELECT 1 FROM cursor WHERE name=? AND value>=?", CURSOR, instance["id"])
    unfinished = query(
        "SELECT 1 FROM job WHERE study_instance_uid=? AND state NOT IN ('reported', 'superseded') LIMIT 1",
        instance["study_instance_uid"],
    )
    still_open = not rules.short_of_room and query(
        "SELECT 1 FROM series WHERE study_instance_uid=? AND series_instance_uid=? AND state='open'",
        instance["study_instance_uid"],
        instance["series_instance_uid"],
    )
    return bool(not looked_at or unfinished or still_open)


def remember(journal: Journal, configured: Mapping[str, Keep]) -> None:
    """Note what frees a copy at these destinations, for when the config has one of them no longer."""
    with journal.write(durable=False) as tx:
        for name, keep in configured.items():
            tx.sql("INSERT OR REPLACE INTO meta VALUES (?,?)", (KEEP + name, json.dumps(asdict(keep))))


def remembered(journal: Journal) -> dict[str, Keep]:
    """What frees a copy at all destinations there ever were, as last configured."""
    rows = journal.query("SELECT key, value FROM meta WHERE key>=? AND key<?", KEEP, KEEP + "\U0010ffff")
    return {row["key"].removeprefix(KEEP): Keep(**json.loads(row["value"])) for row in rows}


def note_tick(journal: Journal, *, durable: bool = False) -> None:
    """Let appliance time survive a boot although nothing happens."""
    with journal.write(durable=durable) as tx:
        tx.sql("INSERT OR REPLACE INTO meta VALUES ('last_tick', ?)", (str(tx.tick),))
