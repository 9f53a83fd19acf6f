"""What a process and its descendants have used, from /proc: processor time and memory."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

EVERY_S = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """A process and all below it, those included that have ended and were not waited for."""
    yield pid
    for task in _tasks(pid):
        for child in _read(task / "children").split():
            yield from tree(int(child))


def cpu_s(pid: int) -> float:
    """Of the tree, in seconds; descendants that were waited for count, too (proc_pid_stat(5): cutime, cstime)."""
    ticks = 0
    for process in tree(pid):
        fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks * TICK_S


def _memory(pid: int) -> int:
    """Resident now, in bytes; 0 for one that has ended."""
    return sum(int((_read(Path(f"/proc/{one}/statm")).split() or ["0", "0"])[1]) for one in tree(pid)) * PAGE


def _high_water(pid: int) -> int:
    words = _read(Path(f"/proc/{pid}/status")).partition("VmHWM:")[2].split()
    return int(words[0]) * 1024 if words else 0


class Usage:
    """What a tree used inside `with`: `cpu_s`, and `peak_mb` in units of 10**6 bytes, which looks every 0.1 s.

    For a single process the peak is exact, and that of its whole life, unless `whole_life` is False.
    """

    def __init__(self, pid: int, *, whole_life: bool = True) -> None:
        self._pid, self._whole_life = pid, whole_life
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._peak = 0
        self.cpu_s = 0.0

    @property
    def peak_mb(self) -> float:
        return self._peak / 1e6

    def __enter__(self) -> Self:
        self.cpu_s = -cpu_s(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_s += cpu_s(self._pid)
        self._peak = max(self._peak, _high_water(self._pid) if self._whole_life else _memory(self._pid))

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._peak = max(self._peak, _memory(self._pid))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    """Its content; "" for a process that has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""
