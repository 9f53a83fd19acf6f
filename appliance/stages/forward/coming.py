"""What a lane sends next, asked of the journal only after somebody has written to it."""

import threading
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from appliance.journal import outbox
from appliance.journal.store import Journal
from appliance.model import Delivery

LOOKED_AT = 8  # deliveries at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What one thread was told."""

    version: int
    skipped: AbstractSet[int]
    deliveries: tuple[Delivery, ...]


class Coming:
    """One lane's. Threads share it; each has seen for itself."""

    def __init__(self, destination: str, journal: Journal) -> None:
        self._destination, self._journal = destination, journal
        self._local = threading.local()

    def next(self, skip: AbstractSet[int]) -> Delivery | None:
        """The most urgent, and of those the oldest, that is queued and not among these ids."""
        version = self._journal.version()
        seen: _Seen | None = getattr(self._local, "seen", None)
        if seen is None or seen.version != version or not seen.skipped <= skip:
            seen = None
        found = next((one for one in seen.deliveries if one.id not in skip), None) if seen is not None else None
        if found is not None or (seen is not None and len(seen.deliveries) < LOOKED_AT):
            return found
        deliveries = outbox.next_queued(self._journal, self._destination, LOOKED_AT, skip=skip)
        self._local.seen = _Seen(version=version, skipped=skip, deliveries=tuple(deliveries))
        return next(iter(deliveries), None)
