"""The inbox: what one arrival leaves in the journal, what a repeat does, and when a series counts as complete."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.journal import inbox
from appliance.journal.store import Journal
from appliance.model import Arrival, Evidence, Owed, Series, Urgency
from tests.journals import (
    CT_IMAGE,
    EXPLICIT,
    SERIES,
    STUDY,
    TO_PACS,
    Hands,
    arrival,
    count,
    events,
    open_journal,
    receive,
)

SILENCE_MS = 20_000
UNROUTED = Owed(destination="", urgency=Urgency.IMAGE, held="unrouted: no destination takes it")


@dataclass(frozen=True, slots=True)
class Box:
    journal: Journal
    hands: Hands

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.journal.query(sql, *parameters)]

    def deliveries(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT destination, state FROM delivery ORDER BY id")

    def settle(self, state: str = "delivered") -> None:
        with self.journal.write(durable=True) as tx:
            tx.sql("UPDATE delivery SET state=?, settled_tick=? WHERE settled_tick=0", (state, tx.tick))

    def release(self) -> None:
        with self.journal.write(durable=True) as tx:
            tx.sql("DELETE FROM copy")

    def series(self) -> Series:
        row = self.journal.one("SELECT * FROM series")
        assert row is not None
        return Series(**dict(row) | {"released": bool(row["released"]), "interrupted": bool(row["interrupted"])})

    def evidence(self, silence_ms: int = SILENCE_MS) -> Evidence | None:
        return inbox.evidence_for(self.series(), self.journal.clock.tick(), silence_ms)

    def close(self) -> int:
        evidence = self.evidence()
        return inbox.close(self.journal, [(self.series(), evidence)]) if evidence else 0

    def state(self) -> tuple[str, int, int]:
        series = self.series()
        return series.state, series.revision, series.arrivals


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    hands = Hands()
    journal = open_journal(tmp_path / "j", "receive", hands)
    yield Box(journal, hands)
    journal.close()


@pytest.mark.promise("P2")
def test_one_transaction_records_the_instance_its_copy_its_deliveries_and_its_line(box: Box) -> None:
    one = arrival(1)
    owed = (TO_PACS, Owed(destination="archive", urgency=Urgency.URGENT_IMAGE))
    (recorded,) = receive(box.journal, one, owed=owed)

    assert not recorded.redundant
    (instance,) = box.journal.query("SELECT * FROM instance")
    facts = ("received", "image", CT_IMAGE, one.sop_instance_uid, EXPLICIT, one.digest, one.size, STUDY, SERIES)
    assert tuple(instance)[1:10] == facts
    assert box.rows("SELECT file, instance FROM copy") == [(one.file, recorded.instance_id)]
    assert box.rows("SELECT destination, urgency, state, size FROM delivery") == [
        ("pacs", Urgency.IMAGE, "queued", one.size),
        ("archive", Urgency.URGENT_IMAGE, "queued", one.size),
    ]
    (line,) = box.journal.query("SELECT * FROM history")
    assert (line["event"], line["study_instance_uid"], line["sop_instance_uid"]) == (
        "received",
        STUDY,
        one.sop_instance_uid,
    )
    detail = json.loads(line["detail"])
    assert detail["owed_to"] == ["pacs", "archive"]
    assert detail["digest"] == one.digest.hex()
    assert (instance["tick"], instance["at"]) == (line["tick"], line["at"])


@pytest.mark.promise("P2")
def test_when_its_deliveries_cannot_be_made_nothing_is_recorded(box: Box) -> None:
    class Broken(Exception):
        pass

    def routes(one: Arrival) -> list[Owed]:
        if one.sop_instance_uid.endswith(".2"):
            raise Broken
        return [TO_PACS]

    with pytest.raises(Broken):
        inbox.record(box.journal, [arrival(1), arrival(2)], routes)
    assert [count(box.journal, table) for table in ("instance", "copy", "delivery", "history", "series")] == [0] * 5


@pytest.mark.promise("P4")
def test_what_no_destination_takes_is_held_and_told(box: Box) -> None:
    receive(box.journal, arrival(1), owed=(UNROUTED,))
    assert box.rows("SELECT destination, state, reason FROM delivery") == [("", "held", UNROUTED.held)]


@pytest.mark.promise("P3")
@pytest.mark.parametrize("state", ["queued", "held"])
def test_a_repeat_of_what_is_still_owed_adds_nothing(box: Box, state: str) -> None:
    receive(box.journal, arrival(1))
    with box.journal.write(durable=True) as tx:
        tx.sql("UPDATE delivery SET state=?", (state,))
    box.hands.ms += 3_600_000
    (again,) = receive(box.journal, arrival(1, file="received/000001/000001000.dcm"))

    assert again.redundant
    assert box.deliveries() == [("pacs", state)]
    assert box.rows("SELECT file FROM copy") == [(arrival(1).file,)]
    assert events(box.journal) == ["received", "repeated"]


@pytest.mark.promise("P3")
@pytest.mark.parametrize("state", ["delivered", "committed", "abandoned"])
def test_a_repeat_is_a_retry_within_a_minute_of_settlement_and_a_repair_after(box: Box, state: str) -> None:
    receive(box.journal, arrival(1))
    box.settle(state)
    box.hands.ms += 60_000
    receive(box.journal, arrival(1, file="received/000001/000001000.dcm"))
    assert box.deliveries() == [("pacs", state)]

    box.hands.ms += 1
    receive(box.journal, arrival(1, file="received/000001/000001001.dcm"))
    assert box.deliveries() == [("pacs", state), ("pacs", "queued")]
    (detail,) = box.rows("SELECT detail FROM history ORDER BY id DESC LIMIT 1")
    assert json.loads(detail[0])["delivered_again_to"] == ["pacs"]

    receive(box.journal, arrival(1, file="received/000001/000001002.dcm"))
    assert len(box.deliveries()) == 2  # the repair is owed: nothing more


def test_a_repeat_reaches_a_destination_that_is_new_in_the_config(box: Box) -> None:
    receive(box.journal, arrival(1))
    receive(box.journal, arrival(1), owed=(TO_PACS, Owed(destination="archive", urgency=Urgency.IMAGE)))
    assert box.deliveries() == [("pacs", "queued"), ("archive", "queued")]


@pytest.mark.promise("P4")
def test_a_repeat_after_the_copy_was_let_go_brings_a_copy_again(box: Box) -> None:
    receive(box.journal, arrival(1))
    box.settle()
    box.release()
    box.hands.ms += 86_400_000
    (again,) = receive(box.journal, arrival(1, file="received/000001/000001000.dcm"))
    assert not again.redundant
    assert box.rows("SELECT file, instance FROM copy") == [("received/000001/000001000.dcm", again.instance_id)]
    assert count(box.journal, "instance") == 1


@pytest.mark.promise("P4")
def test_a_repeat_of_what_the_spool_has_lost_is_kept(box: Box) -> None:
    """Somebody removed the file: what comes again is no repeat to be thrown away, but the only copy there is."""
    receive(box.journal, arrival(1))
    again = arrival(1, file="received/000001/000001000.dcm")
    (recorded,) = inbox.record(box.journal, [again], lambda _: [TO_PACS], lambda file: file == again.file)
    assert not recorded.redundant
    assert box.rows("SELECT file FROM copy") == [(again.file,)]
    assert box.deliveries() == [("pacs", "queued")]


def test_twice_in_one_batch_is_once(box: Box) -> None:
    first, second = receive(box.journal, arrival(1), arrival(1, file="received/000000/000000002.dcm"))
    assert (first.redundant, second.redundant) == (False, True)
    assert (count(box.journal, "instance"), count(box.journal, "copy"), count(box.journal, "delivery")) == (1, 1, 1)


@pytest.mark.promise("P3")
def test_other_bytes_under_one_uid_are_kept_and_delivered(box: Box) -> None:
    receive(box.journal, arrival(1))
    receive(box.journal, arrival(1, b"corrected", file="received/000000/000000002.dcm"))
    receive(box.journal, arrival(1, transfer_syntax_uid="1.2.840.10008.1.2", file="received/000000/000000003.dcm"))
    assert (count(box.journal, "instance"), count(box.journal, "copy"), len(box.deliveries())) == (3, 3, 3)
    assert events(box.journal) == ["received", "other_bytes_under_known_uid", "other_bytes_under_known_uid"]


@pytest.mark.promise("P3")
def test_what_has_no_readable_series_is_kept_delivered_and_told(box: Box) -> None:
    receive(box.journal, arrival(1, header={"study_instance_uid": "", "series_instance_uid": "", "modality": ""}))
    assert events(box.journal) == ["received_unsorted"]
    assert box.deliveries() == [("pacs", "queued")]
    assert count(box.journal, "series") == 0


# Series


def test_an_arrival_on_an_open_series_is_a_counter_not_a_transition(box: Box) -> None:
    for number in (1, 2, 3):
        box.hands.ms += 100
        receive(box.journal, arrival(number))
    assert box.state() == ("open", 1, 3)
    assert box.series().last_tick - box.series().first_tick == 200
    assert set(events(box.journal)) == {"received"}


def test_a_closed_series_opens_again_with_a_new_revision(box: Box) -> None:
    receive(box.journal, arrival(1))
    box.hands.ms += SILENCE_MS
    assert box.close() == 1
    assert box.state() == ("closed", 1, 1)

    receive(box.journal, arrival(1))  # a repeat brings nothing new
    assert box.state() == ("closed", 1, 1)

    receive(box.journal, arrival(2))
    assert box.state() == ("open", 2, 2)
    assert box.series().evidence == ""
    assert events(box.journal, series_instance_uid=SERIES) == [
        "received",
        "series_closed",
        "repeated",
        "received",
        "series_reopened",
    ]


def test_a_stated_count_closes_at_once(box: Box) -> None:
    receive(box.journal, arrival(1, header={"stated_count": 2}))
    assert box.evidence() is None
    receive(box.journal, arrival(2, header={"stated_count": 2}))
    assert box.evidence() is Evidence.COUNT


@pytest.mark.promise("P6")
def test_a_corrected_instance_does_not_make_up_for_a_missing_one(box: Box) -> None:
    receive(box.journal, arrival(1, header={"stated_count": 2}))
    receive(box.journal, arrival(1, b"corrected", {"stated_count": 2}, file="received/000000/000000009.dcm"))
    assert box.evidence() is None
    receive(box.journal, arrival(2, header={"stated_count": 2}))
    assert box.evidence() is Evidence.COUNT


@pytest.mark.parametrize(("modality", "evidence"), [("CR", Evidence.SINGLE_IMAGE), ("DX", Evidence.SINGLE_IMAGE)])
def test_a_single_image_is_complete_on_arrival(box: Box, modality: str, evidence: Evidence) -> None:
    receive(box.journal, arrival(1, header={"modality": modality}))
    assert box.evidence() is evidence


def test_silence_must_last(box: Box) -> None:
    receive(box.journal, arrival(1))
    box.hands.ms += SILENCE_MS - 1
    assert box.evidence() is None
    receive(box.journal, arrival(1))  # a repeat is a sign of life, too
    box.hands.ms += SILENCE_MS - 1
    assert box.evidence() is None
    box.hands.ms += 1
    assert box.evidence() is Evidence.SILENCE


def test_after_an_association_broke_off_silence_must_last_three_times_as_long(box: Box) -> None:
    receive(box.journal, arrival(1))
    inbox.association_ended(box.journal, "CT01", in_order=False, others_open=True)
    box.hands.ms += 3 * SILENCE_MS - 1
    assert box.evidence() is None
    box.hands.ms += 1
    assert box.evidence() is Evidence.SILENCE

    receive(box.journal, arrival(2))  # it came back: no longer interrupted
    assert not box.series().interrupted


@pytest.mark.promise("P6")
def test_nobody_is_silent_to_a_process_that_does_not_listen(box: Box) -> None:
    """After a restart, or while it turned senders away: silence counts from there, three times if they were cut off."""
    receive(box.journal, arrival(1))
    series, listening_again = box.series(), box.journal.clock.tick() + 5 * SILENCE_MS
    for released, factor in ((True, 1), (False, 3)):
        until = listening_again + factor * SILENCE_MS
        one = replace(series, released=released)
        assert inbox.evidence_for(one, until - 1, SILENCE_MS, listening_again) is None
        assert inbox.evidence_for(one, until, SILENCE_MS, listening_again) is Evidence.SILENCE


@pytest.mark.parametrize(
    ("calling_ae", "others_open", "released"), [("CT01", False, True), ("CT01", True, False), ("CT02", False, False)]
)
def test_released_means_the_last_association_of_that_peer(
    box: Box, calling_ae: str, others_open: bool, released: bool
) -> None:
    receive(box.journal, arrival(1))
    inbox.association_ended(box.journal, calling_ae, in_order=True, others_open=others_open)
    assert box.series().released is released
    receive(box.journal, arrival(2))
    assert not box.series().released


@pytest.mark.promise("P6")
def test_a_sender_that_is_known_to_pause_is_given_more_time(box: Box) -> None:
    assert inbox.learned_silence_ms(box.journal, "CT01") == 0
    for number in range(1, 202):
        box.hands.ms += 30_000 if number % 20 == 0 else 200
        receive(box.journal, arrival(number))
    # The p99 pause lies in the bin below 2^15 ms; half as long again on top of that.
    assert inbox.learned_silence_ms(box.journal, "CT01") == 1.5 * (1 << 15)
    assert inbox.learned_silence_ms(box.journal, "CT02") == 0


@pytest.mark.promise("P6")
def test_a_pause_that_closed_a_series_too_early_is_learnt_from(box: Box) -> None:
    for number in range(1, 230):
        if number % 20 == 0:
            box.hands.ms += 30_000
            assert box.close() == 1
        box.hands.ms += 200
        receive(box.journal, arrival(number))
    assert inbox.learned_silence_ms(box.journal, "CT01") == 1.5 * (1 << 15)

    learnt = count(box.journal, "gap")
    box.hands.ms += 86_400_000
    assert box.close() == 1
    receive(box.journal, arrival(230))  # the next day: no pause, but an afterthought
    assert count(box.journal, "gap") == learnt


@pytest.mark.promise("P6")
def test_closing_does_not_overtake_an_arrival(box: Box) -> None:
    receive(box.journal, arrival(1))
    box.hands.ms += SILENCE_MS
    seen = box.series()
    receive(box.journal, arrival(2))
    assert inbox.close(box.journal, [(seen, Evidence.SILENCE)]) == 0
    assert inbox.close(box.journal, [(replace(seen, arrivals=2), Evidence.SILENCE)]) == 0
    assert box.state() == ("open", 1, 2)
    assert "series_closed" not in events(box.journal)


def test_open_series_come_longest_silent_first(box: Box) -> None:
    for number in (1, 2, 3):
        box.hands.ms += 10
        uid = f"{STUDY}.{number}"
        receive(box.journal, arrival(number, header={"series_instance_uid": uid}))
    box.hands.ms += 10
    receive(box.journal, arrival(4, header={"series_instance_uid": f"{STUDY}.1"}))
    assert [one.series_instance_uid for one in inbox.open_series(box.journal)] == [
        f"{STUDY}.{number}" for number in (2, 3, 1)
    ]


@pytest.mark.promise("P1")
def test_files_without_a_row_are_told_apart(box: Box) -> None:
    receive(box.journal, *(arrival(number) for number in range(1, 4)))
    files = [arrival(number).file for number in range(1, 1200)]
    assert inbox.unknown_files(box.journal, files) == files[3:]
