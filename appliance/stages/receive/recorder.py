"""Group commit: many associations share one commit. Whoever comes first commits for all that wait.

No thread of its own: for an association that is alone to hand its row to another thread and to be woken by it would
take as long as a quarter of the commit.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal import inbox
from appliance.journal.inbox import Recorded
from appliance.model import Arrival
from appliance.stages.receive.context import Inbox

BATCH = 64
STUCK_S = 60.0


class _Waiting:
    """An arrival, and what became of it."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.turn: threading.Condition | None = None  #: told when it is done, or when it is first in the line
        self.result: Recorded | None = None
        self.error: Exception | None = None

    def tell(self) -> None:
        if self.turn is not None:
            self.turn.notify()

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Recorder:
    """One transaction for all arrivals that wait. Used by many threads."""

    def __init__(self, box: Inbox, recorded: Callable[[], None]) -> None:
        self._box, self._recorded = box, recorded
        self._lock = threading.Lock()
        self._line: deque[_Waiting] = deque()  # the first commits
        self._busy_since: float | None = None

    def record(self, arrival: Arrival) -> Recorded:
        """Blocks until the arrival is committed durably. Raises OutOfResources or StoreFailed."""
        mine = _Waiting(arrival)
        with self._lock:
            if self._line:  # made before it stands in the line: what cannot wait there would stop all others
                mine.turn = threading.Condition(self._lock)
            self._line.append(mine)
            if mine.turn is not None:
                mine.turn.wait_for(lambda: mine.done or self._line[0] is mine)
            batch = [] if mine.done else list(islice(self._line, BATCH))
        if batch:
            self._lead(batch)
        if mine.result is None:
            raise mine.error or StoreFailed("the commit was broken off")
        return mine.result

    @property
    def waiting(self) -> int:
        """How many are not done, those included that are being committed."""
        return len(self._line)

    @property
    def stuck(self) -> bool:
        """Whether one commit has taken so long that something must be wrong with the disk."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > STUCK_S

    def _lead(self, batch: Sequence[_Waiting]) -> None:
        """Commit for all of them; then the next in the line leads. Whatever happens, nobody waits for ever."""
        self._busy_since = time.monotonic()
        try:
            self._commit(batch)
        finally:
            with self._lock:
                self._busy_since = None
                for one in batch:
                    self._line.popleft()
                    if not one.done:
                        one.error = StoreFailed("the commit was broken off")
                    one.tell()
                if self._line:
                    self._line[0].tell()

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        arrivals = [one.arrival for one in batch]
        try:
            results = inbox.record(self._box.journal, arrivals, self._box.routes, self._box.spool.has)
        except (OutOfResources, StoreFailed) as error:
            for one in batch:
                one.error = error
            return
        for one, result in zip(batch, results, strict=True):
            one.result = result
        self._recorded()
