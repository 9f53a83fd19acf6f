"""The couriers beside a lane's first: for images, as many as the line is worth, and for results that are due while
something less urgent is under way. The lane's own judges what failures say of the destination; these step back after
one until it has got something through again. Their threads stay as long as the lane: each reads the journal by itself.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

from appliance.errors import AssociationDenied, DestinationRefused, OutOfResources, StoreFailed, TransientDeliveryError
from appliance.model import Delivery, Urgency
from appliance.stages.forward.courier import Bag, Courier
from appliance.stages.forward.limits import Limits
from appliance.stages.forward.turns import OPENING_S
from appliance.stages.forward.ways import LINGER_S, Ways

END_S = 5.0  # for all of them; who still waits for an answer then will send again
READY_S = 30.0  # an association for results rests while something less urgent goes out: opening one takes round trips
EXPRESSES = (Urgency.URGENT_SR, Urgency.RESULT)  # the least urgent that each carries


class _Express:
    """When one who carries results has something to do."""

    def __init__(self, least: Urgency) -> None:
        self.least = least
        self.due = threading.Event()  # there may be one, and something less urgent in its way
        self.looked_in_vain = True  # while nothing was in its way
        self.denied = False  # what is due has no association, and none may be asked for, or was not to be had
        self.left: tuple[int, float] | None = None  # which delivery it left to another, and since when


class Crew:
    """Used by the lane's thread; `wake`, `stop`, `note_soon` and `under_way` by others, too."""

    def __init__(self, name: str, bag: Bag, stop_lane: Callable[[], None], going: Callable[[], bool]) -> None:
        """`going`: whether the lane takes the destination for well."""
        self._name, self._bag, self._stop_lane, self._going = name, bag, stop_lane, going
        self._stopping = threading.Event()
        self._expresses = [_Express(least) for least in EXPRESSES]
        self._notes_due = threading.Event()
        self._images = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._hands = 0  # that were ever needed
        self._busy = 0  # of them, that hold an image
        self._ways = Ways()
        self._limits = Limits()
        self._couriers: list[Courier] = []
        self._in_their_way_at = 0.0  # something less urgent than the most urgent results
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether an image is in their hands."""
        return self._busy > 0

    def wake(self) -> None:
        """There is something new."""
        self._tell_others()
        with self._images:
            self._images.notify_all()

    def stop(self) -> None:
        self._stopping.set()
        self._notes_due.set()
        self.wake()

    def note_soon(self) -> None:
        """What was sent: a commit takes as long as an image."""
        self._notes_due.set()

    def join(self) -> None:
        deadline = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def check(self) -> None:
        """Raises what ended one of them, where that was no trouble with the destination."""
        if self._failure is not None:
            raise self._failure

    def first_lost(self) -> None:
        """The lane's own association was lost: again and again, beside others, means that they cost it."""
        if self._bag.gauge.wanted > 1 and self._limits.first_lost():
            self._bag.gauge.refused()

    def first_through(self) -> None:
        """The lane's own got an object through."""
        self._limits.first_through()

    def hope(self) -> None:
        """The destination is back: what it did not grant while it went, it may grant now."""
        self._limits.hope()
        self._bag.gauge.hope()

    def under_way(self, delivery: Delivery) -> None:
        """It is being sent: let what is more urgent pass, and have as many images sent beside it as is worth it."""
        if delivery.urgency > Urgency.URGENT_SR:
            self._in_their_way_at = time.monotonic()
        for express in self._expresses:
            if express.looked_in_vain and delivery.urgency > express.least:
                express.looked_in_vain = False
                express.due.set()
        with self._images:
            self._gather(images=delivery.urgency >= Urgency.URGENT_IMAGE)
            self._images.notify_all()

    def _gather(self, *, images: bool) -> None:
        if self._stopping.is_set():
            return
        if not self._threads:
            for express in self._expresses:
                self._start(f"express-{express.least}", partial(self._carry_results, express))
            self._start("notes", self._keep_notes)
        while images and self._hands < self._bag.gauge.wanted - 1:
            self._hands += 1
            self._start(f"images-{self._hands}", partial(self._carry_images, self._hands))

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except StoreFailed as error:  # the lane raises it, too, but may take its time to end
                self._failure = error
                self._bag.box.failed(str(error))
                self._stop_lane()
            except BaseException as error:
                self._failure = error
                self._stop_lane()
                raise

        thread = threading.Thread(target=guarded, name=f"lane-{self._name}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep_notes(self) -> None:
        while self._notes_due.wait() and not self._stopping.is_set():
            self._notes_due.clear()
            self._bag.desk.note()

    def _hire(self, ways: Ways | None = None) -> Courier:
        courier = Courier(self._bag, self.under_way, ways)
        self._couriers.append(courier)
        return courier

    def _carry_results(self, express: _Express) -> None:
        courier = self._hire(self._ways)
        try:
            while not self._stopping.is_set():
                waits = express.denied or express.left is not None  # for who may be forestalled, or not be let in
                if express.due.wait(OPENING_S if waits else self._ways.pause_s()) or waits:
                    express.due.clear()
                    if self._overtake(courier, express):
                        courier.leave()
                        self._tell_others(express)  # who was denied an association, too
                    self._bag.note()
                self._ways.close_rested(self._rests_s())  # woken or not: where images come all the time, none is quiet
        finally:
            courier.close()
            self._ways.close()

    def _rests_s(self) -> float:
        now = time.monotonic()
        if self._bag.turns.less_urgent_under_way(Urgency.URGENT_SR):
            self._in_their_way_at = now
        return READY_S if now - self._in_their_way_at < 2 * LINGER_S else LINGER_S  # it is looked at every LINGER_S

    def _overtake(self, courier: Courier, express: _Express) -> bool:
        """Send the results that are due, as long as something less urgent would hold them up. True: it had a way."""
        express.looked_in_vain, left, express.left, express.denied = True, express.left, None, False
        had_way = False
        while self._may_go():
            express.looked_in_vain = True  # before the look: what begins right after says so again
            if not self._bag.turns.less_urgent_under_way(express.least):
                break
            express.looked_in_vain = False
            due = self._of_desk(self._bag.desk.peek, express.least)
            if due is None or self._leaves(express, due, left):
                break
            with courier.comes(due):
                express.denied = not (courier.has_for(due) or self._has_room(courier)) or not self._opens(courier, due)
                if express.denied:
                    break
                had_way = True
                delivery = self._of_desk(self._bag.desk.claim, express.least)
                if delivery is None:  # the lane's own has it, and may have to open another association for it
                    break
                self._tell_others(express)  # what waited behind this one is for them
                if not self._carry(courier, delivery):
                    break
        return had_way or courier.has_way

    def _has_room(self, courier: Courier) -> bool:
        """Whether another association may be asked for, be it in the place of one that rests."""
        beside = self._beside(courier)
        if self._limits.may_open(beside):
            return True
        return len(self._ways) > 0 and self._limits.may_open(beside - 1) and self._ways.close_one()

    def _tell_others(self, express: _Express | None = None) -> None:
        for other in self._expresses:
            if other is not express:
                other.due.set()

    def _leaves(self, express: _Express, due: Delivery, left: tuple[int, float] | None) -> bool:
        """Whether it is for one who carries but what is more urgent: one association is enough. Not for long, should
        that one be busy or not be let in.
        """
        if not any(due.urgency <= other.least < express.least for other in self._expresses):
            return False
        since = left[1] if left and left[0] == due.id else time.monotonic()
        express.left = (due.id, since) if time.monotonic() - since < OPENING_S else None
        return express.left is not None

    def _opens(self, courier: Courier, due: Delivery) -> bool:
        """Have the way before the claim: the lane's own may send it meanwhile, should this take long."""
        try:
            courier.open_for(due)
        except OutOfResources as error:
            self._bag.box.log("journal_full", reason=str(error))
            return False
        except (TransientDeliveryError, DestinationRefused) as error:
            self._none_to_be_had(courier, error)
            return False
        return not self._stopping.is_set()  # it may have taken longer than the journal stays open

    def _carry_images(self, number: int) -> None:
        courier, carried = self._hire(), False
        try:
            while not self._stopping.is_set():
                if self._assist(courier, number):
                    carried = True
                    if self._limits.reached:  # a result may have been denied its place
                        courier.close()
                        self._tell_others()
                    continue
                if carried:  # the lane's own may have come to rest before
                    self.note_soon()
                carried = False
                self._rest(courier)
        finally:
            courier.close()

    def _assist(self, courier: Courier, number: int) -> bool:
        """Send one beside another that is under way: of a trickle the lane's own, which is open, is quickest."""
        if number >= self._bag.gauge.wanted or not self._may_go() or self._limits.reached:
            return False
        if not self._bag.turns.less_urgent_under_way(Urgency.RESULT):
            return False
        least = Urgency.IMAGE if self._bag.turns.images_may_go() else Urgency.RESULT
        due = self._of_desk(self._bag.desk.peek, least)
        if due is None:
            return False
        with courier.comes(due):
            if not self._opens(courier, due) or number >= self._bag.gauge.wanted:
                return False
            delivery = self._of_desk(self._bag.desk.claim, least)
            if delivery is None:
                courier.close_unused()
                return False
            self._count(1)
            try:
                return self._carry(courier, delivery)
            finally:
                self._count(-1)

    def _count(self, one: int) -> None:
        with self._images:
            self._busy += one

    def _rest(self, courier: Courier) -> None:
        """Until there may be something to do."""
        with self._images:
            if not self._stopping.is_set():
                self._images.wait(courier.pause_s())
        courier.close_rested()

    def _may_go(self) -> bool:
        return self._going() and not self._stopping.is_set()

    def _beside(self, courier: Courier) -> int:
        """Associations beside the lane's own and this one's."""
        return len(self._ways) + sum(one.counts for one in self._couriers if one is not courier)

    def _of_desk(self, ask: Callable[[Urgency], Delivery | None], least: Urgency) -> Delivery | None:
        try:
            return ask(least)
        except OutOfResources as error:  # somebody keeps the journal locked
            self._bag.box.log("journal_full", reason=str(error))
            return None

    def _carry(self, courier: Courier, delivery: Delivery) -> bool:
        """False: it did not get through, and is in nobody's hands any more."""
        try:
            courier.deliver(delivery)
        except OutOfResources as error:
            self._bag.box.log("journal_full", reason=str(error))
            self._bag.desk.give_back(delivery)
            return False
        except (TransientDeliveryError, DestinationRefused) as error:
            self._failed(courier, delivery, error)
            return False
        except BaseException:
            self._bag.desk.give_back(delivery)
            raise
        return True

    def _failed(self, courier: Courier, delivery: Delivery, error: TransientDeliveryError | DestinationRefused) -> None:
        had_way = courier.has_way
        if not had_way or courier.fruitless:
            self._none_to_be_had(courier, error)
        courier.leave()  # before it is anybody's again: ending takes time
        if had_way and not self._stopping.is_set():
            self._bag.box.log("delivery_failed", destination=self._name, delivery=delivery.id, reason=str(error))
            self._bag.desk.put_off(delivery)
        else:
            self._bag.desk.give_back(delivery)

    def _none_to_be_had(self, courier: Courier, error: TransientDeliveryError | DestinationRefused) -> None:
        """What is open is what there is; where it was not just denied, one that could be had might harm the first."""
        self._bag.gauge.refused()
        if isinstance(error, AssociationDenied):
            self._limits.denied(self._beside(courier))
            self._bag.box.log("associations_limited", destination=self._name, reason=str(error))
        else:
            self._limits.harmed()
