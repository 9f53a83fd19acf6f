"""What is under way from whom: a sender in the middle of a data set is not silent."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Begun:
    calling_ae: str
    tick: int


class Traffic:
    """Data sets that are arriving, and senders that did not get theirs through. Used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[object, _Begun] = {}
        self._failed: dict[str, int] = {}  # calling AE title -> tick; only configured peers get so far

    def begin(self, data_set: object, calling_ae: str, tick: int) -> None:
        with self._lock:
            self._under_way[data_set] = _Begun(calling_ae, tick)

    def arrived(self, data_set: object) -> None:
        with self._lock:
            self._under_way.pop(data_set, None)

    def failed(self, data_set: object, calling_ae: str, tick: int) -> None:
        """It was broken off or refused, perhaps before it began: whoever sent it will come again."""
        with self._lock:
            self._under_way.pop(data_set, None)
            self._failed[calling_ae] = tick

    def last_failure(self, calling_ae: str) -> int:
        """The tick of it; 0: none so far."""
        with self._lock:
            return self._failed.get(calling_ae, 0)

    def is_under_way(self, calling_ae: str, begun_before: int) -> bool:
        """Whether a data set of this sender is still arriving that began before this tick."""
        with self._lock:
            return any(
                begun.calling_ae == calling_ae and begun.tick <= begun_before for begun in self._under_way.values()
            )
