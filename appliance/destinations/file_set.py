"""The DICOMDIR of a file-set (PS3.3 Annex F, PS3.10 section 8): patients, studies, series, and a file for each object.

Written from values as they stand in the objects, which are never decoded. What the standard wants and an object has
not is made up, as dcmmkdir does: in the directory only, never in the object.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.dimse.header import first_item
from appliance.dimse.sop_classes import EXPLICIT_VR_LITTLE_ENDIAN
from appliance.file_head import file_head

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
LONGEST = 400  # bytes of a value that are taken over
_CHARACTER_SET, _CONCEPT_NAME = 0x00080005, 0x0040A043
_STUDY_UID, _SERIES_UID = 0x0020000D, 0x0020000E
_CODE = ((0x00080100, b"SH", b"121144"), (0x00080102, b"SH", b"DCM"), (0x00080104, b"LO", b"Document Title"))
_FORMS = {
    b"DA": re.compile(rb"[0-9]{8}"),
    b"TM": re.compile(rb"[0-9]{2,6}(\.[0-9]{1,6})?"),
    b"IS": re.compile(rb"[+-]?[0-9]{1,11}"),
    b"CS": re.compile(rb"[A-Z0-9 _]{1,16}"),
    b"UI": re.compile(rb"[0-9.]{1,64}"),
}
_TEXT = re.compile(rb"[^\x00-\x1a\x1c-\x1f]{1,400}")


@dataclass(frozen=True, slots=True)
class _Key:
    tag: int
    vr: bytes
    made_up: bytes = b""  #: where the object has none; empty: it may be


_DATE, _TIME, _NUMBER = b"19000101", b"000000", b"0"
_PATIENT = (_Key(0x00100010, b"PN"), _Key(0x00100020, b"LO", b"UNKNOWN"))
_STUDY = (
    _Key(0x00080020, b"DA", _DATE),
    _Key(0x00080030, b"TM", _TIME),
    _Key(0x00080050, b"SH"),
    _Key(0x00081030, b"LO"),
    _Key(0x00200010, b"SH", _NUMBER),
)
_SERIES = (_Key(0x00080060, b"CS", b"OT"), _Key(0x00200011, b"IS", _NUMBER))
_IMAGE = (_Key(0x00200013, b"IS", _NUMBER),)
_DATED = (_Key(0x00080023, b"DA", _DATE), _Key(0x00080033, b"TM", _TIME), *_IMAGE)
_DOCUMENT = (*_DATED, _Key(0x0040A491, b"CS", b"PARTIAL"), _Key(0x0040A493, b"CS", b"UNVERIFIED"))

#: SOP classes that begin so, what their records are called, and their keys; the first that fits. All others: images.
_KINDS = (
    ("1.2.840.10008.5.1.4.1.1.88.59", b"KEY OBJECT DOC", _DATED),
    ("1.2.840.10008.5.1.4.1.1.88.", b"SR DOCUMENT", _DOCUMENT),
    (
        "1.2.840.10008.5.1.4.1.1.11.",
        b"PRESENTATION",
        (
            *_IMAGE,
            _Key(0x00700080, b"CS", b"UNNAMED"),
            _Key(0x00700081, b"LO"),
            _Key(0x00700082, b"DA", _DATE),
            _Key(0x00700083, b"TM", _TIME),
            _Key(0x00700084, b"PN"),
        ),
    ),
    ("1.2.840.10008.5.1.4.1.1.9.", b"WAVEFORM", _DATED),
    ("1.2.840.10008.5.1.4.1.1.104.", b"ENCAP DOC", (*_DATED, _Key(0x00420010, b"ST"), _Key(0x00420012, b"LO", b"?"))),
    ("1.2.840.10008.5.1.4.1.1.66.4", b"IMAGE", _IMAGE),
    ("1.2.840.10008.5.1.4.1.1.66", b"RAW DATA", _DATED),
)
_WITH_CONCEPT = (b"KEY OBJECT DOC", b"SR DOCUMENT")
_ALL = (*_PATIENT, *_STUDY, *_SERIES, *(key for _, _, keys in _KINDS for key in keys))
#: What `Directory.add` wants to know of an object.
WANTED = frozenset((_CHARACTER_SET, _CONCEPT_NAME, 0x00100021, *(key.tag for key in _ALL)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An object of the file-set."""

    file_id: tuple[str, ...]  #: its path, a component each (PS3.10 8.5)
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str
    series_instance_uid: str
    values: Mapping[int, bytes]  #: of WANTED, as they stand in the object


@dataclass(slots=True)
class _Record:
    kind: bytes
    elements: bytes  #: all after the record's own group
    head: bytes = b""  #: of its own group, after the kind: the file
    children: "dict[object, _Record]" = field(default_factory=dict)
    at: int = 0

    @property
    def size(self) -> int:
        return len(self.encoded(0, 0))

    def encoded(self, following: int, lower: int) -> bytes:
        body = (
            _element(0x00041400, b"UL", struct.pack("<I", following))
            + _element(0x00041410, b"US", b"\xff\xff")
            + _element(0x00041420, b"UL", struct.pack("<I", lower))
            + _element(0x00041430, b"CS", self.kind)
            + self.head
            + self.elements
        )
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body


