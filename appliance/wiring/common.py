"""What all processes are made of."""

import json
import os
import threading
from collections.abc import Callable

from appliance.config import Config
from appliance.errors import StoreFailed
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Reserve, Spool

EX_OK = 0
EX_FAILED = 70  #: a process loop failed: the supervisor starts it anew
EX_LATCHED = 75  #: a write or sync failed: the next start proves the disk first

HOUR_MS = 3_600_000
MB = 1 << 20

Log = Callable[..., None]


def open_spool(config: Config, area: str) -> Spool:
    reserve = Reserve(
        free_bytes=config.reserve.free_mb * MB,
        free_inodes=config.reserve.free_inodes,
        journal_bytes=config.reserve.journal_mb * MB,
    )
    return Spool(config.spool_dir, area, reserve)


def open_journal(config: Config, process: str, on_full: Callable[[], bool] = lambda: False) -> Journal:
    """Raises StoreFailed."""
    config.state_dir.mkdir(parents=True, exist_ok=True)
    return Journal(config.journal_path, process, on_full=on_full)


def publish_facts(config: Config, name: str, facts: dict[str, object]) -> None:
    """Facts of this run for `status` (a port, the state of lanes): replaced whole, lost with no harm."""
    target = config.run_dir / f"{name}.json"
    temporary = target.with_name(f".{name}.{os.getpid()}")
    temporary.write_text(json.dumps(facts))
    temporary.rename(target)


class Worker:
    """A thread of a process loop: when it fails the process ends, and the supervisor starts it anew."""

    def __init__(self, name: str, run: Callable[[], None], life: Life, log: Log) -> None:
        self.status = EX_OK
        self._run, self._life, self._log = run, life, log
        self._thread = threading.Thread(target=self._guard, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float = 10.0) -> None:
        self._thread.join(timeout_s)

    def _guard(self) -> None:
        try:
            self._run()
        except StoreFailed as error:
            self.status = EX_LATCHED
            self._log("store_failed", worker=self._thread.name, reason=str(error))
        except Exception as error:
            self.status = EX_FAILED
            self._log("worker_failed", worker=self._thread.name, reason=f"{type(error).__name__}: {error}")
        if self.status:
            self._life.stopping.set()
