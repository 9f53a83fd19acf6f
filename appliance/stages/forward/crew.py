"""The couriers beside a lane's first: for images, as many as the line is worth, and one for results that are due while
an image is under way. The lane's own judges what failures mean; these just end, and leave the work to it.
"""

import threading
import time
from collections.abc import Callable
from functools import partial

from appliance.errors import DestinationRefused, OutOfResources, TransientDeliveryError
from appliance.model import Delivery
from appliance.stages.forward.courier import LINGER_S, Bag, Courier

ALONE_S = 60.0  # after a second association was not to be had


class Crew:
    """Used by the lane's thread; `wake` and `stop` by others, too."""

    def __init__(self, name: str, bag: Bag, wake_lane: Callable[[], None], going: Callable[[], bool]) -> None:
        """`going`: whether the lane takes the destination for well."""
        self._name, self._bag, self._wake_lane, self._going = name, bag, wake_lane, going
        self._stopping = threading.Event()
        self._results = threading.Event()  # there may be one, and an image in its way
        self._images = threading.Condition()
        self._hands: dict[int, threading.Thread] = {}
        self._express: threading.Thread | None = None
        self._looked_in_vain = True  # for results, while no image was in their way
        self._alone_until = 0.0
        self._failure: BaseException | None = None

    @property
    def size(self) -> int:
        """How many of them send images."""
        return len(self._hands)

    def wake(self) -> None:
        """There is something new."""
        self._results.set()
        with self._images:
            self._images.notify_all()

    def stop(self) -> None:
        self._stopping.set()
        self.wake()

    def join(self) -> None:
        for thread in [*self._hands.values(), *filter(None, [self._express])]:
            thread.join()

    def check(self) -> None:
        """Raises what ended one of them, where that was no trouble with the destination."""
        if self._failure is not None:
            raise self._failure

    def assist(self) -> None:
        """An image is under way: have as many others sent beside it as is worth it, and let results pass."""
        if self._stopping.is_set():
            return
        if self._looked_in_vain:
            self._looked_in_vain = False
            self._results.set()
        if self._express is None:
            self._express = self._start("results", self._carry_results)
        with self._images:
            for number in range(1, self._bag.gauge.wanted):
                if number not in self._hands:
                    self._hands[number] = self._start(f"images-{number}", partial(self._carry_images, number))

    def _start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # the lane raises it
                self._failure = error
                self._wake_lane()
                raise

        thread = threading.Thread(target=guarded, name=f"lane-{self._name}-{name}", daemon=True)
        thread.start()
        return thread

    def _carry_results(self) -> None:
        courier = Courier(self._bag)
        try:
            while not self._stopping.is_set():
                linger_s = courier.linger_s()
                if self._results.wait(None if linger_s is None else max(0.0, linger_s)):
                    self._results.clear()
                    self._overtake(courier)
                else:
                    courier.close()
        finally:
            courier.close()

    def _overtake(self, courier: Courier) -> None:
        """Send the results that are due, as long as an image would hold them up."""
        while time.monotonic() >= self._alone_until:
            self._looked_in_vain = not self._bag.turns.images_under_way
            if self._looked_in_vain:
                break
            delivery = self._claim(results_only=True)
            if delivery is None:
                break
            if not self._carry(courier, delivery):
                self._alone_until = time.monotonic() + ALONE_S
                break
        self._bag.note()

    def _carry_images(self, number: int) -> None:
        courier = Courier(self._bag)
        try:
            while self._going() and not self._stopping.is_set() and number < self._bag.gauge.wanted:
                delivery = self._claim(results_only=not self._bag.turns.images_may_go())
                if delivery is None:
                    with self._images:
                        more = self._images.wait(LINGER_S)
                    if not more:
                        break
                elif not self._carry(courier, delivery):
                    self._bag.gauge.refused()
                    break
        finally:
            courier.close()
            with self._images:
                del self._hands[number]
            self._wake_lane()  # which may have left off for want of work

    def _claim(self, *, results_only: bool) -> Delivery | None:
        try:
            return self._bag.desk.claim(results_only=results_only)
        except OutOfResources as error:  # somebody keeps the journal locked
            self._bag.box.log("journal_full", reason=str(error))
            return None

    def _carry(self, courier: Courier, delivery: Delivery) -> bool:
        """False: no association could be had for it. Whatever happens, it is in nobody's hands afterwards."""
        tried = False
        try:
            courier.deliver(delivery)
        except (TransientDeliveryError, DestinationRefused) as error:
            tried = courier.has_way
            if tried and not self._stopping.is_set():
                self._bag.box.log("delivery_failed", destination=self._name, delivery=delivery.id, reason=str(error))
                self._bag.desk.put_off(delivery)
            courier.close()
            return tried
        finally:
            self._bag.desk.give_back(delivery)
        return True
