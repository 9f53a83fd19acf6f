"""The numbers a lane goes by: hours of the day, how many associations, whose turn it is."""

import threading
import time
from contextlib import ExitStack

import pytest

from appliance.errors import TransientDeliveryError
from appliance.model import Delivery, Urgency
from appliance.stages.forward.gauge import FIRST_LOOK, REFUSED_S, TRY_AGAIN_S, Gauge
from appliance.stages.forward.limits import DENIED_S, HARMED_S, Limits
from appliance.stages.forward.timetable import Hours, Paced, Timetable
from appliance.stages.forward.turns import (
    KEEP_ALIVE_BYTES,
    KEEP_ALIVE_S,
    LINE_TAKEN_S,
    OPENING_S,
    UNKNOWN_TAKES_S,
    Turns,
)

NIGHT = Hours(first=19 * 60, end=7 * 60)
DAY = Hours(first=7 * 60, end=19 * 60)


@pytest.mark.parametrize(("minute", "night"), [(0, True), (419, True), (420, False), (1139, False), (1140, True)])
def test_hours_go_over_midnight(minute: int, night: bool) -> None:
    assert (minute in NIGHT) is night
    assert (minute in DAY) is not night


def test_without_a_plausible_clock_nothing_is_limited() -> None:
    timetable = Timetable(minute=lambda: None, paced=[Paced(hours=DAY, bytes_s=1.0)], images=NIGHT)
    assert timetable.images_may_go()
    assert timetable.bytes_s() == 0.0


def test_the_first_pace_that_fits_holds() -> None:
    paced = [Paced(hours=DAY, bytes_s=1.0), Paced(hours=Hours(first=0, end=24 * 60), bytes_s=2.0)]
    assert Timetable(minute=lambda: 600, paced=paced).bytes_s() == 1.0
    assert Timetable(minute=lambda: 60, paced=paced).bytes_s() == 2.0


