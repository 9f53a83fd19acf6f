"""What receive works with."""

from collections.abc import Callable
from dataclasses import dataclass

from appliance.journal.inbox import Routes
from appliance.journal.store import Journal
from appliance.spool import Spool

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """Journal, spool, and whom to tell."""

    journal: Journal
    spool: Spool
    routes: Routes
    ring: Callable[..., None]  #: wakes the other stages
    silence_ms: Callable[[str], int]  #: modality -> configured silence
    max_in_flight: int  #: files that may be unfinished at one time
    fatal: Callable[[], None]  #: a write or sync failed: end this process
    log: Log
