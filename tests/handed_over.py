"""A DICOM node that tells what its senders handed to their sockets, and when: what was handed over earlier, or what the
machine took its time for, is then no part of what a test sees.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from appliance.destinations.dimse import DimseNode, DimseSession
from appliance.dimse.wire import Target
from appliance.ports import Outgoing, Turn, at_once
from appliance.stages.forward.turns import LINE_TAKEN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Of one object. Times are time.monotonic's."""

    uid: str
    asked_at: float
    granted_at: float  #: or right after
    size: int


@dataclass(slots=True)
class HandedOver:
    """Of all associations of one node."""

    pieces: list[Piece] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)  #: SOP instance UIDs, in the order in which their sending began

    def during(self, uid: str, of: str) -> list[Piece]:
        """Pieces that one object was granted between the first and the last of another that is more urgent, though that
        one's sender had the line. It has it for LINE_TAKEN_S from each piece on: whoever asks for nothing so long waits
        for something else.
        """
        asked = [one.asked_at for one in self.pieces if one.uid == of]
        taken = [(one, min(one + LINE_TAKEN_S, after)) for one, after in pairwise(asked)]
        return [one for one in self.pieces if one.uid == uid and any(a < one.granted_at < b for a, b in taken)]


class WatchedNode(DimseNode):
    def __init__(self, target: Target, handed_over: HandedOver) -> None:
        super().__init__(target)
        self._handed_over = handed_over

    def open(self, items: Sequence[Outgoing]) -> DimseSession:
        return _WatchedSession(super().open(items), self._handed_over)


class _WatchedSession(DimseSession):
    def __init__(self, session: DimseSession, handed_over: HandedOver) -> None:
        super().__init__(session._association, session._proposed, session._known)
        self._handed_over = handed_over

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        def told(wanted: int) -> int:
            asked_at = time.monotonic()
            granted = turn(wanted)
            piece = Piece(uid=item.sop_instance_uid, asked_at=asked_at, granted_at=time.monotonic(), size=granted)
            self._handed_over.pieces.append(piece)
            return granted

        self._handed_over.begun.append(item.sop_instance_uid)
        return super().send(item, path, told)
