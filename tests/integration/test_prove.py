"""Provers against a PACS over real sockets, and the reports that receive takes for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.destinations.proofs import CommitmentNode, QueryNode
from appliance.dimse.admission import Channel, Policy, Reporter
from appliance.dimse.association import AssociateRequest, ProposedContext, Rejection, Role
from appliance.dimse.command import Command, CommandField, encode
from appliance.dimse.data_set import DataSet, Tag, references, write
from appliance.dimse.pdu import encode_p_data
from appliance.dimse.services import Services
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
    STORAGE_COMMITMENT_PUSH,
    VERIFICATION,
)
from appliance.dimse.wire import Target
from appliance.journal import outbox, proofs
from appliance.journal.outbox import Settlement
from appliance.stages.prove import Asking, Desk, Prover, Querying
from appliance.stages.receive.operations import operations
from appliance.stages.receive.proofs import Node, Reporting
from appliance.states import DeliveryState, Event, ProofState
from tests.integration.test_receive import Reception
from tests.journals import CT_IMAGE, SERIES, STUDY, Hands, arrival, count, events, open_journal, receive
from tests.proving import Archive, Asked
from tests.scanner import CT01, Client, limits, listening
from tests.waiting import eventually

HERE = ip_network("127.0.0.1/32")
HOUR_MS = 3_600_000
ASKING = replace(CT01, services=frozenset({STORAGE_COMMITMENT_PUSH}))
PACS = Reporter(ae_title="PACS", network=HERE, knows_us_as="SCANSIDE", services=frozenset({STORAGE_COMMITMENT_PUSH}))


class Box(Reception):
    """Receive, which lets the PACS report, and the forward process's provers; a lane is played by hand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hands = Hands(1000)
        self.forward = open_journal(self.folder / "journal.sqlite", "forward", self.hands)
        self.proving: list[Prover] = []
        self.queued = 0
        proofs.need(self.forward, ["pacs"], [])

    @contextmanager
    def open(self) -> Iterator[None]:
        reporting = Reporting(
            reporters=lambda: [Node(ae_title="PACS", network=HERE, destination="pacs")],
            askers=[Node(ae_title="CT01", network=HERE)],
        )
        box = replace(self.box, ring=lambda *_: self.wake())
        services = Services(storage=self.receiver, operations=operations(box, self.receiver, reporting))
        with listening(services, self.receiver, limits(max_pdu=131072), (ASKING, PACS)) as there:
            self.port = there.port
            yield

    def wake(self) -> None:
        for one in self.proving:
            one.wake()

    def requeued(self) -> None:
        self.queued += 1

    def target(self, port: int) -> Target:
        return Target(host="127.0.0.1", port=port, calling_ae="SCANSIDE", called_ae="PACS", timeout_s=5.0)

    @contextmanager
    def running(self, port: int, timeout_ms: int = HOUR_MS, *, find: bool = False, **changes: Any) -> Iterator[Prover]:
        desk = Desk(
            journal=self.forward,
            log=self.box.log,
            changed=lambda: None,
            settled=lambda: None,
            queued=self.requeued,
            backoff=lambda _: 0.05,
            quiet_s=0.1,
            listen_s=1.0,
        )
        desk = replace(desk, **changes)
        prover: Prover
        if find:
            prover = Querying("pacs", QueryNode(self.target(port)), timeout_ms, desk)
        else:
            prover = Asking("pacs", CommitmentNode(self.target(port)), timeout_ms, desk)
        thread = threading.Thread(target=prover.run, daemon=True)
        thread.start()
        self.proving = [prover]
        try:
            yield prover
        finally:
            self.proving = []
            prover.stop()
            thread.join(10.0)
            assert not thread.is_alive()

    def deliver(self, *numbers: int) -> None:
        receive(self.forward, *(arrival(number) for number in numbers))
        self.send()

    def send(self) -> None:
        self.hands.ms += 1
        owed = outbox.next_queued(self.forward, "pacs", 1000)
        outbox.settle(
            self.forward,
            [Settlement(delivery=one, event=Event.DELIVER, started_tick=0, attempts=1) for one in owed],
        )
        self.hands.ms += 1
        self.wake()

    def states(self) -> list[str]:
        return [row["state"] for row in self.forward.query("SELECT state FROM delivery ORDER BY id")]

    def becomes(self, *states: str) -> None:
        eventually(lambda: self.states() == list(states), 15.0, f"deliveries are {states}")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    with box.open():
        yield box
    box.journal.close()
    box.forward.close()


