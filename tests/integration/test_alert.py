"""The webhook against a real HTTP server: signed, patient, gathered, and nothing forgotten by a restart."""

import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Config
from appliance.destinations.webhook import Webhook
from appliance.errors import TransientDeliveryError
from appliance.journal import outbox
from appliance.journal.alerts import reason_class
from appliance.journal.outbox import Settlement
from appliance.journal.store import Journal
from appliance.spool import Reserve, Spool
from appliance.stages.alert import Alerter, Horn, LaneFacts
from appliance.states import DeliveryState, Event
from appliance.wiring.alert import latch_told
from tests.acceptance.rig import free_port
from tests.certificates import Authority
from tests.journals import arrival, open_journal, receive
from tests.listener import SECRET, Listener
from tests.waiting import eventually

PATIENT = "0xA900: Mustermann^Erika has another birth date"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    return path


@dataclass
class Box:
    """A journal, and lanes in whatever state the test says."""

    folder: Path
    secret: Path
    journal: Journal
    lanes: list[LaneFacts] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def alerter(self, url: str, stopping: threading.Event | None = None) -> Alerter:
        """A new one, as after a restart."""
        return Alerter(
            Horn(
                journal=self.journal,
                lanes=lambda: self.lanes,
                post=Webhook(url=url, secret=self.secret, wait_s=0.3, longest_s=0.6).post,
                log=lambda event, **_: self.logged.append(event),
                stopping=stopping or threading.Event(),
                node="box",
                every_s=0.05,
                backoff=lambda _: 0.05,
            )
        )

    def hold(self, *numbers: int, reason: str = PATIENT) -> None:
        receive(self.journal, *(arrival(number) for number in numbers))
        refused = outbox.next_queued(self.journal, "pacs", 100)
        settled = [
            Settlement(delivery=one, event=Event.REFUSE, reason=reason, started_tick=0, attempts=1) for one in refused
        ]
        outbox.settle(self.journal, settled)

    def suspend(self, state: str = "suspended", *, is_owed: bool = True) -> None:
        self.lanes[:] = [
            LaneFacts(destination="pacs", state=state, reason="calling AE title not recognised", is_owed=is_owed)
        ]


@pytest.fixture
def box(tmp_path: Path, secret: Path) -> Iterator[Box]:
    journal = open_journal(tmp_path / "journal.sqlite", "forward")
    yield Box(folder=tmp_path, secret=secret, journal=journal)
    journal.close()


def held_of(message: dict[str, Any]) -> list[tuple[str, str, int, bool]]:
    return [(one["destination"], one["reason"], one["count"], one["new"]) for one in message["held"]]


def test_held_deliveries_are_told_once_gathered_and_signed(box: Box) -> None:
    with Listener() as listener:
        alerter = box.alerter(listener.url())
        alerter.step()
        box.hold(1, 2, 3)
        box.hold(4, reason="presentation context not accepted: 1.2 in 1.3")
        for _ in range(3):
            alerter.step()
    (message,) = listener.messages
    assert sorted(held_of(message)) == [
        ("pacs", "presentation context not accepted", 1, True),
        ("pacs", "status 0xA900", 3, True),
    ]
    assert message["node"] == "box"
    assert listener.bad_signatures == 0


@pytest.mark.promise("P10")
def test_it_names_no_patient_and_no_study(box: Box) -> None:
    box.hold(1)
    box.suspend()
    with Listener() as listener:
        box.alerter(listener.url()).step()
    (body,) = listener.bodies
    assert not [word for word in (b"Mustermann", b"birth", b"1.2.3") if word in body]
    assert reason_class(PATIENT) == "status 0xA900"
    assert reason_class("Erika was refused") == "refused"


def test_a_restart_neither_repeats_nor_forgets(box: Box) -> None:
    box.hold(1)
    with Listener() as listener:
        box.alerter(listener.url()).step()
        box.alerter(listener.url()).step()
        assert len(listener.messages) == 1
        box.hold(2)
        box.alerter(listener.url()).step()
    assert [held_of(one) for one in listener.messages] == [
        [("pacs", "status 0xA900", 1, True)],
        [("pacs", "status 0xA900", 2, True)],
    ]
    assert len({one["id"] for one in listener.messages}) == 2


