"""The requestor over real sockets: against DCMTK, against pynetdicom, and against peers that misbehave."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest

from appliance.dimse import pdu
from appliance.dimse.association import AcceptedContext, AssociateAccept, encode_accept
from appliance.dimse.command import Command, CommandField, echo_request, encode, response, store_request
from appliance.dimse.header import Part10, part10
from appliance.dimse.requestor import VERIFICATION_PAIR, Answer, RequestedAssociation, connect
from appliance.dimse.small_pacs import SmallPacs
from appliance.dimse.wire import Target
from appliance.errors import DestinationRefused, ObjectRefused, TransientDeliveryError

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
STORED = (CT, EXPLICIT)
ROOT = Path(__file__).resolve().parents[2]


def target(port: int, timeout_s: float = 10.0, max_pdu: int = 131072) -> Target:
    return Target(
        host="127.0.0.1", port=port, calling_ae="SCANSIDE", called_ae="PACS", timeout_s=timeout_s, max_pdu=max_pdu
    )


def samples(*more: Path) -> list[Part10]:
    """pydicom's own test files, and those of other folders."""
    found = []
    for folder in (Path(pydicom.__file__).parent / "data" / "test_files", *more):
        for path in sorted(folder.glob("*.dcm")):
            with suppress(ValueError):  # some are made to be no Part 10 files
                found.append(part10(path))
    return found


def pairs(items: list[Part10]) -> list[tuple[str, str]]:
    return [(item.sop_class_uid, item.transfer_syntax_uid) for item in items]


def data_set(item: Part10) -> bytes:
    return item.path.read_bytes()[item.data_set_offset :]


def on_the_wire(item: Part10) -> bytes:
    """A deflated stream of odd length is padded (PS3.5 A.5); every other data set goes as it is."""
    data = data_set(item)
    return data + b"\0" if len(data) % 2 and item.transfer_syntax_uid == "1.2.840.10008.1.2.1.99" else data


def stored_by(folder: Path) -> set[bytes]:
    return {hashlib.sha256(data_set(part10(path))).digest() for path in folder.iterdir() if path.is_file()}


def test_every_transfer_syntax_reaches_pynetdicom_byte_for_byte(tmp_path: Path) -> None:
    items = list({item.sop_instance_uid: item for item in samples()}.values())
    assert len({item.transfer_syntax_uid for item in items}) > 8
    with SmallPacs(tmp_path) as pacs:
        with connect(target(pacs.port), pairs(items)) as association:
            for item in items:
                assert association.store(item) == Answer(status=0)
        received = {record.sop_instance_uid: record for record in pacs.received()}
    for item in items:
        record = received[item.sop_instance_uid]
        assert record.sha256 == hashlib.sha256(on_the_wire(item)).hexdigest()
        assert record.transfer_syntax_uid == item.transfer_syntax_uid


def test_real_files_reach_dcmtk_byte_for_byte(storescp: Any, real_data: Path) -> None:
    items = samples(real_data / "conformance")
    with connect(target(storescp.port), pairs(items)) as association:
        taken = [item for item in items if association.accepted(item.sop_class_uid, item.transfer_syntax_uid)]
        sent = [item for item in taken if len(on_the_wire(item)) % 2 == 0]
        assert len({item.transfer_syntax_uid for item in sent}) >= 12
        for item in sent:
            assert association.store(item).status == 0, item.path.name
    assert stored_by(storescp.folder) == {hashlib.sha256(on_the_wire(item)).digest() for item in sent}


def test_a_peer_that_aborts_at_odd_length_refuses_the_object(tmp_path: Path, storescp: Any) -> None:
    path = big_file(tmp_path, 1001)
    with connect(target(storescp.port), [STORED]) as association:
        with pytest.raises(ObjectRefused, match="odd length"):
            association.store(part10(path))
        assert not association.alive


def test_c_echo(storescp: Any) -> None:
    with connect(target(storescp.port), [VERIFICATION_PAIR]) as association:
        assert association.echo() == Answer(status=0)
    with pytest.raises(TransientDeliveryError, match="over"):
        association.echo()


