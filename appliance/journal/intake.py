"""What came in, hour by hour, and how long the disk would last if nothing went out any more."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from appliance.journal.store import Journal

HOUR_MS = 3_600_000
HOURS = 14 * 24  # that are looked at: schema.sql keeps no more
FIRST_HOURS = 24  # before that, nobody knows what is usual
#: What an instance takes beside its data set: the head of its file, its last block's rest, its rows in the journal.
BESIDE_BYTES = 6 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    instances: int = 0
    bytes: int = 0  #: of data sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What is held, and what came in the last hours, oldest first, the one that is not over included."""

    held_copies: int
    held_bytes: int
    hours: tuple[Hour, ...]

    def lasts_h(self, free_bytes: int, free_inodes: int | None = None) -> float | None:
        """For how many hours this room would do at the busiest time that was seen, with nothing let go.

        Busiest is the stretch of so many hours in which most came: a quiet night is part of a day. `free_inodes` None:
        the file system has none. None: less than a day was seen, or nothing came.
        """
        if len(self.hours) < FIRST_HOURS:
            return None
        lengths = [_lasts([hour.bytes + hour.instances * BESIDE_BYTES for hour in self.hours], free_bytes)]
        if free_inodes is not None:
            lengths.append(_lasts([hour.instances for hour in self.hours], free_inodes))
        return min((length for length in lengths if length is not None), default=None)


def _lasts(amounts: Sequence[int], room: int) -> float | None:
    """Hours until `room` is full in the worst case; what was seen is taken to come again and again."""
    in_all = sum(amounts)
    if not in_all:
        return None
    rounds, rest = divmod(max(room, 0), in_all)
    sums = [0, *accumulate([*amounts, *amounts])]
    hours, most, seen = 0, 0, len(amounts)
    while (longer := max(sums[start + hours + 1] - sums[start] for start in range(seen))) <= rest:
        hours, most = hours + 1, longer
    return rounds * seen + hours + (rest - most) / (longer - most)


def look(journal: Journal) -> Intake:
    """A read of some hundred rows at most."""
    held = journal.one("SELECT copies, bytes FROM held")
    now = journal.clock.tick() // HOUR_MS
    rows = {
        row["hour"]: Hour(instances=row["instances"], bytes=row["bytes"])
        for row in journal.query("SELECT * FROM intake WHERE hour>? ORDER BY hour LIMIT ?", now - HOURS, HOURS)
    }
    return Intake(
        held_copies=held["copies"] if held else 0,
        held_bytes=held["bytes"] if held else 0,
        hours=tuple(rows.get(hour, Hour()) for hour in range(min(rows), now + 1)) if rows else (),
    )


def forget(journal: Journal) -> None:
    """What was recorded so far did not come from scanners in these hours: a journal was rebuilt."""
    with journal.write(durable=False) as tx:
        tx.sql("DELETE FROM intake")
