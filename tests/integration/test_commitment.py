"""Storage commitment as a modality sees it: what is answered, what is reported, and that it is reported in the end."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

from appliance.destinations.reports import ReportNode
from appliance.dimse.association import AssociateAccept
from appliance.dimse.command import Command, CommandField, encode
from appliance.dimse.data_set import DataSet, Tag, references, write
from appliance.dimse.pdu import encode_p_data
from appliance.dimse.services import Services
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
    STORAGE_COMMITMENT_PUSH,
)
from appliance.dimse.wire import Target
from appliance.errors import DestinationRefused, ObjectRefused, OutOfResources, TransientDeliveryError
from appliance.journal import commitments, outbox
from appliance.journal.custody import Terms
from appliance.journal.outbox import Settlement
from appliance.journal.overview import overview
from appliance.journal.store import Journal
from appliance.model import Commitment, CommitmentReport
from appliance.stages.confirm import Confirmer, Desk
from appliance.stages.receive.operations import operations
from appliance.states import DeliveryState, Event
from tests.integration.test_receive import Reception
from tests.journals import CT_IMAGE, ClosedLater, Hands, arrival, count, events, open_journal, receive
from tests.modality import Modality, image
from tests.scanner import CT01, Client, limits, listening
from tests.waiting import eventually

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ASKING = replace(CT01, services=frozenset({STORAGE_COMMITMENT_PUSH}))
STRANGER = replace(CT01, ae_title="CT02")


class Box(Reception):
    """Receive, and what answers: in threads of this process, of which `forward` may begin anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.answering: list[Confirmer] = []

    def ring(self, *names: str) -> None:
        self.rung.extend(names)
        for one in self.answering:
            one.wake()

    @contextmanager
    def open(self) -> Iterator[None]:
        self.operations = operations(replace(self.box, ring=self.ring), self.receiver)
        services = Services(storage=self.receiver, operations=self.operations)
        with listening(services, self.receiver, limits(max_pdu=131072), (ASKING, STRANGER)) as there:
            self.port = there.port
            yield

    def hold(self, *numbers: int, client: Client | None = None) -> None:
        with client or self.client() as scanner:
            for number in numbers:
                assert scanner.store(number).status == 0
            scanner.release()

    @contextmanager
    def forward(self, modality: Modality, meaning: Commitment = Commitment.CUSTODY) -> Iterator[Confirmer]:
        journal = Journal(self.folder / "journal.sqlite", "forward")
        target = Target(host="127.0.0.1", port=modality.port, calling_ae="", called_ae="CT01", timeout_s=5.0)
        terms = Terms(meaning=meaning, holds=self.spool.has, committing=frozenset({"archive"}))
        desk = Desk(journal=journal, log=self.box.log, changed=lambda: None, backoff=lambda _: 0.02)
        confirmer = Confirmer("CT01", ReportNode(target), terms, desk)
        thread = threading.Thread(target=confirmer.run, daemon=True)
        thread.start()
        self.answering = [confirmer]
        try:
            yield confirmer
        finally:
            self.answering = []
            confirmer.stop()
            thread.join(5.0)
            assert not thread.is_alive()
            journal.close()

    def deliver(self, number: int, destination: str, event: Event = Event.DELIVER) -> None:
        """What a lane does."""
        (delivery,) = [
            one
            for one in outbox.next_queued(self.journal, destination, 100)
            if one.sop_instance_uid == image(number)[1]
        ]
        outbox.settle(self.journal, [Settlement(delivery=delivery, event=event, started_tick=0, attempts=1)])

    def archive_commits(self) -> None:
        with self.journal.write(durable=True) as tx:
            tx.sql("UPDATE delivery SET state='committed' WHERE destination='archive' AND state='delivered'")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    with box.open():
        yield box
    box.journal.close()


@pytest.fixture
def modality() -> Iterator[Modality]:
    modality = Modality()
    with modality.listening():
        yield modality


def settled(box: Box) -> Callable[[], bool]:
    return lambda: not commitments.waiting(box.journal)


@pytest.mark.promise("P1")
def test_custody_answers_for_what_is_held_on_an_association_of_its_own(box: Box, modality: Modality) -> None:
    box.hold(1, 2)
    transaction = generate_uid()
    with box.forward(modality):
        assert modality.ask(box.port, [image(1), image(2)], transaction) == 0
        told = modality.report()
        assert (told.event_type, told.transaction_uid, told.failed) == (1, transaction, {})
        assert told.committed == [image(1), image(2)]
        assert told.calling_ae == "SCANSIDE"
        eventually(settled(box))
    assert len(modality.told) == 1
    assert [event for event in events(box.journal, study_instance_uid="1.2.3") if "commitment" in event] == [
        "commitment_requested",
        "commitment_judged",
        "commitment_reported",
    ]
    assert "forward" in box.rung


