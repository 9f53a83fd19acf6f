"""scripts/bench.py forward: that what it sends, starts and counts is what it says. Not the figures."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from benchmarks import forward, forward_urgent
from benchmarks.forward import FIRST, LONG, OURS, STREAM, THIN, Cell, Goal
from benchmarks.forward_orthanc import Orthanc
from benchmarks.forward_place import TUNED, Cargo, Pacs, storescp
from benchmarks.forward_queue import Queue
from benchmarks.forward_senders import BBR, CUBIC, OWN, UNASKED, Place, Sender, destination, peers, send
from benchmarks.ingest_images import make_ct
from benchmarks.report import BenchError, Report
from benchmarks.rig import Appliance
from benchmarks.wan import FAR, NEAR, Shape, Wan, unavailable

from appliance.dimse.header import part10
from appliance.model import Urgency
from tests.missing import missing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A line, a lane, Orthanc and a PACS, as the benchmark has them."""
    if why := unavailable():
        missing(f"no line can be laid: {why}")
    folder = tmp_path_factory.mktemp("forward")
    cargo = Cargo(what="made-up CT", images=make_ct(folder / "ct", 4), folder=folder)
    with Wan(Shape(delay_ms=5)) as wan, ExitStack() as stack:
        pacs = stack.enter_context(storescp(wan, FAR, TUNED, folder / "pacs"))
        stack.enter_context(wan.inside(NEAR))
        options = {"destinations": [destination("far", pacs, associations=2)]}
        appliance = stack.enter_context(Appliance(folder / "appliance", options))
        queue = stack.enter_context(Queue(appliance))
        orthanc = stack.enter_context(Orthanc(folder / "orthanc"))
        names = dict(zip(cargo.files, orthanc.load(cargo.files), strict=True))
        yield Place(
            wan=wan,
            cargo=cargo,
            pacs=pacs,
            queue=queue,
            watched=True,
            destinations={OURS: "far"},
            orthanc=orthanc,
            names=names,
        )


def test_each_sends_everything_once_with_the_congestion_control_it_is_to_have(place: Place) -> None:
    place.queue.hold(place.cargo.files, {"far": 2})
    named = {sender.name: sender for sender in peers((CUBIC,))}
    for name in ("storescu-nd", "storescu-x4", "pynetdicom-best", "orthanc-nd"):
        assert send(named[name], place) > 0
    ours = Sender(name=OURS, congestion=OWN)
    assert send(ours, place) > 0
    assert place.chosen in (BBR, CUBIC, UNASKED)
    assert place.connections >= 1
    assert send(Sender(name=STREAM), place) > 0
    assert send(ours, place) > 0, "what is held twice goes twice"
    assert len(list(place.pacs.folder.iterdir())) == 4


def test_what_a_pacs_does_not_keep_is_told(place: Place) -> None:
    few = Pacs(name="tuned", host=place.pacs.host, port=place.pacs.port, folder=place.cargo.folder / "elsewhere")
    few.folder.mkdir()
    elsewhere = Place(**{name: getattr(place, name) for name in PLACE} | {"pacs": few})
    with pytest.raises(BenchError, match="the PACS holds 4 objects of storescu-nd"):
        send(Sender(name="storescu-nd", congestion=CUBIC), elsewhere)


PLACE = ("wan", "cargo", "queue", "watched", "destinations", "orthanc", "names")


def test_a_result_that_is_owed_goes_at_once(place: Place) -> None:
    file = forward_urgent.write_object(place.cargo.folder, forward_urgent.SR, forward_urgent.SR_BYTES)
    assert forward_urgent.SR_BYTES <= part10(file).size <= 64 << 10
    (done,) = place.queue.wait([place.queue.owe(file, "far", Urgency.URGENT_SR)], within_s=20)
    assert 0 < done.seconds < 20
    assert not place.queue.owed_to("far")


def cell(*goals: Goal, shape: Shape = LONG) -> Cell:
    senders = [Sender(name=OURS, congestion=OWN), Sender(name=STREAM), *peers((CUBIC, BBR))]
    return Cell(key="k", name="line", shape=shape, pacs="far", objects=1, senders=senders, rounds=2, goals=goals)


def test_each_round_begins_with_another_and_the_stream_follows_ours() -> None:
    senders = cell().senders
    orders = [forward._order(senders, number) for number in range(len(senders))]
    assert all(sorted(one.title for one in order) == sorted(one.title for one in senders) for order in orders)
    assert len({order[0] for order in orders}) > 2
    for order in orders:
        names = [one.name for one in order]
        assert names.index(STREAM) == names.index(OURS) + 1


def test_ratios_are_of_the_same_round_and_goals_within_one_congestion_control() -> None:
    found = {
        Sender(name=OURS, congestion=OWN): [1.0, 2.0, 4.0],
        Sender(name=FIRST, congestion=CUBIC): [20.0, 40.0, 80.0],
        Sender(name=FIRST, congestion=BBR): [3.0, 2.0, 8.0],
        Sender(name=STREAM): [1.0],
    }
    report = Report()
    for goal in (Goal(mine=OURS, other=FIRST, ratio=2.4), Goal(mine=OURS, other=STREAM, ratio=0.97)):
        forward._tell_goal(report, cell(goal), goal, BBR, found)
    assert [goal.measured for goal in report.goals] == [2.0, 1.0]
    assert [goal.met for goal in report.goals] == [False, True]
    assert "n=3" in report.goals[0].name
    assert "n=1" in report.goals[1].name


def test_what_was_not_measured_is_not_met() -> None:
    report = Report()
    goal = Goal(mine=forward.OURS_LOSSLESS, other=STREAM, ratio=0.6, seconds=True)
    forward._tell_goal(report, cell(goal, shape=THIN), goal, BBR, {Sender(name=STREAM): [1.0]})
    assert math.isnan(report.goals[0].measured)
    assert not report.met


@pytest.mark.parametrize("cells", [forward._quick_cells, partial(forward._cells, BBR)])
def test_every_goal_is_measured_in_its_cell(cells: object) -> None:
    assert callable(cells)
    for one in cells():
        names = {sender.name for sender in one.senders}
        for goal in one.goals:
            assert goal.other in names
            assert goal.mine in names or goal.mine == forward.OURS_LOSSLESS
