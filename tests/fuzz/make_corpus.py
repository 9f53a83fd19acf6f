"""Writes the seeds of the fuzzers, tests/fuzz/corpus/TARGET/NAME: small, no patient, the same bytes each time.

`python -m tests.fuzz.make_corpus` after a change here. Files named `found-*` are inputs that broke something once: they
stay.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from appliance.dimse import association, command, data_set, pdu
from appliance.dimse.association import AcceptedContext, AssociateAccept, AssociateRequest, ProposedContext, Role
from appliance.dimse.command import Command, CommandField
from appliance.dimse.data_set import Tag
from appliance.dimse.sop_classes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from appliance.file_head import file_head

CORPUS = Path(__file__).parent / "corpus"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
JPEG, JPEG_LS, J2K, RLE = (f"1.2.840.10008.1.2.{tail}" for tail in ("4.70", "4.80", "4.90", "5"))
UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")

Seed = tuple[str, str, bytes]  # target, name, bytes


def element(tag: int, vr: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """Explicit VR Little Endian; `length` lies about the value."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<xxI", size) if vr in _LONG else struct.pack("<H", size)) + value


def item(content: bytes, *, length: int | None = None, tag: int = 0xFFFEE000) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(content) if length is None else length) + content


def sequence(tag: int, *contents: bytes) -> bytes:
    """Of undefined length, its items too."""
    items = b"".join(item(one, length=UNDEFINED) + item(b"", tag=0xFFFEE00D) for one in contents)
    return element(tag, b"SQ", items, length=UNDEFINED) + item(b"", tag=0xFFFEE0DD)


def explicit(pixels: bytes = b"\1\2" * 4) -> bytes:
    """A small CT image."""
    nested = element(0x00081155, b"UI", b"9.9\0")
    texts = ((0x00080060, b"CS", b"CT"), (0x00100020, b"LO", b"P1"), (0x00100021, b"LO", b"NHS "))
    return b"".join(
        [
            element(0x00080016, b"UI", CT_IMAGE.encode() + b"\0"),
            element(0x00080018, b"UI", b"1.2.3.4\0"),
            *(element(*one) for one in texts),
            element(0x00081140, b"SQ", b"", length=0),
            sequence(0x00081115, sequence(0x00081199, nested, nested)),
            element(0x0020000D, b"UI", b"1.2.3\0"),
            element(0x0020000E, b"UI", b"1.2.3.5\0"),
            element(0x00201209, b"IS", b"120 "),
            *layout(2, 2),
            element(0x00401003, b"SH", b"STAT"),
            pixels if pixels[:4] == struct.pack("<HH", 0x7FE0, 0x10) else element(0x7FE00010, b"OW", pixels),
        ]
    )


def layout(rows: int, columns: int) -> Iterator[bytes]:
    values = {0x02: 1, 0x10: rows, 0x11: columns, 0x100: 16, 0x101: 12, 0x102: 11, 0x103: 0}
    yield element(0x00280004, b"CS", b"MONOCHROME2 ")
    for number, value in values.items():
        yield element(0x00280000 | number, b"US", struct.pack("<H", value))


def implicit() -> bytes:
    values = {0x00080016: CT_IMAGE.encode() + b"\0", 0x00080018: b"1.2.3.4\0", 0x00100020: b"P1", 0x0020000E: b"1.2\0"}
    return b"".join(struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value for tag, value in values.items())


