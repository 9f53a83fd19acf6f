"""Group commit: many associations share one commit. Each waits for its own row; all that wait go in one transaction."""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal import inbox
from appliance.journal.inbox import Recorded
from appliance.model import Arrival
from appliance.stages.receive.context import Inbox

BATCH = 64
STUCK_S = 60.0


class Recorder:
    """One thread, one transaction for all arrivals that wait."""

    def __init__(self, box: Inbox, recorded: Callable[[], None]) -> None:
        self._box, self._recorded = box, recorded
        self._waiting: queue.SimpleQueue[tuple[Arrival, Future[Recorded]] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None

    def record(self, arrival: Arrival) -> Recorded:
        """Blocks until the arrival is committed durably. Raises OutOfResources or StoreFailed."""
        future: Future[Recorded] = Future()
        self._waiting.put((arrival, future))
        return future.result()

    @property
    def stuck(self) -> bool:
        """Whether one commit has taken so long that something must be wrong with the disk."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > STUCK_S

    def stop(self) -> None:
        self._waiting.put(None)

    def run(self) -> None:
        """Until `stop`."""
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < BATCH:
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    self._waiting.put(None)
                    break
                batch.append(item)
            self._busy_since = time.monotonic()
            self._commit(batch)
            self._busy_since = None

    def _commit(self, batch: Sequence[tuple[Arrival, "Future[Recorded]"]]) -> None:
        try:
            results = inbox.record(
                self._box.journal, [arrival for arrival, _ in batch], self._box.routes, self._box.spool.has
            )
        except (OutOfResources, StoreFailed) as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        self._recorded()
