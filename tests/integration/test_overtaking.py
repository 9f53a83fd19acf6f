"""A lane over a thin line to a real receiver: results pass images in mid-file, and the line carries what it may."""

import hashlib
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from appliance.dimse.small_pacs import SmallPacs
from appliance.dimse.sop_classes import COMPREHENSIVE_3D_SR, SECONDARY_CAPTURE
from appliance.dimse.wire import Target
from appliance.errors import OutOfResources
from appliance.file_head import file_head
from appliance.journal.store import Journal
from appliance.model import Delivery, Owed, Urgency
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.courier import LARGE
from appliance.stages.forward.crew import READY_S
from appliance.stages.forward.timetable import Hours, Paced, Timetable
from appliance.stages.forward.turns import KEEP_ALIVE_BYTES
from appliance.stages.forward.ways import LINGER_S
from appliance.wakeup import SLOW_POLL_S
from tests.contract.test_destinations import element
from tests.handed_over import HandedOver, WatchedNode
from tests.journals import CT_IMAGE, EXPLICIT, SERIES, arrival, open_journal, receive
from tests.thin_line import PIECE, ThinLine
from tests.waiting import eventually

SR = "1.2.840.10008.5.1.4.1.1.88.33"
KB = 1000
LONG = 8000 * KB  # takes the thin line 20 s at least
RESULT_S = 10.0  # from "it is owed" to "the PACS has it", on a busy machine, too
ALL_S = 30.0


@dataclass
class Site:
    """Objects owed to a PACS at the other end of a thin line."""

    folder: Path
    journal: Journal
    pacs: SmallPacs
    line: ThinLine
    sent: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    handed_over: HandedOver = field(default_factory=HandedOver)

    def lane(self, associations: int = 4, timetable: Timetable | None = None, port: int = 0) -> Lane:
        box = Outbox(
            journal=self.journal, path=lambda file: self.folder / file, log=lambda *_, **__: None, changed=lambda: None
        )
        target = Target(host="127.0.0.1", port=port or self.line.port, calling_ae="SCANSIDE", called_ae="PACS")
        return Lane("pacs", WatchedNode(target, self.handed_over), box, associations, timetable)

    def owe(self, urgency: Urgency, size: int, sop_class: str = CT_IMAGE) -> str:
        self.rows += 1
        uid = f"{SERIES}.{self.rows}"
        data = element(0x0008, 0x0016, "UI", sop_class.encode()) + element(0x0008, 0x0018, "UI", uid.encode())
        data += element(0x7FE0, 0x0010, "OB", hashlib.shake_128(uid.encode()).digest(size))
        one = arrival(self.rows, content=data, sop_class_uid=sop_class)
        path = self.folder / one.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_head(sop_class, uid, EXPLICIT, "CT01") + data)
        receive(self.journal, one, owed=(Owed(destination="pacs", urgency=urgency),))
        self.sent[uid] = hashlib.sha256(data).hexdigest()
        return uid

    def has(self, uid: str) -> bool:
        return any(one.sop_instance_uid == uid for one in self.pacs.received())

    def owed(self) -> int:
        """Deliveries that are not noted as sent."""
        row = self.journal.one("SELECT count(*) FROM delivery WHERE state='queued'")
        assert row is not None
        return int(row[0])

    def order(self) -> list[str]:
        return [one.sop_instance_uid for one in self.pacs.received()]

    def is_whole(self) -> bool:
        return {one.sop_instance_uid: one.sha256 for one in self.pacs.received()} == self.sent

    def once_each(self) -> bool:
        return all(one.times == 1 for one in self.pacs.received())


class Gate(ABC):
    """Before a server: what happens to its connections is the subclass's affair."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._take(self._listener.accept()[0])

    @abstractmethod
    def _take(self, near: socket.socket) -> None: ...

    def _let_through(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._server_port)) as far:
            back = threading.Thread(target=pour, args=(far, near), daemon=True)
            back.start()
            pour(near, far)
            back.join()


class Turnstile(Gate):
    """Lets one connection through at a time; the next is taken, and waits."""

    def _take(self, near: socket.socket) -> None:
        self._let_through(near)


class Spoiler(Gate):
    """Lets one connection through at a time; of any other, the association, and ends it at the first object."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self.spoiled = 0
        self._through = threading.Lock()

    def _take(self, near: socket.socket) -> None:
        carry = self._pass if self._through.acquire(blocking=False) else self._spoil
        threading.Thread(target=carry, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        self._let_through(near)
        self._through.release()

    def _spoil(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._server_port)) as far:
            far.sendall(near.recv(1 << 16))
            near.sendall(far.recv(1 << 16))
            near.recv(1)
            self.spoiled += 1


def pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def running(lane: Lane) -> Iterator[None]:
    thread = threading.Thread(target=lane.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        lane.stop()
        thread.join(10.0)
        assert not thread.is_alive()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (
        SmallPacs(tmp_path / "pacs") as pacs,
        ThinLine(pacs.port, 400 * KB) as line,
        closing(open_journal(tmp_path / "j", "forward")) as journal,
    ):
        yield Site(tmp_path, journal, pacs, line)


def stood_still(site: Site, uid: str, of: str) -> bool:
    """Whether one object's sender handed nothing over while that of another had the line. A piece that it was granted
    before may be told of right after the other has begun.
    """
    during = site.handed_over.during(uid, of)
    return sum(piece.size > KEEP_ALIVE_BYTES for piece in during) <= 1


def of_the_image_while_the_result_went(site: Site) -> int:
    """Bytes of the connection that carried most, between the first and the last whole piece of another."""
    carried: Counter[int] = Counter()
    pieces = list(site.line.carried)
    for number, size in pieces:
        carried[number] += size
    image = carried.most_common(1)[0][0]
    of_result = [index for index, (number, size) in enumerate(pieces) if number != image and size == PIECE]
    return sum(size for number, size in pieces[of_result[0] : of_result[-1]] if number == image)


@pytest.mark.promise("P7")
def test_a_result_passes_an_image_in_mid_file_and_the_image_goes_on_where_it_was(site: Site) -> None:
    """The line is one queue: of the image, no more passes between the result's bytes than was handed over before."""
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.carried_in_all() > 600 * KB, ALL_S, "its speed is known")
        result = site.owe(Urgency.RESULT, 600 * KB, SR)
        lane.wake()
        eventually(lambda: site.has(result), RESULT_S, "the result is there")
        assert not site.has(image)
        assert stood_still(site, image, result)
        assert of_the_image_while_the_result_went(site) < 300 * KB, "little waited in its socket"
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


@pytest.mark.promise("P7")
def test_an_urgent_report_passes_a_large_result(site: Site) -> None:
    large = site.owe(Urgency.RESULT, LONG, SR)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.carried_in_all() > 600 * KB, ALL_S, "its speed is known")
        urgent = site.owe(Urgency.URGENT_SR, 600 * KB, SR)
        lane.wake()
        eventually(lambda: site.has(urgent), RESULT_S, "the urgent report is there")
        assert not site.has(large)
        assert stood_still(site, large, urgent)
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def a_result_passes(site: Site, lane: Lane) -> None:
    result = site.owe(Urgency.RESULT, 20 * KB, SR)
    lane.wake()
    eventually(partial(site.has, result), RESULT_S, "the result is there")


@pytest.mark.promise("P7")
def test_results_pass_one_by_one_for_as_long_as_the_image_takes(site: Site) -> None:
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        for _ in range(3):
            a_result_passes(site, lane)
            assert not site.has(image)
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


@pytest.mark.promise("P7")
def test_an_association_for_results_stays_open_while_an_image_is_under_way_and_no_longer(site: Site) -> None:
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        for _ in range(2):
            a_result_passes(site, lane)
            time.sleep(LINGER_S + 0.3)  # for which any other association would have been kept
        assert not site.has(image)
        assert site.line.open_now == 2
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
        eventually(lambda: not site.line.open_now, READY_S / 2, "nothing is kept open")
    assert len({number for number, _ in site.line.carried}) == 2
    assert site.once_each()


@pytest.mark.promise("P7")
def test_for_an_urgent_report_one_association_is_opened_beside_the_images(site: Site) -> None:
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        for _ in range(3):
            urgent = site.owe(Urgency.URGENT_SR, 20 * KB, SR)
            lane.wake()
            eventually(partial(site.has, urgent), RESULT_S, "the urgent report is there")
        assert not site.has(image)
        assert len({number for number, _ in site.line.carried}) == 2
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def test_that_a_result_was_sent_is_noted_before_the_image_after_it_is_through(site: Site) -> None:
    result = site.owe(Urgency.RESULT, 20 * KB, SR)
    image = site.owe(Urgency.IMAGE, LARGE)  # before a larger one, all is noted
    with running(site.lane(associations=1)):
        eventually(lambda: site.owed() == 1, RESULT_S, "it is noted")
        assert site.has(result)
        assert not site.has(image)
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