@pytest.mark.parametrize("max_pdu", [512, 4096, 16384, 1 << 20])
def test_any_maximum_length_will_do(tmp_path: Path, max_pdu: int) -> None:
    item = samples()[0]
    with SmallPacs(tmp_path) as pacs:
        with connect(target(pacs.port, max_pdu=max_pdu), pairs([item])) as association:
            association.store(item)
        (record,) = pacs.received()
    assert record.sha256 == hashlib.sha256(data_set(item)).hexdigest()


SENDER = """
import json, resource, sys
from pathlib import Path
from appliance.dimse.header import part10
from appliance.dimse.requestor import connect
from appliance.dimse.wire import Target
item = part10(Path(sys.argv[1]))
target = Target(host="127.0.0.1", port=int(sys.argv[2]), calling_ae="A", called_ae="B")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with connect(target, [(item.sop_class_uid, item.transfer_syntax_uid)]) as association:
    status = association.store(item).status
print(json.dumps([status, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def big_file(folder: Path, size: int) -> Path:
    """A sparse Part 10 file whose pixel data has this many zeros."""

    def element(group: int, number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return b"".join(n.to_bytes(2, "little") for n in (group, number)) + b"UI" + bytes((len(value), 0)) + value

    head = bytes(128) + b"DICM" + element(2, 2, CT.encode()) + element(2, 3, b"1.2.3")
    head += element(2, 0x10, EXPLICIT.encode()) + element(8, 0x16, CT.encode()) + element(8, 0x18, b"1.2.3")
    head += b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    path = folder / "big.dcm"
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    return path


def test_a_big_file_needs_little_memory(tmp_path: Path, storescp: Any) -> None:
    path = big_file(tmp_path, 200 << 20)
    sent = subprocess.run(
        [sys.executable, "-c", SENDER, str(path), str(storescp.port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        text=True,
    )
    status, before_kb, after_kb = json.loads(sent.stdout)
    assert status == 0
    assert after_kb - before_kb < 8 << 10
    (arrived,) = storescp.folder.iterdir()
    assert part10(arrived).size == part10(path).size


def test_a_connection_cut_in_mid_transfer_is_transient(tmp_path: Path) -> None:
    item = part10(big_file(tmp_path, 20 << 20))
    with SmallPacs(tmp_path / "pacs") as pacs:
        pacs.delay_s = 30.0  # the answer is still out when the line breaks
        association = connect(target(pacs.port), [STORED])
        cutter = threading.Timer(0.1, pacs.cut)
        cutter.start()
        with pytest.raises(TransientDeliveryError):
            association.store(item)
        cutter.join()
        assert not association.alive
        assert pacs.received() == []


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TransientDeliveryError, match="refused"):
            connect(target(unused.getsockname()[1]), [STORED])


def test_a_name_nobody_knows() -> None:
    with pytest.raises(TransientDeliveryError, match="cannot connect"):
        connect(Target(host="pacs.invalid", port=104, calling_ae="A", called_ae="B"), [STORED])


def test_too_many_contexts_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="129"):
        connect(target(1), [(f"1.2.{n}", EXPLICIT) for n in range(129)])


Serve = Callable[[socket.socket], None]


@contextmanager
def peer(serve: Serve) -> Iterator[int]:
    """A server for one connection in a thread; `serve` gets it after the association request was read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                read_pdu(connection)
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(10)
            assert not thread.is_alive()


def read_pdu(connection: socket.socket) -> bytes:
    header = connection.recv(6, socket.MSG_WAITALL)
    return connection.recv(int.from_bytes(header[2:6], "big"), socket.MSG_WAITALL) if header else b""


def accept(max_pdu: int = 0, transfer_syntax: str = EXPLICIT) -> bytes:
    contexts = (AcceptedContext(id=1, result=0, transfer_syntax=transfer_syntax),)
    return encode_accept(AssociateAccept(called_ae="PACS", calling_ae="SCANSIDE", contexts=contexts, max_pdu=max_pdu))


def opened(port: int, timeout_s: float = 5.0) -> RequestedAssociation:
    return connect(target(port, timeout_s), [STORED])


