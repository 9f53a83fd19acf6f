"""Storage commitment and queries as SCU over real sockets: reports at odd moments, and peers that misbehave."""

import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from appliance.dimse.association import AcceptedContext, AssociateAccept, encode_accept
from appliance.dimse.command import Command, CommandField, encode, response
from appliance.dimse.command import decode as decode_command
from appliance.dimse.commit_request import CommittingAssociation
from appliance.dimse.data_set import DataSet, Tag, read, write
from appliance.dimse.find import FindingAssociation
from appliance.dimse.pdu import Control, PduReader, PduType, encode_p_data, encode_release_rq
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
    STORAGE_COMMITMENT_PUSH,
)
from appliance.dimse.wire import Target
from appliance.errors import DestinationRefused, OutOfResources, TransientDeliveryError
from appliance.model import CommitmentAnswer
from tests.integration.test_requestor import peer
from tests.modality import image

ASKED = [image(1), image(2)]
FAILED: DataSet = {
    Tag.TRANSACTION_UID: b"1.2",
    Tag.FAILED_SOP_SEQUENCE: [
        {Tag.REFERENCED_SOP_INSTANCE_UID: image(2)[1].encode(), Tag.FAILURE_REASON: b"\x12\x01"},
        {Tag.REFERENCED_SOP_INSTANCE_UID: b"1.9"},
    ],
    Tag.REFERENCED_SOP_SEQUENCE: [
        {Tag.REFERENCED_SOP_INSTANCE_UID: uid.encode()} for uid in (image(1)[1], image(2)[1])
    ],
}


def says(command: Command, data_set: DataSet | None = None, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    data = b"" if data_set is None else encode_p_data(1, write(data_set, syntax), is_command=False, is_last=True)
    return encode(command, 1) + data


def report(data_set: DataSet | None = FAILED, field: CommandField = CommandField.N_EVENT_REPORT) -> bytes:
    command = Command(
        field=field,
        message_id=7,
        sop_class_uid=STORAGE_COMMITMENT_PUSH,
        sop_instance_uid=STORAGE_COMMITMENT_INSTANCE,
        event_type_id=2,
        has_data_set=data_set is not None,
    )
    return says(command, data_set)


class Pacs:
    """`answers` make what is said when a message of ours is whole; `heard` are the commands."""

    def __init__(self, *answers: Callable[[Command], bytes], results: tuple[int, int] = (0, 3)) -> None:
        self.answers, self.results = list(answers), results
        self.heard: list[Command] = []
        self.data = b""

    def serve(self, connection: socket.socket) -> None:
        contexts = tuple(
            AcceptedContext(id=2 * n + 1, result=result, transfer_syntax=syntax)
            for n, (result, syntax) in enumerate(
                zip(self.results, (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN), strict=True)
            )
        )
        connection.sendall(
            encode_accept(AssociateAccept(called_ae="PACS", calling_ae="SCANSIDE", contexts=contexts, max_pdu=600))
        )
        reader, command = PduReader(1 << 17), b""
        with suppress(ConnectionResetError):
            while count := connection.recv_into(reader.space()):
                for event in reader.received(count):
                    if isinstance(event, Control):
                        if event.type in (PduType.RELEASE_RQ, PduType.ABORT):
                            return
                        continue
                    if event.is_command:
                        command += bytes(event.view)
                    else:
                        self.data += bytes(event.view)
                    if (
                        event.is_last
                        and event.whole
                        and not (event.is_command and decode_command(command).has_data_set)
                    ):
                        self.heard.append(decode_command(command))
                        command = b""
                        if self.answers:
                            connection.sendall(self.answers.pop(0)(self.heard[-1]))


def target(port: int) -> Target:
    return Target(host="127.0.0.1", port=port, calling_ae="SCANSIDE", called_ae="PACS", timeout_s=1.0)


def taken(request: Command) -> bytes:
    return encode(response(request, 0), 1)


def test_a_report_may_come_before_the_answer_and_another_after_it() -> None:
    heard: list[CommitmentAnswer] = []
    pacs = Pacs(lambda _: report(), lambda _: says(response(Command(field=0x0130, message_id=1), 0)) + report())
    with peer(pacs.serve) as port, CommittingAssociation(target(port)) as association:
        assert association.request("1.2", ASKED, heard.append) == 0
        assert association.listen(3.0, heard.append)
        assert not association.listen(0.01, heard.append) or association.alive
    assert [(one.transaction_uid, set(one.committed)) for one in heard] == [("1.2", {image(1)[1]})] * 2
    assert heard[0].failed == {image(2)[1]: 0x0112, "1.9": 0x0110}
    assert [(command.field, command.status) for command in pacs.heard[1:]] == [(0x8100, 0)] * 2
    asked = read(pacs.data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert asked[Tag.TRANSACTION_UID] == b"1.2\0"
    assert len(asked[Tag.REFERENCED_SOP_SEQUENCE]) == 2


def test_what_is_no_report_is_refused_and_a_goodbye_is_understood() -> None:
    def full(_: CommitmentAnswer) -> None:
        raise OutOfResources("no room")

    pacs = Pacs(
        taken_and(report(field=CommandField.N_ACTION)),
        lambda _: report({Tag.TRANSACTION_UID: b"x"}),
        lambda _: report(),
        lambda _: encode_release_rq(),
    )
    with peer(pacs.serve) as port, CommittingAssociation(target(port)) as association:
        assert association.request("1.2", ASKED, full) == 0
        assert [association.listen(3.0, full) for _ in range(4)] == [True, True, True, False]
    assert [command.status for command in pacs.heard[1:]] == [0x0211, 0x0115, 0x0213]


def taken_and(more: bytes) -> Callable[[Command], bytes]:
    return lambda request: taken(request) + more


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: encode(response(Command(field=0x0030, message_id=1), 0), 1),
        lambda _: encode(response(Command(field=0x0130, message_id=99), 0), 1),
        lambda _: encode_p_data(1, b"no command", is_command=False, is_last=True),
        lambda _: report()[:-20] + encode_release_rq(),
        lambda _: b"\x63" * 100,
    ],
    ids=["another's answer", "to another", "no command", "released in the middle", "rubbish"],
)
def test_a_peer_that_breaks_the_protocol_ends_the_association(answer: Callable[[Command], bytes]) -> None:
    with peer(Pacs(answer).serve) as port:
        association = CommittingAssociation(target(port))
        with pytest.raises(TransientDeliveryError):
            association.request("1.2", ASKED, lambda _: None)
        assert not association.alive


