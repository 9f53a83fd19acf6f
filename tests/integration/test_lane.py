"""A lane against a destination that does as the test says: what goes when, and what becomes of what fails."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from appliance.errors import DestinationRefused, ObjectRefused, TransientDeliveryError
from appliance.journal.store import Journal
from appliance.model import Owed, Urgency
from appliance.ports import Outgoing, Turn, at_once
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.desk import OLDEST_EVERY, SETTLE_AT_MOST
from appliance.stages.forward.lane import CAUGHT_UP
from appliance.stages.forward.ways import LINGER_S
from appliance.wakeup import SLOW_POLL_S
from tests.journals import CT_IMAGE, SERIES, arrival, events, open_journal, receive
from tests.waiting import eventually

SR = "1.2.840.10008.5.1.4.1.1.88.33"
WITHIN_S = 10.0


@dataclass
class Pacs:
    """A destination. `fates` says what happens to an instance, once for each try; what has none is taken."""

    fates: dict[str, list[Exception | str]] = field(default_factory=dict)
    down: list[Exception] = field(default_factory=list)  #: what the next openings, then the next probes, raise
    probes: list[Exception] = field(default_factory=list)
    got: list[str] = field(default_factory=list)  #: the last number of each UID that was tried
    opened: list[set[str]] = field(default_factory=list)  #: the SOP classes proposed
    probed: int = 0
    open_now: int = 0
    kind: "type[Association] | None" = None
    prepared: list[str] = field(default_factory=list)

    def open(self, items: Sequence[Outgoing]) -> "Association":
        if self.down:
            raise self.down.pop(0)
        self.opened.append({item.sop_class_uid for item in items})
        return (self.kind or Association)(self)

    def probe(self) -> None:
        self.probed += 1
        if self.probes:
            raise self.probes.pop(0)


class Association:
    bytes_s = round_trip_s = 0.0
    held_back = False

    def __init__(self, pacs: Pacs) -> None:
        self._pacs = pacs
        self.alive = True

    def __enter__(self) -> Self:
        self._pacs.open_now += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pacs.open_now -= 1

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        assert self.alive
        assert turn(4096) == 4096
        assert path.read_bytes() == item.sop_instance_uid.encode()
        name = item.sop_instance_uid.rpartition(".")[2]
        self._pacs.got.append(name)
        fates = self._pacs.fates.get(name, [])
        fate = fates.pop(0) if fates else ""
        if isinstance(fate, str):
            return fate
        self.alive = isinstance(fate, ObjectRefused) or "alive" in str(fate)
        raise fate


class FarAssociation(Association):
    """A round trip is long, and what is sent may be sent compressed."""

    round_trip_s = 0.1
    weighs_line = False
    sent = None

    def prepare(self, item: Outgoing, path: Path) -> None:
        assert path.is_file()
        self._pacs.prepared.append(item.sop_instance_uid.rpartition(".")[2])


class UnsureAssociation(FarAssociation):
    weighs_line = True


class LearningAssociation(FarAssociation):
    """Each object takes three pieces, and the first object's second tells how quick the line is."""

    weighs_line = True

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        assert turn(4096) == 4096
        assert turn(4096) == 4096
        if self.weighs_line:
            assert self._pacs.prepared == ["2"]
            self.weighs_line = False
        return super().send(item, path, turn)


class OneAtATime(Pacs):
    """Lets a second association in when told to; the first object is not answered before one has asked."""

    def __init__(self) -> None:
        super().__init__(kind=_Kept)
        self.asked, self.let_in = threading.Event(), threading.Event()
        self.kept_s: list[float] = []  #: of associations that ended

    def open(self, items: Sequence[Outgoing]) -> Association:
        if self.opened:
            self.asked.set()
            assert self.let_in.wait(WITHIN_S)
        return super().open(items)


class _Kept(Association):
    _pacs: OneAtATime

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pacs.kept_s.append(time.monotonic() - self._since)
        super().__exit__(kind, error, trace)

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        assert self._pacs.asked.wait(WITHIN_S)
        return super().send(item, path, turn)


