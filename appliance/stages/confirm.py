"""Confirm: what peers asked us to answer for is judged, and reported until they have taken the report (PS3.4 J.3.3).

A report goes out on an association of our own to where the config says, never on the one the peer asked on, though the
standard allows that: a modality has long hung up when the last image is delivered. One thread a peer, so that one
that is switched off holds up nobody else's. When to try again is known in memory only: after a start all is due.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from appliance.backoff import backoff_s
from appliance.errors import DeliveryError, OutOfResources
from appliance.journal import commitments, custody
from appliance.journal.commitments import Promise
from appliance.journal.custody import Terms
from appliance.journal.store import Journal
from appliance.model import CommitmentReport, Reference
from appliance.ports import ReportTaker
from appliance.wakeup import SLOW_POLL_S

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 600.0
LOOK_AGAIN_S = 0.05
LOOKING_SHARE = 10  # a look at all that waits may take a tenth of the time: a long outage leaves much, and wakes often
BACKOFF = partial(backoff_s, first_s=FIRST_RETRY_S, last_s=LAST_RETRY_S)

Log = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a confirmer works with."""

    journal: Journal
    log: Log
    changed: Callable[[], None]  #: a confirmer's state is other than before
    backoff: Callable[[int], float] = BACKOFF  #: failures in a row -> seconds to wait


@dataclass(slots=True)
class _Open:
    """What is remembered of a request that is not reported: not its references, of which there may be many."""

    judged: bool = False
    done: int = 0  #: references judged so far
    waits_for: Reference | None = None  #: the first that nothing can be said of yet
    failures: dict[int, int] = field(default_factory=dict)
    refusals: int = 0  #: of the report, by the peer
    last_status: int = 0
    not_before: float = 0.0
    taken: bool = False  #: by the peer, which is not noted yet


class Confirmer:
    """Everything that one peer asked for, judged and reported by one thread."""

    def __init__(self, calling_ae: str, taker: ReportTaker, terms: Terms, desk: Desk) -> None:
        self.calling_ae = calling_ae
        self.state = "idle"  #: idle | backing off
        self.reason = ""  #: of the state, in words
        self._taker, self._terms, self._desk = taker, terms, desk
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._open: dict[int, _Open] = {}
        self._failures = 0
        self._not_before = 0.0  # for all of its reports: the peer cannot be reached

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed: then the process must end."""
        if commitments.open_ids(self._desk.journal, self.calling_ae):
            self._not_before = time.monotonic() + self._desk.backoff(1)  # after a power cut many start at once
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                wait_s = self.step()
            except OutOfResources as error:
                self._desk.log("journal_full", reason=str(error))
                wait_s = self._desk.backoff(1)
            pause_s = max(LOOK_AGAIN_S, LOOKING_SHARE * (time.monotonic() - began)) if wait_s else 0.0
            self._stopping.wait(min(pause_s, SLOW_POLL_S))  # whatever wakes us meanwhile counts once
            self._wake.wait(max(0.0, wait_s - pause_s))
            self._wake.clear()

    def step(self) -> float:
        """Judge what can be judged, send at most one report; returns for how long there is nothing to do, 0: go on."""
        ids = commitments.open_ids(self._desk.journal, self.calling_ae)
        self._open = {id_: self._open.get(id_) or _Open() for id_ in ids}
        for id_, request in self._open.items():
            if not request.judged and not self._stopping.is_set():
                self._judge(id_, request)
        now = time.monotonic()
        ready = [(max(one.not_before, self._not_before), id_) for id_, one in self._open.items() if one.judged]
        due, id_ = min(ready, default=(now + SLOW_POLL_S, 0))
        if due <= now:
            self._report(id_, self._open[id_])
            return 0.0
        return min(due - now, SLOW_POLL_S)

    def _judge(self, id_: int, request: _Open) -> None:
        journal, terms = self._desk.journal, self._terms
        if request.waits_for and not custody.verdict(journal, request.waits_for, terms).settled:
            return
        promised = commitments.promise(journal, id_)
        if promised is None:
            return
        if promised.failures is None:
            for reference in promised.asked.references[request.done :]:
                verdict = custody.verdict(journal, reference, terms)
                request.waits_for = None if verdict.settled else reference
                if not verdict.settled or self._stopping.is_set():
                    return
                if verdict.failure is not None:
                    request.failures[request.done] = int(verdict.failure)
                request.done += 1
            commitments.judge(journal, promised, request.failures)
        request.judged, request.failures = True, {}

    def _report(self, id_: int, request: _Open) -> None:
        promised = commitments.promise(self._desk.journal, id_)
        if promised is None or promised.failures is None:
            return
        if not request.taken:
            try:
                status = self._taker.report(_report_of(promised))
            except DeliveryError as error:
                self._unreachable(str(error))
                return
            self._failures, self._not_before = 0, 0.0
            if status:
                self._refused(promised, request, status)
                return
            request.taken = True
        commitments.report_taken(self._desk.journal, promised)
        self._desk.log("commitment_reported", calling_ae=self.calling_ae, failed=len(promised.failures))
        self._turn("idle", "")

    def _unreachable(self, reason: str) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + self._desk.backoff(self._failures)
        self._desk.log("commitment_report_failed", calling_ae=self.calling_ae, reason=reason)
        self._turn("backing off", reason)

    def _refused(self, promised: Promise, request: _Open, status: int) -> None:
        """It answered, but not with success: others' reports go on, this one comes again later."""
        request.refusals += 1
        request.not_before = time.monotonic() + self._desk.backoff(request.refusals)
        self._desk.log("commitment_report_refused", calling_ae=self.calling_ae, status=f"0x{status:04X}")
        if status != request.last_status:
            commitments.report_refused(self._desk.journal, promised, status)
        request.last_status = status
        self._turn("backing off", f"it answered a report with 0x{status:04X}")

    def _turn(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._desk.changed()


def _report_of(promised: Promise) -> CommitmentReport:
    failures = promised.failures or {}
    numbered = list(enumerate(promised.asked.references))
    return CommitmentReport(
        transaction_uid=promised.asked.transaction_uid,
        from_ae=promised.asked.called_ae,
        committed=tuple(reference for number, reference in numbered if number not in failures),
        failed=tuple((reference, failures[number]) for number, reference in numbered if number in failures),
    )