def wait_for_end(connection: socket.socket) -> None:
    with suppress(ConnectionResetError):  # which is how an end arrives from a side that left bytes unread
        while connection.recv(65536):
            pass


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (pdu.encode_reject(1, 1, 7), DestinationRefused, "called AE title not recognised"),
        (pdu.encode_reject(1, 1, 3), DestinationRefused, "calling AE title not recognised"),
        (pdu.encode_reject(2, 3, 2), TransientDeliveryError, "local limit exceeded"),
        (pdu.encode_abort(2, 0), TransientDeliveryError, "aborted by the peer"),
        (b"", TransientDeliveryError, "closed by the peer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TransientDeliveryError, "not a DICOM"),
        (pdu.encode_release_rp(), TransientDeliveryError, "no answer"),
        (pdu.encode_control(pdu.PduType.ASSOCIATE_AC, bytes(10)), TransientDeliveryError, "cut short"),
        (accept(max_pdu=100), TransientDeliveryError, "100 bytes only"),
    ],
)
def test_answers_to_the_request(answer: bytes, error: type[Exception], text: str) -> None:
    with peer(lambda connection: connection.sendall(answer)) as port, pytest.raises(error, match=text):
        opened(port)


def test_no_answer_to_the_request() -> None:
    with peer(wait_for_end) as port, pytest.raises(TransientDeliveryError, match=r"no progress within 0\.2 s"):
        opened(port, timeout_s=0.2)


def test_a_dripping_answer_does_not_hold_us() -> None:
    def drip(connection: socket.socket) -> None:
        stop = threading.Event()
        for byte in accept():
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                return
            stop.wait(0.05)

    begun = time.monotonic()
    with peer(drip) as port, pytest.raises(TransientDeliveryError):
        opened(port, timeout_s=0.3)
    assert time.monotonic() - begun < 3


def test_another_transfer_syntax_than_proposed_is_not_accepted(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(accept(transfer_syntax="1.2.840.10008.1.2"))
        wait_for_end(connection)

    item = part10(big_file(tmp_path, 100))
    with peer(serve) as port:
        association = opened(port)
        assert not association.accepted(*STORED)
        with pytest.raises(ObjectRefused, match="not accepted"):
            association.store(item)
        assert association.alive
        association.abort()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(encode(response(store_request(99, CT, "1.2.3"), 0), 1), id="to another message"),
        pytest.param(encode(response(echo_request(1), 0), 1), id="to another operation"),
        pytest.param(encode(Command(field=CommandField.N_EVENT_REPORT, message_id=1), 1), id="a request"),
        pytest.param(pdu.encode_p_data(1, b"data", is_command=False), id="a data set"),
        pytest.param(pdu.encode_p_data(1, b"nonsense", is_command=True), id="nonsense"),
        pytest.param(pdu.encode_p_data(1, bytes(60000), is_command=True, is_last=False) * 2, id="endless command"),
        pytest.param(pdu.encode_release_rq(), id="release"),
        pytest.param(pdu.encode_abort(0, 0), id="abort"),
    ],
)
def test_what_is_no_answer_ends_the_association(tmp_path: Path, answer: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(accept())
        read_pdu(connection)
        connection.sendall(answer)
        wait_for_end(connection)

    item = part10(big_file(tmp_path, 100))
    with peer(serve) as port:
        association = opened(port)
        with pytest.raises(TransientDeliveryError):
            association.store(item)
        assert not association.alive


def test_a_peer_that_stops_reading_does_not_hold_us(tmp_path: Path) -> None:
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(accept())
        done.wait(10)

    item = part10(big_file(tmp_path, 50 << 20))
    with peer(serve) as port:
        association = opened(port, timeout_s=0.3)
        with pytest.raises(TransientDeliveryError, match="no progress"):
            association.store(item)
        done.set()


def test_a_file_cut_while_it_is_sent_ends_the_association(tmp_path: Path) -> None:
    path = big_file(tmp_path, 1 << 20)
    item = part10(path)
    os.truncate(path, 1 << 19)

    def serve(connection: socket.socket) -> None:
        connection.sendall(accept())
        wait_for_end(connection)

    with peer(serve) as port:
        association = opened(port)
        with pytest.raises(ObjectRefused, match="shorter"):
            association.store(item)
        assert not association.alive


def test_both_release_at_once() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(accept())
        connection.recv(10, socket.MSG_WAITALL)
        connection.sendall(pdu.encode_release_rq())
        seen.append(connection.recv(10, socket.MSG_WAITALL))
        connection.sendall(pdu.encode_release_rp())

    with peer(serve) as port:
        association = opened(port)
        association.release()
    assert seen == [pdu.encode_release_rp()]
    assert not association.alive
