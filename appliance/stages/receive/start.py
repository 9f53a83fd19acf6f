"""Before anything is taken: the sweep of what was never acknowledged, and the proof of a disk that failed."""

import threading
from collections.abc import Callable

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal import copies, inbox
from appliance.stages.receive.context import Inbox

PROVE_EVERY_S = 5.0


def discard_unacknowledged(box: Inbox, alive: Callable[[], None] = lambda: None) -> None:
    """Start-up: remove files that never got a row, or whose row is gone. Only while nothing is being received.

    Calls `alive` now and then: there may be millions to look at. Raises StoreFailed when the spool holds more than a
    crash can leave behind: then it is not the spool's journal.
    """
    unknown: list[str] = []
    for files in box.spool.walk():
        unknown += inbox.unknown_files(box.journal, files)
        alive()
    copies.check_explained(box.journal, unknown, box.max_in_flight)
    for name in unknown:
        box.spool.remove(name)
    if unknown:
        box.log("swept", files=len(unknown))
    box.spool.tidy()
    box.spool.keep_reserve()


def heal(box: Inbox, stopping: threading.Event, alive: Callable[[], None]) -> bool:
    """After a latch: prove the disk anew, again and again until it holds; all the while senders get 0xA700.

    Calls `alive` at each try. False: told to stop first.
    """
    while True:
        alive()
        reason = box.spool.latched()
        try:
            _prove(box, alive)
        except (OutOfResources, StoreFailed, OSError) as error:
            box.log("still_latched", reason=reason, now=str(error))
            if stopping.wait(PROVE_EVERY_S):
                return False
        else:
            box.log("healed", was=reason)
            return True


def _prove(box: Inbox, alive: Callable[[], None]) -> None:
    latched_at = box.spool.latched_at()
    if not box.journal.checkpoint(truncate=True):
        raise OutOfResources("the journal is being read: its WAL cannot be truncated")
    discard_unacknowledged(box, alive)
    box.spool.prove(latched_at)
