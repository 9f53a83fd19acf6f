"""The acceptor on real sockets: honest peers get what they ask for, hostile ones stop nothing."""

import struct
import subprocess
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pynetdicom
import pytest
from pydicom import dcmread

from appliance.dimse.acceptor import MADE_ROOM
from appliance.dimse.admission import WAITING_SLOTS, Hold, Peer, Policy, Slots
from appliance.dimse.association import Rejection
from appliance.dimse.command import Command, encode
from appliance.dimse.pdu import Control, PduType, encode_abort, encode_p_data, encode_release_rq
from appliance.errors import DataSetRefused, OutOfResources, StoreFailed
from tests.journals import CT_IMAGE, SERIES
from tests.keeping import Memory, Server, echo
from tests.missing import missing
from tests.scanner import CT01, LIMITS, Client, Witness, data_set, limits, listening, part10, store_message
from tests.waiting import eventually

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ECHO = 3  # the client's context for it, after one storage context


def dcmtk(tool: str, port: int, *files: str) -> None:
    program = Path("/usr/bin", tool)  # pynetdicom's tools of the same name come first on a path
    if not program.exists():
        missing("DCMTK is not installed")
    command = [str(program), "-aet", "CT01", "-aec", "SCANSIDE", "127.0.0.1", str(port), *files]
    subprocess.run(command, check=True, timeout=20)


# Honest peers


def test_storescu_stores_what_it_sends(server: Server, tmp_path: Path) -> None:
    files = [part10(tmp_path, number, bytes(number) * 100_000) for number in (1, 2, 3)]
    dcmtk("storescu", server.port, *map(str, files))
    assert server.memory.kept == {
        f"{SERIES}.{number}": data_set(number, bytes(number) * 100_000) for number in (1, 2, 3)
    }
    assert server.witness.last_end() == ("released", 3, True)


def test_echoscu_is_answered(server: Server) -> None:
    dcmtk("echoscu", server.port)
    assert server.witness.last_end() == ("released", 0, True)


def test_pynetdicom_with_several_contexts(server: Server, tmp_path: Path) -> None:
    ae = pynetdicom.AE(ae_title="CT01")
    for sop_class in (MR_IMAGE, CT_IMAGE, "1.2.840.10008.1.1"):
        ae.add_requested_context(sop_class)
    association = ae.associate("127.0.0.1", server.port, ae_title="SCANSIDE")
    assert association.is_established
    assert association.send_c_echo().Status == 0
    for number in (1, 2):
        assert association.send_c_store(dcmread(part10(tmp_path, number))).Status == 0
    association.release()
    assert server.memory.kept == {f"{SERIES}.{number}": data_set(number) for number in (1, 2)}


def test_messages_sent_ahead_of_their_answers_are_answered_in_order(server: Server) -> None:
    with server.client() as client:
        client.send(b"".join(store_message(number, piece=700) for number in range(1, 21)))
        assert [client.response().responded_to for _ in range(20)] == list(range(1, 21))
        client.release()
    assert set(server.memory.kept) == {f"{SERIES}.{number}" for number in range(1, 21)}
    assert server.witness.last_end() == ("released", 20, True)


def test_bytes_may_come_one_by_one(server: Server) -> None:
    with server.client() as client:
        message = store_message(1, b"0123456789" * 3, piece=7)
        for at in range(len(message)):
            client.send(message[at : at + 1])
        assert client.response().status == 0
    assert server.memory.kept == {f"{SERIES}.1": b"0123456789" * 3}


def test_command_and_data_in_one_pdu(server: Server) -> None:
    """As dcm4che does: two PDVs, one P-DATA."""
    message = store_message(1)
    length = int.from_bytes(message[2:6], "big")
    command, data = message[6 : 6 + length], message[6 + length + 6 :]
    with server.client() as client:
        client.send(struct.pack(">BxI", PduType.P_DATA, len(command + data)) + command + data)
        assert client.response().status == 0
    assert server.memory.kept == {f"{SERIES}.1": data_set(1)}


# One bad object is answered with its status; the association goes on


