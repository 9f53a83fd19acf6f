"""What a lane has to send: real files in an appliance's spool, recorded as receive records them, held until let go.

All in one transaction, like `scanside requeue --all`, so that a measurement begins with a warm lane and a full queue.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.dimse.header import part10, read_header
from appliance.journal import inbox, outbox
from appliance.journal.store import Journal
from appliance.model import Arrival, Owed, Urgency
from appliance.spool import Reserve, Spool
from appliance.wakeup import Bell
from benchmarks.report import BenchError
from benchmarks.rig import Appliance

HELD = "held by the benchmark"
BATCH = 32
LOOK_S = 0.01
SENT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One delivery: when it came to be owed, and when the journal knew that the destination has it."""

    created_tick: int
    settled_tick: int

    @property
    def seconds(self) -> float:
        return (self.settled_tick - self.created_tick) / 1000


class Queue:
    """Of one running appliance; `with` opens its journal and spool."""

    def __init__(self, appliance: Appliance) -> None:
        self._state = appliance.state
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.journal = Journal(self._state / "journal.sqlite", "bench")
        self._open.callback(self.journal.close)
        nothing = Reserve(free_bytes=0, free_inodes=0, journal_bytes=0)
        self._spool = Spool(self._state / "spool", "bench", nothing)
        self._open.callback(self._spool.close)
        self._bell = Bell(self._state / "run", "bench")
        self._open.callback(self._bell.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def hold(self, files: Sequence[Path], destinations: Mapping[str, int]) -> None:
        """Owe each file so many times to each destination, held."""
        owed = [
            Owed(destination=name, urgency=Urgency.IMAGE, held=HELD)
            for name, times in destinations.items()
            for _ in range(times)
        ]
        for start in range(0, len(files), BATCH):
            inbox.record(self.journal, [self._kept(file) for file in files[start : start + BATCH]], lambda _: owed)

    def owe(self, file: Path, destination: str, urgency: Urgency) -> int:
        """Owe one object from now on, as a stage does that has made a result; returns the id of the delivery."""
        owed = Owed(destination=destination, urgency=urgency)
        recorded = inbox.record(self.journal, [self._kept(file)], lambda _: [owed])
        self._bell.ring("forward")
        row = self.journal.one("SELECT max(id) FROM delivery WHERE instance=?", recorded[0].instance_id)
        return int(row[0]) if row else 0

    def let_go(self, destination: str, limit: int = 1 << 30) -> Sequence[int]:
        """Queue what is held for it, each file once; returns the ids of the deliveries."""
        ids = self._queue(destination, limit)
        self._bell.ring("forward")
        return ids

    def _queue(self, destination: str, limit: int = 1 << 30) -> list[int]:
        rows = self.journal.query(
            "SELECT min(id) AS id FROM delivery INDEXED BY delivery_held WHERE state='held' AND destination=?"
            " GROUP BY instance ORDER BY 1 LIMIT ?",
            destination,
            limit,
        )
        ids = [int(row["id"]) for row in rows]
        outbox.requeue(self.journal, dict.fromkeys(ids, ()), "bench")
        return ids

    def drain(self, destination: str, look: Callable[[], None] = lambda: None) -> float:
        """Let go of each held file once; the seconds from that commit to the one that knows all of them delivered."""
        ids = self._queue(destination)
        begun = self.journal.clock.tick()
        self._bell.ring("forward")
        delivered = self.wait(ids, look)
        return (max(one.settled_tick for one in delivered) - begun) / 1000

    def wait(
        self, ids: Sequence[int], look: Callable[[], None] = lambda: None, within_s: float = SENT_S
    ) -> list[Delivered]:
        """Until all of these are delivered. Raises BenchError where one is held, or it takes too long."""
        until = time.monotonic() + within_s
        left = set(ids)
        while left := {key for key in left if key in self._in_state("queued", left)}:
            if time.monotonic() > until:
                raise BenchError(f"{len(left)} of {len(ids)} deliveries are not out within {within_s:g} s")
            look()
            time.sleep(LOOK_S)
        if held := self._in_state("held", set(ids)):
            row = self.journal.one("SELECT reason FROM delivery WHERE id=?", min(held))
            raise BenchError(f"{len(held)} deliveries are held: {row['reason'] if row else ''}")
        wanted = set(ids)
        return self._delivered(min(ids), max(ids), lambda row: row["id"] in wanted)

    def still_queued(self, ids: Sequence[int]) -> int:
        return len(self._in_state("queued", set(ids)))

    def owed_to(self, destination: str) -> bool:
        """Whether anything is."""
        row = self.journal.one(
            "SELECT 1 FROM delivery INDEXED BY delivery_queued WHERE state='queued' AND destination=? LIMIT 1",
            destination,
        )
        return row is not None

    def last_delivery(self) -> int:
        row = self.journal.one("SELECT max(id) AS last FROM delivery")
        return int(row["last"] or 0) if row else 0

    def delivered_to(self, destination: str, first: int) -> list[Delivered]:
        """All from this id on."""
        return self._delivered(first, self.last_delivery(), lambda row: bool(row["destination"] == destination))

    def _delivered(self, first: int, last: int, fits: Callable[[sqlite3.Row], bool]) -> list[Delivered]:
        rows = self.journal.query(
            "SELECT id, destination, created_tick, settled_tick FROM delivery WHERE id BETWEEN ? AND ? ORDER BY id",
            first,
            last,
        )
        return [
            Delivered(created_tick=row["created_tick"], settled_tick=row["settled_tick"]) for row in rows if fits(row)
        ]

    def _in_state(self, state: str, ids: set[int]) -> set[int]:
        rows = self.journal.query(
            "SELECT id FROM delivery WHERE id BETWEEN ? AND ? AND state=?",
            min(ids, default=0),
            max(ids, default=0),
            state,
        )
        return {row["id"] for row in rows} & ids

    def _kept(self, file: Path) -> Arrival:
        """The file in the spool, durably, and what the journal is told of it."""
        stored, content = part10(file), memoryview(file.read_bytes())
        incoming = self._spool.begin(bytes(content[: stored.data_set_offset]))
        incoming.write([content[stored.data_set_offset :]])
        incoming.finish()
        return Arrival(
            sop_class_uid=stored.sop_class_uid,
            sop_instance_uid=stored.sop_instance_uid,
            transfer_syntax_uid=stored.transfer_syntax_uid,
            digest=incoming.digest,
            size=incoming.size,
            file=incoming.name,
            calling_ae="BENCH",
            called_ae="SCANSIDE",
            peer="127.0.0.1",
            association=1,
            header=read_header(file, stored.data_set_offset, stored.transfer_syntax_uid),
        )
