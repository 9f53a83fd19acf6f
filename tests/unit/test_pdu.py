"""The PDU reader: any stream cut anywhere comes back exact, and no claim of a peer costs more than the buffer."""

import contextlib
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF

from appliance.dimse import pdu
from appliance.dimse.pdu import Control, Fragment, PduReader, PduType
from appliance.errors import RemoteProtocolError

Message = tuple[int, bytes, bytes]  # context id, command set, data set


def read(stream: bytes, reader: PduReader, sizes: Iterator[int]) -> list[tuple[PduType, bytes] | Message]:
    """What a reader makes of a stream that arrives in pieces of these sizes; fragments are put together."""
    got: list[tuple[PduType, bytes] | Message] = []
    parts = {True: b"", False: b""}
    at = 0
    while at < len(stream):
        space = reader.space()
        count = min(len(space), next(sizes), len(stream) - at)
        space[:count] = stream[at : at + count]
        at += count
        for event in reader.received(count):
            if isinstance(event, Control):
                got.append((event.type, bytes(event.body)))
                continue
            parts[event.is_command] += event.view
            if event.whole and event.is_last and not event.is_command:
                got.append((event.context_id, parts[True], parts[False]))
                parts = {True: b"", False: b""}
    return got


def forever(sizes: list[int]) -> Iterator[int]:
    while True:
        yield from sizes


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context_id, control) + data


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[PduType, bytes] | Message], int]:
    """Bytes of an association, what must come of them, and the maximum length they keep; PDVs packed at random."""
    max_pdu = draw(st.sampled_from([16, 100, 4096]))
    request = draw(st.binary(max_size=300))
    stream = pdu.encode_control(PduType.ASSOCIATE_RQ, request)
    want: list[tuple[PduType, bytes] | Message] = [(PduType.ASSOCIATE_RQ, request)]
    for _ in range(draw(st.integers(0, 4))):
        command, data = draw(st.binary(max_size=10)), draw(st.binary(max_size=600))
        step = max_pdu - pdu.PDV_OVERHEAD
        pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        pdvs = [pdv(1, 3, command)] + [pdv(1, 0, piece) for piece in pieces[:-1]] + [pdv(1, 2, pieces[-1])]
        body = b""
        for item in pdvs:
            if body and (len(body) + len(item) > max_pdu or draw(st.booleans())):
                stream, body = stream + pdu.encode_control(PduType.P_DATA, body), b""
            body += item
        stream += pdu.encode_control(PduType.P_DATA, body)
        want.append((1, command, data))
    return stream + pdu.encode_release_rq(), [*want, (PduType.RELEASE_RQ, bytes(4))], max_pdu


@given(streams(), st.lists(st.integers(1, 700), min_size=1, max_size=8), st.sampled_from([512, 4096, 1 << 18]))
def test_any_stream_cut_anywhere_comes_back(
    stream: tuple[bytes, list[tuple[PduType, bytes] | Message], int], sizes: list[int], buffer: int
) -> None:
    data, want, max_pdu = stream
    reader = PduReader(max_pdu, buffer)
    assert read(data, reader, forever(sizes)) == want
    assert not reader.inside


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(1, 100))
def test_no_bytes_raise_anything_else(data: bytes, size: int) -> None:
    for prefix in (b"", struct.pack(">BBI", PduType.P_DATA, 0, 200)):
        with contextlib.suppress(RemoteProtocolError):
            read(prefix + data, PduReader(1000, 256), forever([size]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="HTTP"),
        pytest.param(struct.pack(">BBI", 0, 0, 4), id="type 0"),
        pytest.param(struct.pack(">BBI", 8, 0, 4), id="type 8"),
        pytest.param(struct.pack(">BBI", PduType.ASSOCIATE_RQ, 0, 2 << 30), id="2 GiB request"),
        pytest.param(struct.pack(">BBI", PduType.P_DATA, 0, 2 << 30), id="2 GiB P-DATA"),
        pytest.param(struct.pack(">BBI", PduType.P_DATA, 0, 0), id="no PDV"),
        pytest.param(struct.pack(">BBI", PduType.P_DATA, 0, 10) + pdv(1, 0, bytes(10)), id="PDV beyond its PDU"),
        pytest.param(struct.pack(">BBIIBB", PduType.P_DATA, 0, 6, 1, 1, 0), id="PDV of length 1"),
        pytest.param(struct.pack(">BBI", PduType.P_DATA, 0, 9) + pdv(1, 0, b"") + b"xxx", id="rest in a PDU"),
    ],
)
def test_broken_streams_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read(data, PduReader(16384), forever([100]))


