"""One association to a destination, held open while there is work that fits it."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import AssociationDenied, ObjectRefused
from appliance.journal import outbox
from appliance.model import Delivery, Urgency
from appliance.ports import Destination, Turn
from appliance.stages.forward.context import Outbox
from appliance.stages.forward.desk import Desk, Told
from appliance.stages.forward.gauge import Gauge
from appliance.stages.forward.turns import Turns
from appliance.stages.forward.ways import LINGER_S, RESULTS, Way, Ways
from appliance.states import Event

SECOND = 2  # piece of an object: when it is asked for, the first one is on its way
PROPOSE = 100  # deliveries looked at for the presentation contexts of a session
LARGE = 4 << 20  # bytes that may take long to send: what was delivered before is noted first


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """What the couriers of a lane share."""

    destination: Destination
    desk: Desk
    turns: Turns
    gauge: Gauge
    box: Outbox
    note: Callable[[], None]  #: has the desk write down what was settled, before something that may take long
    note_soon: Callable[[], None]  #: has it done beside the sending


class Courier:
    """Used by one thread."""

    def __init__(self, bag: Bag, on_way: Callable[[Delivery], None], ways: Ways | None = None) -> None:
        """`on_way` is told of each delivery for which an association is there; `ways`: those it shares with others."""
        self._bag, self._box, self._on_way, self._ways = bag, bag.box, on_way, ways
        self._way: Way | None = None
        self._opening = False

    @property
    def has_way(self) -> bool:
        return self._way is not None

    @property
    def counts(self) -> bool:
        """Whether one of the associations that the destination has granted, or is asked for, is its."""
        return self._opening or self._way is not None

    @property
    def alive(self) -> bool:
        return self._way is not None and self._way.session.alive

    @property
    def fruitless(self) -> bool:
        """Whether an association was had that came to an end before anything was answered on it."""
        return self._way is not None and not self._way.taken and not self._way.session.alive

    def deliver(self, delivery: Delivery) -> None:
        """Settle it, sent or refused for good. Raises TransientDeliveryError, DestinationRefused, StoreFailed."""
        path = self._box.path(delivery.file)
        if not _is_there(delivery, path):
            missing = Told(reason=outbox.COPY_MISSING, started_tick=self._box.journal.clock.tick())
            self._settle(delivery, Event.REFUSE, missing)
            return
        with self.comes(delivery):
            self._send(delivery, path)

    def comes(self, delivery: Delivery) -> AbstractContextManager[None]:
        """What is less urgent stops while an association for a result is opened, and until that has its turn."""
        opens = delivery.urgency < Urgency.URGENT_IMAGE and not self.has_for(delivery)
        return self._bag.turns.comes(delivery) if opens else nullcontext()

    def _send(self, delivery: Delivery, path: Path) -> None:
        way = self.open_for(delivery)
        if delivery.size > LARGE:
            self._bag.note()
        if way.recodes is None or not way.recodes.weighs_line:
            self._bag.gauge.starts(way.session.round_trip_s)
        started, began = self._box.journal.clock.tick(), time.monotonic()
        try:
            with self._bag.turns.turn(delivery, lambda: way.session.bytes_s) as turn:
                self._on_way(delivery)
                warning = way.session.send(delivery, path, self._watched(way, turn))
        except ObjectRefused as error:
            self._settle(delivery, Event.REFUSE, Told(reason=str(error), started_tick=started))
        else:
            if delivery.urgency >= Urgency.URGENT_IMAGE:
                self._bag.gauge.sent(delivery.size, time.monotonic() - began, way.session.round_trip_s)
            sent_as = way.recodes.sent if way.recodes is not None else None
            self._settle(delivery, Event.DELIVER, Told(reason=warning, started_tick=started, sent_as=sent_as))
        way.used_at, way.taken = time.monotonic(), way.taken + 1

    def _watched(self, way: Way, turn: Turn) -> Turn:
        """Tells the gauge how long the object takes from its first byte on, not counting its waits."""
        session, ahead, began = way.session, self._looking_ahead(way, turn), 0.0

        def turn_and_tell(wanted: int) -> int:
            nonlocal began
            asked = time.monotonic()
            if began:
                self._bag.gauge.is_sending(asked - began, session.round_trip_s, held_back=session.held_back)
            granted = ahead(wanted)
            began = began + time.monotonic() - asked if began else time.monotonic()
            return granted

        return turn_and_tell

    def _looking_ahead(self, way: Way, turn: Turn) -> Turn:
        """Has what comes next made ready while the destination is busy with this object's first bytes."""
        session, look_at, asked, unsure = way.recodes, 1 if way.short else SECOND, 0, False
        if session is None:
            return turn

        def turn_and_look(wanted: int) -> int:
            nonlocal asked, unsure
            asked += 1
            way.short = asked < SECOND
            if asked == look_at or (unsure and not session.weighs_line):  # by now more may be made ready
                unsure = session.weighs_line
                if (coming := self._bag.desk.peek(Urgency.IMAGE)) is not None:
                    session.prepare(coming, self._box.path(coming.file))
            return turn(wanted)

        return turn_and_look

    def _settle(self, delivery: Delivery, event: Event, told: Told) -> None:
        if self._bag.desk.settle(delivery, event, told) or delivery.urgency < Urgency.URGENT_IMAGE:
            (self._bag.note if self._bag.desk.is_behind else self._bag.note_soon)()

    def open_for(self, delivery: Delivery) -> Way:
        """The open session if it proposed what this delivery needs, else a new one for what comes next."""
        if self.has_for(delivery) and self._way is not None:
            return self._way
        self._bag.note()  # opening may take as long as the time-out
        self.close()
        self._opening = True
        try:
            self._way = self._open(delivery)
        finally:
            self._opening = False
        return self._way

    def has_for(self, delivery: Delivery) -> bool:
        """Have a session that can carry it without opening one: its own, or one of those that rest, which it takes."""
        if self._way is not None and self._way.fits(delivery):
            return True
        taken = self._ways.take(delivery) if self._ways is not None else None
        if taken is None:
            return False
        own, self._way = self._way, taken
        if own is not None:
            own.close()
        return True

    def _open(self, delivery: Delivery) -> Way:
        """Where it is one too many, one that somebody has left meanwhile, or the place of one that cannot carry it."""
        shared = self._ways
        coming = [delivery, *self._bag.desk.coming(PROPOSE), *(RESULTS if shared is not None else ())]
        try:
            return Way.open(self._bag.destination, coming)
        except AssociationDenied:
            if shared is None:
                raise
            if (left := shared.take(delivery)) is not None:
                return left
            if not shared.close_one():
                raise
        return Way.open(self._bag.destination, coming)

    def linger_s(self) -> float | None:
        """For how long the session, unused, stays open; None: there is none."""
        if self._way is None:
            return None
        return self._way.used_at + LINGER_S - time.monotonic()

    def pause_s(self) -> float | None:
        """For how long to wait at most before `close_rested` is asked again; None: for ever."""
        left = self.linger_s()
        return None if left is None else min(LINGER_S, max(left, 0.0))

    def close_rested(self) -> None:
        """End a session that was not used for as long as it is kept."""
        left = self.linger_s()
        if left is not None and left <= 0:
            self.close()

    def close_unused(self) -> None:
        """End a session on which nothing was answered yet: where a PACS takes one at a time, another waits for that."""
        if self._way is not None and not self._way.taken:
            self.close()

    def leave(self) -> None:
        """The session rests for whoever has the next use for it; one that was of no use, or of none any more, ends."""
        way = self._way
        if way is not None and self._ways is not None and way.taken and way.session.alive:
            self._ways.leave(way)
            self._way = None
        self.close()

    def close(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            way.close()


def _is_there(delivery: Delivery, path: Path) -> bool:
    """What cannot even be looked at cannot be sent."""
    return bool(delivery.file) and os.path.isfile(path)  # noqa: PTH113 - half as quick by Path, and asked for each object
