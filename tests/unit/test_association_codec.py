"""The association codec against pynetdicom's, against itself, and against anything a peer might send."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context

from appliance.dimse.association import (
    APPLICATION_CONTEXT,
    AcceptedContext,
    AssociateAccept,
    AssociateRequest,
    ProposedContext,
    Role,
    decode_accept,
    decode_reject,
    decode_request,
    encode_accept,
    encode_request,
    negotiate,
)
from appliance.dimse.pdu import encode_reject
from appliance.errors import RemoteProtocolError

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
J2K, GE_PRIVATE = "1.2.840.10008.1.2.4.90", "1.2.840.113619.5.2"

uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True)
ae_titles = st.text(st.sampled_from("ABCXYZ019_ -"), max_size=16).map(str.strip)
roles = st.builds(Role, sop_class_uid=uids, scu=st.booleans(), scp=st.booleans())
context_ids = st.lists(st.integers(0, 127).map(lambda n: 2 * n + 1), min_size=1, max_size=6, unique=True)


@st.composite
def requests(draw: st.DrawFn) -> AssociateRequest:
    syntaxes = st.lists(uids, min_size=1, max_size=4).map(tuple)
    return AssociateRequest(
        called_ae=draw(ae_titles),
        calling_ae=draw(ae_titles),
        contexts=tuple(
            ProposedContext(id=id_, abstract_syntax=draw(uids), transfer_syntaxes=draw(syntaxes))
            for id_ in draw(context_ids)
        ),
        max_pdu=draw(st.integers(0, 2**32 - 1)),
        implementation_class_uid=draw(uids),
        implementation_version=draw(ae_titles),
        roles=tuple(draw(st.lists(roles, max_size=3))),
        application_context=draw(uids),
        protocol_version=draw(st.integers(0, 65535)),
    )


@st.composite
def accepts(draw: st.DrawFn) -> AssociateAccept:
    return AssociateAccept(
        called_ae=draw(ae_titles),
        calling_ae=draw(ae_titles),
        contexts=tuple(
            AcceptedContext(id=id_, result=draw(st.integers(0, 4)), transfer_syntax=draw(uids))
            for id_ in draw(context_ids)
        ),
        max_pdu=draw(st.integers(0, 2**32 - 1)),
        implementation_class_uid=draw(uids),
        implementation_version=draw(ae_titles),
        roles=tuple(draw(st.lists(roles, max_size=3))),
    )


@settings(max_examples=60)
@given(requests())
def test_requests_come_back(request: AssociateRequest) -> None:
    assert decode_request(encode_request(request)[6:]) == request


@given(accepts())
def test_accepts_come_back(accept: AssociateAccept) -> None:
    assert decode_accept(encode_accept(accept)[6:]) == accept


SAMPLES = (
    (
        decode_request,
        encode_request(
            AssociateRequest(
                called_ae="SCANSIDE",
                calling_ae="CT01",
                contexts=(
                    ProposedContext(id=1, abstract_syntax=CT, transfer_syntaxes=(EXPLICIT, J2K)),
                    ProposedContext(id=3, abstract_syntax=CT, transfer_syntaxes=(GE_PRIVATE,)),
                ),
                roles=(Role(sop_class_uid=CT, scu=True, scp=True),),
            )
        ),
    ),
    (
        decode_accept,
        encode_accept(
            AssociateAccept(
                called_ae="SCANSIDE",
                calling_ae="CT01",
                contexts=(AcceptedContext(id=1, result=0, transfer_syntax=EXPLICIT),),
                roles=(Role(sop_class_uid=CT, scu=True, scp=True),),
            )
        ),
    ),
)
mutations = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4)


@settings(max_examples=300)
@given(mutations)
def test_mutated_bytes_raise_nothing_else(changes: list[tuple[int, int, bytes]]) -> None:
    for decode, encoded in SAMPLES:
        mutated = bytearray(encoded[6:])
        for at, removed, added in changes:
            at %= len(mutated)  # noqa: PLW2901 - a place in whatever is left
            mutated[at : at + removed] = added
        with contextlib.suppress(RemoteProtocolError):
            decode(bytes(mutated))


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(body: bytes) -> None:
    for decode in (decode_request, decode_accept, decode_reject):
        for data in (body, bytes(68) + body):
            with contextlib.suppress(RemoteProtocolError):
                decode(data)


def theirs(*, result: int | None) -> A_ASSOCIATE:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "SCANSIDE"
    length, class_uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received, version.implementation_version_name = 16382, "THEIRS"
    class_uid.implementation_class_uid = "1.2.3"
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CT, True, False
    primitive.user_information = [length, class_uid, version, role]
    contexts = [build_context(CT, [EXPLICIT, J2K]), build_context("1.2.840.10008.1.1", [IMPLICIT])]
    for n, context in enumerate(contexts):
        context.context_id = 2 * n + 1
        if result is not None:
            context.result, context.transfer_syntax = result, [str(context.transfer_syntax[0])]
    if result is None:
        window, identity, extended = (
            AsynchronousOperationsWindowNegotiation(),
            UserIdentityNegotiation(),
            SOPClassExtendedNegotiation(),
        )
        window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 0
        identity.user_identity_type, identity.primary_field, identity.secondary_field = 2, b"user", b"password"
        extended.sop_class_uid, extended.service_class_application_information = CT, b"\x02\x01"
        primitive.user_information += [window, identity, extended]
        primitive.presentation_context_definition_list = contexts
    else:
        primitive.result, primitive.result_source = 0, 1
        primitive.presentation_context_definition_results_list = contexts
    return primitive


def test_we_read_their_request() -> None:
    request = decode_request(A_ASSOCIATE_RQ(theirs(result=None)).encode()[6:])
    assert request == AssociateRequest(
        called_ae="SCANSIDE",
        calling_ae="SCANNER",
        contexts=(
            ProposedContext(id=1, abstract_syntax=CT, transfer_syntaxes=(EXPLICIT, J2K)),
            ProposedContext(id=3, abstract_syntax="1.2.840.10008.1.1", transfer_syntaxes=(IMPLICIT,)),
        ),
        max_pdu=16382,
        implementation_class_uid="1.2.3",
        implementation_version="THEIRS",
        roles=(Role(sop_class_uid=CT, scu=True, scp=False),),
    )


def test_we_read_their_accept() -> None:
    accept = decode_accept(A_ASSOCIATE_AC(theirs(result=0)).encode()[6:])
    assert [(c.id, c.result, c.transfer_syntax) for c in accept.contexts] == [(1, 0, EXPLICIT), (3, 0, IMPLICIT)]
    assert (accept.max_pdu, accept.implementation_version, accept.called_ae) == (16382, "THEIRS", "SCANSIDE")


def test_they_read_our_request() -> None:
    ours = AssociateRequest(
        called_ae="PACS",
        calling_ae="SCANSIDE",
        contexts=(ProposedContext(id=7, abstract_syntax=CT, transfer_syntaxes=(J2K,)),),
        max_pdu=131072,
        roles=(Role(sop_class_uid=CT, scu=True, scp=True),),
    )
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(encode_request(ours))
    primitive = pdu.to_primitive()
    (context,) = primitive.presentation_context_definition_list
    assert (context.context_id, context.abstract_syntax, context.transfer_syntax) == (7, CT, [J2K])
    assert (primitive.calling_ae_title, primitive.called_ae_title) == ("SCANSIDE", "PACS")
    assert primitive.maximum_length_received == 131072
    assert pdu.encode() == encode_request(ours)


def test_they_read_our_accept() -> None:
    ours = AssociateAccept(
        called_ae="SCANSIDE",
        calling_ae="CT01",
        contexts=(
            AcceptedContext(id=1, result=0, transfer_syntax=EXPLICIT),
            AcceptedContext(id=3, result=3, transfer_syntax=IMPLICIT),
        ),
        max_pdu=131072,
    )
    pdu = A_ASSOCIATE_AC()
    pdu.decode(encode_accept(ours))
    results = pdu.to_primitive().presentation_context_definition_results_list
    assert [(c.context_id, c.result) for c in results] == [(1, 0), (3, 3)]
    assert results[0].transfer_syntax == [EXPLICIT]


def request_of(*contexts: ProposedContext) -> bytes:
    return encode_request(AssociateRequest(called_ae="A", calling_ae="B", contexts=contexts))[6:]


def proposed(id_: int, *syntaxes: str) -> ProposedContext:
    return ProposedContext(id=id_, abstract_syntax=CT, transfer_syntaxes=syntaxes)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(68), id="no items"),
        pytest.param(request_of(), id="no context"),
        pytest.param(request_of(proposed(2, EXPLICIT)), id="even id"),
        pytest.param(request_of(proposed(1, EXPLICIT), proposed(1, J2K)), id="id twice"),
        pytest.param(request_of(proposed(1)), id="no transfer syntax"),
        pytest.param(request_of(proposed(1, *[f"1.2.{n}" for n in range(65)])), id="65 transfer syntaxes"),
        pytest.param(request_of(proposed(1, "../../etc/passwd")), id="a path as UID"),
        pytest.param(request_of(proposed(1, "1" * 65)), id="65 characters"),
        pytest.param(request_of(proposed(1, EXPLICIT))[:-1], id="cut short"),
        pytest.param(request_of(proposed(1, EXPLICIT)) + b"\x20", id="half an item"),
    ],
)
def test_malformed_requests_are_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(body)


def test_all_128_contexts_are_taken() -> None:
    contexts = tuple(proposed(2 * n + 1, EXPLICIT) for n in range(128))
    assert decode_request(request_of(*contexts)).contexts == contexts


def test_what_only_informs_costs_no_association() -> None:
    body = request_of(proposed(1, EXPLICIT)).replace(b"SCANSIDE_010", b"\xffNOT ASCII!\n")
    assert decode_request(body).implementation_version == ""


@pytest.mark.parametrize(
    ("syntaxes", "chosen"),
    [
        ((IMPLICIT, J2K, EXPLICIT), EXPLICIT),
        ((BIG, J2K, IMPLICIT), J2K),
        ((GE_PRIVATE,), GE_PRIVATE),
        ((BIG,), BIG),
    ],
)
def test_the_transfer_syntax_chosen(syntaxes: tuple[str, ...], chosen: str) -> None:
    request = AssociateRequest(called_ae="A", calling_ae="B", contexts=(proposed(1, *syntaxes),))
    assert negotiate(request, lambda _: True) == (AcceptedContext(id=1, result=0, transfer_syntax=chosen),)


def test_a_sop_class_we_do_not_take_is_refused_alone() -> None:
    other = ProposedContext(id=3, abstract_syntax="1.2.3", transfer_syntaxes=(EXPLICIT,))
    request = AssociateRequest(called_ae="A", calling_ae="B", contexts=(proposed(1, EXPLICIT), other))
    assert [context.result for context in negotiate(request, lambda uid: uid == CT)] == [0, 3]


def test_rejections_in_words() -> None:
    rejection = decode_reject(encode_reject(1, 1, 7)[6:])
    assert (rejection.is_transient, rejection.text) == (False, "rejected for good: called AE title not recognised")
    rejection = decode_reject(encode_reject(2, 3, 2)[6:])
    assert (rejection.is_transient, rejection.text) == (True, "rejected for now: local limit exceeded")
    assert decode_reject(encode_reject(1, 9, 9)[6:]).text == "rejected for good: source 9, reason 9"


def test_an_ae_title_that_is_none_is_not_encoded() -> None:
    for title in ("SEVENTEEN_LETTERS", "BACK\\SLASH", "UMLAUT\u00dc"):
        with pytest.raises(ValueError, match="not an AE title"):
            encode_request(AssociateRequest(called_ae=title, calling_ae="B", contexts=(proposed(1, EXPLICIT),)))