def test_it_tells_where_it_is() -> None:
    reader = PduReader(1000)
    stream = pdu.encode_p_data(1, bytes(100), is_command=False) + pdu.encode_release_rq()
    seen = []
    for byte in stream:
        reader.space()[:1] = bytes([byte])
        list(reader.received(1))
        seen.append((reader.inside, reader.pdu_size, reader.begun))
    assert seen[:5] == [(True, 6, 0)] * 5
    assert seen[5:111] == [(True, 112, 1)] * 106
    assert seen[111] == (False, 6, 1)
    assert seen[112:117] == [(True, 6, 1)] * 5
    assert seen[117:121] == [(True, 10, 2)] * 4
    assert seen[121] == (False, 6, 2)


def test_fragments_say_whole_only_at_their_end() -> None:
    reader = PduReader(1000)
    stream = pdu.encode_p_data(3, b"abcdef", is_command=False)
    got: list[Fragment] = []
    for piece in (stream[:14], stream[14:]):
        reader.space()[: len(piece)] = piece
        got += [event for event in reader.received(len(piece)) if isinstance(event, Fragment)]
    assert [(f.context_id, f.is_command, f.is_last, len(f.view), f.whole) for f in got] == [
        (3, False, True, 2, False),
        (3, False, True, 4, True),
    ]


def test_encoders_agree_with_pynetdicom() -> None:
    p_data = P_DATA_TF()
    p_data.decode(pdu.encode_p_data(5, b"command!", is_command=True))
    value = p_data.presentation_data_value_items[0]
    assert (value.presentation_context_id, value.presentation_data_value) == (5, b"\x03command!")
    assert pdu.encode_release_rq() == A_RELEASE_RQ().encode()
    assert pdu.encode_release_rp() == A_RELEASE_RP().encode()
    abort = A_ABORT_RQ()
    abort.decode(pdu.encode_abort(2, 6))
    assert (abort.source, abort.reason_diagnostic) == (2, 6)
    reject = A_ASSOCIATE_RJ()
    reject.decode(pdu.encode_reject(1, 1, 7))
    assert (reject.result, reject.source, reject.reason_diagnostic) == (1, 1, 7)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "aborted by the peer"),
        (bytes((0, 0, 0, 0)), "aborted by the peer's application"),
        (bytes((0, 0, 2, 1)), "aborted by the peer's DICOM layer: unrecognised PDU"),
        (bytes((0, 0, 2, 99)), "aborted by the peer's DICOM layer: reason 99"),
    ],
)
def test_an_abort_in_words(body: bytes, text: str) -> None:
    assert pdu.decode_abort(body) == text


@pytest.mark.promise("P9")
def test_a_stream_of_tiny_pdvs_is_refused_after_some() -> None:
    reader = PduReader(max_pdu=1 << 14)
    crumbs = pdu.encode_control(PduType.P_DATA, pdv(1, 0, b"x") * 2000)
    with pytest.raises(RemoteProtocolError, match="tiny"):
        read(crumbs, reader, forever([4096]))


def test_small_messages_may_go_on_for_ever() -> None:
    """C-ECHO takes PDVs of some 60 bytes, and some senders end each data set with an empty one."""
    reader = PduReader(max_pdu=1 << 14)
    message = pdu.encode_control(PduType.P_DATA, pdv(1, 3, bytes(68)) + pdv(1, 2, b""))
    assert len(read(message * 3000, reader, forever([4096]))) == 3000


@pytest.mark.parametrize(("longer", "taken"), [(0, True), (6, True), (12, True), (13, False), (1 << 30, False)])
def test_a_sender_may_leave_its_headers_out_of_what_it_counts(longer: int, taken: bool) -> None:
    reader = PduReader(max_pdu=1 << 14)
    size = (1 << 14) + longer
    start = pdu.p_data_header(1, is_command=False, is_last=True, size=size - pdu.PDV_OVERHEAD)
    if taken:
        data = bytes(size - pdu.PDV_OVERHEAD)
        assert read(start + data, reader, forever([4096])) == [(1, b"", data)]
    else:
        with pytest.raises(RemoteProtocolError, match="are allowed"):
            read(start, reader, forever([4096]))
