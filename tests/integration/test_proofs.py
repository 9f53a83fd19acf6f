"""What the journal keeps of proof: what must be proven, what was asked, and what follows from each answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.journal import outbox, proof_outcomes, proof_reports, proofs
from appliance.journal.outbox import Settlement
from appliance.journal.overview import overview
from appliance.journal.proof_outcomes import ANSWERS_FOR_IT, Outcome, Verdict
from appliance.journal.proofs import Request
from appliance.journal.store import Journal
from appliance.model import CommitmentAnswer
from appliance.states import DeliveryState, Event, ProofState
from tests.journals import SERIES, STUDY, ClosedLater, Hands, arrival, count, events, open_journal, receive

GONE = Verdict(failure="0x0112 no such object instance")
OUR_FAULT = Verdict(failure="0x0131 duplicate transaction UID", says_nothing_of_it=True)
ASKED_STATES = (ProofState.NOTED, ProofState.ASKED)


@dataclass
class Book:
    journal: Journal
    hands: Hands

    def deliver(self, *numbers: int) -> None:
        """Receive those that are not there yet; a lane sends all that is queued."""
        receive(self.journal, *map(arrival, numbers))
        self.send()

    def send(self) -> None:
        self.hands.ms += 1
        owed = outbox.next_queued(self.journal, "pacs", 1000)
        outbox.settle(
            self.journal,
            [Settlement(delivery=one, event=Event.DELIVER, started_tick=0, attempts=1) for one in owed],
        )
        self.hands.ms += 1

    def ask(self, transaction: str) -> Request:
        self.hands.ms += 1
        return proofs.begin(self.journal, "pacs", transaction, proofs.due(self.journal, "pacs", 500))

    def states(self) -> list[str]:
        return [row["state"] for row in self.journal.query("SELECT state FROM delivery ORDER BY id")]

    def due(self) -> int:
        return len(proofs.due_ids(self.journal, "pacs", 500))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    hands = Hands(1000)
    book = Book(open_journal(tmp_path / "journal", "forward", hands), hands)
    proofs.need(book.journal, ["pacs"], ["archive"])
    yield book
    book.journal.close()


@pytest.mark.promise("P4")
def test_what_is_delivered_waits_until_the_destination_answers_for_it(book: Book) -> None:
    book.deliver(1, 2)
    asked = book.ask("1.1")
    assert book.due() == 0
    assert [one.count for one in overview(book.journal).unproven] == [2]
    done = proof_outcomes.conclude(book.journal, asked, {0: ANSWERS_FOR_IT, 1: ANSWERS_FOR_IT})
    assert done == Outcome(committed=2)
    assert book.states() == ["committed", "committed"]
    assert overview(book.journal).unproven == ()
    assert count(book.journal, "proof") == 0
    known = proofs.request(book.journal, asked.id)
    assert known is not None
    assert known.state is ProofState.ANSWERED
    told = events(book.journal, sop_instance_uid=f"{SERIES}.1")
    assert told == ["received", "delivered", "committed"]
    assert events(book.journal, study_instance_uid=STUDY, sop_instance_uid="") == ["proof_requested"]


def test_a_destination_whose_success_is_enough_is_not_asked(tmp_path: Path, closed_later: ClosedLater) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    proofs.need(journal, [], ["pacs"])
    book = Book(journal, Hands())
    book.deliver(1)
    assert (book.due(), count(journal, "proof")) == (0, 0)


@pytest.mark.promise("P4")
def test_a_partial_failure_queues_just_that_and_the_third_time_it_is_held(book: Book) -> None:
    book.deliver(1, 2)
    done = proof_outcomes.conclude(book.journal, book.ask("1.1"), {0: ANSWERS_FOR_IT, 1: GONE})
    assert done == Outcome(committed=1, queued=1)
    assert book.states() == ["committed", "queued"]
    for transaction, expected in (("1.2", Outcome(queued=1)), ("1.3", Outcome(held=1))):
        book.send()
        assert proof_outcomes.conclude(book.journal, book.ask(transaction), {0: GONE}) == expected
    assert book.states() == ["committed", "held"]
    (held,) = outbox.list_deliveries(book.journal, DeliveryState.HELD, 10)
    assert held.reason == "not proven after 3 times: 0x0112 no such object instance"
    assert outbox.requeue(book.journal, {held.id: []}, "somebody") == {held.id}
    book.send()  # a person had it mended: it has three tries again
    assert proof_outcomes.conclude(book.journal, book.ask("1.4"), {0: GONE}) == Outcome(queued=1)


def test_a_report_that_comes_or_is_read_twice_changes_nothing_the_second_time(book: Book) -> None:
    book.deliver(1, 2)
    asked = book.ask("1.1")
    verdicts = {0: ANSWERS_FOR_IT, 1: GONE}
    proof_outcomes.conclude(book.journal, asked, verdicts)
    assert proof_outcomes.conclude(book.journal, asked, verdicts) == Outcome()
    book.send()
    assert proof_outcomes.conclude(book.journal, asked, verdicts) == Outcome()  # sent anew since
    assert book.states() == ["committed", "delivered"]


@pytest.mark.promise("P4")
def test_a_late_answer_counts_for_good_and_for_bad(book: Book) -> None:
    book.deliver(1, 2)
    old = book.ask("1.1")
    proofs.promised(book.journal, old)
    known = proofs.request(book.journal, old.id)
    assert known is not None
    proofs.lapse(book.journal, known, "no answer in time")
    new = book.ask("1.2")
    assert len(new.references) == 2
    assert proof_outcomes.conclude(book.journal, known, {0: ANSWERS_FOR_IT, 1: GONE}) == Outcome(committed=1, queued=1)
    assert proof_outcomes.conclude(book.journal, new, {0: GONE, 1: GONE}) == Outcome()  # already drawn
    assert proofs.requests(book.journal, "pacs", *ASKED_STATES) == []


def test_a_failure_of_the_asking_is_asked_again_but_not_for_ever(book: Book) -> None:
    book.deliver(1)
    for transaction in ("1.1", "1.2"):
        asked = book.ask(transaction)
        assert proof_outcomes.conclude(book.journal, asked, {0: OUR_FAULT}) == Outcome(asked_again=1)
        assert proof_outcomes.conclude(book.journal, asked, {0: OUR_FAULT}) == Outcome()
        assert (book.states(), book.due()) == (["delivered"], 1)
    assert proof_outcomes.conclude(book.journal, book.ask("1.3"), {0: OUR_FAULT}) == Outcome(held=1)


def test_a_transaction_ends_when_all_of_it_was_spoken_of(book: Book) -> None:
    book.deliver(1, 2)
    asked = book.ask("1.1")
    proof_outcomes.conclude(book.journal, asked, {0: ANSWERS_FOR_IT})
    assert [id_ for id_, _ in proofs.requests(book.journal, "pacs", *ASKED_STATES)] == [asked.id]
    proof_outcomes.conclude(book.journal, asked, {1: ANSWERS_FOR_IT})
    assert proofs.requests(book.journal, "pacs", *ASKED_STATES) == []


def test_large_transactions_are_concluded_in_pieces(book: Book) -> None:
    numbers = range(1, 251)
    book.deliver(*numbers)
    asked = book.ask("1.1")
    assert proof_outcomes.conclude(book.journal, asked, dict.fromkeys(range(250), ANSWERS_FOR_IT)).committed == 250
    assert set(book.states()) == {"committed"}


@pytest.mark.promise("P4")
def test_what_was_delivered_before_proof_was_wanted_is_asked_for_while_its_copy_is_held(
    tmp_path: Path, closed_later: ClosedLater
) -> None:
    hands = Hands(1000)
    book = Book(closed_later(open_journal(tmp_path / "journal", "forward", hands)), hands)
    proofs.need(book.journal, [], ["pacs"])
    book.deliver(*range(1, 131))
    with book.journal.write(durable=True) as tx:
        tx.sql("DELETE FROM copy WHERE instance=1")  # let go long ago
    proofs.need(book.journal, ["pacs"], [])
    after, walks = "", 0
    while not proofs.is_walked(book.journal, "pacs"):
        after, walks = proofs.walk(book.journal, "pacs", after), walks + 1
    assert (book.due(), walks) == (129, 2)
    proofs.need(book.journal, ["pacs"], [])
    assert proofs.is_walked(book.journal, "pacs")  # once is enough
    proofs.need(book.journal, [], ["pacs"])
    assert count(book.journal, "proof") == 0


def told(transaction: str, *committed: int, failed: dict[str, int] | None = None) -> CommitmentAnswer:
    uids = frozenset(f"{SERIES}.{number}" for number in committed)
    return CommitmentAnswer(transaction_uid=transaction, committed=uids, failed=failed or {})


def test_a_report_is_kept_as_far_as_it_is_about_what_was_asked(book: Book) -> None:
    book.deliver(1, 2, 3)
    asked = book.ask("1.1")
    answer = told("1.1", 1, 99, failed={f"{SERIES}.2": 0x0112, f"{SERIES}.98": 0x0110})
    for _ in range(3):
        assert proof_reports.note(book.journal, answer, "PACS", ["pacs", "other"]) is proof_reports.Answer.TAKEN
    (noted,) = proof_reports.unread(book.journal, "pacs", 10)
    assert (noted.request, noted.outcomes) == (asked.id, {0: 0, 1: 0x0112})
    proof_outcomes.conclude(book.journal, asked, {0: ANSWERS_FOR_IT}, noted.id)
    assert proof_reports.unread(book.journal, "pacs", 10) == []


@pytest.mark.promise("P9")
def test_reports_of_strangers_and_without_number_are_not_kept(book: Book) -> None:
    book.deliver(*range(1, 20))
    book.ask("1.1")
    unknown = proof_reports.Answer.UNKNOWN
    assert proof_reports.note(book.journal, told("1.1", 1), "OTHER", ["other"]) is unknown
    assert proof_reports.note(book.journal, told("1.9", 1), "PACS", ["pacs"]) is unknown
    answers = [proof_reports.note(book.journal, told("1.1", number), "PACS", ["pacs"]) for number in range(1, 18)]
    assert answers == [proof_reports.Answer.TAKEN] * 16 + [proof_reports.Answer.TOO_MANY]


def test_old_transactions_are_forgotten_but_none_that_is_waited_for(book: Book) -> None:
    book.deliver(1)
    proof_outcomes.conclude(book.journal, book.ask("1.1"), {0: ANSWERS_FOR_IT})
    book.deliver(2)
    book.ask("1.2")
    assert proofs.prune(book.journal, "pacs") == 0
    book.hands.ms += proofs.KEEP_MS + 1
    assert proofs.prune(book.journal, "pacs") == 1
    assert count(book.journal, "proof_request") == 1
