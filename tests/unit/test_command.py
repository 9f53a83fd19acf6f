"""Command sets against pynetdicom's, against themselves, and against anything a peer might send; the SOP classes."""

import contextlib
import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pynetdicom import AllStoragePresentationContexts, StoragePresentationContexts
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP, N_ACTION_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_ACTION
from pynetdicom.dsutils import decode as decode_data_set
from pynetdicom.dsutils import encode as encode_data_set

from appliance.dimse.command import (
    MAX_COMMAND_SET,
    UNRECOGNISED_OPERATION,
    Command,
    CommandField,
    decode,
    echo_request,
    encode,
    response,
    store_request,
)
from appliance.dimse.sop_classes import storage_sop_classes
from appliance.errors import RemoteProtocolError

CT = "1.2.840.10008.5.1.4.1.1.2"
HEADER = 12  # of the P-DATA PDU and its PDV

uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
us = st.integers(0, 0xFFFF)
requests = st.builds(
    Command,
    field=st.sampled_from(CommandField).map(int),
    message_id=us,
    sop_class_uid=uids,
    sop_instance_uid=uids,
    priority=st.none() | st.integers(0, 2),
    has_data_set=st.booleans(),
    action_type_id=st.none() | us,
    event_type_id=st.none() | us,
)


def theirs(message: DIMSEMessage, primitive: C_STORE | C_ECHO | N_ACTION) -> bytes:
    message.primitive_to_message(primitive)
    encoded = encode_data_set(message.command_set, is_implicit_vr=True, is_little_endian=True)
    assert encoded is not None
    return encoded


@given(requests, us, st.text(st.sampled_from("AB 12"), max_size=80))
def test_commands_come_back(request: Command, status: int, comment: str) -> None:
    assert decode(encode(request, 1)[HEADER:]) == request
    answer = response(request, status, comment)
    back = decode(encode(answer, 1)[HEADER:])
    assert (back.field, back.responded_to, back.status) == (request.field | 0x8000, request.message_id, status)
    assert (back.sop_class_uid, back.sop_instance_uid) == (request.sop_class_uid, request.sop_instance_uid)
    assert back.error_comment == comment[:64].rstrip()
    assert not back.has_data_set


def test_we_read_theirs() -> None:
    store = C_STORE()
    store.MessageID, store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = 7, CT, "1.2.3"
    store.Priority, store.DataSet = 1, io.BytesIO(b"x")
    assert decode(theirs(C_STORE_RQ(), store)) == Command(
        field=1, message_id=7, sop_class_uid=CT, sop_instance_uid="1.2.3", priority=1, has_data_set=True
    )
    action = N_ACTION()
    action.MessageID, action.ActionTypeID = 9, 1
    action.RequestedSOPClassUID, action.RequestedSOPInstanceUID = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
    assert decode(theirs(N_ACTION_RQ(), action)) == Command(
        field=CommandField.N_ACTION,
        message_id=9,
        sop_class_uid="1.2.840.10008.1.20.1",
        sop_instance_uid="1.2.840.10008.1.20.1.1",
        action_type_id=1,
    )


def test_ours_are_what_they_would_send() -> None:
    store = C_STORE()
    store.MessageID, store.AffectedSOPClassUID, store.AffectedSOPInstanceUID = 7, CT, "1.2.3"
    store.Priority, store.DataSet = 0, io.BytesIO(b"x")
    same = theirs(C_STORE_RQ(), store).replace(b"\x00\x08\x02\x00\x00\x00\x01\x00", b"\x00\x08\x02\x00\x00\x00\x02\x01")
    assert encode(store_request(7, CT, "1.2.3"), 5)[HEADER:] == same  # any value but 0x0101 says "data set"
    echo = C_ECHO()
    echo.MessageID, echo.AffectedSOPClassUID = 3, "1.2.840.10008.1.1"
    assert encode(echo_request(3), 5)[HEADER:] == theirs(C_ECHO_RQ(), echo)


def test_they_read_our_response() -> None:
    answer = response(store_request(7, CT, "1.2.3"), 0xA700, "Zu wenig Platz: \u00fcbervoll\\")
    command_set = decode_data_set(io.BytesIO(encode(answer, 5)[HEADER:]), is_implicit_vr=True, is_little_endian=True)
    message = C_STORE_RSP()
    message.command_set, message.data_set = command_set, io.BytesIO()
    primitive = message.message_to_primitive()
    assert isinstance(primitive, C_STORE)
    assert (primitive.Status, primitive.MessageIDBeingRespondedTo) == (0xA700, 7)
    assert primitive.ErrorComment == "Zu wenig Platz: ?bervoll?"
    assert (primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID) == (CT, "1.2.3")


def test_a_response_is_one_pdu_of_one_last_command_pdv() -> None:
    data = encode(response(Command(field=0x0020, message_id=1), UNRECOGNISED_OPERATION), 9)
    kind, length, pdv_length, context_id, control = struct.unpack_from(">BxIIBB", data)
    assert (kind, context_id, control) == (4, 9, 3)
    assert length == len(data) - 6
    assert pdv_length == length - 4


def element(tag: int, value: bytes, group: int = 0) -> bytes:
    return struct.pack("<HHI", group, tag, len(value)) + value


FIELD, MESSAGE_ID = element(0x0100, b"\x01\x00"), element(0x0110, b"\x01\x00")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(MESSAGE_ID, id="no field"),
        pytest.param(FIELD, id="no message id"),
        pytest.param(element(0x0100, b"\x01\x80") + MESSAGE_ID, id="response without status"),
        pytest.param(FIELD + MESSAGE_ID + b"\0\0\0", id="rest"),
        pytest.param((FIELD + MESSAGE_ID)[:-1], id="cut short"),
        pytest.param(FIELD + MESSAGE_ID + element(0x0010, b"NN", group=0x0010), id="another group"),
        pytest.param(FIELD + element(0x0110, b"\x01\x00\x00\x00"), id="long number"),
        pytest.param(FIELD + MESSAGE_ID + element(0x0902, bytes(MAX_COMMAND_SET)), id="too long"),
    ],
)
def test_malformed_command_sets_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


@pytest.mark.promise("P9")
def test_what_is_no_uid_counts_as_none() -> None:
    assert decode(FIELD + MESSAGE_ID + element(0x1000, b"../../etc/x")).sop_instance_uid == ""


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4))
def test_mutated_bytes_raise_nothing_else(changes: list[tuple[int, int, bytes]]) -> None:
    mutated = bytearray(encode(store_request(7, CT, "1.2.3"), 5)[HEADER:])
    for at, removed, added in changes:
        at %= len(mutated) or 1  # noqa: PLW2901 - a place in whatever is left
        mutated[at : at + removed] = added
    with contextlib.suppress(RemoteProtocolError):
        decode(mutated)


def test_every_storage_class_of_pydicom_and_pynetdicom_is_taken() -> None:
    named = {
        str(uid)
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and not name.startswith(("Storage Commitment", "Media Storage"))
    }
    served = {
        str(context.abstract_syntax) for context in [*AllStoragePresentationContexts, *StoragePresentationContexts]
    }
    assert storage_sop_classes() == named | served
