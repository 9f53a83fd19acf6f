"""How long a peer may make us wait."""

import pytest

from appliance.dimse.admission import Limits
from appliance.dimse.pace import Pace
from appliance.dimse.pdu import PduReader, encode_p_data

LIMITS = Limits(max_pdu=131_072, associations=64, associations_per_peer=16, idle_s=300, min_rate=10_000)
PDU = 16_384


class Peer:
    """Sends one endless data set, and counts how long it lasts."""

    def __init__(self) -> None:
        self.pace, self.reader = Pace(LIMITS), PduReader(LIMITS.max_pdu)
        self.lasted_s = 0.0

    def sends(self, data: bytes, after_s: float) -> bool:
        """Whether these bytes, in one piece, still come in time."""
        self.pace.renew(self.reader, mid_message=True)
        if after_s > self.pace.left_s:
            return False
        space = self.reader.space()
        space[: len(data)] = data
        for _ in self.reader.received(len(data)):
            pass
        self.pace.waited(after_s, len(data))
        self.lasted_s += after_s
        return True


def test_a_request_has_its_time_and_no_more() -> None:
    pace = Pace(LIMITS)
    assert pace.left_s == LIMITS.request_s
    pace.waited(4.0, 10)
    pace.waited(5.0)
    assert pace.left_s == pytest.approx(1.0)


def test_between_messages_a_peer_may_be_silent_for_long_and_within_one_not() -> None:
    pace, reader = Pace(LIMITS), PduReader(LIMITS.max_pdu)
    pace.renew(reader, mid_message=False)
    assert pace.left_s == LIMITS.idle_s
    pace.renew(reader, mid_message=True)
    assert pace.left_s == LIMITS.mid_message_s


@pytest.mark.promise("P9")
def test_tiny_pdus_just_before_each_deadline_hold_nothing_for_ever() -> None:
    peer, tiny = Peer(), encode_p_data(1, b"", is_command=False, is_last=False)
    while peer.sends(tiny, 29.0):
        assert peer.lasted_s < 2 * LIMITS.mid_message_s
    assert peer.lasted_s >= LIMITS.mid_message_s / 2


@pytest.mark.promise("P9")
def test_what_was_sent_fast_buys_no_more_than_one_pause() -> None:
    peer = Peer()
    large = encode_p_data(1, bytes(PDU - 6), is_command=False, is_last=False)
    assert all(peer.sends(large, 0.001) for _ in range(5_000))
    fast_s, tiny = peer.lasted_s, encode_p_data(1, b"", is_command=False, is_last=False)
    while peer.sends(tiny, 29.0):
        assert peer.lasted_s - fast_s < 2 * LIMITS.mid_message_s


def test_a_line_of_64_kbit_shared_by_eight_lives() -> None:
    """Each association gets 1,000 bytes/s: a PDU of 16 kB takes its 16 s, half of them without a byte."""
    peer, pdu = Peer(), encode_p_data(1, bytes(PDU - 6), is_command=False, is_last=False)
    pieces = [pdu[at : at + 1_460] for at in range(0, len(pdu), 1_460)]
    grace_s = LIMITS.grace_s + len(pdu) / LIMITS.min_rate
    for number in range(200):
        waits = [8.0 if number % 2 else 1.0, *[(grace_s - 2.0) / len(pieces)] * (len(pieces) - 1)]
        assert all(peer.sends(piece, wait) for piece, wait in zip(pieces, waits, strict=True))
    assert peer.lasted_s > 2_000


def test_one_long_pause_is_forgiven_again_and_again() -> None:
    peer = Peer()
    pdu = encode_p_data(1, bytes(PDU - 6), is_command=False, is_last=False)
    for _ in range(20):
        assert peer.sends(pdu, 55.0)


def test_only_waiting_counts() -> None:
    """A disk of ours that stalls takes nothing from the peer: nobody says `waited` for it."""
    peer = Peer()
    assert peer.sends(encode_p_data(1, b"x", is_command=False, is_last=False), 1.0)
    before = peer.pace.left_s
    peer.pace.renew(peer.reader, mid_message=True)
    assert peer.pace.left_s >= before