def test_what_we_cannot_answer_for_is_named_with_its_reason(box: Box, modality: Modality) -> None:
    box.hold(1, 2)
    box.spool.remove(box.spool.files()[1])  # somebody's hand, or a disk
    with box.forward(modality):
        assert modality.ask(box.port, [image(1), image(2), image(3), (MR_IMAGE, image(1)[1])]) == 0
        told = modality.report()
    assert (told.event_type, told.committed) == (2, [image(1)])
    assert told.failed == {image(2)[1]: 0x0112, image(3)[1]: 0x0112, image(1)[1]: 0x0119}


def test_custody_of_what_was_delivered_and_let_go_holds(box: Box, modality: Modality) -> None:
    box.hold(1)
    box.deliver(1, "pacs")
    box.spool.remove(box.spool.files()[0])
    with box.forward(modality):
        assert modality.ask(box.port, [image(1)]) == 0
        assert modality.report().event_type == 1


@pytest.mark.promise("P4")
def test_delivered_waits_for_every_destination_across_restarts(box: Box, modality: Modality) -> None:
    """The archive's proof is its commitment, that of PACS its success."""
    box.hold(1, 2)
    assert modality.ask(box.port, [image(1), image(2)]) == 0
    steps: list[Callable[[], None]] = [
        lambda: box.deliver(1, "pacs"),
        lambda: box.deliver(2, "pacs"),
        lambda: box.deliver(1, "archive"),
        lambda: box.deliver(2, "archive"),
    ]
    for step in steps:
        with box.forward(modality, Commitment.DELIVERED) as confirmer:
            step()
            assert confirmer.step() > 0
            assert modality.told == []
    box.archive_commits()
    with box.forward(modality, Commitment.DELIVERED):
        assert modality.report().committed == [image(1), image(2)]
        eventually(settled(box))


def test_delivered_is_told_as_soon_as_it_is(box: Box, modality: Modality) -> None:
    box.hold(1)
    with box.forward(modality, Commitment.DELIVERED) as confirmer:
        assert modality.ask(box.port, [image(1)]) == 0
        box.deliver(1, "pacs")
        box.deliver(1, "archive")
        confirmer.wake()
        box.archive_commits()
        confirmer.wake()
        assert modality.report().event_type == 1


def test_what_is_held_or_given_up_is_not_answered_for(box: Box, modality: Modality) -> None:
    box.hold(1, 2)
    for number in (1, 2):
        box.deliver(number, "pacs", Event.REFUSE)
        box.deliver(number, "archive")
    held = outbox.list_deliveries(box.journal, DeliveryState.HELD, 10)
    assert outbox.abandon(box.journal, held[1].id, "A. Person", "sent by hand")
    box.archive_commits()
    with box.forward(modality, Commitment.DELIVERED):
        assert modality.ask(box.port, [image(1), image(2), image(3)]) == 0
        assert modality.report().failed == {image(1)[1]: 0x0110, image(2)[1]: 0x0110, image(3)[1]: 0x0112}


def test_a_modality_that_is_off_gets_its_report_when_it_is_back_and_once(box: Box) -> None:
    box.hold(1)
    modality = Modality()
    with modality.listening():
        pass  # a port of its own, and nobody there
    with box.forward(modality):
        assert modality.ask(box.port, [image(1)]) == 0
        eventually(lambda: [line for line in box.lines if line[0] == "commitment_report_failed"])
    box.spool.remove(box.spool.files()[0])  # it was judged: what is reported does not change any more
    with box.forward(modality) as confirmer:
        eventually(lambda: confirmer.state == "backing off")
        with modality.listening():
            assert modality.report().event_type == 1
            eventually(settled(box))
            eventually(lambda: confirmer.state == "idle")
    with modality.listening(), box.forward(modality) as confirmer:
        assert confirmer.step() > 0
    assert len(modality.told) == 1


def test_a_report_that_is_lost_or_refused_comes_again(box: Box, modality: Modality) -> None:
    box.hold(1)
    modality.answers = [ConnectionError(), 0x0110, 0x0110, 0x0112]
    with box.forward(modality):
        assert modality.ask(box.port, [image(1)]) == 0
        assert modality.report(5).event_type == 1
        eventually(settled(box))
    assert len({told.association for told in modality.told}) > 1
    assert len({told.transaction_uid for told in modality.told}) == 1
    refused = box.journal.query("SELECT detail FROM history WHERE event='commitment_report_refused' ORDER BY id")
    assert ["0x0110" in refused[0][0], "0x0112" in refused[1][0], len(refused)] == [True, True, 2]