class Line:
    """Sends objects of 1 MB over a simulated line, `wanted` at a time, each in one association."""

    def __init__(self, bytes_s: float, wait_s: float, most: int) -> None:
        self.now = 100.0
        self.bytes_s, self.wait_s = bytes_s, wait_s
        self.gauge = Gauge(most, lambda: self.now)

    def send(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            together = self.gauge.wanted
            took = max(1e6 / self.bytes_s + self.wait_s, together * 1e6 / self.bytes_s)
            for _ in range(together):
                self.now += took / together
                self.gauge.sent(1_000_000, took, self.wait_s)


def test_with_a_long_round_trip_associations_are_added_until_the_line_is_full() -> None:
    line = Line(bytes_s=12.5e6, wait_s=0.3, most=8)
    line.send(30.0)
    assert line.gauge.wanted >= 4
    assert line.gauge.bytes_s > 0.8 * 12.5e6


def test_on_a_thin_line_one_association_stays_one() -> None:
    line = Line(bytes_s=0.25e6, wait_s=0.1, most=8)
    line.send(TRY_AGAIN_S - 50)
    assert line.gauge.wanted == 1


def test_a_first_object_that_takes_long_shows_a_thin_line() -> None:
    line = Line(bytes_s=0.25e6, wait_s=0.1, most=4)
    line.gauge.starts(0.1)
    assert line.gauge.wanted == 4  # nothing is known yet
    line.gauge.is_sending(0.5, 0.1, held_back=False)
    assert line.gauge.wanted == 4
    line.gauge.is_sending(5.0, 0.1, held_back=None)
    assert line.gauge.wanted == 4
    line.gauge.is_sending(5.0, 0.1, held_back=False)
    assert line.gauge.wanted == 1
    line.send(TRY_AGAIN_S - 50)
    assert line.gauge.wanted == 1


def test_over_a_long_way_all_stay_that_were_opened_at_once() -> None:
    line = Line(bytes_s=12.5e6, wait_s=0.1, most=4)
    line.gauge.starts(0.1)
    line.send(TRY_AGAIN_S - 50)
    assert line.gauge.wanted == 4


def test_what_loss_holds_back_is_sent_by_all() -> None:
    line = Line(bytes_s=0.25e6, wait_s=0.1, most=4)
    line.gauge.starts(0.1)
    line.gauge.is_sending(5.0, 0.1, held_back=True)
    assert line.gauge.wanted == 4
    line.gauge.refused()
    line.gauge.is_sending(5.0, 0.1, held_back=True)
    assert line.gauge.wanted == 1


def test_where_no_more_is_granted_none_is_asked_for_until_much_later() -> None:
    line = Line(bytes_s=12.5e6, wait_s=0.3, most=8)
    line.send(5.0)
    line.gauge.refused()
    line.send(REFUSED_S - 10)
    assert line.gauge.wanted == 1
    line.send(60.0)
    assert line.gauge.wanted > 1


def test_one_association_is_one_and_its_goodput_is_known() -> None:
    line = Line(bytes_s=12.5e6, wait_s=0.3, most=1)
    line.send(10.0)
    assert line.gauge.wanted == 1
    assert line.gauge.bytes_s == pytest.approx(1e6 / 0.38, rel=0.05)
    assert FIRST_LOOK > 1  # the first object of a connection meets its slow start


def delivery(urgency: Urgency) -> Delivery:
    return Delivery(
        id=1,
        instance_id=1,
        destination="pacs",
        urgency=urgency,
        state="queued",
        created_tick=0,
        attempts=0,
        reason="",
        sop_class_uid="",
        sop_instance_uid="",
        transfer_syntax_uid="",
        file="",
        size=1,
    )


IMAGE, RESULT, URGENT = (delivery(urgency) for urgency in (Urgency.IMAGE, Urgency.RESULT, Urgency.URGENT_SR))
PIECE = 1 << 16


def test_what_waits_says_a_little_now_and_then() -> None:
    turns = Turns(Timetable())
    with turns.turn(IMAGE) as image, turns.turn(RESULT) as result:
        stop = threading.Event()

        def keep_the_line() -> None:
            while not stop.wait(UNKNOWN_TAKES_S / 4):
                result(PIECE)

        thread = threading.Thread(target=keep_the_line)
        thread.start()
        begun = time.monotonic()
        assert image(PIECE) == KEEP_ALIVE_BYTES
        assert time.monotonic() - begun >= KEEP_ALIVE_S - 0.1
        stop.set()
        thread.join()


def test_an_image_goes_on_as_soon_as_the_result_is_through() -> None:
    turns = Turns(Timetable())
    waited: list[float] = []

    def send_image() -> None:
        with turns.turn(IMAGE) as image:
            begun = time.monotonic()
            image(PIECE)
            waited.append(time.monotonic() - begun)

    with turns.turn(RESULT):
        thread = threading.Thread(target=send_image)
        thread.start()
    thread.join(5.0)
    assert waited[0] < UNKNOWN_TAKES_S


def test_an_image_does_not_wait_while_a_result_only_waits_for_its_answer() -> None:
    hand = Hand()
    turns = Turns(Timetable(), now=hand)
    with turns.turn(IMAGE) as image, turns.turn(RESULT) as result:
        assert result(PIECE) == PIECE
        hand.now += UNKNOWN_TAKES_S
        assert image(PIECE) == PIECE


@pytest.mark.parametrize(("bytes_s", "waits_s"), [(100e6, 0.0005), (0.25e6, LINE_TAKEN_S)])
def test_an_image_waits_for_as_long_as_the_line_is_taken(bytes_s: float, waits_s: float) -> None:
    hand = Hand()
    turns = Turns(Timetable(), now=hand)
    with turns.turn(IMAGE), turns.turn(RESULT, lambda: bytes_s) as result:
        assert result(50_000) == 50_000
        assert turns._wait_s(IMAGE) == pytest.approx(waits_s, abs=1e-6)


def test_images_beyond_what_the_line_is_worth_wait_and_end_in_their_order() -> None:
    hand, worth = Hand(), [2]
    turns = Turns(Timetable(), lambda: worth[0], now=hand)
    first, second, third = (delivery(Urgency.IMAGE) for _ in range(3))
    with turns.turn(second), ExitStack() as stack:
        with turns.turn(first):
            stack.enter_context(turns.turn(third))
            assert [turns._wait_s(one) for one in (second, first, third)] == [0, 0, LINE_TAKEN_S]
            worth[0] = 1
            assert [turns._wait_s(one) for one in (second, first, third)] == [0, LINE_TAKEN_S, LINE_TAKEN_S]
            urgent = delivery(Urgency.URGENT_IMAGE)
            with turns.turn(urgent):
                assert [turns._wait_s(one) for one in (urgent, second)] == [0, LINE_TAKEN_S]
            hand.now += LINE_TAKEN_S  # none of them asks for more: they wait for their answers
            assert turns._wait_s(third) == 0
            worth[0] = 2
        assert turns._wait_s(third) == 0


@pytest.mark.promise("P7")
def test_an_urgent_report_passes_a_large_result() -> None:
    hand = Hand()
    turns = Turns(Timetable(), now=hand)
    with turns.turn(RESULT) as result:
        assert not turns.less_urgent_under_way(Urgency.RESULT)
        assert turns.less_urgent_under_way(Urgency.URGENT_SR)
        with turns.turn(URGENT) as urgent:
            assert urgent(PIECE) == PIECE
            assert turns._wait_s(RESULT) == pytest.approx(UNKNOWN_TAKES_S)
        assert turns._wait_s(RESULT) == 0
        assert result(PIECE) == PIECE


@pytest.mark.promise("P7")
def test_images_stop_while_an_association_for_a_result_is_opened_but_not_for_long() -> None:
    hand = Hand()
    turns = Turns(Timetable(), now=hand)
    with turns.turn(IMAGE) as image:
        with turns.comes(RESULT):
            assert turns._wait_s(IMAGE) == pytest.approx(OPENING_S)
            assert turns._wait_s(URGENT) == 0
            with turns.turn(RESULT) as result:
                assert result(PIECE) == PIECE
            hand.now += OPENING_S
            assert image(PIECE) == PIECE
        with turns.comes(URGENT):
            assert turns._wait_s(RESULT) == pytest.approx(OPENING_S)
        assert turns._wait_s(IMAGE) == 0


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("size", [1 << 12, 525_000, 40_000_000])
def test_the_pace_is_kept_and_used(size: int) -> None:
    hand = Hand()
    pace = 2_500_000.0
    turns = Turns(Timetable(minute=lambda: 600, paced=[Paced(hours=DAY, bytes_s=pace)]), now=hand)
    sent, begun = 0, hand.now
    while sent < 50_000_000:
        with turns.turn(IMAGE) as image:
            left = size
            while left:
                while (wait_s := turns._wait_s(IMAGE)) > 0:
                    hand.now += max(wait_s, 0.00005)
                granted = image(min(left, 1 << 20))
                left -= granted
                sent += granted
    assert sent / (hand.now - begun) == pytest.approx(pace, rel=0.03)


def test_a_large_object_is_broken_off_when_told_to_stop() -> None:
    hand = Hand()
    turns = Turns(Timetable(), now=hand)
    with turns.turn(IMAGE) as image:
        turns.stop()
        assert image(PIECE) == PIECE  # what is nearly through goes through
        hand.now += 1.5
        turns.stop()  # said twice, meant once
        hand.now += 1.0
        with pytest.raises(TransientDeliveryError):
            image(PIECE)


def test_images_that_got_through_slowly_do_not_show_that_a_line_is_not_thin() -> None:
    gauge = Gauge(4, lambda: 100.0)
    gauge.starts(0.1)
    for _ in range(3):
        gauge.sent(530_000, 4.4, 0.1)
    assert gauge.wanted == 4  # it was not known what holds them back
    gauge.is_sending(4.1, 0.1, held_back=False)
    assert gauge.wanted == 1


def test_images_that_got_through_quickly_do() -> None:
    gauge = Gauge(4, lambda: 100.0)
    gauge.starts(0.1)
    for _ in range(3):
        gauge.sent(530_000, 0.4, 0.1)
    gauge.is_sending(5.0, 0.1, held_back=False)  # a large one
    assert gauge.wanted == 4


def test_fewer_are_enough_where_the_line_has_become_thin() -> None:
    line = Line(bytes_s=12.5e6, wait_s=0.3, most=8)
    line.send(30.0)
    assert line.gauge.wanted >= 4
    line.bytes_s = 0.25e6
    line.send(3000.0)
    assert line.gauge.wanted == 1


def test_where_no_further_association_was_granted_as_many_as_there_were_are_opened_again_and_no_more() -> None:
    moment = [100.0]
    limits = Limits(lambda: moment[0])
    assert limits.may_open(7)
    limits.denied(1)
    assert limits.reached
    assert limits.may_open(0)
    assert not limits.may_open(1)
    moment[0] += DENIED_S
    assert limits.may_open(1)


def test_where_others_cost_the_first_again_and_again_none_is_opened() -> None:
    moment = [100.0]
    limits = Limits(lambda: moment[0])
    assert [limits.first_lost() for _ in range(3)] == [False, False, True]
    limits.denied(1)
    moment[0] += HARMED_S - 1
    assert not limits.may_open(0)
    limits.hope()
    assert limits.may_open(0)


def test_losses_far_apart_are_forgiven() -> None:
    limits = Limits(lambda: 100.0)
    for _ in range(10):
        assert not limits.first_lost()
        for _ in range(20):
            limits.first_through()


def test_a_trial_is_not_judged_by_how_a_burst_began() -> None:
    """In slow start four associations carry less than two do later. Bursts of six seconds, a minute apart."""
    now, each, alone = 100.0, 530_000, 3.3e6
    gauge = Gauge(4, lambda: now)
    gauge.starts(0.1)
    for _ in range(10):
        began, sent = now, 0
        while sent < 100:
            together = gauge.wanted
            one = alone * min(1.0, 0.1 + 0.25 * (now - began))
            took = max(together * each / min(12.5e6, together * one), each / one)
            for _ in range(together):
                now, sent = now + took / together, sent + 1
                gauge.sent(each, took, 0.1)
        gauge.rest()
        assert gauge.wanted == 4
        now += 60.0
