"""The head of a stored file: preamble and File Meta Information (PS3.10 7.1), ours on every file.

It is never sent. So it may hold, for our own eyes, what `recover` must know and the data set does not say. The preamble
holds a seal once all of the data set has been written: by it a torn file is told from one that came malformed.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from appliance.model import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

PREAMBLE = 128
_SEALED, _SEALED_BEFORE = b"SCANSIDB", b"SCANSIDE"  # with BLAKE3; with SHA-256, as the first versions did
_SEAL = struct.Struct(">8sQ32s")  # the word, bytes of the data set, their digest
_LONG = (b"OB", b"UN", b"UT", b"OW")  # VRs with 32 bits of length that may stand in group 0002
_LONGEST = 1 << 16  # bytes of group 0002 that are read back


def file_head(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str, private: bytes = b""
) -> bytes:
    """The preamble is zero, later our seal: nothing a peer sent can be executed from it. `private` is (0002,0102)."""
    elements = [
        _element(0x0001, b"OB", b"\x00\x01"),
        _element(0x0002, b"UI", _uid(sop_class_uid)),
        _element(0x0003, b"UI", _uid(sop_instance_uid)),
        _element(0x0010, b"UI", _uid(transfer_syntax_uid)),
        _element(0x0012, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
        _element(0x0013, b"SH", _even(IMPLEMENTATION_VERSION.encode(), b" ")),
        _element(0x0016, b"AE", _even(calling_ae.encode("ascii", "replace"), b" ")),
    ]
    if private:
        elements += [
            _element(0x0100, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
            _element(0x0102, b"OB", _even(private, b" ")),
        ]
    group = b"".join(elements)
    return bytes(PREAMBLE) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(group))) + group


def make_seal(size: int, digest: bytes) -> bytes:
    """The first bytes of a file whose data set was written to its end: how long it is, and its digest."""
    return _SEAL.pack(_SEALED, size, digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    size: int
    digest: bytes
    former: bool = False  #: the digest is of the kind that the first versions took


def read_seal(path: Path) -> Seal | None:
    """None: its writer never came to the end of it, or did not seal. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_SEAL.size)
    if len(start) < _SEAL.size:
        return None
    word, size, digest = _SEAL.unpack(start)
    if word not in (_SEALED, _SEALED_BEFORE):
        return None
    return Seal(size=size, digest=digest, former=word == _SEALED_BEFORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """What `file_head` wrote that is nowhere in the data set."""

    calling_ae: str
    private: bytes


def read_file_head(path: Path) -> FileHead:
    """Raises ValueError where the file does not begin as `file_head` writes it."""
    with path.open("rb") as file:
        head = file.read(144)
        if len(head) < 144 or head[128:132] != b"DICM":
            raise ValueError("not a file of the spool")
        size = struct.unpack_from("<I", head, 140)[0]
        group = file.read(min(size, _LONGEST))
    if len(group) < size:
        raise ValueError("the head of the file is cut short")
    values: dict[int, bytes] = {}
    at = 0
    while at + 8 <= len(group):
        number, vr = struct.unpack_from("<2xH2s", group, at)
        at, length = (at + 12, "<I") if vr == b"OB" else (at + 8, "<H")
        size = struct.unpack_from(length, group, at - struct.calcsize(length))[0]
        values[number] = group[at : at + size].rstrip(b" \0")
        at += size
    return FileHead(calling_ae=values.get(0x0016, b"").decode("ascii", "replace"), private=values.get(0x0102, b""))


def clean_head(head: bytes) -> bytes:
    """The head of a stored file as others may have it: no seal in the preamble, no private information of ours.

    The other elements stay as they are, the group length is made anew (PS3.10 7.1). Raises ValueError where it is not
    preamble, prefix and File Meta.
    """
    if head[PREAMBLE : PREAMBLE + 4] != b"DICM":
        raise ValueError("not a DICOM Part 10 file")
    kept, at = [], PREAMBLE + 4
    while at < len(head):
        begin, (group, number, vr) = at, struct.unpack_from("<HH2s", head.ljust(at + 6, b"\0"), at)
        at, length = (at + 12, "<I") if vr in _LONG else (at + 8, "<H")
        if group != 2 or at > len(head):
            raise ValueError("the File Meta Information is malformed")
        at += struct.unpack_from(length, head, at - struct.calcsize(length))[0]
        if number != 0x0000 and number < 0x0100:  # (0002,0100) to (0002,0102) are private information
            kept.append(head[begin:at])
    if at != len(head):
        raise ValueError("the File Meta Information is malformed")
    meta = b"".join(kept)
    return bytes(PREAMBLE) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(meta))) + meta


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def _uid(text: str) -> bytes:
    return _even(text.encode("ascii"), b"\0")


def _even(value: bytes, pad: bytes) -> bytes:
    return value + pad * (len(value) % 2)
