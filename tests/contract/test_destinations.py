"""One suite for all destinations, then what is special to DICOM nodes and to folders."""

import hashlib
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.destinations.dimse import DimseNode, judge
from appliance.destinations.folder import Folder
from appliance.destinations.stow import StowNode
from appliance.destinations.stow_wire import WebTarget
from appliance.dimse.association import (
    ACCEPTED,
    AcceptedContext,
    AssociateAccept,
    AssociateRequest,
    decode_request,
    encode_accept,
)
from appliance.dimse.header import part10
from appliance.dimse.pdu import encode_release_rp
from appliance.dimse.small_pacs import ScriptedPacs, SmallPacs
from appliance.dimse.sop_classes import VERIFICATION
from appliance.dimse.wire import Target
from appliance.errors import AnswerLate, DeliveryError, DestinationRefused, ObjectRefused, TransientDeliveryError
from appliance.ports import Destination
from tests.acceptance.orthanc import Orthanc, dicom_web_plugin
from tests.waiting import eventually
from tests.web_pacs import WebPacs

CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.33"
EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, slots=True)
class Item:
    """A stored object: what a destination is told of it, and its file."""

    path: Path
    data_set: bytes = field(repr=False)
    sop_instance_uid: str
    sop_class_uid: str = CT
    transfer_syntax_uid: str = EXPLICIT

    @property
    def size(self) -> int:
        return len(self.data_set)


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    length = len(value).to_bytes(2, "little") if vr == "UI" else b"\0\0" + len(value).to_bytes(4, "little")
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr.encode() + length + value


Make = Callable[..., Item]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(number: int, size: int = 300_000) -> Item:
        uid = f"1.2.826.0.1.{number}"
        data = element(0x0008, 0x0016, "UI", CT.encode()) + element(0x0008, 0x0018, "UI", uid.encode())
        data += element(0x0020, 0x000D, "UI", b"1.2.826.0.2") + element(0x0020, 0x000E, "UI", b"1.2.826.0.3")
        data += element(0x7FE0, 0x0010, "OB", hashlib.shake_128(uid.encode()).digest(size))
        meta = element(0x0002, 0x0002, "UI", CT.encode()) + element(0x0002, 0x0003, "UI", uid.encode())
        meta += element(0x0002, 0x0010, "UI", EXPLICIT.encode())
        path = tmp_path / f"{number}.stored"
        path.write_bytes(bytes(128) + b"DICM" + meta + data)
        return Item(path, data, uid)

    return made


@dataclass(frozen=True, slots=True)
class Place:
    """A destination, and the data sets that arrived there."""

    destination: Destination
    arrived: Callable[[], list[bytes]]


def _size(path: Path) -> int:
    return part10(path).size


def data_sets(folder: Path) -> list[bytes]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return [path.read_bytes()[part10(path).data_set_offset :] for path in files]


def target(port: int, **changes: float) -> Target:
    return Target(
        host="127.0.0.1",
        port=port,
        calling_ae="SCANSIDE",
        called_ae="PACS",
        timeout_s=changes.get("timeout_s", 10.0),
        max_pdu=int(changes.get("max_pdu", 131072)),
    )


@pytest.fixture(scope="module")
def dicom_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "pacs", Plugins=[dicom_web_plugin()]) as orthanc:
        yield orthanc


