"""When a series is complete: evidence from the journal, and from what is still under way."""

import threading
from functools import cache, partial

from appliance.errors import OutOfResources
from appliance.journal import inbox, performed
from appliance.journal.performed import Stated
from appliance.model import Evidence, Series
from appliance.stages.receive.context import Inbox
from appliance.stages.receive.traffic import Traffic

JOURNAL_FULL_PAUSE_S = 5.0
#: What arrives in so short a time is looked at together: to look at each image costs as much as to record it.
GATHER_S = 0.02


class Closer:
    """Closes series when there is evidence that they are complete; sleeps until the next could be."""

    def __init__(self, box: Inbox, traffic: Traffic) -> None:
        self._box, self._traffic = box, traffic
        self._listening_since = box.journal.clock.tick()
        self._look = threading.Event()
        self._look.set()
        self._stopping = threading.Event()

    def look(self) -> None:
        """Something has arrived, or ended: at once, unless the last look was just now."""
        self._look.set()

    def stop(self) -> None:
        self._stopping.set()
        self._look.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed."""
        self._listening_since = self._box.journal.clock.tick()
        due_s: float | None = 0.0
        while True:
            asked = self._look.wait(due_s)
            self._look.clear()
            if self._stopping.is_set():
                return
            if asked:
                self._box.ring("analyse")
            try:
                due_s = self.step()
            except OutOfResources as error:
                self._box.log("journal_full", reason=str(error))
                due_s = JOURNAL_FULL_PAUSE_S
            self._stopping.wait(GATHER_S)

    def step(self) -> float | None:
        """Close what can be closed; returns the seconds until silence could close another, None: nothing is open."""
        journal, now = self._box.journal, self._box.journal.clock.tick()
        learned = cache(partial(inbox.learned_silence_ms, journal))  # of many series most are one sender's
        closing: list[tuple[Series, Evidence]] = []
        due: list[int] = []
        still_open = inbox.open_series(journal)
        said = performed.stated(journal)  # after it: of what arrives in between `close` makes sure
        for series in still_open:
            stated = said.get(series.id, Stated.NOTHING)
            silence = max(self._box.silence_ms(series.modality), learned(series.calling_ae))
            if stated is Stated.MISSING:
                silence = max(silence, inbox.MISSING_SILENCE_MS)
            deaf_until = self._deaf_until(series)
            evidence = inbox.evidence_for(series, now, silence, deaf_until, stated)
            waits = evidence is Evidence.SILENCE and self._traffic.is_under_way(
                series.calling_ae, begun_before=inbox.silent_from(series, silence, deaf_until)
            )
            if evidence and not waits:
                closing.append((series, evidence))
            else:
                due.append(silence if waits else inbox.silent_from(series, silence, deaf_until) - now)
        if closing:
            inbox.close(journal, closing)
            self._box.ring("analyse")
        return max(0.001, min(due) / 1000) if due else None

    def _deaf_until(self, series: Series) -> int:
        """Silence before this tick says nothing: we did not listen, or turned the sender away."""
        return max(self._listening_since, self._traffic.last_failure(series.calling_ae))