def uid(number: int) -> str:
    return f"{SERIES}.{number}"


@pytest.mark.promise("P4")
@pytest.mark.parametrize("same", [False, True], ids=["a new association", "the same association"])
def test_the_pacs_answers_for_what_it_has_and_the_rest_is_sent_again(box: Box, *, same: bool) -> None:
    archive = Archive(has={uid(1)}, reports_to=0 if same else box.port)
    box.deliver(1, 2)
    with archive.listening() as port, box.running(port):
        box.becomes("committed", "queued")
        eventually(lambda: box.queued == 1, what="the lane is woken")
        archive.has.add(uid(2))
        box.send()
        box.becomes("committed", "committed")
        eventually(lambda: len(archive.statuses) == 2)
    assert archive.statuses == [0, 0]
    assert [asked.instances for asked in archive.asked] == [[uid(1), uid(2)], [uid(2)]]
    assert events(box.forward, sop_instance_uid=uid(2)) == [
        "received",
        "delivered",
        "commitment_failed",
        "delivered",
        "committed",
    ]
    assert count(box.forward, "proof_report") == 0


@pytest.mark.promise("P4")
def test_a_pacs_that_says_yes_and_loses_it_holds_the_delivery_the_third_time(box: Box) -> None:
    archive = Archive(reports_to=box.port)
    box.deliver(1)
    with archive.listening() as port, box.running(port):
        for _ in range(2):
            box.becomes("queued")
            box.send()
        box.becomes("held")
    assert len(archive.asked) == 3


@pytest.mark.promise("P12")
def test_asked_before_a_restart_is_answered_after_it(box: Box) -> None:
    """The report comes while forward is down; receive notes it."""
    archive = Archive(has={uid(1)})
    box.deliver(1)
    with archive.listening() as port:
        with box.running(port):
            asked = archive.request()
            eventually(lambda: proofs.requests(box.forward, "pacs", ProofState.ASKED))
        assert archive.report(asked, box.port) == 0
        assert archive.report(asked, box.port) == 0  # it may not have heard us
        assert box.states() == ["delivered"]
        with box.running(port):
            box.becomes("committed")
    assert len(archive.asked) == 1


@pytest.mark.promise("P12")
def test_a_transaction_nobody_knows_whether_it_was_asked_is_asked_anew_and_both_count(box: Box) -> None:
    archive = Archive(has={uid(1)})
    box.deliver(1)
    lost = proofs.begin(box.forward, "pacs", "2.25.1", proofs.due(box.forward, "pacs", 10))  # and then it was killed
    with archive.listening() as port, box.running(port):
        assert archive.request().transaction_uid != lost.transaction_uid
        assert archive.report(Asked(lost.transaction_uid, [uid(1)]), box.port) == 0
        box.becomes("committed")


@pytest.mark.promise("P4")
def test_no_answer_in_time_is_a_new_transaction_and_the_late_answer_counts(box: Box) -> None:
    archive = Archive(has={uid(1)})
    box.deliver(1)
    with archive.listening() as port, box.running(port, HOUR_MS, listen_s=0.1):
        first = archive.request()
        eventually(lambda: proofs.requests(box.forward, "pacs", ProofState.ASKED))
        box.hands.ms += HOUR_MS + 1
        box.wake()
        assert archive.request(2).transaction_uid != first.transaction_uid
        assert archive.report(first, box.port) == 0
        box.becomes("committed")
    assert "proof_lapsed" in events(box.forward, study_instance_uid=STUDY)


def test_a_pacs_that_does_not_take_the_request_is_asked_again_under_another_uid(box: Box) -> None:
    """It fails, it hangs up in the middle, it is off, and it is back."""
    archive = Archive(has={uid(1)}, answers=[0x0213, -1])
    box.deliver(1)
    with archive.listening() as port, box.running(port) as prover:
        archive.request(2)
        archive.reports_to = box.port
        box.becomes("committed")
        eventually(lambda: prover.state == "idle")
    assert len({asked.transaction_uid for asked in archive.asked}) == 3
    box.deliver(2)
    with box.running(port) as prover:
        eventually(lambda: prover.state == "backing off")
        archive.has.add(uid(2))
        with archive.listening():
            box.becomes("committed", "committed")
    assert len(archive.asked) == 4