@dataclass
class Line:
    """A journal with things owed to one PACS, and a lane to it."""

    folder: Path
    journal: Journal
    pacs: Pacs = field(default_factory=Pacs)
    logged: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    pause_s: float = 0.0
    lanes: list[Lane] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lane = self.new_lane()

    def new_lane(self, associations: int = 1) -> Lane:
        box = Outbox(
            journal=self.journal,
            path=lambda file: self.folder / file,
            log=lambda event, **_: self.logged.append(event),
            changed=lambda: self.states.append(self.lane.state),
            backoff=lambda _: self.pause_s,
        )
        self.lanes.append(Lane("pacs", self.pacs, box, associations))
        return self.lanes[-1]

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()
        self.journal.close()

    def owe(self, *urgencies: Urgency, sop_class: str = CT_IMAGE) -> None:
        row = self.journal.one("SELECT count(*) FROM instance")
        assert row is not None
        for number, urgency in enumerate(urgencies, row[0] + 1):
            one = arrival(number, sop_class_uid=sop_class)
            file = self.folder / one.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(one.sop_instance_uid.encode())
            receive(self.journal, one, owed=(Owed(destination="pacs", urgency=urgency),))

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.lane.step()

    def drain(self) -> None:
        """Until there is nothing to do."""
        for _ in range(500):
            if self.lane.step() > 0:
                return
        raise AssertionError("never at rest")

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.lane.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.lane.stop()
            thread.join(5.0)
            assert not thread.is_alive()
            assert self.pacs.open_now == 0

    def deliveries(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.journal.query("SELECT state, reason, attempts FROM delivery ORDER BY id")]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with closing(Line(tmp_path, open_journal(tmp_path / "j", "forward"))) as line:
        yield line


IMAGE, URGENT_SR, RESULT = Urgency.IMAGE, Urgency.URGENT_SR, Urgency.RESULT


def test_what_is_taken_is_delivered_and_told(line: Line) -> None:
    line.owe(IMAGE, IMAGE)
    line.drain()
    assert line.pacs.got == ["1", "2"]
    assert line.deliveries() == [("delivered", "", 1)] * 2
    assert events(line.journal, sop_instance_uid=f"{SERIES}.1") == ["received", "delivered"]
    assert len(line.pacs.opened) == 1
    assert line.states[-1] == "idle"


def test_a_warning_is_kept(line: Line) -> None:
    line.pacs.fates = {"1": ["0xB000: coercion of data elements"]}
    line.owe(IMAGE)
    line.drain()
    assert line.deliveries() == [("delivered", "0xB000: coercion of data elements", 1)]


def test_what_is_refused_is_held_and_the_next_goes_on_the_same_association(line: Line) -> None:
    line.pacs.fates = {"1": [ObjectRefused("0xA900: does not match")]}
    line.owe(IMAGE, IMAGE)
    line.drain()
    assert line.deliveries() == [("held", "0xA900: does not match", 1), ("delivered", "", 1)]
    assert len(line.pacs.opened) == 1


def test_what_is_not_on_the_disk_is_held_and_not_sent(line: Line) -> None:
    line.owe(IMAGE, IMAGE)
    (line.folder / arrival(1).file).unlink()
    with line.journal.write(durable=True) as tx:
        tx.sql("DELETE FROM copy WHERE instance=2")
    line.drain()
    assert line.pacs.got == []
    assert line.deliveries() == [("held", "the local copy is missing", 1)] * 2


@pytest.mark.promise("P3")
def test_what_fails_for_now_is_tried_again_for_ever(line: Line) -> None:
    line.pacs.fates = {"1": [TransientDeliveryError(text) for text in ["0xA700, alive"] * 30 + ["reset"] * 30]}
    line.owe(IMAGE)
    line.steps(60)
    assert line.deliveries() == [("queued", "", 0)]
    line.drain()
    assert line.pacs.got == ["1"] * 61
    assert line.deliveries() == [("delivered", "", 61)]


@pytest.mark.promise("P7")
@pytest.mark.parametrize("end", ["reset", "0xA700, alive"])
def test_an_object_that_always_fails_starves_no_other(line: Line, end: str) -> None:
    """Each try costs the association; all others still arrive, and it is never given up."""
    line.pause_s = 0.05
    line.pacs.fates = {"1": [TransientDeliveryError(end)] * 1000}
    line.owe(URGENT_SR, *[IMAGE] * 20)
    with line.running():
        eventually(lambda: len(set(line.pacs.got)) == 21, 10.0)
        eventually(lambda: line.pacs.got.count("1") > 3)
    states = [state for state, _, _ in line.deliveries()]
    assert states == ["queued"] + ["delivered"] * 20
    assert line.pacs.got.count("1") < 60


@pytest.mark.promise("P7")
def test_an_urgent_report_that_appears_goes_next(line: Line) -> None:
    line.owe(*[IMAGE] * 6)
    line.steps(2)
    line.owe(RESULT)
    line.owe(URGENT_SR, sop_class=SR)
    line.steps(2)
    assert line.pacs.got == ["1", "2", "8", "7"]
    line.drain()
    assert line.pacs.got == ["1", "2", "8", "7", "3", "4", "5", "6"]


