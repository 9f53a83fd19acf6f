"""A strict codec of A-ASSOCIATE-RQ, -AC and -RJ (PS3.8 section 9.3), and the choice of presentation contexts.

Everything a peer can say is bounded before it is kept: at most 128 contexts of at most 64 transfer syntaxes, UIDs of
64 characters. Decoders take the body of a PDU (what follows its six-byte header) and raise RemoteProtocolError,
never anything else. Encoders give the whole PDU. Items that change nothing for us are skipped by their length:
asynchronous operations window (we answer none, so 1 and 1 holds), extended negotiation, user identity (never
logged), and unknown ones.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from appliance.dimse.pdu import PduType, encode_control
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MODALITY_PERFORMED_PROCEDURE_STEP,
    STORAGE_COMMITMENT_PUSH,
)
from appliance.errors import RemoteProtocolError
from appliance.model import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
MAX_CONTEXTS = 128
MAX_TRANSFER_SYNTAXES = 64  # of one context

ACCEPTED = 0  # results of a presentation context, PS3.8 Table 9-18
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4

#: SOP classes whose data sets we read ourselves, so that not any transfer syntax will do.
_READ_HERE = frozenset({STORAGE_COMMITMENT_PUSH, MODALITY_PERFORMED_PROCEDURE_STEP})
_READABLE = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

_ITEM = struct.Struct(">BxH")
_FIXED = struct.Struct(">H2x16s16s32x")
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_AE_TITLE = re.compile(r"[ -\[\]-~]{0,16}", re.ASCII)  # printable ISO 646 without the backslash, PS3.5 VR AE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedContext:
    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContext:
    """One context's answer. `transfer_syntax` means something only where `result` is 0."""

    id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """SCP/SCU role selection of one SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateRequest:
    called_ae: str
    calling_ae: str
    contexts: tuple[ProposedContext, ...]
    max_pdu: int = 0  #: longest P-DATA body the sender of this takes, bytes; 0 = no limit
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    roles: tuple[Role, ...] = ()
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1  #: bit 0 must be set


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateAccept:
    """`called_ae` and `calling_ae` echo the request; PS3.8 has them not tested."""

    called_ae: str
    calling_ae: str
    contexts: tuple[AcceptedContext, ...]
    max_pdu: int = 0
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ: the numbers and what they say (PS3.8 Table 9-21)."""

    result: int  #: 1 = permanent, 2 = transient
    source: int  #: 1 = application, 2 = ACSE, 3 = presentation layer
    reason: int
    text: str

    @property
    def is_transient(self) -> bool:
        return self.result == 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _UserInformation:
    max_pdu: int
    implementation_class_uid: str
    implementation_version: str
    roles: tuple[Role, ...]


def negotiate(request: AssociateRequest, accepts: Callable[[str], bool]) -> tuple[AcceptedContext, ...]:
    """Answer each proposed context: accepted where `accepts(abstract_syntax)` says so.

    The spool keeps opaque bytes, so any transfer syntax will do, private ones included; what is chosen decides only
    how well others can read them. Explicit VR Little Endian is what every reader takes and keeps private elements'
    VRs. Otherwise the first proposed stands: a sender puts first what it has stored, and need not transcode. Big
    endian is retired and taken only where nothing else is offered.
    """
    return tuple(_answer(context, accepts(context.abstract_syntax)) for context in request.contexts)


def _answer(context: ProposedContext, accepted: bool) -> AcceptedContext:
    proposed = context.transfer_syntaxes
    if EXPLICIT_VR_LITTLE_ENDIAN in proposed:
        chosen = EXPLICIT_VR_LITTLE_ENDIAN
    else:
        chosen = next((uid for uid in proposed if uid != EXPLICIT_VR_BIG_ENDIAN), proposed[0])
    result = ACCEPTED if accepted else ABSTRACT_SYNTAX_NOT_SUPPORTED
    if accepted and context.abstract_syntax in _READ_HERE:
        readable = next((uid for uid in _READABLE if uid in proposed), "")
        chosen, result = readable or chosen, ACCEPTED if readable else TRANSFER_SYNTAXES_NOT_SUPPORTED
    return AcceptedContext(id=context.id, result=result, transfer_syntax=chosen)


