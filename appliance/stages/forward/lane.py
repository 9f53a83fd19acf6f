"""Everything owed to one destination: its first courier, and what failures say of the destination.

Transient: again, with back-off, for ever. Refused for one object: held. Refused for the destination: the lane suspends,
probes, and resumes by itself; no delivery changes. While it backs off or is suspended, nobody but it tries.
"""

import threading
from collections.abc import Mapping

from appliance.errors import DestinationRefused, OutOfResources, TransientDeliveryError
from appliance.model import Delivery, Urgency
from appliance.ports import Destination
from appliance.stages.forward.context import Outbox
from appliance.stages.forward.courier import Bag, Courier
from appliance.stages.forward.crew import Crew
from appliance.stages.forward.desk import Desk
from appliance.stages.forward.gauge import Gauge
from appliance.stages.forward.timetable import Timetable
from appliance.stages.forward.turns import Turns
from appliance.stages.forward.ways import LINGER_S
from appliance.wakeup import SLOW_POLL_S

CAUGHT_UP = 8  # objects in a row: who had so many to send does not just keep up with a scanner


class Lane:
    """`run` in a thread of its own; `wake` and `stop` from others."""

    def __init__(
        self,
        name: str,
        destination: Destination,
        box: Outbox,
        associations: int = 1,
        timetable: Timetable | None = None,
    ) -> None:
        """`associations`: for images, at most so many at one time; up to two more for results that overtake them."""
        self.name = name
        self.state = "idle"  #: idle | sending | backing off | suspended
        self.reason = ""  #: of the state, in words
        self._destination, self._box = destination, box
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._failures = 0
        self._in_a_row = 0  # objects that went without a pause
        self._suspended = 0  # waits of a suspended lane since the destination last took something
        self._was_unreachable = False
        self.desk = Desk(name, box)
        self._gauge = Gauge(associations)
        self._turns = Turns(timetable or Timetable(), lambda: self._gauge.wanted)
        bag = Bag(
            destination=destination,
            desk=self.desk,
            turns=self._turns,
            gauge=self._gauge,
            box=box,
            note=self.note,
            note_soon=self._note_soon,
        )
        self._courier = Courier(bag, self._on_way)
        self._crew = Crew(name, bag, self.stop, self._is_well)

    @property
    def facts(self) -> Mapping[str, object]:
        """For `status`."""
        return {
            "state": self.state,
            "reason": self.reason,
            "associations": self._gauge.wanted,
            "bytes_s": int(self._gauge.bytes_s),
        }

    def wake(self) -> None:
        self._wake.set()
        self._crew.wake()

    def stop(self) -> None:
        self._stopping.set()
        self._turns.stop()
        self._crew.stop()
        self._wake.set()

    def run(self) -> None:
        """Until `stop`. Raises StoreFailed: then the process must end."""
        try:
            while not self._stopping.is_set():
                self._crew.check()
                try:
                    wait_s = self.step()
                except OutOfResources as error:
                    self._box.log("journal_full", reason=str(error))
                    wait_s = self._hold_back(self._box.backoff(1))
                if wait_s > 0 and not self._stopping.is_set():
                    self._wake.wait(wait_s)
                    self._wake.clear()
            self.note()  # what was delivered need not be sent again after a restart; others may take their time to end
        finally:
            self.close()
        self._crew.check()
        self.note()

    def close(self) -> None:
        """End all couriers; waits a little for them."""
        self.stop()
        self._crew.join()
        self._courier.close()

    def step(self) -> float:
        """Send at most one object; returns how long there is nothing to do, 0: go on at once."""
        delivery = self.desk.claim(self._least())
        if delivery is None:
            return self._rest()
        try:
            self._courier.deliver(delivery)
        except TransientDeliveryError as error:
            return self._transient(delivery, error)
        except DestinationRefused as error:
            return self._suspend(delivery, error)
        except BaseException:
            self.desk.give_back(delivery)
            raise
        self._failures = self._suspended = 0
        self._in_a_row += 1
        self._crew.first_through()
        return 0.0

    def _least(self) -> Urgency:
        """The least urgent that may go now."""
        return Urgency.IMAGE if self._turns.images_may_go() else Urgency.RESULT

    def _is_well(self) -> bool:
        """Whether the destination takes what it is sent: for others of the crew to send, too."""
        return self.state == "sending" and not self._failures

    def _on_way(self, delivery: Delivery) -> None:
        """An association is there for it."""
        if self._was_unreachable:
            self._was_unreachable = False
            self.desk.retry_all_now()
            self._crew.hope()
        self._turn("sending", "")
        self._crew.under_way(delivery)

    def _rest(self) -> float:
        """Nothing to send: note what was sent, and after a while close the session."""
        if self._in_a_row < CAUGHT_UP and self._more_comes_soon():
            return 0.0
        self._in_a_row = 0
        self.note()
        if not self._crew.busy:
            self._gauge.rest()
            self._turn("idle", "")
        waits = [SLOW_POLL_S]
        if (retry_s := self.desk.next_retry_s(self._least())) is not None:
            waits.append(retry_s)
        if (linger_s := self._courier.linger_s()) is not None:
            if linger_s <= 0:
                self._courier.close()
            else:
                waits.append(linger_s)
        return min(waits)

    def _more_comes_soon(self) -> bool:
        """Whether new work comes while what was sent may still wait to be noted: a lane that keeps up with a scanner
        would otherwise sync the journal once an image, and hold up every acknowledgement.
        """
        self._in_a_row = 0
        left = self.desk.noting_due_s()
        if left is None or left <= 0 or not self._wake.wait(left):
            return False
        self._wake.clear()
        self._gauge.rest()  # there was nothing to send just now
        return not self._stopping.is_set()

    def _transient(self, delivery: Delivery, error: TransientDeliveryError) -> float:
        if self._stopping.is_set():
            self.desk.give_back(delivery)
            return 0.0
        self._failures += 1
        self.note()
        if not self._courier.has_way:
            return self._unreachable(delivery, error)
        if not self._courier.alive:
            self._crew.first_lost()
        wait_s = 0.0 if self._courier.alive and self._failures < 3 else self._box.backoff(self._failures)
        if not self._courier.alive or wait_s > LINGER_S:
            self._courier.close()
        self._turn("backing off" if wait_s else "sending", str(error))
        self._box.log("delivery_failed", destination=self.name, delivery=delivery.id, reason=str(error))
        self._hold_back(wait_s)
        self.desk.put_off(delivery)
        return 0.0

    def _unreachable(self, delivery: Delivery, error: TransientDeliveryError) -> float:
        """No way to the destination: that is no object's fault, so none of them is put back behind the others."""
        self._was_unreachable = True
        self.desk.give_back(delivery)
        self._turn("backing off", str(error))
        self._box.log("destination_unreachable", destination=self.name, reason=str(error))
        return self._hold_back(self._box.backoff(self._failures))

    def _suspend(self, delivery: Delivery, error: DestinationRefused) -> float:
        """The destination wants nothing from us: ask now and then, touch no delivery."""
        said_of_one = self._courier.has_way  # it let us in, and may have meant just this object
        self.note()
        self._courier.close()
        self._turn("suspended", str(error))
        self._box.log("lane_suspended", destination=self.name, reason=str(error))
        while not self._stopping.is_set():
            self._suspended += 1
            self._hold_back(self._box.backoff(self._suspended + 2))
            if self._stopping.is_set():
                break
            try:
                self._destination.probe()
            except (TransientDeliveryError, DestinationRefused) as still:
                self._turn("suspended", str(still))
            else:
                self._box.log("lane_resumed", destination=self.name)
                self._crew.hope()
                break
        if said_of_one:
            self.desk.put_off(delivery)
        else:
            self.desk.give_back(delivery)
        return 0.0

    def _hold_back(self, seconds: float) -> float:
        """Wait without being woken by new work: more work does not make the destination well."""
        if seconds > 0:
            self._stopping.wait(seconds)
        return 0.0

    def note(self) -> None:
        """Write down what was sent; not for long when the journal is full."""
        if not self.desk.note():
            self._hold_back(self._box.backoff(1))

    def _note_soon(self) -> None:
        self._crew.note_soon()

    def _turn(self, state: str, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._box.changed()
