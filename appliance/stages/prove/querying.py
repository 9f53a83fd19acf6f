"""Proof by query, where a PACS has no storage commitment: C-FIND until it shows what it was sent.

By series, with back-off each. What it does not show for long enough, though it answers, is queued again.
"""

import time
from collections.abc import Sequence

from appliance.errors import DeliveryError, TransientDeliveryError
from appliance.journal import proof_outcomes, proofs
from appliance.journal.proofs import Due
from appliance.ports import Catalogue, CatalogueSession
from appliance.stages.prove.prover import Desk, Prover
from appliance.wakeup import SLOW_POLL_S

LOOK = 500  # deliveries at a time
HOUR_MS = 3_600_000

SeriesKey = tuple[str, str]  # Study and Series Instance UID


class Querying(Prover):
    """A destination with `proof: find`."""

    def __init__(self, name: str, catalogue: Catalogue, timeout_ms: int, desk: Desk) -> None:
        super().__init__(name, timeout_ms, desk)
        self._catalogue = catalogue
        self._after = 0  # the delivery that the round over all that is due has come to
        self._round: set[SeriesKey] = set()
        self._next: dict[SeriesKey, float] = {}  # when to ask (time.monotonic)
        self._tries: dict[SeriesKey, int] = {}

    def step(self) -> float:
        """See Prover."""
        left_s = self._left_s()
        if left_s > 0:
            return left_s
        found = proofs.due(self._desk.journal, self.name, LOOK, self._after)
        now = time.monotonic()
        series = dict.fromkeys((one.study_instance_uid, one.series_instance_uid) for one in found)
        ready = [key for key in series if self._next.setdefault(key, now + self._desk.quiet_s) <= now]
        self._round |= series.keys()
        if ready:
            self._ask(ready)
        self._after = found[-1].delivery if len(found) == LOOK else 0
        if self._after:
            return 0.0
        self._next = {key: at for key, at in self._next.items() if key in self._round}
        self._tries = {key: tries for key, tries in self._tries.items() if key in self._round}
        self._round = set()
        return max(0.0, min([SLOW_POLL_S, *(at - time.monotonic() for at in self._next.values())]))

    def _ask(self, ready: Sequence[SeriesKey]) -> None:
        self._turn("asking", "")
        try:
            with self._catalogue.open() as session:
                for key in ready:
                    if self._stopping.is_set():
                        return
                    self._ask_for(session, key)
        except DeliveryError as error:
            self._put_off(error)
        else:
            self._went_well()

    def _ask_for(self, session: CatalogueSession, key: SeriesKey) -> None:
        waiting = proofs.due_of_series(self._desk.journal, self.name, *key)
        try:
            shown = session.instances(*key) if all(key) else frozenset()
        except TransientDeliveryError as error:
            if not session.alive:
                raise
            self._desk.log("proof_not_asked", destination=self.name, reason=str(error))
        else:
            waiting = self._conclude(waiting, shown)
        if waiting:
            self._tries[key] = self._tries.get(key, 0) + 1
            self._next[key] = time.monotonic() + self._desk.backoff(self._tries[key])
        else:
            self._next.pop(key, None)
            self._tries.pop(key, None)

    def _conclude(self, waiting: Sequence[Due], shown: frozenset[str]) -> list[Due]:
        """Returns what is still waited for."""
        journal = self._desk.journal
        horizon = journal.clock.tick() - self._timeout_ms
        missing = [one for one in waiting if one.sop_instance_uid not in shown]
        late = [one for one in missing if one.settled_tick <= horizon]
        words = f"no query showed it within {self._timeout_ms / HOUR_MS:g} h"
        there = [one for one in waiting if one.sop_instance_uid in shown]
        self._tell(proof_outcomes.shown(journal, there) + proof_outcomes.not_shown(journal, late, words))
        return [one for one in missing if one.settled_tick > horizon]