def encode_request(request: AssociateRequest) -> bytes:
    items = [_item(0x10, request.application_context.encode("ascii"))]
    for context in request.contexts:
        syntaxes = [_item(0x40, uid.encode("ascii")) for uid in context.transfer_syntaxes]
        body = bytes((context.id, 0, 0, 0)) + _item(0x30, context.abstract_syntax.encode("ascii"))
        items.append(_item(0x20, body + b"".join(syntaxes)))
    items.append(_encode_user_information(request))
    fixed = _FIXED.pack(request.protocol_version, _ae_field(request.called_ae), _ae_field(request.calling_ae))
    return encode_control(PduType.ASSOCIATE_RQ, fixed + b"".join(items))


def encode_accept(accept: AssociateAccept) -> bytes:
    items = [_item(0x10, APPLICATION_CONTEXT.encode("ascii"))]
    for context in accept.contexts:
        syntax = _item(0x40, context.transfer_syntax.encode("ascii"))
        items.append(_item(0x21, bytes((context.id, 0, context.result, 0)) + syntax))
    items.append(_encode_user_information(accept))
    fixed = _FIXED.pack(1, _ae_field(accept.called_ae), _ae_field(accept.calling_ae))
    return encode_control(PduType.ASSOCIATE_AC, fixed + b"".join(items))


def decode_request(body: memoryview | bytes) -> AssociateRequest:
    version, called, calling, items = _decode_fixed(body)
    context_name, contexts, user = "", [], None
    for kind, value in items:
        if kind == 0x10:
            context_name = _uid(value)
        elif kind == 0x20:
            contexts.append(_decode_proposed(value))
            _check_contexts([context.id for context in contexts])
        elif kind == 0x50:
            user = _decode_user_information(value)
    if not contexts or user is None:
        _refuse("association request without presentation contexts or user information")
    return AssociateRequest(
        called_ae=_ae_title(called),
        calling_ae=_ae_title(calling),
        contexts=tuple(contexts),
        max_pdu=user.max_pdu,
        implementation_class_uid=user.implementation_class_uid,
        implementation_version=user.implementation_version,
        roles=user.roles,
        application_context=context_name,
        protocol_version=version,
    )


def decode_accept(body: memoryview | bytes) -> AssociateAccept:
    _, called, calling, items = _decode_fixed(body)
    contexts, user = [], None
    for kind, value in items:
        if kind == 0x21:
            contexts.append(_decode_accepted(value))
            _check_contexts([context.id for context in contexts])
        elif kind == 0x50:
            user = _decode_user_information(value)
    if user is None:
        _refuse("association accepted without user information")
    return AssociateAccept(
        called_ae=_ae_title(called),
        calling_ae=_ae_title(calling),
        contexts=tuple(contexts),
        max_pdu=user.max_pdu,
        implementation_class_uid=user.implementation_class_uid,
        implementation_version=user.implementation_version,
        roles=user.roles,
    )


def decode_reject(body: memoryview | bytes) -> Rejection:
    if len(body) != 4:
        _refuse("malformed A-ASSOCIATE-RJ")
    _, result, source, reason = bytes(body)
    text = _REJECT_REASONS.get((source, reason), f"source {source}, reason {reason}")
    permanence = {1: "for good", 2: "for now"}.get(result, f"result {result}")
    return Rejection(result=result, source=source, reason=reason, text=f"rejected {permanence}: {text}")


_REJECT_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given (ACSE)",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


def _decode_fixed(body: memoryview | bytes) -> tuple[int, bytes, bytes, Iterator[tuple[int, bytes]]]:
    data = bytes(body)
    if len(data) < _FIXED.size:
        _refuse("association PDU cut short")
    version, called, calling = _FIXED.unpack_from(data)
    return version, called, calling, _items(data[_FIXED.size :])


def _decode_proposed(value: bytes) -> ProposedContext:
    abstract, transfer = [], []
    for kind, sub in _items(value[4:]):
        if kind == 0x30:
            abstract.append(_uid(sub))
        elif kind == 0x40:
            transfer.append(_uid(sub))
    if len(value) < 4 or len(abstract) != 1 or not 1 <= len(transfer) <= MAX_TRANSFER_SYNTAXES:
        _refuse("malformed presentation context")
    return ProposedContext(id=value[0], abstract_syntax=abstract[0], transfer_syntaxes=tuple(transfer))


