"""Telling of those who are not let in, without letting them fill the log or our memory (P9)."""

import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from appliance.stages.receive.context import Log

TOLD_ONE_BY_ONE = 20  # in each span; the rest is counted
SPAN_MS = 60_000
MOST_REASONS = 40
OTHER = "other reasons"

_DETAIL = re.compile(r" \(.*\)")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """How often one reason was met, and with whom last."""

    count: int
    last_tick: int
    calling_ae: str
    address: str


class Rejections:
    """Log lines and counts of rejected associations. Used by many threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._began: int | None = None
        self._seen = 0
        self._counts: dict[str, _Count] = {}

    def tell(self, tick: int, *, calling_ae: str = "", address: str = "", reason: str = "") -> None:
        with self._lock:
            self._count(tick, calling_ae, address, reason)
            untold = 0
            if self._began is None or tick - self._began >= SPAN_MS:
                untold = max(0, self._seen - TOLD_ONE_BY_ONE)
                self._began, self._seen = tick, 0
            self._seen += 1
            told = self._seen <= TOLD_ONE_BY_ONE
        if untold:
            self._log("associations_rejected", untold=untold)
        if told:
            self._log("association_rejected", calling_ae=calling_ae, address=address, reason=reason)

    def summary(self) -> Mapping[str, Mapping[str, Any]]:
        """Reason, without its details -> count, last_tick, calling_ae, address: since this process began."""
        with self._lock:
            return {reason: asdict(count) for reason, count in self._counts.items()}

    def _count(self, tick: int, calling_ae: str, address: str, reason: str) -> None:
        key = _NUMBER.sub("N", _DETAIL.sub("", reason))
        if key not in self._counts and len(self._counts) >= MOST_REASONS:
            key = OTHER
        before = self._counts[key].count if key in self._counts else 0
        self._counts[key] = _Count(count=before + 1, last_tick=tick, calling_ae=calling_ae, address=address)