@pytest.mark.promise("P9")
def test_the_wrong_class_for_the_context_costs_one_object(server: Server) -> None:
    with server.client() as client:
        assert client.store(1, sop_class=MR_IMAGE).status == 0x0122
        assert client.store(2).status == 0


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataSetRefused(0xA900, "UID differs"), 0xA900),
        (OutOfResources("only 3 MB free"), 0xA700),
        (StoreFailed("disk"), 0xA700),
    ],
)
def test_what_is_refused_at_its_beginning_is_drained_and_answered(
    server: Server, error: Exception, status: int
) -> None:
    with server.client() as client:
        server.memory.refuse = error
        answer = client.store(1, data_set(1, b"x" * 300_000))
        assert (answer.status, answer.error_comment) == (status, str(error))
        server.memory.refuse = None
        assert client.store(2).status == 0
    assert set(server.memory.kept) == {f"{SERIES}.2"}
    assert server.memory.failures == (["disk"] if isinstance(error, StoreFailed) else [])


@pytest.mark.promise("P5")
def test_a_disk_that_fills_up_within_an_object_is_answered_after_its_last_byte(server: Server) -> None:
    with server.client() as client:
        message = store_message(1, data_set(1, b"x" * 100_000))
        client.send(message[:50_000])
        eventually(lambda: server.memory.open)
        server.memory.refuse_write = OutOfResources("disk full")
        client.send(message[50_000:])
        assert client.response().status == 0xA700
        server.memory.refuse_write = None
        assert client.store(2).status == 0


@pytest.mark.promise("P9")
def test_no_data_set_and_an_empty_one_cost_one_object_each(server: Server) -> None:
    with server.client() as client:
        request = Command(
            field=0x0001, message_id=1, sop_class_uid=CT_IMAGE, sop_instance_uid=f"{SERIES}.1", has_data_set=False
        )
        client.send(encode(request, 1))
        assert client.response().status == 0xC000
        assert client.store(2, b"").status == 0xA900
        no_uid = Command(field=0x0001, message_id=3, sop_class_uid=CT_IMAGE, has_data_set=True)
        client.send(encode(no_uid, 1) + encode_p_data(1, data_set(3), is_command=False))
        assert client.response().status == 0xC000
        assert client.store(4).status == 0
    assert set(server.memory.kept) == {f"{SERIES}.4"}


@pytest.mark.promise("P9")
def test_other_services_are_declined_with_their_data(server: Server) -> None:
    with server.client() as client:
        find = Command(field=0x0020, message_id=5, sop_class_uid=CT_IMAGE, has_data_set=True)
        client.send(encode(find, 1) + encode_p_data(1, b"identifier", is_command=False))
        answer = client.response()
        assert (answer.field, answer.status, answer.responded_to) == (0x8020, 0x0211, 5)
        client.send(echo())
        assert client.response().status == 0


# Who is let in


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("calling_ae", "called_ae", "reason"), [("STRANGER", "SCANSIDE", 3), ("ct01", "SCANSIDE", 3), ("CT01", "OTHER", 7)]
)
def test_strangers_and_wrong_numbers_are_told_so(server: Server, calling_ae: str, called_ae: str, reason: int) -> None:
    with Client(server.port) as client:
        answer = client.associate(calling_ae, called_ae)
        assert isinstance(answer, Rejection)
        assert (answer.result, answer.source, answer.reason) == (1, 1, reason)
        assert client.is_closed()
    assert [who for who, _ in server.witness.rejections] == [calling_ae]
    assert server.witness.associations == []


@pytest.mark.promise("P9")
def test_a_known_title_from_another_address_is_a_stranger() -> None:
    elsewhere = Peer(ae_title="CT01", network=ip_network("192.0.2.0/24"), slots=2)
    with listening(Memory(), Witness(), peers=(elsewhere,)) as there, Client(there.port) as client:
        answer = client.associate()
        assert isinstance(answer, Rejection)
        assert (answer.result, answer.source, answer.reason) == (1, 1, 3)


@pytest.mark.promise("P9")
def test_more_associations_than_a_peer_may_have_are_told_to_come_back() -> None:
    witness = Witness()
    with listening(Memory(), witness, limits(associations_per_peer=2)) as there:
        server = Server(Memory(), witness, there)
        with server.client() as first, server.client(), Client(there.port) as third:
            answer = third.associate()
            assert isinstance(answer, Rejection)
            assert (answer.result, answer.source, answer.reason) == (2, 3, 2)
            assert third.is_closed()
            first.release()
            eventually(lambda: len(witness.ends) == 1)
            with server.client() as again:
                again.release()


