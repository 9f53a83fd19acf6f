"""Receive: what a scanner sends is on disk and in the journal before it is told so (P1).

Order: data written as it arrives, data synced, directory synced, journal row and deliveries committed, then Success.
Nothing of a data set is decoded before that but a few header tags. Many associations share one commit: each waits for
its own row, the recorder takes all that wait in one transaction.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from appliance.dimse.command import Command
from appliance.dimse.header import read_header
from appliance.dimse.services import Caller, Context, Sink
from appliance.errors import DataSetRefused, OutOfResources, StoreFailed
from appliance.journal import copies, inbox
from appliance.journal.inbox import Recorded, Routes
from appliance.journal.store import Journal
from appliance.model import Arrival, Evidence, Header, Series
from appliance.spool import Incoming, Spool, file_head
from appliance.stages.traffic import Traffic

DATA_SET_DOES_NOT_MATCH = 0xA900
SUCCESS = 0x0000
BATCH = 64
CHECK_ROOM_EVERY = 8 << 20  # bytes of one data set
HEAL_EVERY_S = 5.0
STUCK_S = 60.0

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """What receive works with."""

    journal: Journal
    spool: Spool
    routes: Routes
    ring: Callable[..., None]  #: wakes the other stages
    silence_ms: Callable[[str], int]  #: modality -> configured silence
    max_in_flight: int  #: files that may be unfinished at one time
    fatal: Callable[[], None]  #: a write or sync failed: end this process
    log: Log


class Recorder:
    """Group commit: one thread, one transaction for all arrivals that wait."""

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


class _DataSet:
    """One data set on its way into the spool."""

    def __init__(self, receiver: "Receiver", caller: Caller, context: Context, request: Command) -> None:
        self._receiver, self._caller, self._context, self._request = receiver, caller, context, request
        self._file = receiver.open_file(caller, context, request)
        receiver.traffic.begin(self, caller.calling_ae, receiver.tick())
        self._checked = 0
        self._may_be_recorded = False

    def write(self, views: Sequence[memoryview]) -> None:
        self._file.write(views)
        if self._file.size - self._checked >= CHECK_ROOM_EVERY:  # one endless data set must not eat the reserve
            self._receiver.check_room()
            self._checked = self._file.size

    def finish(self) -> int:
        if not self._file.size:
            raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "the data set is empty")
        header = read_header(self._file.path, self._file.data_set_offset, self._context.transfer_syntax)
        _check(header, self._request)
        self._file.finish()
        recorded = self._record(header)
        self._receiver.check_sound()  # what failed meanwhile may have been a sync that this one's relied on
        self._receiver.traffic.arrived(self)
        if recorded.redundant:
            self._file.discard()
        return SUCCESS

    def _record(self, header: Header) -> Recorded:
        """A commit that failed may still be found in the WAL by the next start: then the file must be there, too."""
        self._may_be_recorded = True
        try:
            return self._receiver.recorder.record(self._arrival(header))
        except OutOfResources:
            self._may_be_recorded = False  # rolled back
            raise

    def discard(self) -> None:
        self._receiver.turned_away(self._caller, self)
        if not self._may_be_recorded:
            self._file.discard()

    def _arrival(self, header: Header) -> Arrival:
        return Arrival(
            sop_class_uid=self._request.sop_class_uid,
            sop_instance_uid=self._request.sop_instance_uid,
            transfer_syntax_uid=self._context.transfer_syntax,
            digest=self._file.digest,
            size=self._file.size,
            file=self._file.name,
            calling_ae=self._caller.calling_ae,
            called_ae=self._caller.called_ae,
            peer=self._caller.address,
            association=self._caller.number,
            header=header,
        )


def _check(header: Header, request: Command) -> None:
    """Refuse what says of itself that it is something else: stored so, it could not be delivered (PS3.4 B.2.3)."""
    if header.sop_class_uid and header.sop_class_uid != request.sop_class_uid:
        raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "SOP Class UID differs from the command's")
    if header.sop_instance_uid and header.sop_instance_uid != request.sop_instance_uid:
        raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "SOP Instance UID differs from the command's")


class Receiver:
    """Keeps what is stored; hears of associations. Both called from many threads."""

    def __init__(self, box: Inbox) -> None:
        self._box = box
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self.fatal = threading.Event()  #: a write or sync failed: the process must end
        self.traffic = Traffic()
        self.tick = box.journal.clock.tick
        self.closer = Closer(box, self.traffic)
        self.recorder = Recorder(box, self._recorded)

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        try:
            self.check_room()
            return _DataSet(self, caller, context, request)
        except OutOfResources:
            self.turned_away(caller)
            raise

    def turned_away(self, caller: Caller, data_set: object = None) -> None:
        """A data set did not get through: its series is not complete, however silent it is now."""
        self.traffic.failed(data_set, caller.calling_ae, self.tick())
        self.closer.look()

    def check_room(self) -> None:
        """Raises OutOfResources, and StoreFailed when not even that can be told."""
        self.check_sound()
        self._box.spool.check_room()

    def check_sound(self) -> None:
        """A failed write or sync is final: from then on nothing is acknowledged (P1). Raises OutOfResources."""
        if self.fatal.is_set():
            raise OutOfResources("the store has failed")

    def failed(self, reason: str) -> None:
        self.fatal.set()
        self._box.spool.latch(reason)
        self._box.log("store_failed", reason=reason)
        self._box.fatal()

    def open_file(self, caller: Caller, context: Context, request: Command) -> Incoming:
        head = file_head(request.sop_class_uid, request.sop_instance_uid, context.transfer_syntax, caller.calling_ae)
        with self._lock:
            return self._box.spool.begin(head)

    def opened(self, caller: Caller) -> None:
        with self._lock:
            self._open[caller.calling_ae] += 1

    def ended(self, caller: Caller, *, stored: int, in_order: bool, reason: str) -> None:
        with self._lock:
            self._open[caller.calling_ae] -= 1
            others_open = self._open[caller.calling_ae] > 0
        self._box.log(
            "association_ended", calling_ae=caller.calling_ae, stored=stored, in_order=in_order, reason=reason
        )
        if not (stored or in_order):
            return  # what brought nothing interrupted nothing
        try:
            inbox.association_ended(self._box.journal, caller.calling_ae, in_order=in_order, others_open=others_open)
        except OutOfResources as error:
            self._box.log("journal_full", reason=str(error))
        except StoreFailed as error:
            self.failed(str(error))
        self._box.ring("analyse")

    def rejected(self, calling_ae: str, address: str, reason: str) -> None:
        self._box.log("association_rejected", calling_ae=calling_ae, address=address, reason=reason)

    def _recorded(self) -> None:
        self.closer.look()
        self._box.ring("forward", "analyse")


class Closer:
    """Closes series when there is evidence that they are complete; sleeps until the next could be."""

    def __init__(self, box: Inbox, traffic: Traffic) -> None:
        self._box, self._traffic = box, traffic
        self._listening_since = box.journal.clock.tick()
        self._look = threading.Event()
        self._look.set()
        self._stopping = False

    def look(self) -> None:
        self._look.set()

    def stop(self) -> None:
        self._stopping = True
        self._look.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed."""
        self._listening_since = self._box.journal.clock.tick()
        due_s: float | None = 0.0
        while True:
            self._look.wait(due_s)
            self._look.clear()
            if self._stopping:
                return
            due_s = self.step()

    def step(self) -> float | None:
        """Close what can be closed; returns the seconds until silence could close another, None: nothing is open."""
        journal, now = self._box.journal, self._box.journal.clock.tick()
        closing: list[tuple[Series, Evidence]] = []
        due: list[int] = []
        for series in inbox.open_series(journal):
            silence, deaf_until = self._silence_ms(series), self._deaf_until(series)
            evidence = inbox.evidence_for(series, now, silence, deaf_until)
            waits = evidence is Evidence.SILENCE and self._traffic.is_under_way(
                series.calling_ae, begun_before=inbox.silent_from(series, silence, deaf_until)
            )
            if evidence and not waits:
                closing.append((series, evidence))
            else:
                due.append(silence if waits else inbox.silent_from(series, silence, deaf_until) - now)
        if closing:
            try:
                inbox.close(journal, closing)
            except OutOfResources as error:
                self._box.log("journal_full", reason=str(error))
                return HEAL_EVERY_S
            self._box.ring("analyse")
        return max(0.001, min(due) / 1000) if due else None

    def _deaf_until(self, series: Series) -> int:
        """Silence before this tick says nothing: we did not listen, or turned the sender away."""
        return max(self._listening_since, self._traffic.last_failure(series.calling_ae))

    def _silence_ms(self, series: Series) -> int:
        learned = inbox.learned_silence_ms(self._box.journal, series.calling_ae)
        return max(self._box.silence_ms(series.modality), learned)