class Directory:
    """Built up object by object, written at the end."""

    def __init__(self) -> None:
        self._patients: dict[object, _Record] = {}
        self.made_up = 0  #: objects that lack something that their records must have

    def add(self, member: Member) -> None:
        values = member.values
        lacks = list[int]()
        identity = values.get(0x00100020, b"").strip(b" \0"), values.get(0x00100021, b"").strip(b" \0")
        patient = _child(self._patients, identity, b"PATIENT", _elements(values, _PATIENT, lacks))
        study = _child(
            patient.children,
            member.study_instance_uid,
            b"STUDY",
            _elements(values, _STUDY, lacks, {_STUDY_UID: member.study_instance_uid}),
        )
        series = _child(
            study.children,
            member.series_instance_uid,
            b"SERIES",
            _elements(values, _SERIES, lacks, {_SERIES_UID: member.series_instance_uid}),
        )
        kind, keys = next(
            ((kind, keys) for begin, kind, keys in _KINDS if member.sop_class_uid.startswith(begin)), (b"IMAGE", _IMAGE)
        )
        concept = _concept(member, lacks) if kind in _WITH_CONCEPT else b""
        record = _child(series.children, member.file_id, kind, _elements(values, keys, lacks, concept=concept))
        record.head = (
            _element(0x00041500, b"CS", "\\".join(member.file_id).encode("ascii"))
            + _element(0x00041510, b"UI", member.sop_class_uid.encode("ascii"))
            + _element(0x00041511, b"UI", member.sop_instance_uid.encode("ascii"))
            + _element(0x00041512, b"UI", member.transfer_syntax_uid.encode("ascii"))
        )
        self.made_up += bool(lacks)

    def encoded(self, uid: str, calling_ae: str) -> Iterator[bytes]:
        """The file DICOMDIR, in pieces. `uid`: of this file-set."""
        head = file_head(MEDIA_STORAGE_DIRECTORY, uid, EXPLICIT_VR_LITTLE_ENDIAN, calling_ae)
        front = len(head) + len(_front(0, 0, 0))
        end = front
        for record in _walk(self._patients.values()):
            record.at = end
            end += record.size
        roots = list(self._patients.values())
        yield head + _front(roots[0].at if roots else 0, roots[-1].at if roots else 0, end - front)
        yield from _encoded(roots)


def _child(among: dict[object, _Record], key: object, kind: bytes, elements: bytes) -> _Record:
    """The first object that names it says how it is described."""
    return among.setdefault(key, _Record(kind, elements))


def _walk(records: Iterable[_Record]) -> Iterator[_Record]:
    for record in records:
        yield record
        yield from _walk(record.children.values())


def _encoded(records: Sequence[_Record]) -> Iterator[bytes]:
    for number, record in enumerate(records, 1):
        children = list(record.children.values())
        following = records[number].at if number < len(records) else 0
        yield record.encoded(following, children[0].at if children else 0)
        yield from _encoded(children)


def _front(first: int, last: int, size: int) -> bytes:
    return (
        _element(0x00041130, b"CS", b"SCANSIDE")
        + _element(0x00041200, b"UL", struct.pack("<I", first))
        + _element(0x00041202, b"UL", struct.pack("<I", last))
        + _element(0x00041212, b"US", b"\0\0")
        + struct.pack("<HH2sHI", 0x0004, 0x1220, b"SQ", 0, size)
    )


def _elements(
    values: Mapping[int, bytes],
    keys: Sequence[_Key],
    lacks: list[int],
    uids: Mapping[int, str] | None = None,
    concept: bytes = b"",
) -> bytes:
    made = {tag: _element(tag, b"UI", uid.encode("ascii")) for tag, uid in (uids or {}).items()}
    if concept:
        made[_CONCEPT_NAME] = concept
    if character_set := _text(values.get(_CHARACTER_SET, b"")):
        made[_CHARACTER_SET] = _element(_CHARACTER_SET, b"CS", character_set)
    for key in keys:
        value = _sound(values.get(key.tag, b""), key.vr)
        if not value and key.made_up:
            lacks.append(key.tag)
        made[key.tag] = _element(key.tag, key.vr, value or key.made_up)
    return b"".join(made[tag] for tag in sorted(made))


def _concept(member: Member, lacks: list[int]) -> bytes:
    """What kind of document it is: a sequence with one code."""
    found = first_item(member.values.get(_CONCEPT_NAME, b""), member.transfer_syntax_uid)
    code = [_text(found.get(tag, b"")) for tag, _, _ in _CODE]
    if not all(code):
        lacks.append(_CONCEPT_NAME)
        code = [neutral for _, _, neutral in _CODE]
    item = b"".join(_element(tag, vr, value) for (tag, vr, _), value in zip(_CODE, code, strict=True))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    return struct.pack("<HH2sHI", 0x0040, 0xA043, b"SQ", 0, len(item)) + item


def _sound(value: bytes, vr: bytes) -> bytes:
    text = _text(value)
    form = _FORMS.get(vr)
    return text if form is None or form.fullmatch(text) else b""


def _text(value: bytes) -> bytes:
    text = value.strip(b" \0")
    return text if _TEXT.fullmatch(text) else b""


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