@pytest.mark.promise("P9")
def test_slots_kept_for_a_peer_are_given_to_nobody_else() -> None:
    witness = Witness()
    reserved = Peer(ae_title="CT02", network=ip_network("192.0.2.7/32"), slots=2)
    with listening(Memory(), witness, limits(associations=3), peers=(CT01, reserved)) as there:
        server = Server(Memory(), witness, there)
        with server.client(), server.client() as second, Client(there.port) as third:
            # CT01 has two of its own; of the third place two more are kept for CT02.
            answer = third.associate()
            assert isinstance(answer, Rejection)
            assert answer.is_transient
            second.release()


@pytest.mark.promise("P9")
def test_a_crowd_of_strangers_keeps_no_known_peer_out() -> None:
    witness = Witness()
    elsewhere = Peer(ae_title="CT01", network=ip_network("192.0.2.0/24"), slots=2)
    with listening(Memory(), witness, peers=(elsewhere,)) as there:
        crowd = [Client(there.port) for _ in range(20)]
        eventually(lambda: len(witness.rejections) == 12)  # eight are heard out, the others are shut out at once
        assert there.acceptor._slots.arrive(1_000, "192.0.2.5") == (Hold.WAITING, None)
        assert there.acceptor._slots.settle(1_000)
        there.acceptor._slots.give_back(1_000)
        for client in crowd:
            client.socket.close()


@pytest.mark.promise("P9")
def test_whoever_connects_and_says_nothing_takes_no_slot_not_even_at_the_scanners_own_address() -> None:
    """Slots are for requests; of those that wait, the oldest must go when there are too many."""
    witness = Witness()
    with listening(Memory(), witness, limits(associations=2, associations_per_peer=2)) as there:
        server = Server(Memory(), witness, there)
        silent = [Client(there.port) for _ in range(WAITING_SLOTS + 5)]
        eventually(lambda: len(witness.rejections) == 5)
        with server.client() as client:
            assert client.store(1).status == 0
        assert silent[0].is_closed()
        for one in silent:
            one.socket.close()


@pytest.mark.promise("P9")
def test_what_a_scanner_left_open_makes_room_for_what_it_opens_anew() -> None:
    """After its power went, say: the oldest at rest goes, nothing that is under way does."""
    memory, witness = Memory(), Witness()
    with listening(memory, witness, limits(associations_per_peer=3, spare_s=0.2)) as there:
        server = Server(memory, witness, there)
        with server.client() as busy, server.client() as second, server.client() as third:
            message = store_message(1)
            busy.send(message[:500])  # in the middle of a message, and for longer than both
            eventually(lambda: memory.open)
            resting = there.acceptor._slots._resting
            assert third.store(3).status == 0
            eventually(lambda: list(resting) == [2, 3], what="it has heard its answer, and is at rest")
            assert second.store(2).status == 0  # so that the third has been at rest for longest
            with Client(there.port) as early:
                assert isinstance(early.associate(), Rejection), "not before they have been at rest for some time"
            assert eventually(lambda: associates(server), what="there is room")
            ended = third.event()
            assert isinstance(ended, Control)
            assert (ended.type, bytes(ended.body[2:])) == (PduType.ABORT, b"\x02\x00")  # by the service provider
            assert third.is_closed()
            busy.send(message[500:])
            assert busy.response().status == 0
            assert second.store(4).status == 0
    assert [reason for reason, *_ in witness.ends if "at rest" in reason] == [MADE_ROOM]
    assert set(memory.kept) == {f"{SERIES}.{number}" for number in range(1, 5)}


def associates(server: Server) -> bool:
    """One more comes in, and goes again."""
    with Client(server.port) as client:
        if isinstance(client.associate(), Rejection):
            return False
        client.release()
        return True


@pytest.mark.promise("P9")
def test_nobody_makes_room_for_another_device() -> None:
    """Not at the same address, either, and not where the slot would not be the newcomer's."""
    witness, other = Witness(), replace(CT01, ae_title="CT02")
    with listening(Memory(), witness, limits(associations_per_peer=1, spare_s=0.01), peers=(CT01, other)) as there:
        server = Server(Memory(), witness, there)
        with server.client() as first, Client(there.port) as second:
            eventually(lambda: there.acceptor._slots._at_rest("127.0.0.1", "CT01"))
            answer = second.associate("CT02")
            assert isinstance(answer, Rejection)
            assert answer.is_transient
            first.release()


