"""Receive as a whole: sockets, spool and journal, and what a disk that fails does to an acknowledgement."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.association import AssociateAccept
from appliance.dimse.pdu import encode_abort
from appliance.errors import StoreFailed
from appliance.file_head import read_seal
from appliance.journal import copies, inbox
from appliance.journal.store import Journal
from appliance.model import Owed, Series, Urgency
from appliance.spool import Reserve, Spool
from appliance.stages.receive import Inbox, Receiver
from appliance.stages.receive.start import discard_unacknowledged, heal
from tests.journals import SERIES, TO_PACS, ClosedLater, count, events
from tests.scanner import Client, data_set, limits, listening, store_message
from tests.waiting import eventually

SOFT_LIMITS = Reserve(free_bytes=1, free_inodes=0, journal_bytes=1 << 16)
EX_FAILED, EX_LATCHED = 70, 75
LONG_MS = 3_600_000


@dataclass
class Reception:
    """Receive's parts, wired as the process wires them, in threads of this one."""

    folder: Path
    silence_ms: int = LONG_MS
    rung: list[str] = field(default_factory=list)
    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.spool = Spool(self.folder / "spool", "received", SOFT_LIMITS)
        self.journal = Journal(self.folder / "journal.sqlite", "receive")
        self.box = Inbox(
            journal=self.journal,
            spool=self.spool,
            routes=lambda _: (TO_PACS, Owed(destination="archive", urgency=Urgency.IMAGE)),
            ring=lambda *names: self.rung.extend(names),
            silence_ms=lambda _: self.silence_ms,
            max_in_flight=8,
            fatal=self.ended.set,
            log=lambda event, **detail: self.lines.append((event, detail)),
        )
        self.receiver = Receiver(self.box)
        self.port = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        closing = threading.Thread(target=self.receiver.closer.run, daemon=True)
        closing.start()
        with listening(self.receiver, self.receiver, limits(max_pdu=131072)) as there:
            self.port = there.port
            yield
        self.receiver.closer.stop()
        closing.join(5.0)
        assert not closing.is_alive()
        self.journal.close()

    def client(self) -> Client:
        client = Client(self.port)
        assert isinstance(client.associate(), AssociateAccept)
        return client

    def stored(self) -> dict[str, bytes]:
        """What the journal says is held: SOP Instance UID -> bytes of the data set in its file."""
        rows = self.journal.query(
            "SELECT i.sop_instance_uid, i.size, c.file FROM instance i JOIN copy c ON c.instance=i.id"
        )
        return {row[0]: self.spool.path(row[2]).read_bytes()[-row[1] :] for row in rows}


@pytest.fixture
def reception(tmp_path: Path) -> Iterator[Reception]:
    reception = Reception(tmp_path)
    with reception.open():
        yield reception


@pytest.mark.promise("P3")
def test_what_is_acknowledged_is_held_byte_for_byte_and_owed(reception: Reception) -> None:
    sent = {f"{SERIES}.{number}": data_set(number, bytes([number]) * 50_000) for number in range(1, 6)}
    with reception.client() as client:
        for number, content in enumerate(sent.values(), 1):
            assert client.store(number, content).status == 0
        client.release()
    assert reception.stored() == sent
    assert all(read_seal(reception.spool.path(file)) for file in reception.spool.files())
    owed = reception.journal.query(
        "SELECT destination, count(*) FROM delivery WHERE state='queued' GROUP BY destination"
    )
    assert [tuple(row) for row in owed] == [("archive", 5), ("pacs", 5)]
    assert events(reception.journal) == ["received"] * 5
    assert {"forward", "analyse"} <= set(reception.rung)
    assert eventually(lambda: [line for line in reception.lines if line[0] == "association_ended"])[0][1]["stored"] == 5
    (series,) = inbox.open_series(reception.journal)
    assert (series.arrivals, series.calling_ae, series.modality) == (5, "CT01", "CT")


@pytest.mark.promise("P1")
def test_associations_that_wait_share_a_commit(reception: Reception, tmp_path: Path, closed_later: ClosedLater) -> None:
    other = closed_later(Journal(tmp_path / "journal.sqlite", "other"))
    with ExitStack() as stack:
        clients = [stack.enter_context(reception.client()) for _ in range(8)]
        with other.write(durable=False):  # hold the writers' lock until all of them wait
            recorder = reception.receiver.recorder
            for number, client in enumerate(clients, 1):
                client.send(store_message(number))
                eventually(lambda: recorder.waiting >= 1)  # the first one leads, alone
            eventually(lambda: recorder.waiting == 8)
        assert [client.response().status for client in clients] == [0] * 8
    ticks = reception.journal.query("SELECT DISTINCT tick FROM instance")
    assert len(ticks) <= 2  # the first one's, and that of all others
    assert len(reception.stored()) == 8


@pytest.mark.promise("P3")
def test_a_repeat_keeps_no_second_file(reception: Reception) -> None:
    with reception.client() as client:
        assert [client.store(1).status, client.store(1).status] == [0, 0]
    assert len(reception.spool.files()) == 1
    assert reception.stored() == {f"{SERIES}.1": data_set(1)}
    assert events(reception.journal) == ["received", "repeated"]


@pytest.mark.promise("P1")
def test_a_repeat_of_what_somebody_removed_from_the_disk_is_kept(reception: Reception) -> None:
    with reception.client() as client:
        client.store(1)
        reception.spool.remove(reception.spool.files()[0])
        assert client.store(1).status == 0
    assert reception.stored() == {f"{SERIES}.1": data_set(1)}