@pytest.fixture(params=["pynetdicom", "dcmtk", "folder", "stow", "orthanc"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "pynetdicom":
        with SmallPacs(tmp_path / "pacs") as pacs:
            yield Place(DimseNode(target(pacs.port)), lambda: data_sets(tmp_path / "pacs"))
    elif request.param == "dcmtk":
        peer = request.getfixturevalue("storescp")
        yield Place(DimseNode(target(peer.port)), lambda: data_sets(peer.folder))
    elif request.param == "stow":
        with WebPacs(tmp_path / "web") as web:
            node = StowNode(WebTarget(url=f"http://127.0.0.1:{web.port}/dicom-web"))
            yield Place(node, lambda: data_sets(tmp_path / "web"))
    elif request.param == "orthanc":
        orthanc = request.getfixturevalue("dicom_web")
        for name in orthanc.instances():
            orthanc.delete(f"/instances/{name}")
        node = StowNode(WebTarget(url=orthanc.web_url))
        yield Place(node, lambda: [path.read_bytes()[-_size(path) :] for path in orthanc.files(tmp_path / "got")])
    else:
        (tmp_path / "out").mkdir()
        yield Place(Folder(tmp_path / "out"), lambda: data_sets(tmp_path / "out"))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedPacs]:
    with ScriptedPacs(tmp_path_factory.mktemp("scripted"), []) as pacs:
        yield pacs


@pytest.mark.promise("P3")
def test_objects_arrive_byte_for_byte(place: Place, make: Make) -> None:
    items = [make(1), make(2), make(3, size=10), make(4, size=2_000_001)]
    with place.destination.open(items) as session:
        for item in items:
            assert session.send(item, item.path) == ""
        assert session.alive
    assert sorted(place.arrived()) == sorted(item.data_set for item in items)


def test_sending_again_is_no_error(place: Place, make: Make) -> None:
    item = make(1)
    for _ in range(2):
        with place.destination.open([item]) as session:
            session.send(item, item.path)
            session.send(item, item.path)
    assert set(place.arrived()) == {item.data_set}


def test_a_missing_file_is_refused_and_the_session_goes_on(place: Place, make: Make) -> None:
    lost, item = make(1), make(2)
    lost.path.unlink()
    with place.destination.open([lost, item]) as session:
        with pytest.raises(ObjectRefused):
            session.send(lost, lost.path)
        assert session.alive
        session.send(item, item.path)
    assert place.arrived() == [item.data_set]


def test_a_file_that_is_no_dicom_is_refused(place: Place, make: Make) -> None:
    item = make(1)
    item.path.write_bytes(b"torn")
    with place.destination.open([item]) as session, pytest.raises(ObjectRefused):
        session.send(item, item.path)
    assert place.arrived() == []


def test_a_probe_sends_nothing(place: Place) -> None:
    place.destination.probe()
    assert place.arrived() == []


def test_a_session_for_nothing_opens(place: Place) -> None:
    with place.destination.open([]) as session:
        assert session.alive


def test_a_node_that_is_down_is_transient(tmp_path: Path, make: Make) -> None:
    pacs = SmallPacs(tmp_path / "pacs")
    with pacs:
        node = DimseNode(target(pacs.port))
        item = make(1)
        session = node.open([item])
        pacs.stop()
        with pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
        assert not session.alive
        with pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
        with pytest.raises(TransientDeliveryError):
            node.open([item])
        with pytest.raises(TransientDeliveryError):
            node.probe()
        pacs.start()
        with node.open([item]) as again:
            again.send(item, item.path)


def test_a_node_that_does_not_answer_is_transient(tmp_path: Path, make: Make) -> None:
    item = make(1)
    with SmallPacs(tmp_path / "pacs") as pacs:
        pacs.delay_s = 60.0
        with DimseNode(target(pacs.port, timeout_s=0.3)).open([item]) as session:
            with pytest.raises(TransientDeliveryError, match="no answer"):
                session.send(item, item.path)
            assert not session.alive


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (0x0000, None, ""),
        (0xB000, None, "0xB000 stored, with data elements coerced"),
        (0xB006, None, "0xB006 stored, with elements discarded"),
        (0xB007, None, "0xB007 stored, though the data set does not match its SOP class"),
        (0xB123, None, "0xB123 stored, with a warning"),
        (0xA700, TransientDeliveryError, "0xA700 out of resources"),
        (0xA7FF, TransientDeliveryError, "0xA7FF out of resources"),
        (0x0110, TransientDeliveryError, "0x0110 processing failure"),
        (0xA900, ObjectRefused, "0xA900 data set does not match its SOP class"),
        (0xC123, ObjectRefused, "0xC123 cannot understand the data set"),
        (0x0111, ObjectRefused, "0x0111 duplicate SOP instance"),
        (0x0117, ObjectRefused, "0x0117 invalid SOP instance"),
        (0x0122, ObjectRefused, "0x0122 SOP class not supported"),
        (0x0124, DestinationRefused, "0x0124 not authorised"),
        (0x0211, DestinationRefused, "0x0211 no storage service at this address"),
        (0x1234, ObjectRefused, "0x1234 refused"),
    ],
)
def test_what_each_status_means(
    scripted: ScriptedPacs, make: Make, status: int, error: type[DeliveryError] | None, text: str
) -> None:
    item = make(1, size=10)
    scripted.script.append(status)
    with DimseNode(target(scripted.port)).open([item]) as session:
        if error is None:
            assert session.send(item, item.path) == text
        else:
            with pytest.raises(error) as caught:
                session.send(item, item.path)
            assert (str(caught.value), caught.value.status) == (text, status)
        assert session.alive
        assert session.send(item, item.path) == ""


def test_every_status_has_a_meaning() -> None:
    assert all(judge(status).meaning for status in range(1, 0x10000))


def test_an_abort_is_transient_and_ends_the_session(scripted: ScriptedPacs, make: Make) -> None:
    item = make(1)
    scripted.script.append("abort")
    node = DimseNode(target(scripted.port))
    with node.open([item]) as session:
        with pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
        assert not session.alive
    with node.open([item]) as session:
        assert session.send(item, item.path) == ""


def test_a_session_that_the_node_ends_while_it_rests_is_seen_to_be_over(tmp_path: Path, make: Make) -> None:
    item = make(1)
    with SmallPacs(tmp_path / "pacs") as pacs, DimseNode(target(pacs.port)).open([item]) as session:
        assert session.send(item, item.path) == ""
        assert session.alive
        pacs.__exit__(None, None, None)
        eventually(lambda: not session.alive, what="it is seen")