def discard_unacknowledged(box: Inbox) -> None:
    """Start-up: remove files that never got a row, or whose row is gone. Only while nothing is being received.

    Raises StoreFailed when the spool holds more than a crash can leave behind: then it is not the spool's journal.
    """
    unknown = inbox.unknown_files(box.journal, box.spool.files())
    if len(unknown) > box.max_in_flight + copies.CHUNK:
        raise StoreFailed(
            f"the spool holds {len(unknown)} files that the journal does not know: is it the right journal?"
            " `scanside recover` rebuilds it from the spool"
        )
    for name in unknown:
        box.spool.remove(name)
    if unknown:
        box.log("swept", files=len(unknown))
    box.spool.keep_reserve()


def heal(box: Inbox, stopping: threading.Event, alive: Callable[[], None]) -> bool:
    """After a latch: prove the disk anew, again and again until it holds; all the while senders get 0xA700.

    Calls `alive` at each try. False: told to stop first.
    """
    while reason := box.spool.latched():
        alive()
        try:
            _prove(box)
        except (OutOfResources, StoreFailed, OSError) as error:
            box.log("still_latched", reason=reason, now=str(error))
            if stopping.wait(HEAL_EVERY_S):
                return False
        else:
            box.log("healed", was=reason)
    return True


def _prove(box: Inbox) -> None:
    if not box.journal.checkpoint(truncate=True):
        raise OutOfResources("the journal is being read: its WAL cannot be truncated")
    discard_unacknowledged(box)
    box.spool.prove()