@pytest.mark.promise("P7")
def test_a_result_of_another_class_goes_on_the_association_that_an_urgent_report_left(site: Site) -> None:
    """Opening one takes round trips on a line that is full."""
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        urgent = site.owe(Urgency.URGENT_SR, 20 * KB, COMPREHENSIVE_3D_SR)
        lane.wake()
        eventually(lambda: site.has(urgent), RESULT_S, "the urgent report is there")
        eventually(lambda: len(lane._crew._ways), RESULT_S, "its association rests")
        picture = site.owe(Urgency.RESULT, 20 * KB, SECONDARY_CAPTURE)
        lane.wake()
        eventually(lambda: site.has(picture), RESULT_S, "the picture is there")
        assert not site.has(image)
        assert len({number for number, _ in site.line.carried}) == 2
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def test_a_pacs_that_lets_a_second_association_wait_holds_no_result_back(site: Site) -> None:
    """One at a time, and the next one waits in its backlog: the lane's own takes the result between two images."""
    with Turnstile(site.pacs.port) as turnstile:
        images = [site.owe(Urgency.IMAGE, 100 * KB) for _ in range(10)]
        site.line.bytes_s = 1e9
        site.pacs.delay_s = 0.3
        lane = site.lane(port=turnstile.port)
        with running(lane):
            eventually(lambda: site.has(images[0]))
            result = site.owe(Urgency.RESULT, 40 * KB, SR)
            begun = len(site.handed_over.begun)
            lane.wake()
            eventually(lambda: site.has(result), RESULT_S, "the result is there")
            assert site.handed_over.begun.index(result) <= begun + 1, "but for the image that was chosen just before"
            eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def test_a_pacs_that_ends_each_further_association_at_its_first_object_is_not_asked_for_one_again(site: Site) -> None:
    with Spoiler(site.line.port) as spoiler:
        site.owe(Urgency.IMAGE, LONG)
        lane = site.lane(associations=1, port=spoiler.port)
        with running(lane):
            eventually(lambda: site.line.open_now)
            for _ in range(3):
                site.owe(Urgency.RESULT, 20 * KB, SR)
                lane.wake()
                eventually(lambda: spoiler.spoiled, RESULT_S, "the second association is lost")
            carried = site.line.carried_in_all()
            eventually(lambda: site.line.carried_in_all() > carried + 600 * KB, ALL_S, "the image goes on")
            assert spoiler.spoiled == 1
            site.line.bytes_s = 1e9
            eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def test_threads_and_descriptors_do_not_grow_from_burst_to_burst(site: Site) -> None:
    site.line.bytes_s = 1e9
    site.pacs.delay_s = 0.05
    lane = site.lane(associations=4)
    counts, hands = list[int](), list[int]()
    with running(lane):
        for burst in range(4):
            for _ in range(40 if burst == 0 else 8):
                site.owe(Urgency.IMAGE, 10 * KB)
            lane.wake()
            eventually(site.is_whole, ALL_S, "all is there")
            eventually(lambda: site.line.open_now == 0, RESULT_S, "idle associations end")
            counts.append(sum(name.endswith("journal.sqlite") for name in open_files()))
            hands.append(sum(thread.name.startswith("lane-pacs-images-") for thread in threading.enumerate()))
    # this test's, the lane's, its expresses', the writer's
    assert all(count <= 1 + 1 + 2 + 1 + of_hands for count, of_hands in zip(counts, hands, strict=True))
    assert max(hands) <= 3


