"""Reports over real sockets: the role we propose, and peers that refuse it, leave it out, or answer oddly."""

import socket
from collections.abc import Callable, Sequence

import pytest

from appliance.destinations.reports import ReportNode
from appliance.dimse.association import AcceptedContext, AssociateAccept, Role, decode_request, encode_accept
from appliance.dimse.command import Command, encode, response
from appliance.dimse.command import decode as decode_command
from appliance.dimse.data_set import Tag, items, read
from appliance.dimse.pdu import Control, PduReader, encode_p_data, encode_release_rp
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
    STORAGE_COMMITMENT_PUSH,
)
from appliance.dimse.wire import Target
from appliance.errors import DeliveryError, ObjectRefused, TransientDeliveryError
from appliance.model import CommitmentReport
from tests.integration.test_requestor import peer, read_pdu
from tests.modality import image

REPORT = CommitmentReport(
    transaction_uid="1.2.3", from_ae="EDGE", committed=(image(1),), failed=tuple((image(n), 0x0112) for n in (2, 3))
)
REFUSED = Role(sop_class_uid=STORAGE_COMMITMENT_PUSH, scu=True, scp=False)
GRANTED = Role(sop_class_uid=STORAGE_COMMITMENT_PUSH, scu=False, scp=True)


class Scripted:
    """A peer that accepts as told, and answers the report with what `answer` makes of it."""

    def __init__(
        self, roles: Sequence[Role], results: Sequence[int], answer: Callable[[Command], bytes], max_pdu: int = 512
    ) -> None:
        self.roles, self.results, self.answer, self.max_pdu = tuple(roles), results, answer, max_pdu
        self.command = Command(field=0)
        self.data = b""

    def serve(self, connection: socket.socket) -> None:
        contexts = [
            AcceptedContext(id=2 * n + 1, result=result, transfer_syntax=syntax)
            for n, (result, syntax) in enumerate(
                zip(self.results, (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN), strict=True)
            )
        ]
        connection.sendall(
            encode_accept(
                AssociateAccept(
                    called_ae="CT01",
                    calling_ae="EDGE",
                    contexts=tuple(contexts),
                    roles=self.roles,
                    max_pdu=self.max_pdu,
                )
            )
        )
        reader, command = PduReader(1 << 17), b""
        while count := connection.recv_into(reader.space()):
            for event in reader.received(count):
                if isinstance(event, Control):
                    connection.sendall(encode_release_rp())
                    return
                command += bytes(event.view) if event.is_command else b""
                self.data += b"" if event.is_command else bytes(event.view)
                if not event.is_command and event.is_last and event.whole:
                    self.command = decode_command(command)
                    connection.sendall(self.answer(self.command))


def report_to(scripted: Scripted) -> int:
    with peer(scripted.serve) as port:
        target = Target(host="127.0.0.1", port=port, calling_ae="", called_ae="CT01", timeout_s=3.0)
        return ReportNode(target).report(REPORT)


def taken(request: Command) -> bytes:
    return encode(response(request, 0), 1)


@pytest.mark.parametrize("roles", [[GRANTED], []], ids=["granted", "left out"])
@pytest.mark.parametrize(
    ("results", "syntax"),
    [((0, 0), EXPLICIT_VR_LITTLE_ENDIAN), ((3, 0), IMPLICIT_VR_LITTLE_ENDIAN)],
    ids=["explicit", "implicit"],
)
def test_a_report_is_sent_in_what_the_peer_takes(roles: list[Role], results: tuple[int, int], syntax: str) -> None:
    scripted = Scripted(roles, results, lambda request: encode(response(request, 0), 1 if results[0] == 0 else 3))
    assert report_to(scripted) == 0
    command = scripted.command
    assert (command.field, command.event_type_id) == (0x0100, 2)
    assert (command.sop_class_uid, command.sop_instance_uid) == (STORAGE_COMMITMENT_PUSH, STORAGE_COMMITMENT_INSTANCE)
    told = read(scripted.data, syntax)
    assert len(items(told, Tag.REFERENCED_SOP_SEQUENCE)) == 1
    assert [item[Tag.FAILURE_REASON] for item in items(told, Tag.FAILED_SOP_SEQUENCE)] == [b"\x12\x01"] * 2


def test_we_propose_to_be_scp_and_call_ourselves_what_the_peer_called() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Target(
            host="127.0.0.1", port=listener.getsockname()[1], calling_ae="", called_ae="CT01", timeout_s=0.3
        )
        with pytest.raises(TransientDeliveryError):
            ReportNode(target).report(REPORT)
        connection, _ = listener.accept()
        with connection:
            request = decode_request(read_pdu(connection))
    assert (request.calling_ae, request.called_ae, request.roles) == ("EDGE", "CT01", (GRANTED,))


def reply(request: Command) -> bytes:
    """A response with a data set, which the standard leaves room for."""
    answer = Command(
        field=0x8100,
        responded_to=request.message_id,
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        status=0,
        event_type_id=2,
        has_data_set=True,
    )
    return encode(answer, 1) + b"".join(
        encode_p_data(1, b"reply ", is_command=False, is_last=is_last) for is_last in (False, True)
    )


@pytest.mark.parametrize(
    ("roles", "results", "answer", "expected"),
    [
        ([GRANTED], (0, 0), reply, 0),
        ([GRANTED], (0, 0), lambda request: encode(response(request, 0x0110), 1), 0x0110),
        ([REFUSED], (0, 0), taken, ObjectRefused),
        ([GRANTED], (3, 3), taken, ObjectRefused),
        (
            [GRANTED],
            (0, 0),
            lambda _: encode(response(Command(field=0x0030, message_id=1), 0), 1),
            TransientDeliveryError,
        ),
        ([GRANTED], (0, 0), lambda request: reply(request)[:-20] + taken(request), TransientDeliveryError),
    ],
    ids=["event reply", "failure", "role refused", "no context", "another's answer", "no whole reply"],
)
def test_what_peers_answer(
    roles: list[Role],
    results: tuple[int, int],
    answer: Callable[[Command], bytes],
    expected: int | type[DeliveryError],
) -> None:
    scripted = Scripted(roles, results, answer)
    if isinstance(expected, int):
        assert report_to(scripted) == expected
        return
    with pytest.raises(expected):
        report_to(scripted)
