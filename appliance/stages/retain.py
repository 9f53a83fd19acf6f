"""Retain: the one place that lets local copies go, and the journal's upkeep. Runs beside the lanes, outside receive."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.errors import OutOfResources
from appliance.journal import copies, history
from appliance.journal.copies import Keep
from appliance.journal.store import Journal

CHECKPOINT_BYTES = 4 << 20
ALARM_BYTES = 64 << 20
UPKEEP_EVERY_S = 1.0
RETAIN_EVERY = 60  # upkeeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What retain works with."""

    journal: Journal
    remove: Callable[[str], None]  #: a spool file
    keeps: Mapping[str, Keep]
    unowed_keep_ms: int  #: of instances that are owed to nobody
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
        self._checkpoint()
        if self._rounds % RETAIN_EVERY == 0:
            copies.note_tick(self._upkeep.journal)
            self.release_some()
            self._after_line, _ = history.prune(self._upkeep.journal, self._after_line)
        self._rounds += 1

    def release_some(self) -> int:
        """Let one chunk of copies go; returns how many."""
        upkeep = self._upkeep
        found, self._after_file = copies.releasable(
            upkeep.journal, upkeep.keeps, upkeep.unowed_keep_ms, self._after_file
        )
        if found:
            copies.release(upkeep.journal, found)
            for copy in found:
                upkeep.remove(copy.file)
        return len(found)

    def _checkpoint(self) -> None:
        journal = self._upkeep.journal
        size = journal.wal_bytes()
        if size < CHECKPOINT_BYTES or size == self._checkpointed:
            return
        journal.checkpoint()
        self._checkpointed = size
        if size > ALARM_BYTES:
            self._upkeep.log("wal_too_large", bytes=size)
            journal.checkpoint(truncate=True)