@pytest.mark.promise("P4")
@pytest.mark.parametrize("find", [False, True], ids=["commitment", "find"])
def test_a_pacs_that_does_no_such_thing_is_said_to_and_frees_nothing(box: Box, *, find: bool) -> None:
    box.deliver(1)
    with refusing() as port, box.running(port, find=find) as prover:
        eventually(lambda: prover.state == "refused")
        assert ("queries" if find else "storage commitment") in prover.reason
    assert box.states() == ["delivered"]
    assert len(proofs.waiting(box.forward)) == 1


@contextmanager
def refusing() -> Iterator[int]:
    archive = Archive(ae_title="PACS", commits=False, finds=False)
    with archive.listening() as port:
        yield port


@pytest.mark.promise("P9")
def test_the_pacs_is_let_in_to_report_and_for_nothing_else(box: Box) -> None:
    box.deliver(1)
    asked = proofs.begin(box.forward, "pacs", "2.25.1", proofs.due(box.forward, "pacs", 10))
    report = Asked(asked.transaction_uid, [uid(1)])
    archive = Archive()
    assert archive.report(report, box.port, calling_ae="OTHER") is None
    assert archive.report(Asked("2.25.9", [uid(1)]), box.port) == 0x0115  # nothing we asked
    assert archive.report(report, box.port, calling_ae="CT01") == 0x0124  # who asks does not report
    assert archive.report(report, box.port) == 0
    for sop_classes in ([CT_IMAGE], [VERIFICATION]):
        with Client(box.port) as client:
            assert isinstance(client.associate("PACS", sop_classes=sop_classes), Rejection)
    with Client(box.port) as client:
        accept = client.associate("PACS", sop_classes=[STORAGE_COMMITMENT_PUSH, CT_IMAGE])
        assert not isinstance(accept, Rejection)
        assert [context.result for context in accept.contexts] == [0, 3, 3]
        client.send(message(CommandField.N_ACTION, {Tag.TRANSACTION_UID: b"1.2"}))
        assert client.response().status == 0x0124


def message(field: CommandField, data_set: DataSet, event_type: int | None = 1) -> bytes:
    request = Command(
        field=field,
        message_id=1,
        sop_class_uid=STORAGE_COMMITMENT_PUSH,
        sop_instance_uid=STORAGE_COMMITMENT_INSTANCE,
        event_type_id=event_type if field is CommandField.N_EVENT_REPORT else None,
        action_type_id=1 if field is CommandField.N_ACTION else None,
        has_data_set=bool(data_set),
    )
    data = write(data_set, EXPLICIT_VR_LITTLE_ENDIAN)
    pieces = [data[at : at + 60_000] for at in range(0, len(data), 60_000)]
    return encode(request, 1) + b"".join(
        encode_p_data(1, piece, is_command=False, is_last=number == len(pieces))
        for number, piece in enumerate(pieces, 1)
    )


@pytest.mark.promise("P9")
def test_hostile_reports_are_refused_one_by_one(box: Box) -> None:
    box.deliver(1)
    proofs.begin(box.forward, "pacs", "2.25.1", proofs.due(box.forward, "pacs", 10))
    good: DataSet = {
        Tag.TRANSACTION_UID: b"2.25.1",
        Tag.REFERENCED_SOP_SEQUENCE: references([(CT_IMAGE, uid(1)), *((CT_IMAGE, f"1.9.{n}") for n in range(3000))]),
    }
    many = references((CT_IMAGE, f"1.9.{n}") for n in range(60_000))
    cases: list[tuple[DataSet, int | None, int]] = [
        ({}, 1, 0x0115),
        ({Tag.TRANSACTION_UID: b"nonsense"}, 1, 0x0115),
        (good, 3, 0x0113),
        (good, None, 0x0113),
        ({**good, Tag.FAILED_SOP_SEQUENCE: [{Tag.FAILURE_REASON: b"\x12\x01"}]}, 2, 0x0115),
        ({**good, Tag.REFERENCED_SOP_SEQUENCE: many}, 1, 0x0110),  # more elements than are read
        (good, 1, 0),
    ]
    with Client(box.port) as client:
        client.associate("PACS", sop_classes=[STORAGE_COMMITMENT_PUSH])
        for data_set, event_type, expected in cases:
            client.send(message(CommandField.N_EVENT_REPORT, data_set, event_type))
            assert client.response().status == expected
        client.release()
    (row,) = box.forward.query("SELECT length(outcomes) AS size FROM proof_report")
    assert row["size"] < 100  # what was not asked is not kept


