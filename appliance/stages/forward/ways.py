"""Open associations, and those for results that rest: who has the next result takes one, whoever opened it.

Opening one takes round trips, which on a full line are long, and a PACS may grant no further one.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from appliance.dimse.sop_classes import COMPREHENSIVE_3D_SR, EXPLICIT_VR_LITTLE_ENDIAN, SECONDARY_CAPTURE
from appliance.model import Delivery
from appliance.ports import Destination, Outgoing, RecodingSession, Session

LINGER_S = 1.0
MOST_RESTING = 2  # as many as carry results

Pair = tuple[str, str]  #: SOP class and transfer syntax


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """An Outgoing that stands for all of its presentation context."""

    sop_class_uid: str
    transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN
    sop_instance_uid: str = ""
    size: int = 0


#: What is written here, and so will come, though it may not be owed yet when an association for results is opened.
RESULTS = (_Kind(sop_class_uid=COMPREHENSIVE_3D_SR), _Kind(sop_class_uid=SECONDARY_CAPTURE))


@dataclass(slots=True, kw_only=True)
class Way:
    """A session that is open, with the presentation contexts it proposed."""

    session: Session
    recodes: RecodingSession | None  #: the same, if it may
    proposed: frozenset[Pair]
    _stack: ExitStack
    used_at: float = field(default_factory=time.monotonic)
    taken: int = 0  #: objects that were answered
    short: bool = False  #: the last one went in one piece

    @classmethod
    def open(cls, destination: Destination, items: Sequence[Outgoing]) -> Self:
        """Raises TransientDeliveryError, DestinationRefused."""
        stack = ExitStack()
        session = stack.enter_context(destination.open(items))
        proposed = frozenset((item.sop_class_uid, item.transfer_syntax_uid) for item in items)
        recodes = session if isinstance(session, RecodingSession) else None
        return cls(session=session, recodes=recodes, proposed=proposed, _stack=stack)

    def fits(self, delivery: Delivery) -> bool:
        need = (delivery.sop_class_uid, delivery.transfer_syntax_uid)
        return self.session.alive and need in self.proposed

    def close(self) -> None:
        self._stack.close()


class Ways:
    """The resting ones of a lane's. Used by all who carry results; each way by one of them at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting: list[Way] = []

    def __len__(self) -> int:
        return len(self._resting)

    def take(self, delivery: Delivery) -> Way | None:
        """The one that was used last of those that can carry it; it is the taker's."""
        with self._lock:
            found = next((way for way in reversed(self._resting) if way.fits(delivery)), None)
            if found is not None:
                self._resting.remove(found)
            return found

    def leave(self, way: Way) -> None:
        """It is whoever's takes it. More than MOST_RESTING are not kept."""
        with self._lock:
            self._resting.append(way)
            ended, self._resting = self._resting[:-MOST_RESTING], self._resting[-MOST_RESTING:]
        _close(ended)

    def pause_s(self) -> float | None:
        """For how long to wait at most before `close_rested` is asked again; None: for ever."""
        return LINGER_S if self._resting else None

    def close_rested(self, rests_s: float) -> None:
        """End those that were not used for so long, and those whose peer has ended them."""
        until = time.monotonic() - rests_s
        with self._lock:
            ended = [way for way in self._resting if way.used_at <= until or not way.session.alive]
            self._resting = [way for way in self._resting if way not in ended]
        _close(ended)

    def close_one(self) -> bool:
        """Make room for one that can carry something else. False: none rests."""
        with self._lock:
            ended, self._resting = self._resting[:1], self._resting[1:]
        _close(ended)
        return bool(ended)

    def close(self) -> None:
        with self._lock:
            ended, self._resting = self._resting, []
        _close(ended)


def _close(ways: Sequence[Way]) -> None:
    """Outside of the lock: a release takes a round trip."""
    for way in ways:
        way.close()
