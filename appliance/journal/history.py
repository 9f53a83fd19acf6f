"""Reading what happened (P11), and pruning lines of single instances once they are settled. Study lines stay."""

import json

from appliance.journal.rows import history_of
from appliance.journal.store import Journal
from appliance.model import HistoryLine

DAY_MS = 86_400_000
KEEP_INSTANCE_LINES_MS = 7 * DAY_MS
CHUNK = 500
KEPT = ("abandoned",)  # who gave what up, and why, is never forgotten (P4)


def trace(journal: Journal, uid: str, limit: int = 100_000) -> list[HistoryLine]:
    """All lines about a study, series or instance, in the order in which they were written.

    A study's or series' trace holds the lines of its instances, too.
    """
    rows = journal.query(
        "SELECT * FROM history WHERE id IN ("
        " SELECT id FROM history WHERE sop_instance_uid=?1 AND sop_instance_uid<>''"
        " UNION SELECT id FROM history WHERE study_instance_uid=?1 AND study_instance_uid<>''"
        " UNION SELECT h.id FROM history h JOIN (SELECT DISTINCT study_instance_uid AS study FROM series"
        "   WHERE series_instance_uid=?1) s ON h.study_instance_uid=s.study"
        "   WHERE h.series_instance_uid=?1 AND h.study_instance_uid<>'')"
        " ORDER BY id LIMIT ?2",
        uid,
        limit,
    )
    return [history_of(row, json.loads(row["detail"])) for row in rows]


def prune(journal: Journal, after: int) -> tuple[int, int]:
    """Remove one chunk of old lines of single, settled instances; returns (last id looked at, lines removed)."""
    horizon = journal.clock.tick() - KEEP_INSTANCE_LINES_MS
    lines = journal.query(
        "SELECT id, tick, sop_instance_uid, event FROM history WHERE id>? ORDER BY id LIMIT ?", after, CHUNK
    )
    rows = [row for row in lines if row["tick"] < horizon]  # not in SQL: it would read on to the end for a younger one
    if not rows:
        return 0, 0
    settled = [
        row["id"]
        for row in rows
        if row["sop_instance_uid"]
        and row["event"] not in KEPT
        and journal.one(
            "SELECT 1 FROM instance i JOIN delivery d ON d.instance=i.id"
            " WHERE i.sop_instance_uid=? AND d.state IN ('queued', 'held') LIMIT 1",
            row["sop_instance_uid"],
        )
        is None
    ]
    if settled:
        with journal.write(durable=False) as tx:
            marks = ",".join("?" * len(settled))
            tx.sql(f"DELETE FROM history WHERE id IN ({marks})", tuple(settled))
    return rows[-1]["id"], len(settled)
