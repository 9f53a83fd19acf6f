"""MPPS as a modality sends it, and what it says of series: they close at once when all is here, and not before."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from appliance.dimse.association import (
    AssociateAccept,
    AssociateRequest,
    ProposedContext,
    decode_accept,
    encode_request,
)
from appliance.dimse.services import Services
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_PERFORMED_PROCEDURE_STEP,
)
from appliance.journal import history, inbox, performed
from appliance.journal.performed import Change, Stated, Updated
from appliance.journal.store import Journal
from appliance.model import PerformedSeries
from appliance.stages.receive.closer import Closer
from appliance.stages.receive.operations import operations
from appliance.stages.receive.traffic import Traffic
from appliance.states import StepState
from tests.integration.test_receive import Reception
from tests.journals import SERIES, STUDY, ClosedLater, Hands, arrival, count, events, open_journal, receive
from tests.modality import Modality
from tests.scanner import CT01, Client, limits, listening
from tests.waiting import eventually

STEP = "1.2.3.99.1"
TELLING = [
    replace(CT01, ae_title=title, services=frozenset({MODALITY_PERFORMED_PROCEDURE_STEP})) for title in ("CT01", "CT02")
]


class Box(Reception):
    """Receive, which closes series only after an hour of silence."""

    @contextmanager
    def open(self) -> Iterator[None]:
        closing = threading.Thread(target=self.receiver.closer.run, daemon=True)
        closing.start()
        services = Services(storage=self.receiver, operations=operations(self.box, self.receiver))
        with listening(services, self.receiver, limits(max_pdu=131072), TELLING) as there:
            self.port = there.port
            yield
        self.receiver.closer.stop()
        closing.join(5.0)
        self.journal.close()

    def store(self, *numbers: int) -> None:
        with self.client() as client:
            for number in numbers:
                assert client.store(number).status == 0
            client.release()

    def closed_by(self) -> str:
        row = self.journal.one("SELECT state, evidence FROM series")
        return row["evidence"] if row and row["state"] == "closed" else ""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    with box.open():
        yield box


@pytest.mark.promise("P6")
@pytest.mark.promise("P11")
def test_a_step_that_is_completed_closes_its_series_at_once(box: Box) -> None:
    modality = Modality()
    assert modality.begin_step(box.port, STEP) == 0
    box.store(1, 2, 3)
    assert box.closed_by() == ""
    assert modality.end_step(box.port, STEP, "COMPLETED", [1, 2, 3]) == 0
    eventually(box.closed_by)
    assert box.closed_by() == "mpps"
    told = [line for line in history.trace(box.journal, STUDY) if not line.sop_instance_uid]
    assert [line.event for line in told] == ["performed_step_in_progress", "performed_step_completed", "series_closed"]
    assert told[1].detail == {
        "ms": told[1].detail["ms"],
        "calling_ae": "CT01",
        "step": STEP,
        "series": 1,
        "instances": 3,
    }
    assert told[2].detail["evidence"] == "mpps"
    assert "analyse" in box.rung
    assert not [row for row in box.journal.query("SELECT detail FROM history") if "Some" in row["detail"]]


@pytest.mark.promise("P6")
def test_completed_before_all_have_arrived_waits_for_them(box: Box) -> None:
    modality = Modality()
    modality.begin_step(box.port, STEP)
    box.store(1)
    modality.end_step(box.port, STEP, "COMPLETED", [1, 2])
    assert box.closed_by() == ""
    box.store(1)  # a repeat is none of those that are missing
    assert box.closed_by() == ""
    box.store(2)
    assert eventually(box.closed_by) == "mpps"


@pytest.mark.parametrize("state", ["DISCONTINUED", "IN PROGRESS"])
def test_what_is_not_completed_closes_nothing(box: Box, state: str) -> None:
    modality = Modality()
    modality.begin_step(box.port, STEP)
    box.store(1)
    assert modality.end_step(box.port, STEP, state, [1]) == 0
    box.receiver.closer.step()
    assert box.closed_by() == ""
    assert performed.stated(box.journal) == {}


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"PerformedProcedureStepStatus": None}, 0x0120),
        ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106),
        ({"PerformedProcedureStepStatus": ""}, 0x0106),
        ({"ScheduledStepAttributesSequence": None}, 0x0120),
        ({"ScheduledStepAttributesSequence": [Dataset()]}, 0x0000),  # of no study that we know: no reason to refuse
    ],
    ids=str,
)
def test_what_is_wrong_with_a_new_step_is_told(box: Box, changes: dict[str, Any], status: int) -> None:
    assert Modality().begin_step(box.port, STEP, **changes) == status
    assert count(box.journal, "performed_step") == (status == 0)


def series(uid: str, image: str) -> Dataset:
    one, reference = Dataset(), Dataset()
    one.SeriesInstanceUID, reference.ReferencedSOPInstanceUID = uid, image
    one.ReferencedImageSequence = [reference]
    return one


@pytest.mark.promise("P9")
def test_what_is_wrong_with_a_change_is_told(box: Box) -> None:
    modality = Modality()
    assert modality.begin_step(box.port, "") == 0x0117
    assert modality.begin_step(box.port, STEP) == 0
    assert modality.begin_step(box.port, STEP) == 0x0111
    assert modality.end_step(box.port, STEP + ".7", "COMPLETED", [1]) == 0x0112
    assert Modality("CT02").end_step(box.port, STEP, "COMPLETED", [1]) == 0x0124
    assert modality.end_step(box.port, STEP, "FINISHED", [1]) == 0x0106
    for wrong in (series("", "1.2"), series("1.2", "")):
        assert modality.end_step(box.port, STEP, "COMPLETED", [], PerformedSeriesSequence=[wrong]) == 0x0106
    assert modality.end_step(box.port, STEP, "COMPLETED", [1], PerformedProcedureStepStatus=None) == 0
    assert modality.end_step(box.port, STEP, "COMPLETED", [], PerformedSeriesSequence=None) == 0
    assert modality.end_step(box.port, STEP, "DISCONTINUED", [1]) == 0x0110
    assert events(box.journal) == ["performed_step_in_progress", "performed_step_completed"]
    (row,) = box.journal.query("SELECT series_instance_uid, count FROM performed_series")
    assert tuple(row) == (SERIES, 1)  # as it was said before


def test_no_transfer_syntax_that_we_cannot_read_is_accepted(box: Box) -> None:
    proposals = [
        (EXPLICIT_VR_BIG_ENDIAN,),
        (EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN),
    ]
    contexts = tuple(
        ProposedContext(id=2 * n + 1, abstract_syntax=MODALITY_PERFORMED_PROCEDURE_STEP, transfer_syntaxes=syntaxes)
        for n, syntaxes in enumerate(proposals)
    )
    with Client(box.port) as client:
        client.send(encode_request(AssociateRequest(called_ae="SCANSIDE", calling_ae="CT01", contexts=contexts)))
        answer = client.event()
        accept = decode_accept(answer.body)  # type: ignore[union-attr]
    assert isinstance(accept, AssociateAccept)
    assert [context.result for context in accept.contexts] == [4, 0]
    assert accept.contexts[1].transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN


# What steps say of a series, without sockets and with a clock moved by hand


def completed(journal: Journal, step: str, *numbers: int, state: StepState | None = StepState.COMPLETED) -> Updated:
    performed.create(journal, step, "CT01", [STUDY])
    named = PerformedSeries(
        series_instance_uid=SERIES, sop_instance_uids=tuple(f"{SERIES}.{number}" for number in numbers)
    )
    return performed.update(journal, step, "CT01", Change(state=state, series=(named,)))


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("steps", "arrived", "stated"),
    [
        ([], [1], None),
        ([[1]], [1], Stated.ALL_HERE),
        ([[1, 2]], [1], Stated.MISSING),
        ([[1, 2]], [1, 3], Stated.MISSING),  # as many as named, but others
        ([[1, 2]], [1, 3, 4], Stated.MISSING),
        ([[1]], [1, 2], None),  # more than was named: the statement does not cover them
        ([[1], [2]], [1, 2], Stated.ALL_HERE),
        ([[1], [2]], [1], Stated.MISSING),
        ([[]], [1], None),
    ],
)
def test_what_steps_say(
    tmp_path: Path, steps: list[list[int]], arrived: list[int], stated: Stated | None, closed_later: ClosedLater
) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    for number, named in enumerate(steps, 1):
        assert completed(journal, f"1.9.{number}", *named) is Updated.DONE
    receive(journal, *map(arrival, arrived))
    assert list(performed.stated(journal).values()) == ([] if stated is None else [stated])
    completed(journal, "1.9.77", 1, state=None)  # another step goes on with this series
    assert performed.stated(journal) == {}


@pytest.mark.promise("P6")
def test_what_the_scanner_named_and_did_not_send_is_waited_for_beyond_every_deadline(
    tmp_path: Path, closed_later: ClosedLater
) -> None:
    hands = Hands()
    reception = Reception(tmp_path)
    journal = closed_later(open_journal(tmp_path / "other", hands=hands))
    closer = Closer(replace(reception.box, journal=journal, silence_ms=lambda _: 1_000), Traffic())
    receive(journal, arrival(1, header={"stated_count": 1}))
    completed(journal, STEP, 1, 2)
    hands.ms += inbox.MISSING_SILENCE_MS - 1
    assert closer.step() == 0.001
    assert inbox.open_series(journal)
    hands.ms += 1
    closer.step()
    row = journal.one("SELECT evidence FROM series")
    assert row is not None
    assert row["evidence"] == "silence"
    reception.journal.close()


def steps(journal: Journal) -> list[str]:
    return [row[0] for row in journal.query("SELECT sop_instance_uid FROM performed_step ORDER BY id")]


def test_steps_are_kept_for_weeks(tmp_path: Path, closed_later: ClosedLater) -> None:
    hands = Hands()
    journal = closed_later(open_journal(tmp_path / "journal", hands=hands))
    completed(journal, "1.9.1", 1)
    hands.ms += performed.KEEP_MS
    completed(journal, "1.9.2", 1)
    assert steps(journal) == ["1.9.1", "1.9.2"]
    hands.ms += 1
    completed(journal, "1.9.3", 1)
    assert steps(journal) == ["1.9.2", "1.9.3"]
    assert count(journal, "performed_series") == 2


def test_of_more_steps_than_a_modality_can_make_the_oldest_go(tmp_path: Path, closed_later: ClosedLater) -> None:
    journal = closed_later(open_journal(tmp_path / "journal"))
    with journal.write(durable=False) as tx:
        tx.sql(
            "INSERT INTO performed_step (sop_instance_uid, calling_ae, studies, state, created_tick, ended_tick)"
            " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<?)"
            " SELECT '1.8.' || i, 'CT01', '[]', 'IN PROGRESS', ?, 0 FROM n",
            (performed.MAX_STEPS, tx.tick),
        )
    performed.create(journal, "1.9.4", "CT02", [])
    assert len(steps(journal)) == performed.MAX_STEPS + 1
    performed.create(journal, "1.9.5", "CT01", [])
    assert "1.8.1" not in steps(journal)
    assert len(steps(journal)) == performed.MAX_STEPS + 1