def _decode_accepted(value: bytes) -> AcceptedContext:
    if len(value) < 4:
        _refuse("malformed presentation context")
    syntaxes = [sub for kind, sub in _items(value[4:]) if kind == 0x40]
    if value[2] != ACCEPTED:  # the transfer syntax of a refused context is not significant: peers leave it out
        syntax = _lenient(_UID, syntaxes[0]) if syntaxes else ""
        return AcceptedContext(id=value[0], result=value[2], transfer_syntax=syntax)
    if len(syntaxes) != 1:
        _refuse("accepted presentation context without one transfer syntax")
    return AcceptedContext(id=value[0], result=ACCEPTED, transfer_syntax=_uid(syntaxes[0]))


def _check_contexts(ids: list[int]) -> None:
    if len(ids) > MAX_CONTEXTS or not ids[-1] % 2 or ids[-1] in ids[:-1]:
        _refuse("presentation context ids must be odd and unique")


def _encode_user_information(source: AssociateRequest | AssociateAccept) -> bytes:
    items = [
        _item(0x51, source.max_pdu.to_bytes(4, "big")),
        _item(0x52, source.implementation_class_uid.encode("ascii")),
        _item(0x55, source.implementation_version.encode("ascii")),
    ]
    for role in source.roles:
        uid = role.sop_class_uid.encode("ascii")
        items.append(_item(0x54, len(uid).to_bytes(2, "big") + uid + bytes((role.scu, role.scp))))
    if not source.implementation_version:
        del items[2]
    return _item(0x50, b"".join(items))


def _decode_user_information(value: bytes) -> _UserInformation:
    max_pdu, class_uid, version, roles = 0, "", "", []
    for kind, sub in _items(value):
        if kind == 0x51:
            if len(sub) != 4:
                _refuse("malformed maximum length")
            max_pdu = int.from_bytes(sub, "big")
        elif kind == 0x52:
            class_uid = _lenient(_UID, sub)
        elif kind == 0x55:
            version = _lenient(_AE_TITLE, sub)
        elif kind == 0x54:
            roles.append(_decode_role(sub))
            if len(roles) > MAX_CONTEXTS:
                _refuse("too many role selections")
    return _UserInformation(
        max_pdu=max_pdu, implementation_class_uid=class_uid, implementation_version=version, roles=tuple(roles)
    )


def _decode_role(value: bytes) -> Role:
    if len(value) < 4 or len(value) != int.from_bytes(value[:2], "big") + 4:
        _refuse("malformed role selection")
    return Role(sop_class_uid=_uid(value[2:-2]), scu=value[-2] == 1, scp=value[-1] == 1)


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if len(data) - at < _ITEM.size:
            _refuse("association item cut short")
        kind, length = _ITEM.unpack_from(data, at)
        at += _ITEM.size
        if length > len(data) - at:
            _refuse("association item longer than its PDU")
        yield kind, data[at : at + length]
        at += length


def _uid(value: bytes) -> str:
    text = value.rstrip(b"\0 ").decode("ascii", "replace")
    if not _UID.fullmatch(text):
        _refuse("malformed UID in an association PDU")
    return text


def _lenient(pattern: re.Pattern[str], value: bytes) -> str:
    """What only informs must not cost a scanner its association: "" where it is malformed."""
    text = value.decode("ascii", "replace").strip("\0 ")
    return text if pattern.fullmatch(text) else ""


def _ae_field(title: str) -> bytes:
    if not _AE_TITLE.fullmatch(title):
        raise ValueError(f"not an AE title: {title!r}")
    return title.encode("ascii").ljust(16)


def _ae_title(value: bytes) -> str:
    text = value.decode("ascii", "replace").strip("\0 ")
    if not _AE_TITLE.fullmatch(text):
        _refuse("malformed AE title")
    return text


def _refuse(what: str) -> NoReturn:
    raise RemoteProtocolError(what)