def test_one_report_that_is_refused_holds_up_no_other(box: Box, modality: Modality) -> None:
    box.hold(1, 2)
    modality.answers = [0x0110]
    with box.forward(modality) as confirmer:
        confirmer._desk = replace(confirmer._desk, backoff=lambda _: 60.0)
        assert modality.ask(box.port, [image(1)]) == 0
        eventually(lambda: confirmer.state == "backing off")
        assert modality.ask(box.port, [image(2)]) == 0
        confirmer.wake()
        assert modality.report(2).committed == [image(2)]
        eventually(lambda: len(commitments.open_ids(box.journal, "CT01")) == 1)


def test_the_same_request_again_is_not_taken_twice(box: Box, modality: Modality) -> None:
    box.hold(1, 2)
    transaction = generate_uid()
    assert modality.ask(box.port, [image(1)], transaction) == 0
    assert modality.ask(box.port, [image(1)], transaction) == 0
    assert modality.ask(box.port, [image(2)], transaction) == 0x0110
    with box.forward(modality):
        modality.report()
        eventually(settled(box))
        assert modality.ask(box.port, [image(1)], transaction) == 0
    assert count(box.journal, "commitment_request") == 1
    assert len(modality.told) == 1


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"instance": "1.2.3"}, 0x0112),
        ({"sop_class": CT_IMAGE}, 0x0118),
        ({"action": 2}, 0x0123),
        ({"TransactionUID": None}, 0x0120),
        ({"TransactionUID": ""}, 0x0106),
        ({"ReferencedSOPSequence": None}, 0x0120),
        ({"ReferencedSOPSequence": []}, 0x0120),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(box: Box, changes: dict[str, Any], status: int) -> None:
    assert Modality().ask(box.port, [image(1)], **changes) == status
    assert count(box.journal, "commitment_request") == 0


def action(data: bytes, **changes: Any) -> bytes:
    """An N-ACTION request for the wire, on context 1."""
    command = Command(
        field=CommandField.N_ACTION,
        message_id=1,
        sop_class_uid=STORAGE_COMMITMENT_PUSH,
        sop_instance_uid=STORAGE_COMMITMENT_INSTANCE,
        action_type_id=1,
        has_data_set=True,
    )
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    return encode(replace(command, **changes), 1) + b"".join(
        encode_p_data(1, piece, is_command=False, is_last=n == len(pieces)) for n, piece in enumerate(pieces, 1)
    )


@pytest.mark.promise("P9")
def test_what_is_no_request_costs_one_answer_and_not_the_association(box: Box) -> None:
    sequences: list[list[DataSet]] = [
        references([image(1)]),
        references([("1.2", f"1.{n}") for n in range(20_001)]),
        [{}],
    ]
    good, many, half = (
        write({Tag.TRANSACTION_UID: b"1.2", Tag.REFERENCED_SOP_SEQUENCE: items}, EXPLICIT_VR_LITTLE_ENDIAN)
        for items in sequences
    )
    with Client(box.port) as client:
        accept = client.associate(sop_classes=[STORAGE_COMMITMENT_PUSH])
        assert isinstance(accept, AssociateAccept)
        assert [context.result for context in accept.contexts] == [0, 0]
        for message, status in [
            (action(b"no data set at all"), 0x0110),
            (action(bytes(5 << 20)), 0x0213),
            (action(many), 0x0213),
            (action(half), 0x0106),
            (action(b"", has_data_set=False), 0x0120),
            (action(good, field=0x0001), 0x0211),  # C-STORE
            (action(good, field=0x0120), 0x0211),  # N-SET
            (action(good), 0x0000),
        ]:
            client.send(message)
            assert client.response().status == status
        client.release()
    assert count(box.journal, "commitment_request") == 1


@pytest.mark.promise("P9")
def test_only_who_may_ask_is_offered_it(box: Box) -> None:
    with Client(box.port) as client:
        accept = client.associate(calling_ae="CT02", sop_classes=[STORAGE_COMMITMENT_PUSH])
        assert isinstance(accept, AssociateAccept)
        assert [context.result for context in accept.contexts] == [3, 0]


