"""Telling of those who are not let in, without letting them fill the log (P9)."""

import threading

from appliance.stages.receive.context import Log

TOLD_ONE_BY_ONE = 20  # in each span; the rest is counted
SPAN_MS = 60_000


class Rejections:
    """Log lines of rejected associations. Used by many threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._began: int | None = None
        self._seen = 0

    def tell(self, tick: int, **detail: str) -> None:
        with self._lock:
            untold = 0
            if self._began is None or tick - self._began >= SPAN_MS:
                untold = max(0, self._seen - TOLD_ONE_BY_ONE)
                self._began, self._seen = tick, 0
            self._seen += 1
            told = self._seen <= TOLD_ONE_BY_ONE
        if untold:
            self._log("associations_rejected", untold=untold)
        if told:
            self._log("association_rejected", **detail)
