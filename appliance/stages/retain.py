"""Retain: the one place that lets local copies go, and the journal's upkeep. Runs beside the lanes, outside receive."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from appliance.errors import OutOfResources
from appliance.journal import commitments, copies, history
from appliance.journal.copies import Rules
from appliance.journal.store import Journal

CHECKPOINT_BYTES = 4 << 20
RESTART_BYTES = 16 << 20  # under load there is always something new in the WAL, so it would never start anew
ALARM_BYTES = 64 << 20
UPKEEP_EVERY_S = 1.0
RETAIN_EVERY = 60  # upkeeps
VACUUM_PAGES = 64  # in one upkeep, while no writer waits longer for it than for a commit
VACUUM_KEEP = 512  # unused pages stay: what is written next needs them again


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What retain works with."""

    journal: Journal
    rules: Rules
    remove: Callable[[str], None]  #: a spool file
    shortage: Callable[[], str]  #: why nothing is received now for want of room, or ""
    keep_reserve: Callable[[], None]  #: hold space back for the journal again when there is room
    log: Callable[..., None]


class Retainer:
    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._after_file = ""
        self._after_line = 0
        self._rounds = 0
        self._checkpointed = -1

    def run(self, stopping: threading.Event) -> None:
        """Until told to stop. Raises StoreFailed."""
        while not stopping.wait(UPKEEP_EVERY_S):
            try:
                self.step()
            except OutOfResources as error:
                self._upkeep.log("journal_full", reason=str(error))

    def step(self) -> None:
        """A chunk of upkeep: a walk over all copies begins now and then, and goes on until it has seen them all.

        While scanners are told to wait for room, another one begins at once.
        """
        self._checkpoint()
        short = bool(self._upkeep.shortage())
        begin = self._rounds % RETAIN_EVERY == 0 or (short and not self._after_file)
        if begin:
            copies.note_tick(self._upkeep.journal)
            self._upkeep.keep_reserve()
            commitments.prune(self._upkeep.journal)
        if begin or self._after_file:
            self.release_some(short_of_room=short)
        if begin or self._after_line:
            self._after_line, _ = history.prune(self._upkeep.journal, self._after_line)
        self._upkeep.journal.give_back(VACUUM_PAGES, VACUUM_KEEP)
        self._rounds += 1

    def release_some(self, *, short_of_room: bool = False) -> int:
        """Let one chunk of copies go; returns how many."""
        upkeep = self._upkeep
        rules = replace(upkeep.rules, short_of_room=short_of_room)
        found, self._after_file = copies.releasable(upkeep.journal, rules, self._after_file)
        gone = copies.release(upkeep.journal, rules, found) if found else []
        for file in gone:
            try:
                upkeep.remove(file)
            except OSError as error:  # it is owed to nobody; receive's next start tries again
                upkeep.log("not_removed", file=file, reason=error.strerror)
        return len(gone)

    def _checkpoint(self) -> None:
        journal = self._upkeep.journal
        size = journal.wal_bytes()
        if size < CHECKPOINT_BYTES or size == self._checkpointed:
            return
        journal.checkpoint()
        self._checkpointed = size
        if size > ALARM_BYTES:
            self._upkeep.log("wal_too_large", bytes=size)
        if size > RESTART_BYTES:
            journal.checkpoint(restart=True, truncate=size > ALARM_BYTES)
