"""Receive where somebody meddles, knocks without end, or the disk cannot be read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import OutOfResources
from appliance.stages.receive import Receiver
from appliance.stages.receive.rejections import MOST_REASONS, OTHER, SPAN_MS, TOLD_ONE_BY_ONE, Rejections
from tests.integration.test_receive import Reception
from tests.scanner import data_set, store_message
from tests.waiting import eventually


@pytest.fixture
def reception(tmp_path: Path) -> Iterator[Reception]:
    reception = Reception(tmp_path)
    with reception.open():
        yield reception


@pytest.mark.promise("P1")
def test_a_latch_that_somebody_removes_opens_nothing(reception: Reception) -> None:
    """The sweep that is still to come would remove what is just arriving."""
    receiver = Receiver(reception.box, proven=False)
    with pytest.raises(OutOfResources, match="not proved yet"):
        receiver.check_room()
    receiver.proven.set()
    receiver.check_room()


@pytest.mark.promise("P1")
def test_what_cannot_be_read_back_is_no_success(reception: Reception) -> None:
    with reception.client() as client:
        message = store_message(1, data_set(1, bytes(100_000)))
        client.send(message[:60_000])
        (name,) = eventually(reception.spool.files)
        reception.spool.remove(name)
        client.send(message[60_000:])
        assert client.response().status == 0xA700
    assert reception.spool.latched()
    assert reception.ended.is_set()


@pytest.mark.promise("P9")
def test_those_who_knock_without_end_do_not_fill_the_log() -> None:
    lines: list[tuple[str, dict[str, Any]]] = []
    rejections = Rejections(lambda event, **detail: lines.append((event, detail)))
    who = {"calling_ae": "CT09", "address": "192.0.2.1", "reason": "calling AE title not recognised"}
    for _ in range(TOLD_ONE_BY_ONE + 1000):
        rejections.tell(5, **who)
    assert lines == [("association_rejected", who)] * TOLD_ONE_BY_ONE
    lines.clear()
    rejections.tell(5 + SPAN_MS, **who)
    assert lines == [("associations_rejected", {"untold": 1000}), ("association_rejected", who)]
    assert rejections.summary()[who["reason"]]["count"] == TOLD_ONE_BY_ONE + 1001


@pytest.mark.promise("P9")
def test_reasons_are_counted_without_what_a_peer_can_put_into_them() -> None:
    rejections = Rejections(lambda *_, **__: None)
    for number in range(200):
        for reason in (
            f"ASSOCIATE_RQ PDU of {number} bytes",
            f"the certificate is another one's (it names x{number})",
            f"something new: {'x' * number}",
        ):
            rejections.tell(number, calling_ae="CT09", address="192.0.2.1", reason=reason)
    counts = rejections.summary()
    assert len(counts) == MOST_REASONS + 1
    assert counts["ASSOCIATE_RQ PDU of N bytes"]["count"] == 200
    assert counts["the certificate is another one's"]["count"] == 200
    assert counts[OTHER] == {
        "count": 200 - (MOST_REASONS - 2),
        "last_tick": 199,
        "calling_ae": "CT09",
        "address": "192.0.2.1",
    }
