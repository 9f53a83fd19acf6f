"""What all processes are made of."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import extract_tb

from appliance.config import Config
from appliance.disk import make_folder
from appliance.errors import ScansideError, StoreFailed
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Reserve, Spool

#: What an appliance consists of, each a module of this package.
PROCESSES = ("receive", "analyse", "forward")

EX_OK = 0
EX_FAILED = 70  #: a process loop failed: the supervisor starts it anew
EX_LATCHED = 75  #: a write or sync failed: the next start proves the disk first

HOUR_MS = 3_600_000
MB = 1 << 20
LATCH_LOOK_S = 0.5
PLACES = 4  # of a failure's traceback, the innermost

Log = Callable[..., None]


def open_spool(config: Config, area: str, ahead: int = 1) -> Spool:
    reserve = Reserve(
        free_bytes=config.reserve.free_mb * MB,
        free_inodes=config.reserve.free_inodes,
        journal_bytes=config.reserve.journal_mb * MB,
    )
    return Spool(config.spool_dir, area, reserve, ahead)


def open_journal(config: Config, process: str, on_full: Callable[[], bool] = lambda: False) -> Journal:
    """Raises StoreFailed."""
    make_folder(config.state_dir)
    return Journal(config.journal_path, process, on_full=on_full)


@contextmanager
def latching(spool: Spool) -> Iterator[None]:
    """A write or sync that fails before there are workers is as final as later: all stop, the disk is proved (P1)."""
    try:
        yield
    except StoreFailed as error:
        if not isinstance(error.__cause__, StoreFailed | None):  # the system's word, not a journal of somebody else's
            spool.latch(str(error))
        raise
    except OSError as error:
        if error.errno == errno.EIO:
            spool.latch(str(error))
        raise


def wait_until_proved(spool: Spool, life: Life, log: Log) -> bool:
    """While the store is latched nothing may be written to it: receive proves the disk (P1). False: told to stop."""
    if reason := spool.latched():
        log("latched", reason=reason)
        life.ready()
    while spool.latched():
        life.beat()
        if life.stopping.wait(LATCH_LOOK_S):
            return False
    return True


def join(spool: Spool, journal: Journal) -> None:
    """Make sure that this journal knows the spool's files: what it does not know is removed, as never acknowledged.

    Raises StoreFailed where the journal was lost or exchanged.
    """
    owner = spool.owner()
    if owner == journal.identity:
        return
    if owner or not spool.is_empty():
        raise StoreFailed(
            "the spool's files belong to another journal, which is lost or was exchanged:"
            " `scanside recover` makes a new one from the spool"
        )
    spool.own(journal.identity)


def publish_facts(config: Config, name: str, facts: dict[str, object]) -> None:
    """Facts of this run for `status` (a port, the state of lanes): replaced whole, lost with no harm."""
    target = config.run_dir / f"{name}.json"
    temporary = target.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
    with suppress(OSError):  # of a full disk, say: it must not stop what would empty it
        temporary.write_text(json.dumps(facts))
        temporary.rename(target)


def without_values(error: BaseException) -> str:
    """What failed, and where. The words of errors that are not ours may quote a data set: patient data (P10)."""
    where = " < ".join(
        f"{Path(f.filename).name}:{f.lineno}" for f in reversed(extract_tb(error.__traceback__)[-PLACES:])
    )
    words = f": {error}" if isinstance(error, ScansideError) else ""
    return f"{type(error).__name__}{words} at {where}"


class Worker:
    """A thread of a process loop: when it fails the process ends, and the supervisor starts it anew.

    `latch` is told why the store cannot be trusted any more, before anything else.
    """

    def __init__(self, name: str, run: Callable[[], None], life: Life, log: Log, latch: Callable[[str], None]) -> None:
        self.status = EX_OK
        self._run, self._life, self._log, self._latch = run, life, log, latch
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
            self._latch(str(error))
            self.status = EX_LATCHED
            self._log("store_failed", worker=self._thread.name, reason=str(error))
        except Exception as error:
            self.status = EX_FAILED
            self._log("worker_failed", worker=self._thread.name, reason=without_values(error))
        if self.status:
            self._life.stopping.set()
