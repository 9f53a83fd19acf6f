"""The outbox: what goes next, how it is settled, and who may change what is held."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.journal import inbox, outbox
from appliance.journal.outbox import COPY_MISSING, DESTINATION_GONE, Settlement
from appliance.journal.store import Journal
from appliance.model import Delivery, Owed, Urgency
from appliance.states import DeliveryState, Event
from tests.journals import SERIES, STUDY, TO_PACS, arrival, events, open_journal, receive


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = open_journal(tmp_path / "j", "forward")
    yield journal
    journal.close()


def owe(journal: Journal, *urgencies: Urgency, destination: str = "pacs", held: str = "") -> None:
    """One new instance with one delivery for each of these."""
    known = journal.one("SELECT coalesce(max(id), 0) FROM instance")
    first = known[0] + 1 if known else 1
    for number, urgency in enumerate(urgencies, first):
        receive(journal, arrival(number), owed=(Owed(destination=destination, urgency=urgency, held=held),))


def order(journal: Journal, limit: int = 99, skip: tuple[int, ...] = ()) -> list[int]:
    return [delivery.id for delivery in outbox.next_queued(journal, "pacs", limit, skip=skip)]


def settlement(delivery: Delivery, event: Event = Event.DELIVER, reason: str = "") -> Settlement:
    return Settlement(delivery=delivery, event=event, reason=reason, started_tick=7, attempts=3)


def row(journal: Journal, delivery: int = 1) -> dict[str, Any]:
    found = journal.one("SELECT * FROM delivery WHERE id=?", delivery)
    assert found is not None
    return dict(found)


def last_line(journal: Journal) -> tuple[str, dict[str, Any]]:
    found = journal.one("SELECT * FROM history ORDER BY id DESC LIMIT 1")
    assert found is not None
    subject = (found["study_instance_uid"], found["series_instance_uid"], found["sop_instance_uid"])
    assert subject == (STUDY, SERIES, f"{SERIES}.1")
    return found["event"], json.loads(found["detail"])


@pytest.mark.promise("P7")
def test_most_urgent_first_and_among_equals_the_oldest(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE, Urgency.URGENT_IMAGE, Urgency.RESULT, Urgency.URGENT_RESULT, Urgency.URGENT_SR)
    owe(journal, Urgency.URGENT_SR, Urgency.IMAGE, Urgency.RESULT)
    assert order(journal) == [5, 6, 4, 3, 8, 2, 1, 7]
    assert order(journal, limit=2, skip=(5, 4)) == [6, 3]
    assert outbox.next_queued(journal, "archive", 9) == []


@pytest.mark.promise("P7")
def test_the_longest_waiting_is_found_whatever_its_urgency(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE, Urgency.URGENT_SR, Urgency.IMAGE, Urgency.RESULT)

    def oldest(*skip: int) -> int:
        found = outbox.oldest_queued(journal, "pacs", skip=skip)
        return found.id if found else 0

    assert [oldest(), oldest(1), oldest(1, 2), oldest(1, 2, 3), oldest(1, 2, 3, 4)] == [1, 2, 3, 4, 0]
    assert outbox.oldest_queued(journal, "archive") is None


def test_a_delivery_knows_what_is_needed_to_send_it(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE)
    (delivery,) = outbox.next_queued(journal, "pacs", 1)
    one = arrival(1)
    assert (delivery.sop_class_uid, delivery.sop_instance_uid) == (one.sop_class_uid, one.sop_instance_uid)
    assert (delivery.transfer_syntax_uid, delivery.file, delivery.size) == (
        one.transfer_syntax_uid,
        one.file,
        one.size,
    )
    with journal.write(durable=True) as tx:
        tx.sql("DELETE FROM copy")
    (delivery,) = outbox.next_queued(journal, "pacs", 1)
    assert delivery.file == ""


@pytest.mark.promise("P11")
@pytest.mark.parametrize(
    ("event", "reason", "state"),
    [
        (Event.DELIVER, "", "delivered"),
        (Event.DELIVER, "0xB000: coerced", "delivered"),
        (Event.REFUSE, "0xA900", "held"),
    ],
)
def test_settling_writes_one_row_and_one_line(journal: Journal, event: Event, reason: str, state: str) -> None:
    owe(journal, Urgency.IMAGE)
    (delivery,) = outbox.next_queued(journal, "pacs", 1)
    outbox.settle(journal, [settlement(delivery, event, reason)])

    other = Journal(journal.path, "other")  # what another process sees
    settled = row(other)
    assert (settled["state"], settled["reason"], settled["attempts"], settled["started_tick"]) == (state, reason, 3, 7)
    assert settled["settled_tick"] > settled["created_tick"] - 1
    name, detail = last_line(other)
    assert (name, detail["destination"], detail["reason"], detail["attempts"]) == (state, "pacs", reason, 3)
    other.close()


@pytest.mark.promise("P12")
def test_settling_twice_changes_nothing(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE, Urgency.IMAGE)
    first, second = outbox.next_queued(journal, "pacs", 2)
    outbox.settle(journal, [settlement(first)])
    before = row(journal)
    outbox.settle(journal, [settlement(first, Event.REFUSE, "stale"), settlement(second)])
    assert row(journal) == before
    assert row(journal, 2)["state"] == "delivered"
    assert events(journal, sop_instance_uid=first.sop_instance_uid) == ["received", "delivered"]


@pytest.mark.promise("P11")
def test_what_is_owed_to_a_destination_that_is_gone_is_held_and_told(journal: Journal) -> None:
    owe(journal, *[Urgency.IMAGE] * 3, destination="old pacs")
    owe(journal, Urgency.IMAGE)
    owe(journal, Urgency.IMAGE, destination="", held="unrouted")
    (done, *_) = outbox.next_queued(journal, "old pacs", 9)
    outbox.settle(journal, [settlement(done)])

    assert outbox.hold_destinations_gone(journal, ["pacs"]) == 2
    assert [row(journal, number)["state"] for number in range(1, 6)] == [
        "delivered",
        "held",
        "held",
        "queued",
        "held",
    ]
    assert row(journal, 2)["reason"] == DESTINATION_GONE
    assert row(journal, 5)["reason"] == "unrouted"
    assert events(journal, sop_instance_uid=f"{SERIES}.2") == ["received", "held"]
    assert outbox.hold_destinations_gone(journal, ["pacs"]) == 0


def test_many_are_held_in_small_transactions(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "CHUNK", 2)
    owe(journal, *[Urgency.IMAGE] * 5)
    assert outbox.hold_destinations_gone(journal, []) == 5
    assert len(outbox.list_deliveries(journal, DeliveryState.HELD, 99)) == 5


@pytest.fixture
def held(journal: Journal) -> Journal:
    owe(journal, Urgency.IMAGE, Urgency.IMAGE)
    (delivery, _) = outbox.next_queued(journal, "pacs", 2)
    outbox.settle(journal, [settlement(delivery, Event.REFUSE, "0xA900")])
    return journal


@pytest.mark.promise("P11")
def test_what_is_held_can_be_queued_again_by_a_person(held: Journal) -> None:
    assert outbox.requeue(held, {1: ()}, "A. Person") == {1}
    assert (row(held)["state"], row(held)["reason"]) == ("queued", "")
    assert last_line(held) == ("requeued", {"destination": "pacs", "by": "A. Person"})
    assert order(held) == [1, 2]
    assert outbox.requeue(held, {1: (), 2: (), 99: ()}, "A. Person") == set()


@pytest.mark.promise("P4")
def test_only_a_named_person_with_a_reason_abandons(held: Journal) -> None:
    for by, reason in (("", "duplicate"), ("A. Person", ""), ("  ", "duplicate"), ("A. Person", "\t")):
        with pytest.raises(ValueError, match="named person"):
            outbox.abandon(held, 1, by, reason)
    assert row(held)["state"] == "held"

    assert outbox.abandon(held, 1, "A. Person", "duplicate of another study")
    abandoned = row(held)
    assert (abandoned["state"], abandoned["reason"]) == ("abandoned", "A. Person: duplicate of another study")
    assert abandoned["settled_tick"] > 0
    name, detail = last_line(held)
    assert (name, detail["by"], detail["reason"]) == ("abandoned", "A. Person", "duplicate of another study")


@pytest.mark.promise("P4")
def test_only_what_is_held_can_be_abandoned(held: Journal) -> None:
    assert not outbox.abandon(held, 2, "A. Person", "it is still owed")
    assert not outbox.abandon(held, 99, "A. Person", "it does not exist")
    assert outbox.abandon(held, 1, "A. Person", "once")
    assert not outbox.abandon(held, 1, "A. Person", "twice")
    assert not outbox.requeue(held, {1: ()}, "A. Person")


@pytest.mark.promise("P4")
def test_the_unrouted_is_owed_to_whoever_takes_it_now(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE, destination="", held="unrouted")
    assert not outbox.requeue(journal, {1: ()}, "A. Person")  # there is nobody to send it to
    assert row(journal)["state"] == "held"

    takers = [
        Owed(destination="pacs", urgency=Urgency.URGENT_IMAGE),
        Owed(destination="archive", urgency=Urgency.IMAGE),
    ]
    assert outbox.requeue(journal, {1: takers}, "A. Person") == {1}
    assert [tuple(row(journal, n)[key] for key in ("destination", "state", "urgency")) for n in (1, 2)] == [
        ("pacs", "queued", Urgency.URGENT_IMAGE),
        ("archive", "queued", Urgency.IMAGE),
    ]
    assert last_line(journal) == ("rerouted", {"destinations": ["pacs", "archive"], "by": "A. Person"})
    assert not outbox.requeue(journal, {1: takers}, "A. Person")


def missing(journal: Journal) -> list[Delivery]:
    owe(journal, Urgency.IMAGE)
    return outbox.next_queued(journal, "pacs", 1)


@pytest.mark.promise("P4")
def test_what_was_held_for_want_of_its_copy_goes_when_a_copy_comes_again(journal: Journal) -> None:
    (delivery,) = missing(journal)
    outbox.settle(journal, [settlement(delivery, Event.REFUSE, COPY_MISSING)])
    again = arrival(1, file="received/000001/000001000.dcm")
    inbox.record(journal, [again], lambda _: [TO_PACS], lambda file: file == again.file)
    assert [(one.id, one.file) for one in outbox.next_queued(journal, "pacs", 9)] == [(1, again.file)]
    assert events(journal)[-2:] == ["requeued", "repeated"]


@pytest.mark.promise("P4")
def test_a_copy_that_comes_before_the_lane_could_note_that_it_is_missing_keeps_it_queued(journal: Journal) -> None:
    (delivery,) = missing(journal)
    again = arrival(1, file="received/000001/000001000.dcm")
    inbox.record(journal, [again], lambda _: [TO_PACS], lambda file: file == again.file)
    outbox.settle(journal, [settlement(delivery, Event.REFUSE, COPY_MISSING)])
    assert row(journal)["state"] == "queued"


@pytest.mark.promise("P3")
def test_a_repeat_changes_nothing_of_what_the_destination_refused(journal: Journal) -> None:
    (delivery,) = missing(journal)
    outbox.settle(journal, [settlement(delivery, Event.REFUSE, "0xA900 no")])
    receive(journal, arrival(1, file="received/000001/000001000.dcm"))
    assert row(journal)["state"] == "held"


def test_the_unrouted_can_be_abandoned(journal: Journal) -> None:
    owe(journal, Urgency.IMAGE, destination="", held="unrouted")
    assert outbox.abandon(journal, 1, "A. Person", "a test image")


def test_lists_go_on_where_they_stopped(journal: Journal) -> None:
    owe(journal, *[Urgency.IMAGE] * 5)
    first = outbox.list_deliveries(journal, DeliveryState.QUEUED, 3)
    rest = outbox.list_deliveries(journal, DeliveryState.QUEUED, 3, after=first[-1].id)
    assert [delivery.id for delivery in first + rest] == [1, 2, 3, 4, 5]