def big_endian() -> bytes:
    def one(tag: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack(">HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value

    return one(0x00080018, b"UI", b"1.2.3.4\0") + one(0x00080060, b"CS", b"CT") + one(0x0020000E, b"UI", b"1.2\0")


def nested(depth: int) -> bytes:
    opening = element(0x0040A730, b"SQ", b"", length=UNDEFINED) + item(b"", length=UNDEFINED)
    closing = item(b"", tag=0xFFFEE00D) + item(b"", tag=0xFFFEE0DD)
    return opening * depth + closing * depth


def encapsulated(frame: bytes) -> bytes:
    content = item(b"") + item(frame + b"\0" * (len(frame) % 2))
    return element(0x7FE00010, b"OB", content, length=UNDEFINED) + item(b"", tag=0xFFFEE0DD)


def rle_claim() -> bytes:
    """65535 x 65535 pixels in 68 bytes."""
    frame = struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\x00\x81\x00"
    return b"".join(layout(65_535, 65_535)) + encapsulated(frame)


def request() -> AssociateRequest:
    contexts = (
        ProposedContext(
            id=1,
            abstract_syntax=CT_IMAGE,
            transfer_syntaxes=(EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, JPEG_LS),
        ),
        ProposedContext(id=3, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_VR_LITTLE_ENDIAN,)),
    )
    roles = (Role(sop_class_uid=CT_IMAGE, scu=True, scp=False),)
    return AssociateRequest(called_ae="SCANSIDE", calling_ae="CT01", contexts=contexts, max_pdu=16_384, roles=roles)


def associations() -> Iterator[Seed]:
    yield "association", "request", association.encode_request(request())[6:]
    accepted = (
        AcceptedContext(id=1, result=0, transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN),
        AcceptedContext(id=3, result=3, transfer_syntax=""),
    )
    accept = AssociateAccept(called_ae="SCANSIDE", calling_ae="CT01", contexts=accepted, max_pdu=131_072)
    yield "association", "accept", association.encode_accept(accept)[6:]
    yield "association", "reject", bytes((0, 1, 1, 3))


def commands() -> Iterator[Seed]:
    store = command.store_request(7, CT_IMAGE, "1.2.3.4")
    for name, one in {
        "store": store,
        "answer": command.response(store, 0xA700, "full"),
        "echo": command.echo_request(1),
        "action": Command(
            field=CommandField.N_ACTION,
            message_id=2,
            sop_class_uid="1.2.840.10008.1.20.1",
            sop_instance_uid="1.2.840.10008.1.20.1.1",
            action_type_id=1,
            has_data_set=True,
        ),
    }.items():
        yield "command", name, command.encode(one, 1)[12:]


def streams() -> Iterator[Seed]:
    """As bytes of a connection; the first byte says how they are cut, or how a conversation goes."""
    store = command.encode(command.store_request(7, CT_IMAGE, "1.2.3.4"), 1)
    data = pdu.encode_p_data(1, b"data" * 9, is_command=False, is_last=False)
    data += pdu.encode_p_data(1, b"end", is_command=False)
    two = struct.pack(">IBB", 3, 1, 0) + b"a" + struct.pack(">IBB", 3, 1, 2) + b"b"
    packed = pdu.encode_control(pdu.PduType.P_DATA, two)
    for target, cut in (("pdu", b"\7"), ("conversation", b"\1"), ("conversation", b"\xf1")):
        number = cut.hex()
        yield target, f"store-{number}", cut + store + data + command.encode(command.echo_request(8), 3)
        yield target, f"packed-{number}", cut + store + packed + pdu.encode_release_rq()
    yield "pdu", "request", b"\x11" + association.encode_request(request()) + pdu.encode_abort(0, 0)
    yield "pdu", "two-gigabytes", b"\x40" + struct.pack(">BxI", 4, 1 << 31) + bytes(20)
    script = bytes((4, 0, 0, 4)) + b"data" + bytes((16, 3)) + b"end" + bytes((5, 3))
    action = bytes((6, 5, 2, 3)) + b"abc" + bytes((18, 0, 6, 6))
    yield "conversation", "action", b"\0" + action
    for kind in (0, 2, 4, 8):
        yield "conversation", f"script-{kind}", bytes((kind,)) + script * 2
    crumbs = b"".join(struct.pack(">IBB", 3, 1, 0) + b"x" for _ in range(80))
    yield "conversation", "crumbs", b"\1" + store + pdu.encode_control(pdu.PduType.P_DATA, crumbs)


def data_sets() -> Iterator[Seed]:
    unknown = element(0x00091001, b"UN", item(implicit(), length=UNDEFINED), length=UNDEFINED)
    for name, syntax, content in (
        ("implicit", 0, implicit()),
        ("explicit", 1, explicit()),
        ("big", 2, big_endian()),
        ("encapsulated", 3, explicit(encapsulated(b"\xff\xd8\xff\xd9"))),
        ("mislabelled", 0, explicit()),
        ("nested-63", 1, nested(31) + explicit()),
        ("nested-200", 1, nested(200)),
        ("unknown", 1, unknown + item(b"", tag=0xFFFEE00D) + item(b"", tag=0xFFFEE0DD) + explicit()),
        ("length-fffffffe", 1, element(0x7FE00010, b"OW", b"x" * 10, length=0xFFFFFFFE)),
        ("path", 1, element(0x00080018, b"UI", b"../../../etc/cron.d/x\0")),
    ):
        yield "header", name, bytes((syntax,)) + content
    yield "deflated", "plain", b"\x8c" + explicit()
    yield "deflated", "packed", b"\0" + deflate(explicit())
    yield "deflated", "bomb", b"\0" + deflate(explicit() + bytes(8 << 20))
    yield "deflated", "cut", b"\0" + deflate(explicit())[:-9]


def requests() -> Iterator[Seed]:
    """What comes with N-ACTION and N-CREATE."""
    named: data_set.DataSet = {
        Tag.TRANSACTION_UID: b"1.2.3",
        Tag.REFERENCED_SOP_SEQUENCE: [*data_set.references([(CT_IMAGE, "1.2.3.4"), (CT_IMAGE, "1.2.3.5")])],
        Tag.PERFORMED_PROCEDURE_STEP_STATUS: b"COMPLETED",
    }
    for number, syntax in enumerate((IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)):
        yield "data_set", f"references-{number}", bytes((number,)) + data_set.write(named, syntax)
    yield "data_set", "nested", b"\1" + sequence(0x00081199, sequence(0x00081199, sequence(0x00081199, b"")))
    yield (
        "data_set",
        "unknown",
        b"\1" + element(0x00081199, b"UN", item(implicit(), length=UNDEFINED), length=UNDEFINED),
    )
    yield "data_set", "nested-200", b"\1" + nested(200)


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def files() -> Iterator[Seed]:
    """Files of what a series is made of. The codestreams are stumps: decoders must say so."""
    for name, syntax, content in (
        ("native", EXPLICIT_VR_LITTLE_ENDIAN, explicit()),
        ("implicit", IMPLICIT_VR_LITTLE_ENDIAN, implicit()),
        ("jpeg", JPEG, explicit(encapsulated(b"\xff\xd8\xff\xc3\0\x0b\x0c\0\2\0\2\1\1\x11\0\xff\xd9"))),
        ("jpeg-ls", JPEG_LS, explicit(encapsulated(b"\xff\xd8\xff\xf7\0\x0b\x0c\0\2\0\2\1\1\x11\0\xff\xd9"))),
        (
            "j2k",
            J2K,
            explicit(encapsulated(b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">8I", 2, 2, 0, 0, 2, 2, 0, 0))),
        ),
        ("rle", RLE, explicit(encapsulated(struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\xfd\0\xfd\0"))),
        ("rle-claim", RLE, rle_claim()),
        ("nested-200", EXPLICIT_VR_LITTLE_ENDIAN, nested(200)),
        ("length-fffffffe", EXPLICIT_VR_LITTLE_ENDIAN, element(0x7FE00010, b"OW", b"x" * 10, length=0xFFFFFFFE)),
    ):
        for target in ("part10", "image"):
            yield target, name, file_head(CT_IMAGE, "1.2.3.4", syntax, "CT01") + content
    bare = bytes(128) + b"DICM" + element(0x00020010, b"UI", EXPLICIT_VR_LITTLE_ENDIAN.encode() + b"\0")
    yield "part10", "bare", bare + explicit()


def seeds() -> Iterator[Seed]:
    for family in (associations, commands, streams, data_sets, requests, files):
        yield from family()


def main() -> None:
    for target, name, content in seeds():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        (CORPUS / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
