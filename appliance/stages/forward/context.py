"""What a lane works with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.backoff import backoff_s
from appliance.journal.store import Journal

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0
BACKOFF = partial(backoff_s, first_s=FIRST_RETRY_S, last_s=LAST_RETRY_S)

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Of all lanes."""

    journal: Journal
    path: Callable[[str], Path]  #: spool file name -> path
    log: Log
    changed: Callable[[], None]  #: a lane's state is other than before
    backoff: Callable[[int], float] = BACKOFF  #: failures in a row -> seconds to wait
    settled: Callable[[], None] = lambda: None  #: deliveries have been settled
    failed: Callable[[str], None] = lambda _: None  #: the journal failed: latch at once