def test_a_node_that_answers_late_is_given_longer_each_time(tmp_path: Path, make: Make) -> None:
    one = make(1)
    with SmallPacs(tmp_path / "pacs") as pacs:
        pacs.delay_s = 0.7
        node = DimseNode(target(pacs.port, timeout_s=0.5))
        with pytest.raises(AnswerLate), node.open([one]) as session:
            session.send(one, one.path)
        with node.open([one]) as session:
            assert not session.send(one, one.path)


def test_what_the_node_did_not_accept_is_refused_and_what_was_not_proposed_is_not(tmp_path: Path, make: Make) -> None:
    item = make(1)
    foreign = Item(item.path, item.data_set, item.sop_instance_uid, sop_class_uid="1.2.3.4")
    with SmallPacs(tmp_path / "pacs") as pacs:
        node = DimseNode(target(pacs.port))
        with node.open([foreign]) as session:
            with pytest.raises(TransientDeliveryError, match="not proposed"):
                session.send(item, item.path)
            assert session.alive
        item.path.write_bytes(item.path.read_bytes().replace(CT.encode() + b"\0", b"1.2.3.4".ljust(26, b"\0")))
        with node.open([foreign]) as session, pytest.raises(ObjectRefused, match="not accepted"):
            session.send(foreign, item.path)


class Node:
    """A node that takes associations with these SOP classes only; `takes` may be changed between two."""

    def __init__(self, *takes: str) -> None:
        self.takes = takes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(10)
                    connection.sendall(self._accepting(decode_request(self._pdu(connection))))
                    self._pdu(connection)  # the release, or the end
                    connection.sendall(encode_release_rp())

    def _accepting(self, request: AssociateRequest) -> bytes:
        contexts = tuple(
            AcceptedContext(
                id=one.id,
                result=ACCEPTED if one.abstract_syntax in self.takes else 2,
                transfer_syntax=one.transfer_syntaxes[0],
            )
            for one in request.contexts
        )
        return encode_accept(AssociateAccept(called_ae="PACS", calling_ae="SCANSIDE", contexts=contexts, max_pdu=16384))

    @staticmethod
    def _pdu(connection: socket.socket) -> bytes:
        header = connection.recv(6, socket.MSG_WAITALL)
        return connection.recv(int.from_bytes(header[2:6], "big"), socket.MSG_WAITALL) if header else b""


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


def test_a_node_that_takes_no_context_at_all_suspends_the_lane(node: Node, make: Make) -> None:
    item = make(1)
    with pytest.raises(DestinationRefused, match="no presentation context"):
        DimseNode(target(node.port)).open([item])


def test_what_a_node_never_took_is_the_objects_fault_and_what_it_took_before_is_the_nodes(
    node: Node, make: Make
) -> None:
    item, destination = make(1), DimseNode(target(node.port))
    node.takes = (VERIFICATION,)
    with destination.open([item]) as session, pytest.raises(ObjectRefused, match="not accepted"):
        session.send(item, item.path)
    node.takes = (VERIFICATION, CT)
    with destination.open([item]):
        pass
    node.takes = (VERIFICATION,)
    with pytest.raises(DestinationRefused, match="no presentation context"):
        destination.open([item])
    node.takes = (SR,)
    with (
        destination.open([item, replace(item, sop_class_uid=SR)]) as session,
        pytest.raises(ObjectRefused, match="not accepted"),
    ):
        session.send(item, item.path)


def test_a_file_that_holds_another_object_is_not_sent(tmp_path: Path, make: Make) -> None:
    item, other = make(1), make(2)
    with SmallPacs(tmp_path / "pacs") as pacs, DimseNode(target(pacs.port)).open([item]) as session:
        with pytest.raises(ObjectRefused, match="another object"):
            session.send(item, other.path)
        assert pacs.received() == []


def test_a_folder_that_is_not_there_suspends_the_lane(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "not mounted")
    with pytest.raises(DestinationRefused):
        folder.probe()
    with pytest.raises(DestinationRefused):
        folder.open([])
    assert not (tmp_path / "not mounted").exists()


def test_a_folder_that_goes_away_suspends_the_lane(tmp_path: Path, make: Make) -> None:
    out, item = tmp_path / "out", make(1)
    out.mkdir()
    with Folder(out).open([item]) as session:
        out.rmdir()
        with pytest.raises(DestinationRefused):
            session.send(item, item.path)


def test_a_full_folder_is_transient_and_leaves_nothing_behind(tmp_path: Path, make: Make) -> None:
    out, item = tmp_path / "out", make(1)
    out.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (item.size // 2, hard))
    try:
        with Folder(out).open([item]) as session, pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(out.iterdir()) == []


def test_versions_of_an_object_get_files_of_their_own(tmp_path: Path, make: Make) -> None:
    out, item = tmp_path / "out", make(1)
    out.mkdir()
    with Folder(out).open([item]) as session:
        session.send(item, item.path)
        item.path.write_bytes(item.path.read_bytes()[:-1] + b"!")
        session.send(item, item.path)
    assert len(data_sets(out)) == 2
    assert all(path.stem.isalnum() for path in out.iterdir())


def test_the_small_pacs_is_for_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loopback"):
        SmallPacs(tmp_path, bind="0.0.0.0")  # noqa: S104 - that is the point