def test_role_selection_is_answered_as_proposed() -> None:
    policy = Policy(ae_title="S", any_called_ae=False, peers=[], accepts=lambda _: True, reporters=lambda: [PACS])
    role = Role(sop_class_uid=STORAGE_COMMITMENT_PUSH, scu=False, scp=True)
    context = ProposedContext(
        id=1, abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntaxes=(EXPLICIT_VR_LITTLE_ENDIAN,)
    )
    other = replace(role, sop_class_uid=CT_IMAGE)
    request = AssociateRequest(calling_ae="PACS", called_ae="S", contexts=(context,), roles=(role, other))
    assert policy.roles(request, "127.0.0.1") == (role,)
    assert policy.roles(request, "127.0.0.2") == ()
    assert policy.rejection(request, "127.0.0.2") == (1, 1, 3, "calling AE title not recognised")
    assert policy.rejection(request, "127.0.0.1") == (1, 1, 7, "called AE title not recognised")


@pytest.mark.promise("P9")
def test_who_reports_without_a_certificate_does_not_store_without_the_one_it_stores_with() -> None:
    scanner = replace(CT01, ae_title="PACS", certificate="pacs.example", services=frozenset({CT_IMAGE}))
    policy = Policy(
        ae_title="SCANSIDE", any_called_ae=False, peers=[scanner], accepts=lambda _: True, reporters=lambda: [PACS]
    )
    context = ProposedContext(
        id=1, abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntaxes=(EXPLICIT_VR_LITTLE_ENDIAN,)
    )
    request = AssociateRequest(calling_ae="PACS", called_ae="SCANSIDE", contexts=(context,))
    assert policy.rejection(request, "127.0.0.1") is None
    plain = policy.accepts_from(request, "127.0.0.1")
    assert (plain(STORAGE_COMMITMENT_PUSH), plain(CT_IMAGE), plain(VERIFICATION)) == (True, False, False)
    proved = Channel(encrypted=True, mutual=True, names=frozenset({"pacs.example"}))
    secured = policy.accepts_from(request, "127.0.0.1", proved)
    assert (secured(CT_IMAGE), secured(VERIFICATION)) == (True, True)


@pytest.mark.promise("P4")
def test_what_a_query_shows_is_proven_series_by_series(box: Box) -> None:
    archive = Archive()
    box.deliver(1, 2)
    with archive.listening() as port, box.running(port, find=True):
        eventually(lambda: len(archive.queries) >= 2, what="it asks until it is shown")
        assert box.states() == ["delivered", "delivered"]
        archive.has.add(uid(1))
        box.becomes("committed", "delivered")
        archive.has.add(uid(2))
        box.becomes("committed", "committed")
    assert set(archive.queries) == {(STUDY, SERIES)}


@pytest.mark.promise("P4")
def test_what_no_query_shows_for_long_is_sent_again_and_the_third_time_held(box: Box) -> None:
    archive = Archive()
    box.deliver(1)
    with archive.listening() as port, box.running(port, find=True):
        for _ in range(2):
            box.hands.ms += HOUR_MS + 1
            box.becomes("queued")
            box.send()
        box.hands.ms += HOUR_MS + 1
        box.becomes("held")
    (held,) = outbox.list_deliveries(box.forward, DeliveryState.HELD, 10)
    assert held.reason == "not proven after 3 times: no query showed it within 1 h"


def test_a_query_that_fails_says_nothing_of_what_is_there(box: Box) -> None:
    archive = Archive(has={uid(1)}, on_query=lambda: 0xA700)
    box.deliver(1)
    with archive.listening() as port, box.running(port, find=True):
        box.hands.ms += 10 * HOUR_MS
        eventually(lambda: len(archive.queries) >= 3)
        assert box.states() == ["delivered"]
        archive.on_query = lambda: 0
        box.becomes("committed")


def test_a_full_journal_refuses_reports_and_passes(box: Box) -> None:
    box.deliver(1)
    proofs.begin(box.forward, "pacs", "2.25.1", proofs.due(box.forward, "pacs", 10))
    report, archive = Asked("2.25.1", [uid(1)]), Archive(has={uid(1)})
    box.receiver.fatal.set()  # a sync failed: nothing is promised any more
    assert archive.report(report, box.port) == 0x0213
    box.receiver.fatal.clear()
    assert archive.report(report, box.port) == 0
