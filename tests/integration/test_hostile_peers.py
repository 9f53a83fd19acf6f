"""Hostile peers at the acceptor, on real sockets: they stop nothing, and cost little (P9)."""

import os
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.dimse.association import AssociateAccept
from appliance.dimse.command import Command, encode, store_request
from appliance.dimse.pdu import Control, PduType, encode_p_data, encode_release_rq
from tests.journals import CT_IMAGE, SERIES
from tests.keeping import Memory, Server, echo
from tests.scanner import Client, Witness, limits, listening, store_message
from tests.waiting import eventually


@pytest.mark.promise("P9")
def test_a_request_that_never_ends_is_ended(server: Server) -> None:
    with Client(server.port) as silent, Client(server.port) as slow:
        slow.send(b"\x01\x00\x00")
        assert server.is_honest()
        assert silent.is_closed()
        assert slow.is_closed()
    eventually(lambda: len(server.witness.rejections) == 2)


@pytest.mark.promise("P9")
def test_drops_of_bytes_do_not_renew_a_pdus_deadline(server: Server) -> None:
    """Bytes keep coming inside one PDU, below the minimum rate: the deadline is the PDU's, not the byte's."""
    with server.client() as client:
        message = store_message(1, b"x" * 10_000)
        begun = message[: len(message) - 9_000]
        client.send(begun)
        eventually(lambda: server.memory.open)
        sent = 0

        def drop() -> bool:
            nonlocal sent
            try:
                client.send(b"x")
            except OSError:
                return True
            sent += 1
            return bool(server.witness.ends)

        eventually(drop, 3.0)
        assert 0 < sent < 9_000
        assert server.witness.last_end()[0] == "the peer was too slow or silent for too long"
    assert server.is_honest()


@pytest.mark.promise("P9")
@pytest.mark.parametrize(("size", "lives"), [(2, False), (1_200, True)])
def test_pdus_that_are_each_in_time_do_not_hold_a_message_for_ever(size: int, lives: bool) -> None:
    """A message has 0.6 s for silence in all, and earns more by 1,000 bytes/s: a 100th of the minimum rate."""
    memory, witness, pace = Memory(), Witness(), threading.Event()
    with listening(memory, witness, limits(mid_message_s=0.6, min_rate=100_000)) as there, Client(there.port) as client:
        assert isinstance(client.associate(), AssociateAccept)
        request = store_request(1, CT_IMAGE, f"{SERIES}.1")
        client.send(encode(request, 1))
        with suppress(OSError):
            for _ in range(20):
                client.send(encode_p_data(1, bytes(size), is_command=False, is_last=False))
                if witness.ends or pace.wait(0.1):
                    break
        assert bool(witness.ends) is not lives
        if not lives:
            assert witness.last_end() == ("the peer was too slow or silent for too long", 0, False)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("type_", [PduType.P_DATA, PduType.ASSOCIATE_RQ])
def test_a_pdu_that_claims_two_gigabytes_is_refused_unread(server: Server, type_: PduType) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with server.client() as client:
        client.send(struct.pack(">BxI", type_, 1 << 31) + bytes(10_000))
        answer = client.event()
        assert isinstance(answer, Control)
        assert answer.type is PduType.ABORT
        assert client.is_closed()
    assert server.witness.last_end()[0].startswith("aborted by us")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert server.is_honest()


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: scanside\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        struct.pack(">BxI", 1, 1 << 31),
        struct.pack(">BxI", 1, 4) + bytes(4),
        encode_release_rq(),
        echo(),
    ],
    ids=["http", "tls", "two gigabytes", "too short", "release", "data"],
)
def test_what_is_no_association_request_is_ended_at_once(server: Server, opening: bytes) -> None:
    with Client(server.port) as client:
        client.send(opening)
        assert client.is_closed()
    eventually(lambda: len(server.witness.rejections) == 1)
    assert server.is_honest()


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "words",
    [
        encode_p_data(1, b"data before a command", is_command=False),
        encode_p_data(99, b"a context nobody accepted", is_command=True),
        encode_p_data(1, b"rubbish", is_command=True),
        encode_p_data(1, bytes(70_000), is_command=True, is_last=False),
        encode(store_request(1, CT_IMAGE, f"{SERIES}.1"), 1)
        + encode_p_data(1, b"a", is_command=False, is_last=False)
        + echo(1),
        encode(Command(field=0x8001, responded_to=1, status=0), 1),
        encode(Command(field=0x0FFF, responded_to=1), 1),
        encode_p_data(1, b"", is_command=True) * 3,
    ],
    ids=["no command", "no context", "rubbish", "too long", "command in data", "response", "cancel", "nothing"],
)
def test_whoever_breaks_the_protocol_loses_the_association_and_nothing_else(server: Server, words: bytes) -> None:
    with server.client() as client:
        client.send(words)
        eventually(lambda: server.witness.ends)
        assert client.is_closed()
    reason, stored, in_order = server.witness.ends[0]
    assert (stored, in_order) == (0, False)
    assert reason.startswith("aborted by us")
    assert server.memory.kept == {}
    assert server.is_honest()


@pytest.mark.promise("P9")
def test_whoever_says_nothing_for_long_is_ended(server: Server) -> None:
    with server.client() as client:
        client.send(echo())
        client.response()
        assert client.is_closed()
    assert server.witness.last_end() == ("the peer was too slow or silent for too long", 0, False)


@pytest.mark.promise("P9")
def test_whoever_does_not_read_the_answers_is_ended(server: Server) -> None:
    with server.client() as client:
        client.socket.settimeout(3.0)
        with suppress(OSError):
            client.send(echo() * 100_000)
        assert server.witness.last_end()[0].startswith("connection lost")
    assert server.is_honest()


@contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """Take all descriptors this process may have; yields some of them, to be closed one by one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 8, hard)
    )
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        yield taken
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.promise("P9")
def test_a_shortage_of_descriptors_passes_and_ends_nothing(server: Server) -> None:
    with server.client() as client:
        with no_descriptor_left() as taken:
            os.close(taken.pop())
            late = Client(server.port)  # one only: the acceptor would take the descriptor of a second for the first
            assert client.store(1).status == 0
            assert len(server.listening.acceptor._open) == 1
        with late:
            assert isinstance(late.associate(), AssociateAccept)
        assert client.store(2).status == 0
