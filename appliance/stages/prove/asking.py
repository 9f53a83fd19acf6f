"""Proof by storage commitment (PS3.4 Annex J): deliveries are gathered, noted durably, and asked for.

A report comes on the association that asked, or on one that the destination requests of receive, which notes it. A
transaction that is not answered in time, or of which nobody knows whether it was asked, is asked anew under another
Transaction UID: a late answer to the old one counts all the same.
"""

import time
import uuid
from collections.abc import Mapping

from appliance.dimse.commitment import Remedy, meaning
from appliance.dimse.operations import Status
from appliance.errors import DataSetRefused, DeliveryError, TransientDeliveryError
from appliance.journal import proof_outcomes, proof_reports, proofs
from appliance.journal.proof_outcomes import ANSWERS_FOR_IT, Verdict
from appliance.journal.proofs import MAX_REFERENCES, Request
from appliance.model import CommitmentAnswer
from appliance.ports import CommitmentSession, Committer
from appliance.stages.prove.prover import Desk, Prover
from appliance.states import ProofState
from appliance.wakeup import SLOW_POLL_S

MAX_OPEN = 64  # transactions whose answer is awaited
LONGEST_S = 60.0  # that deliveries wait for others to be asked with
READ_AT_ONCE = 8  # reports
LISTEN_SLICE_S = 0.5


class Asking(Prover):
    """A destination with `proof: commitment`."""

    def __init__(self, name: str, committer: Committer, timeout_ms: int, desk: Desk) -> None:
        super().__init__(name, timeout_ms, desk)
        self._committer = committer
        self._unsent: Request | None = None  # noted, and certainly not asked yet
        self._seen: list[int] = []  # what was due at the last look
        self._seen_since = self._changed_at = time.monotonic()

    def _begin(self) -> float:
        self._lapse([ProofState.NOTED], 0, "not known whether it was asked")
        return super()._begin()

    def step(self) -> float:
        """See Prover."""
        if self._read_reports():
            return 0.0
        self._lapse([ProofState.NOTED, ProofState.ASKED], self._timeout_ms, "no answer in time")
        left_s = self._left_s()
        if left_s > 0:
            return left_s
        if self._unsent is None:
            left_s = self._gather()
            if left_s > 0:
                return left_s
        if self._unsent is not None:
            self._ask(self._unsent)
        return 0.0

    def _gather(self) -> float:
        """Note the next transaction; else for how long there is none."""
        ids, now = proofs.due_ids(self._desk.journal, self.name, MAX_REFERENCES), time.monotonic()
        if not ids:
            self._seen = []
            return SLOW_POLL_S
        if not self._seen:
            self._seen_since = now
        if ids != self._seen:
            self._seen, self._changed_at = ids, now
        left_s = min(self._changed_at + self._desk.quiet_s, self._seen_since + LONGEST_S) - now
        if left_s > 0 and len(ids) < MAX_REFERENCES:
            return left_s
        if len(proofs.requests(self._desk.journal, self.name, ProofState.ASKED)) >= MAX_OPEN:
            return SLOW_POLL_S
        asking = proofs.due(self._desk.journal, self.name, MAX_REFERENCES)
        self._unsent = proofs.begin(self._desk.journal, self.name, f"2.25.{uuid.uuid4().int}", asking)
        self._seen = []
        return 0.0

    def _ask(self, request: Request) -> None:
        self._turn("asking", "")
        try:
            session = self._committer.open()
        except DeliveryError as error:
            self._put_off(error)
            return
        self._unsent = None
        try:
            with session:
                self._converse(session, request)
        except DeliveryError as error:
            if self._is_promised(request):
                return  # it was asked: the report comes another way
            proofs.lapse(self._desk.journal, request, str(error))
            self._put_off(error)

    def _converse(self, session: CommitmentSession, request: Request) -> None:
        asked = [(sop_class, instance) for _, sop_class, instance in request.references]
        if status := session.request(request.transaction_uid, asked, self._hear):
            raise TransientDeliveryError(f"it answered a request for storage commitment with 0x{status:04X}", status)
        proofs.promised(self._desk.journal, request)
        self._desk.log("proof_asked", destination=self.name, instances=len(asked))
        self._went_well()
        until = time.monotonic() + self._desk.listen_s
        while (left_s := until - time.monotonic()) > 0 and not self._stopping.is_set() and self._is_open(request):
            if not session.listen(min(left_s, LISTEN_SLICE_S), self._hear):
                return

    def _is_promised(self, request: Request) -> bool:
        known = proofs.request(self._desk.journal, request.id)
        return known is not None and known.state is not ProofState.NOTED

    def _is_open(self, request: Request) -> bool:
        """Whether it is not answered yet, be it another way."""
        self._read_reports()
        known = proofs.request(self._desk.journal, request.id)
        return known is not None and known.state is not ProofState.ANSWERED

    def _hear(self, answer: CommitmentAnswer) -> None:
        """A report on an association of ours. Raises DataSetRefused, OutOfResources, StoreFailed."""
        request = proofs.request_of(self._desk.journal, self.name, answer.transaction_uid)
        if request is None:
            raise DataSetRefused(Status.INVALID_ARGUMENT_VALUE, "nothing was asked in this transaction")
        self._conclude(request, proof_reports.outcomes_of(request.references, answer))

    def _read_reports(self) -> int:
        """What receive has noted; returns how many reports."""
        unread = proof_reports.unread(self._desk.journal, self.name, READ_AT_ONCE)
        for noted in unread:
            if request := proofs.request(self._desk.journal, noted.request):
                self._conclude(request, noted.outcomes, noted.id)
        return len(unread)

    def _conclude(self, request: Request, outcomes: Mapping[int, int], report: int = 0) -> None:
        verdicts = {position: verdict_of(reason) for position, reason in outcomes.items()}
        self._tell(proof_outcomes.conclude(self._desk.journal, request, verdicts, report))

    def _lapse(self, states: list[ProofState], age_ms: int, reason: str) -> None:
        horizon = self._desk.journal.clock.tick() - age_ms
        for id_, tick in proofs.requests(self._desk.journal, self.name, *states):
            is_unsent = self._unsent is not None and self._unsent.id == id_
            if tick <= horizon and not is_unsent and (request := proofs.request(self._desk.journal, id_)):
                proofs.lapse(self._desk.journal, request, reason)
                self._desk.log("proof_lapsed", destination=self.name, reason=reason)


def verdict_of(reason: int) -> Verdict:
    """What a Failure Reason (0008,1197) says of a delivery; 0: it is committed."""
    if not reason:
        return ANSWERS_FOR_IT
    found = meaning(reason)
    return Verdict(failure=f"0x{reason:04X} {found.words}", says_nothing_of_it=found.remedy is Remedy.ASK_AGAIN)