def test_a_peer_that_takes_no_context_is_told_from_one_that_is_away() -> None:
    with peer(Pacs(results=(3, 3)).serve) as port, pytest.raises(DestinationRefused, match="storage commitment"):
        CommittingAssociation(target(port))
    with peer(Pacs(results=(3, 3)).serve) as port, pytest.raises(DestinationRefused, match="queries"):
        FindingAssociation(target(port))


def match(request: Command, uid: bytes | None, status: int = 0xFF00) -> bytes:
    answer = Command(
        field=0x8020,
        responded_to=request.message_id,
        sop_class_uid=request.sop_class_uid,
        status=status,
        has_data_set=uid is not None,
    )
    return says(answer, None if uid is None else {Tag.SOP_INSTANCE_UID: uid})


def test_matches_are_gathered_and_what_is_no_uid_is_passed_over() -> None:
    pacs = Pacs(lambda r: match(r, b"1.1") + match(r, b"1.2", 0xFF01) + match(r, b"x") + match(r, None, 0))
    with peer(pacs.serve) as port, FindingAssociation(target(port)) as association:
        assert association.instances("1.9", "1.9.1") == {"1.1", "1.2"}
    asked = read(pacs.data, EXPLICIT_VR_LITTLE_ENDIAN)
    assert asked == {
        Tag.SOP_INSTANCE_UID: b"",
        Tag.QUERY_RETRIEVE_LEVEL: b"IMAGE ",
        Tag.STUDY_INSTANCE_UID: b"1.9\0",
        Tag.SERIES_INSTANCE_UID: b"1.9.1\0",
    }


def test_a_query_that_fails_or_cannot_be_read_is_no_answer() -> None:
    with peer(Pacs(lambda r: match(r, b"1.1") + match(r, None, 0xA700)).serve) as port:
        association = FindingAssociation(target(port))
        with pytest.raises(TransientDeliveryError, match="0xA700") as failed:
            association.instances("1.9", "1.9.1")
        assert (failed.value.status, association.alive) == (0xA700, True)
        association.release()
    garbled = encode_p_data(1, b"\x08\x00\x18\x00UI\xff\xff", is_command=False, is_last=True)
    matched = write({Tag.SOP_INSTANCE_UID: b"1.1"}, EXPLICIT_VR_LITTLE_ENDIAN)
    size = len(encode_p_data(1, matched, is_command=False, is_last=True))
    with peer(Pacs(lambda r: match(r, b"1.1")[:-size] + garbled).serve) as port:
        association = FindingAssociation(target(port))
        with pytest.raises(TransientDeliveryError, match="cannot be read"):
            association.instances("1.9", "1.9.1")
        assert not association.alive