def test_what_makes_room_must_make_enough() -> None:
    kept = replace(CT01, ae_title="CT02", network=ip_network("192.0.2.9/32"), slots=2)
    mine = replace(CT01, network=ip_network("192.0.2.1/32"), slots=0)
    policy = Policy(ae_title="SCANSIDE", any_called_ae=False, peers=[mine, kept], accepts=bool)
    slots = Slots(limits(associations=3, spare_s=0.0), policy)
    for number in (1, 2, 3):
        slots.arrive(number, "192.0.2.1")
    assert [slots.settle(1, "CT01"), slots.settle(2, "CT01")] == [True, False]
    assert slots.take_over(2, "CT01") is None  # the one there is has never been at rest
    slots.rest(1)
    slots._limits = replace(slots._limits, associations=2)
    assert slots.take_over(2, "CT01") is None  # those that are left are another's
    slots._limits = replace(slots._limits, associations=3)
    assert slots.take_over(2, "CT01") == 1
    assert [slots.stir(1), slots.stir(2)] == [False, True]
    slots.rest(1)  # it has not noticed yet
    assert slots.take_over(3, "CT01") is None
    slots.give_back(1)
    slots.give_back(2)
    assert slots.settle(3, "CT01")


def test_of_those_that_wait_the_oldest_of_the_address_that_has_most_goes() -> None:
    peers = [replace(CT01, network=ip_network("192.0.2.0/24"))]
    slots = Slots(LIMITS, Policy(ae_title="SCANSIDE", any_called_ae=False, peers=peers, accepts=bool))
    for number in range(WAITING_SLOTS):
        slots.arrive(number, "192.0.2.1" if number in (0, 5) else "192.0.2.2")
    assert slots.arrive(100, "192.0.2.1") == (Hold.WAITING, 1)
    assert slots.settle(0)
    assert not slots.settle(1)
    slots.give_back(1)
    assert slots.arrive(101, "192.0.2.3") == (Hold.WAITING, None)


# How associations end


@pytest.mark.promise("P1")
@pytest.mark.parametrize("ending", ["abort", "close", "reset", "release"])
def test_what_was_half_sent_is_forgotten(server: Server, ending: str) -> None:
    with server.client() as client:
        client.send(store_message(1, data_set(1, b"x" * 100_000))[:50_000])
        eventually(lambda: server.memory.open)
        if ending == "abort":
            client.send(_rest_of_pdu() + encode_abort(0, 0))
        elif ending == "release":
            client.send(_rest_of_pdu() + encode_release_rq())
        elif ending == "reset":
            client.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close resets
    reason, stored, in_order = server.witness.last_end()
    assert (stored, in_order) == (0, False), reason
    assert server.memory.open == []
    assert server.memory.kept == {}


def _rest_of_pdu() -> bytes:
    """What completes the PDU of which the first 50,000 bytes of that message hold the beginning."""
    message = store_message(1, data_set(1, b"x" * 100_000))
    at = 0
    while at < 50_000:
        at += 6 + int.from_bytes(message[at + 2 : at + 6], "big")
    return message[50_000:at]


def test_stop_lets_a_running_association_finish() -> None:
    memory, witness = Memory(), Witness()
    with listening(memory, witness, limits(finish_s=5.0)) as there:
        server = Server(memory, witness, there)
        with server.client() as client:
            message = store_message(1, data_set(1, b"x" * 100_000))
            client.send(message[:50_000])
            eventually(lambda: memory.open)
            there.acceptor.stop()
            with pytest.raises(ConnectionRefusedError):
                eventually(lambda: not Client(there.port))
            client.send(message[50_000:])
            assert client.response().status == 0
            client.release()
        there.thread.join(1.0)
        assert not there.thread.is_alive()


def test_stop_ends_what_does_not_finish() -> None:
    witness = Witness()
    with listening(Memory(), witness, limits(finish_s=0.1)) as there:
        server = Server(Memory(), witness, there)
        with server.client() as idle:
            there.acceptor.stop()
            assert idle.is_closed()
            assert witness.last_end()[0] == "connection closed by the peer"