def test_one_that_is_sent_again_and_one_that_is_held_in_its_place_is_news(box: Box) -> None:
    box.hold(1)
    with Listener() as listener:
        box.alerter(listener.url()).step()
        outbox.abandon(box.journal, outbox.list_deliveries(box.journal, DeliveryState.HELD, 1)[0].id, "me", "so")
        box.hold(2)
        box.alerter(listener.url()).step()
        assert len(listener.messages) == 2


def test_what_is_put_right_is_no_news(box: Box) -> None:
    box.hold(1, 2)
    with Listener() as listener:
        alerter = box.alerter(listener.url())
        alerter.step()
        outbox.abandon(box.journal, outbox.list_deliveries(box.journal, DeliveryState.HELD, 1)[0].id, "me", "so")
        alerter.step()
        assert len(listener.messages) == 1
        box.hold(3)
        alerter.step()
    assert held_of(listener.messages[1]) == [("pacs", "status 0xA900", 2, True)]


def test_a_lane_that_is_suspended_and_one_that_goes_on_are_told_over_a_restart_too(box: Box) -> None:
    with Listener() as listener:
        box.suspend()
        box.alerter(listener.url()).step()
        box.suspend("idle")  # after a restart it has not tried yet
        box.alerter(listener.url()).step()
        box.suspend("sending")
        box.alerter(listener.url()).step()
    assert [one["suspended"] for one in listener.messages] == [
        [{"destination": "pacs", "reason": "AE title not recognised"}],
        [],
    ]
    assert listener.messages[1]["resumed"] == ["pacs"]


def test_down_for_a_while_then_500_then_silent_then_trickling_and_told_in_the_end(box: Box) -> None:
    port, stopping = free_port(), threading.Event()
    box.hold(1)
    alerter = box.alerter(f"http://127.0.0.1:{port}/", stopping)
    running = threading.Thread(target=alerter.run)
    running.start()
    try:
        eventually(lambda: box.logged.count("alert_not_told") >= 2, 5, "nobody is there")
        with Listener(500, 503, 0.8, "trickle", port=port) as listener:
            eventually(lambda: len(listener.bodies) >= 2, 5)
            box.hold(2)
            eventually(lambda: listener.messages, 10, "it is told")
            assert len(listener.bodies) == 5
            assert held_of(listener.messages[0]) == [("pacs", "status 0xA900", 2, True)]
            assert listener.bad_signatures == 0
    finally:
        stopping.set()
        running.join(5)
    assert not running.is_alive()


def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_us(secret: Path) -> None:
    with Listener("trickle") as listener:
        begun = time.monotonic()
        with pytest.raises(TransientDeliveryError):
            Webhook(url=listener.url(), secret=secret, wait_s=1.0, longest_s=0.5).post({})
        assert time.monotonic() - begun < 3


def test_over_tls_only_to_the_one_that_the_site_trusts(tmp_path: Path, secret: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    paper = ours.issue("pager", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paper.certificate, paper.key)
    with Listener(tls=context) as listener:
        Webhook(url=listener.url("https"), secret=secret, ca=ours.certificate).post({"a": 1})
        for ca in (theirs.certificate, None):
            with pytest.raises(TransientDeliveryError, match="certificate refused"):
                Webhook(url=listener.url("https"), secret=secret, ca=ca).post({"b": 2})
    assert listener.messages == [{"a": 1}]


def test_a_latched_store_is_told_while_it_is_latched(tmp_path: Path, secret: Path) -> None:
    spool = Spool(tmp_path / "spool", "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
    with Listener(500) as listener:
        webhook = {"url": listener.url(), "secret": str(secret)}
        config = Config.model_validate({"state": str(tmp_path), "node": "box", "alerts": {"webhook": webhook}})
        with latch_told(config, spool, lambda *_, **__: None):
            assert listener.bodies == []
        spool.latch("the disk failed")
        with latch_told(config, spool, lambda *_, **__: None):
            eventually(lambda: listener.messages, 10, "it is told, once the server is well")
    (message,) = listener.messages
    assert (message["node"], message["latched"]) == ("box", True)
    assert listener.bad_signatures == 0


@pytest.mark.parametrize("content", [None, b"short"])
def test_without_a_secret_nothing_is_sent(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with Listener() as listener, pytest.raises(TransientDeliveryError, match="secret"):
        Webhook(url=listener.url(), secret=path).post({})
    assert listener.bodies == []
