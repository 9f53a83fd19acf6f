"""How long a peer may make us wait: bounds on its time, never on ours.

Only waiting counts. A disk of ours that stalls for a minute is no reason to cut a scanner off.
"""

from appliance.dimse.admission import Limits
from appliance.dimse.pdu import PduReader

#: What a message as a whole must bring, as a part of `Limits.min_rate`: 100 bytes/s at the default of 10,000, so that
#: many associations over one line of 64 kbit/s live, and one byte now and then does not.
OF_MIN_RATE = 100


class Pace:
    """One peer's time, in seconds of waiting: for its request, for silence, for each PDU, and for each message.

    A message's time is a bucket: it starts with `mid_message_s`, waiting drains it, bytes fill it up again, never
    above that. So a pause is forgiven, and tiny PDUs just before each deadline do not hold a slot for ever.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left_s = limits.request_s
        self._message_s = limits.mid_message_s
        self._mid_message = False
        self._mark = (-1, False)

    @property
    def left_s(self) -> float:
        return min(self._left_s, self._message_s) if self._mid_message else self._left_s

    def waited(self, seconds: float, count: int = 0) -> None:
        """So long it took the peer to send `count` bytes."""
        self._left_s -= seconds
        if self._mid_message:
            earned = count * OF_MIN_RATE / self._limits.min_rate
            self._message_s = min(self._limits.mid_message_s, self._message_s - seconds + earned)

    def renew(self, reader: PduReader, *, mid_message: bool) -> None:
        """Look where the peer is now: a new PDU, the end of one, the beginning or end of a message."""
        limits = self._limits
        if mid_message and not self._mid_message:
            self._message_s = limits.mid_message_s
        self._mid_message = mid_message
        mark = (reader.begun, reader.inside)
        if mark == self._mark and reader.inside:
            return
        self._mark = mark
        if reader.inside:
            self._left_s = limits.grace_s + reader.pdu_size / limits.min_rate
        else:
            self._left_s = limits.idle_s