@pytest.mark.promise("P7")
def test_an_association_for_a_result_that_another_has_taken_meanwhile_is_not_kept(line: Line) -> None:
    """Where a PACS takes one at a time, the lane's own may wait for its end."""
    line.pacs = pacs = OneAtATime()
    line.lane = line.new_lane()
    line.owe(IMAGE)
    with line.running():
        eventually(lambda: pacs.open_now)
        line.owe(RESULT)
        line.lane.wake()
        eventually(lambda: pacs.got == ["1", "2"], WITHIN_S)
        pacs.let_in.set()
        eventually(lambda: len(pacs.kept_s) == 2, WITHIN_S)
    assert min(pacs.kept_s) < LINGER_S / 2


@pytest.mark.promise("P7")
def test_the_oldest_image_gets_its_turn_among_endless_results(line: Line) -> None:
    line.owe(IMAGE, *[RESULT] * (OLDEST_EVERY + 5))
    line.steps(OLDEST_EVERY - 1)
    assert "1" not in line.pacs.got
    line.steps(1)
    assert line.pacs.got.count("1") == 1  # beside it, results pass


@pytest.mark.promise("P7")
def test_when_the_line_comes_back_the_most_urgent_goes_first(line: Line) -> None:
    """An outage is no object's fault: what was tried during it is not put back behind the others."""
    line.pause_s = 0.2
    line.pacs.fates = {"2": [TransientDeliveryError("reset")]}
    line.owe(IMAGE)
    line.owe(URGENT_SR, sop_class=SR)
    line.lane.step()
    line.pacs.down = [TransientDeliveryError("no route")] * 3
    line.steps(3)
    assert line.lane.state == "backing off"
    assert line.lane.reason == "no route"
    line.pause_s = 30.0
    line.pacs.down = []
    line.lane.step()
    line.lane.step()
    assert line.pacs.got == ["2", "2", "1"]


@pytest.mark.promise("P7")
def test_during_an_outage_nothing_moves_and_nothing_is_counted(line: Line) -> None:
    line.pacs.down = [TransientDeliveryError("refused")] * 10
    line.owe(IMAGE, URGENT_SR, IMAGE)
    line.steps(10)
    assert line.pacs.got == []
    line.drain()
    assert line.pacs.got == ["2", "1", "3"]
    assert line.deliveries() == [("delivered", "", 1)] * 3
    assert line.logged.count("destination_unreachable") == 10


def test_a_destination_that_wants_nothing_suspends_the_lane_and_no_delivery_changes(line: Line) -> None:
    line.pacs.down = [DestinationRefused("calling AE title not recognised")]
    line.pacs.probes = [DestinationRefused("calling AE title not recognised"), TransientDeliveryError("no route")] * 3
    line.owe(IMAGE, IMAGE)
    line.lane.step()
    assert line.deliveries() == [("queued", "", 0)] * 2
    assert line.pacs.probed == 7
    assert line.logged == ["lane_suspended", "lane_resumed"]
    assert set(line.states) == {"suspended"}
    line.drain()
    assert line.deliveries() == [("delivered", "", 1)] * 2


def test_a_suspended_lane_can_be_stopped(line: Line) -> None:
    line.pause_s = 60.0
    line.pacs.down = [DestinationRefused("called AE title not recognised")]
    line.owe(IMAGE)
    with line.running():
        eventually(lambda: line.lane.state == "suspended")
    assert line.lane.reason == "called AE title not recognised"
    assert line.deliveries() == [("queued", "", 0)]


def test_refused_in_the_middle_suspends_too(line: Line) -> None:
    line.pacs.fates = {"1": [DestinationRefused("certificate")]}
    line.owe(IMAGE)
    line.drain()
    assert line.logged == ["lane_suspended", "lane_resumed"]
    assert line.deliveries() == [("delivered", "", 2)]


@pytest.mark.promise("P3")
def test_killed_between_sending_and_settling_it_sends_again(line: Line) -> None:
    line.owe(IMAGE)
    line.lane.step()
    assert line.pacs.got == ["1"]
    assert line.deliveries() == [("queued", "", 0)]  # not settled yet: that waits for company
    line.lane = line.new_lane()
    line.drain()
    assert line.pacs.got == ["1", "1"]
    assert line.deliveries() == [("delivered", "", 1)]


@pytest.mark.promise("P3")
def test_told_to_stop_it_settles_what_was_sent(line: Line) -> None:
    line.owe(IMAGE)
    with line.running():
        eventually(lambda: line.pacs.got)
    assert line.deliveries() == [("delivered", "", 1)]