def open_files() -> list[str]:
    """Of this process."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(one.readlink()))
    return found


def test_while_the_journal_is_locked_nothing_is_forgotten(site: Site) -> None:
    """The claim of what could not be tried is given back."""
    site.owe(Urgency.IMAGE, 10 * KB)
    lane = site.lane()
    asked = iter([OutOfResources("another program keeps the journal locked")])
    coming = lane.desk.coming

    def locked_once(count: int) -> list[Delivery]:
        for error in asked:
            raise error
        return coming(count)

    lane.desk.coming = locked_once  # type: ignore[method-assign]
    with running(lane):
        eventually(site.is_whole, ALL_S, "all is there")


@pytest.mark.promise("P7")
def test_a_pacs_that_grants_one_association_gets_the_result_before_the_next_image(site: Site) -> None:
    site.pacs.stop()
    site.pacs.associations = 1
    site.pacs.start()
    images = [site.owe(Urgency.IMAGE, size) for size in (LONG, 400 * KB, 400 * KB)]
    lane = site.lane()
    with running(lane):
        eventually(lambda: site.line.open_now)
        result = site.owe(Urgency.RESULT, 40 * KB, SR)
        lane.wake()
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.order() == [images[0], result, *images[1:]]
    assert site.once_each()


@pytest.mark.promise("P7")
def test_a_pacs_that_grants_two_associations_gets_an_urgent_report_on_the_one_that_a_result_left(site: Site) -> None:
    site.pacs.stop()
    site.pacs.associations = 2
    site.pacs.start()
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        a_result_passes(site, lane)
        urgent = site.owe(Urgency.URGENT_SR, 20 * KB, SR)
        lane.wake()
        eventually(lambda: site.has(urgent), RESULT_S, "the urgent report is there")
        assert not site.has(image)
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


@pytest.mark.promise("P7")
def test_a_pacs_that_denies_a_third_association_gets_results_on_the_second_one_by_one(site: Site) -> None:
    """The image has the first for long; what is most urgent does not wait for its end, though it was denied its own."""
    site.pacs.stop()
    site.pacs.associations = 2
    site.pacs.start()
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        large = site.owe(Urgency.RESULT, 800 * KB, SR)
        lane.wake()
        eventually(lambda: site.handed_over.begun.count(large), RESULT_S, "the large result is under way")
        urgent = site.owe(Urgency.URGENT_SR, 20 * KB, SR)
        lane.wake()
        eventually(lambda: site.has(urgent), RESULT_S, "the urgent report is there")
        assert len({number for number, _ in site.line.carried}) == 3, "one of its own was asked for"
        a_result_passes(site, lane)
        urgent = site.owe(Urgency.URGENT_SR, 20 * KB, COMPREHENSIVE_3D_SR)
        lane.wake()
        eventually(lambda: site.has(urgent), RESULT_S, "the next one is there")
        assert not site.has(image)
        assert len({number for number, _ in site.line.carried}) == 3, "and not again"
        site.line.bytes_s = 1e9
        eventually(site.is_whole, ALL_S, "all is there")
    assert site.once_each()


def test_told_to_stop_in_mid_file_it_stops_and_the_image_is_still_owed(site: Site) -> None:
    site.owe(Urgency.IMAGE, 8000 * KB)
    lane = site.lane(associations=1)
    with running(lane):
        eventually(lambda: site.line.open_now)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10.0
    row = site.journal.one("SELECT state, attempts FROM delivery")
    assert row is not None
    assert tuple(row) == ("queued", 0)


def test_more_associations_are_opened_where_more_goes_through(site: Site) -> None:
    """A PACS that takes its time for each answer: the line is idle most of the time."""
    site.line.bytes_s = 1e9
    site.pacs.delay_s = 0.1
    for _ in range(90):
        site.owe(Urgency.IMAGE, 20 * KB)
    lane = site.lane(associations=4)
    with running(lane):
        eventually(site.is_whole, 2 * ALL_S, "all is there")
        eventually(lambda: not site.owed(), SLOW_POLL_S / 2, "and noted")
    assert 2 <= site.line.most_open <= 5  # one of them may be for results
    assert site.once_each()


@pytest.mark.promise("P7")
def test_images_keep_to_the_pace_and_results_do_not_wait_for_it(site: Site) -> None:
    site.line.bytes_s = 1e9
    all_day, pace = Hours(first=0, end=24 * 60), 200 * KB
    paced = [Paced(hours=all_day, bytes_s=pace)]
    image = site.owe(Urgency.IMAGE, LONG)
    lane = site.lane(associations=1, timetable=Timetable(minute=lambda: 600, paced=paced))
    begun = time.monotonic()
    with running(lane):
        eventually(lambda: site.line.open_now)
        result = site.owe(Urgency.RESULT, 40 * KB, SR)
        lane.wake()
        eventually(lambda: site.has(result), RESULT_S, "the result is there")
        assert not site.has(image)
        eventually(lambda: site.line.carried_in_all() > 400 * KB, ALL_S, "the image goes on")
        assert site.line.carried_in_all() < pace * (time.monotonic() - begun) + 100 * KB
        paced.clear()
        eventually(site.is_whole, ALL_S, "all is there")


def test_images_wait_for_their_hours_and_results_do_not(site: Site) -> None:
    minute = [12 * 60]
    timetable = Timetable(minute=lambda: minute[0], images=Hours(first=19 * 60, end=7 * 60))
    image, result = site.owe(Urgency.URGENT_IMAGE, 20 * KB), site.owe(Urgency.RESULT, 20 * KB, SR)
    lane = site.lane(timetable=timetable)
    with running(lane):
        eventually(lambda: site.has(result), RESULT_S, "the result is there")
        eventually(lambda: lane.state == "idle", RESULT_S)
        assert not site.has(image)
        minute[0] = 23 * 60
        lane.wake()
        eventually(site.is_whole, RESULT_S, "all is there")