def test_what_all_ask_at_a_time_is_bounded(box: Box) -> None:
    half = action(bytes(100_000))[:60_000]
    with Client(box.port) as slow, Client(box.port) as other:
        allowance = box.operations[STORAGE_COMMITMENT_PUSH].allowance
        for client in (slow, other):
            assert isinstance(client.associate(sop_classes=[STORAGE_COMMITMENT_PUSH]), AssociateAccept)
        left = allowance._left
        slow.send(half)
        eventually(lambda: allowance._left < left)
        allowance._left = 1000
        other.send(action(bytes(100_000)))
        assert other.response().status == 0x0213
        assert allowance._left == 1000
    eventually(lambda: allowance._left > 1000)


# What answers, alone: with a clock moved by hand, and a peer of ours


class Peer:
    """A ports.ReportTaker that does what it is told."""

    def __init__(self, *answers: int | Exception, on_report: Callable[[], object] = lambda: None) -> None:
        self.answers, self.on_report = list(answers), on_report
        self.got: list[CommitmentReport] = []

    def report(self, report: CommitmentReport) -> int:
        self.got.append(report)
        self.on_report()
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, Exception):
            raise answer
        return answer


def asked(journal: Journal, number: int = 1, calling_ae: str = "CT01") -> commitments.Answer:
    return commitments.ask(
        journal,
        commitments.Asked(
            calling_ae=calling_ae, called_ae="EDGE", transaction_uid=f"1.2.{number}", references=(image(number),)
        ),
    )


def confirmer(journal: Journal, peer: Peer) -> Confirmer:
    terms = Terms(meaning=Commitment.CUSTODY, holds=lambda _: True, committing=frozenset())
    desk = Desk(journal=journal, log=lambda *_, **__: None, changed=lambda: None, backoff=lambda _: 0.0)
    return Confirmer("CT01", peer, terms, desk)


def test_a_report_that_was_taken_while_the_journal_is_full_is_not_sent_again(
    tmp_path: Path, closed_later: ClosedLater
) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    journal._writer.execute("PRAGMA busy_timeout=1")
    receive(journal, arrival(1))
    asked(journal)
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        # Nothing can be written from when the report arrives, which is a shortage, too.
        peer = Peer(on_report=lambda: other.execute("BEGIN IMMEDIATE"))
        one = confirmer(journal, peer)
        for _ in range(2):
            with pytest.raises(OutOfResources):
                one.step()
        other.execute("ROLLBACK")
    assert [one.step(), one.step() > 0] == [0.0, True]
    assert len(peer.got) == 1
    assert events(journal)[-1] == "commitment_reported"


def test_who_may_ask_may_not_ask_for_ever(tmp_path: Path, closed_later: ClosedLater) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    answers = {asked(journal, number) for number in range(commitments.MAX_OPEN)}
    assert answers == {commitments.Answer.TAKEN}
    assert asked(journal, 5000) is commitments.Answer.TOO_MANY
    assert asked(journal, 5000, "CT02") is commitments.Answer.TAKEN
    told = overview(journal).commitments
    assert [(one.calling_ae, one.count) for one in told] == [("CT01", commitments.MAX_OPEN), ("CT02", 1)]


def test_what_was_reported_is_forgotten_days_later_and_nothing_else(tmp_path: Path, closed_later: ClosedLater) -> None:
    hands = Hands()
    journal = closed_later(open_journal(tmp_path / "journal", hands=hands))
    receive(journal, arrival(1))
    asked(journal)
    asked(journal, 2, "CT02")
    one = confirmer(journal, Peer())
    assert [one.step(), one.step() > 0] == [0.0, True]
    hands.ms += commitments.KEEP_REPORTED_MS
    assert commitments.prune(journal) == 0
    hands.ms += 1
    assert commitments.prune(journal) == 1
    assert (count(journal, "commitment_request"), count(journal, "commitment_report")) == (1, 0)


def test_what_fails_is_tried_again_and_an_unreachable_peer_holds_all_its_reports(
    tmp_path: Path, closed_later: ClosedLater
) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    receive(journal, arrival(1), arrival(2))
    asked(journal)
    asked(journal, 2)
    peer = Peer(TransientDeliveryError("off"), ObjectRefused("no context"), DestinationRefused("who?"), 0x0110)
    one = confirmer(journal, peer)
    for _ in range(6):
        assert one.step() == 0.0
    assert one.step() > 0
    assert [report.transaction_uid[-1] for report in peer.got] == ["1", "1", "1", "1", "2", "1"]
    assert {report.from_ae for report in peer.got} == {"EDGE"}
    assert len({report for report in peer.got if report.transaction_uid == "1.2.1"}) == 1
