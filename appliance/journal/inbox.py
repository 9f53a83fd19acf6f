"""What receive writes: instances, their deliveries, and series.

An instance, its copy, its deliveries and its line of history commit together, so no image ever waits for another stage
to be owed to its destinations (P2). Deciding when a series is complete needs only what is here, so it is here too.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance import states
from appliance.journal import outbox
from appliance.journal.performed import Stated
from appliance.journal.rows import SERIES_COLUMNS, series_of
from appliance.journal.store import Journal, Subject, Transaction
from appliance.model import Arrival, Evidence, Kind, Origin, Owed, Series
from appliance.states import DeliveryState, Event, SeriesState

#: A repeat of something settled is a repair when it comes later than this, a sender's retry before.
REPAIR_AFTER_MS = 60_000
#: Modalities whose acquisition is one image: complete on arrival.
SINGLE_IMAGE = frozenset({"CR", "DX"})
#: After an association broke off, its sender usually comes back: silence must last so many times longer.
INTERRUPTED_FACTOR = 3
#: The learned gap that silence must exceed: the p99 of the sender's pauses, with room.
GAP_FACTOR = 1.5
MIN_GAPS = 200
#: What comes later than this into a closed series is no pause of the sender's, but somebody's afterthought.
LONGEST_PAUSE_MS = 600_000
#: Silence that closes a series of which the scanner named instances that never came: longer than any engine's deadline.
MISSING_SILENCE_MS = 2 * 86_400_000

#: Versions of one instance that are looked at one by one: more is no accident, and must not hold all writers up.
NAMESAKES = 64

Routes = Callable[[Arrival], Sequence[Owed]]
Holds = Callable[[str], bool]  # whether the spool still has a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of an arrival: `redundant` means that its file is not needed, an equal copy is held."""

    instance_id: int
    redundant: bool


def record(
    journal: Journal, arrivals: Sequence[Arrival], routes: Routes, holds: Holds = lambda _: True
) -> list[Recorded]:
    """Record arrivals durably, in one transaction. The caller has made their files durable before (P1)."""
    with journal.write(durable=True) as tx:
        return [_record(tx, arrival, routes(arrival), holds) for arrival in arrivals]


def _record(tx: Transaction, arrival: Arrival, owed: Sequence[Owed], holds: Holds) -> Recorded:
    namesakes = tx.sql(
        "SELECT id, digest, transfer_syntax_uid, study_instance_uid, series_instance_uid FROM instance"
        " WHERE sop_instance_uid=? LIMIT ?",
        (arrival.sop_instance_uid, NAMESAKES),
    ).fetchall()
    same = (arrival.digest, arrival.transfer_syntax_uid)
    known = next((row for row in namesakes if (row["digest"], row["transfer_syntax_uid"]) == same), None)
    if known is None and len(namesakes) == NAMESAKES:
        known = tx.sql(
            "SELECT id FROM instance WHERE sop_instance_uid=? AND digest=? AND transfer_syntax_uid=?",
            (arrival.sop_instance_uid, *same),
        ).fetchone()
    if known is None:
        return _new(tx, arrival, owed, namesakes)
    return _repeat(tx, arrival, owed, known["id"], redundant=_is_held(tx, known["id"], holds))


def _new(tx: Transaction, arrival: Arrival, owed: Sequence[Owed], others: Sequence[sqlite3.Row]) -> Recorded:
    """`others`: instances of the same UID, with other bytes."""
    header = arrival.header
    instance = insert_instance(
        tx,
        origin=Origin.RECEIVED,
        kind=Kind.IMAGE,
        sop_class_uid=arrival.sop_class_uid,
        sop_instance_uid=arrival.sop_instance_uid,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        digest=arrival.digest,
        size=arrival.size,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        modality=header.modality,
        patient=header.patient,
        calling_ae=arrival.calling_ae,
        job=None,
    )
    tx.sql("INSERT INTO copy (file, instance) VALUES (?,?)", (arrival.file, instance))
    event = "received" if header.series_instance_uid else "received_unsorted"
    tx.history(
        "other_bytes_under_known_uid" if others else event,
        _subject(arrival),
        calling_ae=arrival.calling_ae,
        peer=arrival.peer,
        association=arrival.association,
        bytes=arrival.size,
        digest=arrival.digest.hex(),
        owed_to=[delivery.destination for delivery in owed],
    )
    for delivery in owed:
        insert_delivery(tx, instance, arrival.size, delivery)
    if header.series_instance_uid:
        here = (header.study_instance_uid, header.series_instance_uid)
        known = any((row["study_instance_uid"], row["series_instance_uid"]) == here for row in others)
        _arrived_in_series(tx, arrival, known_uid=known)
    return Recorded(instance_id=instance, redundant=False)