def test_what_was_sent_is_not_sent_again_while_the_journal_is_full(line: Line) -> None:
    line.owe(IMAGE, IMAGE)
    line.journal._writer.execute("PRAGMA busy_timeout=1")
    with closing(sqlite3.connect(line.journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nothing can be written, which is a shortage, too
        line.steps(6)
        assert "journal_full" in line.logged
        other.execute("ROLLBACK")
    line.drain()
    assert line.pacs.got == ["1", "2"]
    assert line.deliveries() == [("delivered", "", 1)] * 2


def test_no_more_than_so_many_are_sent_that_are_not_noted(line: Line) -> None:
    """A restart would send them again. While nothing can be written, each more waits for another try to."""
    line.owe(*[IMAGE] * (SETTLE_AT_MOST + 3))
    line.journal._writer.execute("PRAGMA busy_timeout=1")
    with closing(sqlite3.connect(line.journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        line.steps(SETTLE_AT_MOST - 1)
        assert not line.lane.desk.is_behind
        failed = line.logged.count("journal_full")
        line.steps(3)
        assert line.lane.desk.is_behind
        assert line.logged.count("journal_full") >= failed + 3
        other.execute("ROLLBACK")
    line.drain()
    assert line.deliveries() == [("delivered", "", 1)] * (SETTLE_AT_MOST + 3)


def test_the_end_of_a_burst_is_noted_at_once(line: Line) -> None:
    line.owe(*[IMAGE] * CAUGHT_UP)
    line.journal._writer.execute("PRAGMA busy_timeout=1")
    with closing(sqlite3.connect(line.journal.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # however long it takes, nothing is noted before
        line.steps(CAUGHT_UP)
        assert line.lane.desk.noting_due_s() is not None
        other.execute("ROLLBACK")
    line.lane.wake()  # which would have it look for more, if it had just kept up
    assert line.lane.step() > 0
    assert line.lane.desk.noting_due_s() is None


def test_what_comes_next_is_made_ready_though_each_goes_in_one_piece(line: Line) -> None:
    line.pacs.kind = FarAssociation
    line.owe(IMAGE, IMAGE, IMAGE, IMAGE)
    line.drain()
    assert line.pacs.got == ["1", "2", "3", "4"]
    assert line.pacs.prepared == ["3", "4"]  # that they do was not known of the first


def test_what_comes_next_is_looked_at_once_more_as_soon_as_the_line_is_known(line: Line) -> None:
    line.pacs.kind = LearningAssociation
    line.owe(IMAGE, IMAGE, IMAGE)
    line.drain()
    assert line.pacs.got == ["1", "2", "3"]
    assert line.pacs.prepared == ["2", "2", "3"]


@pytest.mark.parametrize(("kind", "together"), [(FarAssociation, 4), (UnsureAssociation, 1)])
def test_where_the_line_decides_what_is_sent_one_object_tells_of_it_first(
    line: Line, kind: type[Association], together: int
) -> None:
    """Over a long way all associations begin at once, else."""
    line.pacs.kind = kind
    line.lane = line.new_lane(4)
    line.owe(IMAGE)
    line.steps(1)
    assert line.pacs.got == ["1"]
    assert line.lane.facts["associations"] == together


def test_quick_results_do_not_show_that_a_line_is_not_thin(line: Line) -> None:
    line.pacs.kind = FarAssociation
    line.lane = line.new_lane(4)
    line.owe(URGENT_SR, RESULT, RESULT, IMAGE)
    line.steps(4)
    assert line.lane._gauge.wanted == 4
    line.lane._gauge.is_sending(5.0, 0.1, held_back=False)  # an image that takes long, and only for the line's width
    assert line.lane._gauge.wanted == 1


def test_a_session_is_used_again_while_it_fits_and_closed_when_idle(line: Line) -> None:
    line.owe(IMAGE, IMAGE)
    line.owe(IMAGE, sop_class=SR)
    with line.running():
        eventually(lambda: len(line.pacs.got) == 3)
        assert line.pacs.opened == [{CT_IMAGE, SR}]
        line.owe(IMAGE, sop_class="1.2.840.10008.5.1.4.1.1.4")
        line.lane.wake()
        eventually(lambda: len(line.pacs.got) == 4)
        assert len(line.pacs.opened) == 2
        eventually(lambda: line.pacs.open_now == 0, WITHIN_S, "it lets go of an idle association")


def test_new_work_wakes_it(line: Line) -> None:
    with line.running():
        eventually(lambda: line.lane.state == "idle")
        line.owe(IMAGE)
        line.lane.wake()
        eventually(lambda: line.deliveries() == [("delivered", "", 1)], SLOW_POLL_S / 2)