@pytest.mark.promise("P9")
def test_what_says_of_itself_that_it_is_something_else_is_refused_and_forgotten(reception: Reception) -> None:
    with reception.client() as client:
        assert client.store(1, data_set(2)).status == 0xA900
        assert client.store(1, data_set(1, sop_class="1.2.840.10008.5.1.4.1.1.4")).status == 0xA900
        assert client.store(1, b"").status == 0xA900
        assert reception.spool.files() == []
        assert client.store(1, b"not a data set at all").status == 0  # unreadable is no reason to lose it
    assert events(reception.journal) == ["received_unsorted"]


@pytest.mark.promise("P5")
def test_below_the_reserve_it_says_so_and_recovers_without_a_restart(reception: Reception) -> None:
    plenty = reception.spool._limits
    with reception.client() as client:
        reception.spool._limits = replace(plenty, free_bytes=1 << 60)
        assert client.store(1).status == 0xA700
        reception.spool._limits = plenty
        assert client.store(1).status == 0


@pytest.mark.promise("P5")
def test_one_endless_data_set_does_not_eat_the_reserve(reception: Reception) -> None:
    with reception.client() as client:
        message = store_message(1, data_set(1, bytes(20 << 20)), piece=120_000)
        client.send(message[: 1 << 20])
        eventually(reception.spool.files)
        reception.spool._limits = replace(reception.spool._limits, free_bytes=1 << 60)
        client.send(message[1 << 20 :])
        assert client.response().status == 0xA700
        assert reception.spool.files() == []


@pytest.mark.promise("P1")
def test_half_an_object_leaves_nothing(reception: Reception) -> None:
    with reception.client() as client:
        client.send(store_message(1, data_set(1, bytes(100_000)))[:60_000])
        eventually(reception.spool.files)
    eventually(lambda: not reception.spool.files())
    assert count(reception.journal, "instance") == 0


def test_the_end_of_an_association_says_something_of_the_series_it_brought(reception: Reception) -> None:
    def open_series() -> Series:
        return inbox.open_series(reception.journal)[0]

    with reception.client() as client:
        client.store(1)
        client.release()
    eventually(lambda: open_series().released)
    with reception.client() as client:
        client.store(2)
        client.send(encode_abort(0, 0))
        assert client.is_closed()
    assert eventually(lambda: open_series().interrupted)

    with reception.client() as client:
        client.store(3)
        with reception.client() as idle:
            idle.send(encode_abort(0, 0))  # it had brought nothing
            assert idle.is_closed()
        eventually(lambda: len([line for line in reception.lines if line[0] == "association_ended"]) == 3)
        assert not open_series().interrupted
        client.release()


def test_series_close_by_themselves(tmp_path: Path) -> None:
    reception = Reception(tmp_path, silence_ms=50)
    with reception.open(), reception.client() as client:
        client.store(1)
        eventually(lambda: "series_closed" in events(reception.journal))
        client.store(2)
        eventually(lambda: events(reception.journal).count("series_closed") == 2)


@pytest.mark.promise("P6")
def test_a_sender_in_the_middle_of_an_image_is_not_silent(tmp_path: Path) -> None:
    reception = Reception(tmp_path, silence_ms=50)
    with reception.open(), reception.client() as client:
        message = store_message(2, data_set(2, bytes(100_000)))
        client.send(store_message(1) + message[:60_000])
        assert client.response().status == 0
        begun = reception.journal.clock.tick()
        eventually(lambda: reception.journal.clock.tick() > begun + 200)
        assert "series_closed" not in events(reception.journal)
        client.send(message[60_000:])
        assert client.response().status == 0
        eventually(lambda: "series_closed" in events(reception.journal))
        assert [event for event in events(reception.journal) if event != "received"] == ["series_closed"]


class Pause(threading.Event):
    """An event whose first waits each do one thing instead; then it says that it is set."""

    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self.steps = list(steps)

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


@pytest.mark.promise("P1")
def test_while_the_disk_is_bad_it_says_so_and_heals_by_itself(reception: Reception, tmp_path: Path) -> None:
    probe = tmp_path / "spool" / "probe"
    probe.mkdir()  # so that no probe can be written
    reception.spool.latch("cannot sync")
    beats: list[bool] = []

    def refused() -> None:
        with reception.client() as client:
            assert client.store(1).status == 0xA700

    assert heal(reception.box, Pause(refused, probe.rmdir), lambda: beats.append(True))
    assert len(beats) == 3
    assert [event for event, _ in reception.lines if "heal" in event or "latch" in event] == [
        "still_latched",
        "still_latched",
        "healed",
    ]
    with reception.client() as client:
        assert client.store(1).status == 0
    reception.spool.latch("cannot sync")
    probe.mkdir()
    assert not heal(reception.box, Pause(), lambda: None)


@pytest.mark.promise("P1")
def test_a_sweep_refuses_what_a_crash_cannot_explain(reception: Reception) -> None:
    reception.box = replace(reception.box, max_in_flight=2)
    folder = reception.spool.path("received/000009")
    folder.mkdir()
    for number in range(2 + copies.CHUNK):
        (folder / f"{number:09d}.dcm").touch()
    (folder / "000000999.dcm").touch()
    with pytest.raises(StoreFailed, match=f"holds {3 + copies.CHUNK} files"):
        discard_unacknowledged(reception.box)
    assert len(reception.spool.files()) == 3 + copies.CHUNK
    (folder / "000000999.dcm").unlink()
    discard_unacknowledged(reception.box)
    assert reception.spool.files() == []
    assert (reception.spool.root / "reserve").exists()