def insert_instance(tx: Transaction, **columns: object) -> int:
    """Insert an instance row; every column of the table but id, tick and at must be given."""
    columns |= {"tick": tx.tick, "at": tx.at}
    names, marks = ",".join(columns), ",".join("?" * len(columns))
    cursor = tx.sql(f"INSERT INTO instance ({names}) VALUES ({marks})", tuple(columns.values()))
    return int(cursor.lastrowid or 0)


def insert_delivery(tx: Transaction, instance: int, size: int, owed: Owed) -> None:
    state = DeliveryState.HELD if owed.held else states.DELIVERY.initial
    tx.sql(
        "INSERT INTO delivery (instance, destination, urgency, size, state, attempts, reason, created_tick,"
        " started_tick, settled_tick) VALUES (?,?,?,?,?,0,?,?,0,0)",
        (instance, owed.destination, int(owed.urgency), size, state, owed.held, tx.tick),
    )


def _is_held(tx: Transaction, instance: int, holds: Holds) -> bool:
    """Whether an equal copy is held. One whose file is gone is forgotten: what comes again is then its repair."""
    files = [row["file"] for row in tx.sql("SELECT file FROM copy WHERE instance=?", (instance,))]
    lost = [file for file in files if not holds(file)]
    for file in lost:
        tx.sql("DELETE FROM copy WHERE file=?", (file,))
    return len(files) > len(lost)


def _repeat(tx: Transaction, arrival: Arrival, owed: Sequence[Owed], instance: int, *, redundant: bool) -> Recorded:
    """The same bytes again: nothing new while they are owed; a repair if that was settled a while ago, or if they were
    missing.
    """
    latest = {
        row["destination"]: row
        for row in tx.sql(
            "SELECT destination, state, settled_tick FROM delivery WHERE instance=? ORDER BY id", (instance,)
        )
    }
    again = [delivery for delivery in owed if _is_repair(tx.tick, latest.get(delivery.destination))]
    if not redundant:
        tx.sql("INSERT INTO copy (file, instance) VALUES (?,?)", (arrival.file, instance))
    for delivery in again:
        insert_delivery(tx, instance, arrival.size, delivery)
    outbox.requeue_found(tx, instance)
    tx.history(
        "repeated",
        _subject(arrival),
        calling_ae=arrival.calling_ae,
        association=arrival.association,
        delivered_again_to=[delivery.destination for delivery in again],
        not_kept=[arrival.file] if redundant else [],
    )
    tx.sql(
        "UPDATE series SET last_tick=?, released=0, interrupted=0"
        " WHERE study_instance_uid=? AND series_instance_uid=? AND state=?",
        (tx.tick, arrival.header.study_instance_uid, arrival.header.series_instance_uid, SeriesState.OPEN),
    )
    return Recorded(instance_id=instance, redundant=redundant)


def _is_repair(tick: int, latest: sqlite3.Row | None) -> bool:
    if latest is None:
        return True
    if latest["state"] in (DeliveryState.QUEUED, DeliveryState.HELD):
        return False
    return bool(tick - latest["settled_tick"] > REPAIR_AFTER_MS)


def _arrived_in_series(tx: Transaction, arrival: Arrival, *, known_uid: bool) -> None:
    """Count it in its series, which reopens when it was closed; another version of an instance counts once."""
    header = arrival.header
    key = (header.study_instance_uid, header.series_instance_uid)
    row = tx.sql(
        f"SELECT {SERIES_COLUMNS} FROM series WHERE study_instance_uid=? AND series_instance_uid=?",
        key,
    ).fetchone()
    if row is None:
        tx.sql(
            "INSERT INTO series (study_instance_uid, series_instance_uid, modality, calling_ae, state, revision,"
            " arrivals, stated_count, first_tick, last_tick, released, interrupted, evidence)"
            " VALUES (?,?,?,?,?,1,1,?,?,?,0,0,'')",
            (*key, header.modality, arrival.calling_ae, states.SERIES.initial, header.stated_count, tx.tick, tx.tick),
        )
    elif row["state"] == SeriesState.OPEN:
        _learn_gap(tx, arrival.calling_ae, tx.tick - row["last_tick"])
        tx.sql(
            "UPDATE series SET arrivals=arrivals+?, last_tick=?, released=0, interrupted=0,"
            " stated_count=max(stated_count, ?) WHERE id=?",
            (not known_uid, tx.tick, header.stated_count, row["id"]),
        )
    else:
        if tx.tick - row["last_tick"] <= LONGEST_PAUSE_MS:  # closed too early: just that pause is to be learnt
            _learn_gap(tx, arrival.calling_ae, tx.tick - row["last_tick"])
        tx.sql(
            "UPDATE series SET state=?, revision=revision+1, arrivals=arrivals+?, last_tick=?, released=0,"
            " interrupted=0, evidence='', stated_count=max(stated_count, ?) WHERE id=?",
            (
                states.SERIES.step(SeriesState.CLOSED, Event.INSTANCE_ARRIVED),
                not known_uid,
                tx.tick,
                header.stated_count,
                row["id"],
            ),
        )
        tx.history("series_reopened", Subject(study_instance_uid=key[0], series_instance_uid=key[1]))


def _learn_gap(tx: Transaction, calling_ae: str, gap_ms: int) -> None:
    tx.sql(
        "INSERT INTO gap (calling_ae, bin, seen) VALUES (?,?,1) ON CONFLICT DO UPDATE SET seen=seen+1",
        (calling_ae, max(gap_ms, 0).bit_length()),
    )


def association_ended(journal: Journal, calling_ae: str, *, in_order: bool, others_open: bool) -> None:
    """An association that brought instances has ended: evidence for a provisional run, or a warning against closing."""
    if in_order and others_open:
        return
    column = "released" if in_order else "interrupted"
    with journal.write(durable=False) as tx:
        tx.sql(
            f"UPDATE series SET {column}=1 WHERE calling_ae=? AND state='open'",  # spelt out: by its index
            (calling_ae,),
        )


def open_series(journal: Journal) -> list[Series]:
    return [
        series_of(row)
        for row in journal.query(f"SELECT {SERIES_COLUMNS} FROM series WHERE state='open' ORDER BY last_tick")
    ]


def evidence_for(
    series: Series, now: int, silence_ms: int, deaf_until: int = 0, stated: Stated = Stated.NOTHING
) -> Evidence | None:
    """What says at `now` that the series is complete; None: nothing yet. See `silent_from`.

    The scanner's own word is the strongest. Where it names instances that are not here no count says otherwise, and
    the caller gives a silence of MISSING_SILENCE_MS: nothing may be read from a part of a series (P6).
    """
    if stated is Stated.ALL_HERE:
        return Evidence.MPPS
    if series.stated_count and series.arrivals >= series.stated_count and stated is not Stated.MISSING:
        return Evidence.COUNT
    if series.modality in SINGLE_IMAGE:
        return Evidence.SINGLE_IMAGE
    return Evidence.SILENCE if now >= silent_from(series, silence_ms, deaf_until) else None


def silent_from(series: Series, silence_ms: int, deaf_until: int = 0) -> int:
    """The tick at which silence becomes evidence.

    Nobody is silent to a process that did not hear, or turned them away, until `deaf_until`; and whoever had not
    released by then was cut off.
    """
    cut_off = series.last_tick < deaf_until and not series.released
    factor = INTERRUPTED_FACTOR if series.interrupted or cut_off else 1
    return max(series.last_tick, deaf_until) + silence_ms * factor


def learned_silence_ms(journal: Journal, calling_ae: str) -> int:
    """How long this sender must be silent to be unusual: 0 until enough of its pauses were seen."""
    rows = journal.query("SELECT bin, seen FROM gap WHERE calling_ae=? ORDER BY bin", calling_ae)
    total = sum(row["seen"] for row in rows)
    if total < MIN_GAPS:
        return 0
    below = 0
    for row in rows:
        below += row["seen"]
        if below >= 0.99 * total:
            return int((1 << row["bin"]) * GAP_FACTOR)
    return 0


def close(journal: Journal, closing: Sequence[tuple[Series, Evidence]]) -> int:
    """Close series on evidence; one that something arrived in meanwhile stays open. Returns how many closed."""
    closed = 0
    with journal.write(durable=False) as tx:
        for series, evidence in closing:
            done = tx.sql(
                "UPDATE series SET state=?, evidence=? WHERE id=? AND state=? AND arrivals=? AND last_tick=?",
                (
                    states.SERIES.step(SeriesState.OPEN, Event.EVIDENCE),
                    evidence,
                    series.id,
                    SeriesState.OPEN,
                    series.arrivals,
                    series.last_tick,
                ),
            ).rowcount
            if done:
                closed += 1
                subject = Subject(
                    study_instance_uid=series.study_instance_uid, series_instance_uid=series.series_instance_uid
                )
                tx.history("series_closed", subject, evidence=evidence, instances=series.arrivals)
    return closed


def _subject(arrival: Arrival) -> Subject:
    return Subject(
        study_instance_uid=arrival.header.study_instance_uid,
        series_instance_uid=arrival.header.series_instance_uid,
        sop_instance_uid=arrival.sop_instance_uid,
    )


def unknown_files(journal: Journal, names: Sequence[str]) -> list[str]:
    """Which of these spool files no row answers for: they were never acknowledged, or have been released."""
    unknown: list[str] = []
    for start in range(0, len(names), 500):
        chunk = names[start : start + 500]
        marks = ",".join("?" * len(chunk))
        known = {row["file"] for row in journal.query(f"SELECT file FROM copy WHERE file IN ({marks})", *chunk)}
        unknown += [name for name in chunk if name not in known]
    return unknown


def count_instances(journal: Journal) -> int:
    row = journal.one("SELECT max(id) AS last FROM instance")
    return int(row["last"] or 0) if row else 0
