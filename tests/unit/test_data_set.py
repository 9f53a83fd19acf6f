"""Our reader and writer of small data sets against pydicom's, and against bytes that are none."""

from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from appliance.dimse import data_set
from appliance.dimse.data_set import MAX_DATA_SET, MAX_DEPTH, DataSet, Tag, code_string, items, read, uid, write
from appliance.dimse.sop_classes import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from appliance.errors import DataSetRefused
from appliance.journal.commitments import MAX_REFERENCES

SYNTAXES = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
SEQUENCES = [tag for tag in Tag if tag.name.endswith("SEQUENCE")]
UIDS = [tag for tag in Tag if tag.name.endswith("UID")]
#: Of other modules, so that what we know nothing of is passed over: (tag, VR, value).
OTHERS: list[tuple[int, str, Any]] = [
    (0x00100010, "PN", "Somebody^Else"),
    (0x00080008, "CS", ["ORIGINAL", "PRIMARY"]),
    (0x00280010, "US", 512),
    (0x0040A30A, "DS", "1.5"),
    (0x00080119, "UC", "long " * 20),
    (0x7FE00010, "OW", b"\1\2\3\4"),
    (0x00091001, "UN", b"\xfe\xff\0\xe0"),
    (0x00204000, "LT", ""),
]

uids = st.lists(st.integers(0, 99_999), min_size=1, max_size=9).map(lambda parts: ".".join(map(str, [1, *parts])))


def _built(leaves: list[tuple[int, str, Any]], sequences: list[tuple[int, list[Dataset], bool]]) -> Dataset:
    made = Dataset()
    for tag, vr, value in leaves:
        made[tag] = DataElement(tag, vr, value)
    for tag, inside, undefined in sequences:
        made[tag] = DataElement(tag, "SQ", Sequence(inside))
        made[tag].is_undefined_length = undefined
    return made


def _nested(inside: st.SearchStrategy[Dataset]) -> st.SearchStrategy[Dataset]:
    sequences = st.tuples(st.sampled_from(SEQUENCES), st.lists(inside, max_size=3), st.booleans())
    return st.builds(_built, leaves, st.lists(sequences, max_size=2, unique_by=lambda one: one[0]))


leaves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(UIDS), st.just("UI"), uids),
        st.tuples(st.just(Tag.PERFORMED_PROCEDURE_STEP_STATUS), st.just("CS"), st.sampled_from(["IN PROGRESS", "X"])),
        st.tuples(st.just(Tag.FAILURE_REASON), st.just("US"), st.integers(0, 0xFFFF)),
        st.sampled_from(OTHERS),
    ),
    max_size=5,
    unique_by=lambda one: one[0],
)
datasets = st.recursive(st.builds(_built, leaves, st.just([])), _nested, max_leaves=12)


def encoded(made: Dataset, syntax: str, *, items_undefined: bool = False) -> bytes:
    for one in _all(made):
        one.is_undefined_length_sequence_item = items_undefined
    fp = DicomBytesIO()
    fp.is_little_endian, fp.is_implicit_VR = True, syntax == IMPLICIT_VR_LITTLE_ENDIAN
    write_dataset(fp, made)
    return bytes(fp.getvalue())


def _all(made: Dataset) -> list[Dataset]:
    inside = [item for element in made if element.VR == "SQ" for item in element.value]
    return [made, *(deeper for item in inside for deeper in _all(item))]


def plain(made: Dataset, syntax: str) -> DataSet:
    """What pydicom holds, as we hold it: values are what pydicom writes of each alone."""
    found: DataSet = {}
    for element in made:
        if element.VR == "SQ":
            found[int(element.tag)] = [plain(item, syntax) for item in element.value]
        else:
            alone = encoded(_built([(int(element.tag), element.VR, element.value)], []), syntax)
            long = syntax == EXPLICIT_VR_LITTLE_ENDIAN and element.VR in ("UC", "OW", "UN")
            found[int(element.tag)] = alone[12 if long else 8 :]
    return found


@settings(max_examples=120, deadline=None)
@given(datasets, st.sampled_from(SYNTAXES), st.booleans())
def test_what_pydicom_writes_is_read(made: Dataset, syntax: str, items_undefined: bool) -> None:
    assert read(encoded(made, syntax, items_undefined=items_undefined), syntax) == plain(made, syntax)


KNOWN = st.recursive(
    st.dictionaries(st.sampled_from(UIDS), uids.map(str.encode), max_size=3),
    lambda inside: st.dictionaries(st.sampled_from(SEQUENCES), st.lists(inside, min_size=1, max_size=3), max_size=2),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(KNOWN, st.sampled_from(SYNTAXES))
def test_what_is_written_is_read_by_pydicom_and_by_ourselves(known: DataSet, syntax: str) -> None:
    written = write(known, syntax)
    assert len(written) % 2 == 0
    ours = read(written, syntax)
    theirs = read_dataset(BytesIO(written), syntax == IMPLICIT_VR_LITTLE_ENDIAN, is_little_endian=True)
    assert plain(theirs, syntax) == ours

    def stripped(one: DataSet) -> Any:
        return {
            tag: [stripped(item) for item in value] if isinstance(value, list) else value.rstrip(b"\0")
            for tag, value in one.items()
        }

    assert stripped(ours) == stripped(known)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
@example(b"\x08\x00\x99\x11\xff\xff\xff\xff" * 20, IMPLICIT_VR_LITTLE_ENDIAN)
def test_bytes_that_are_none_are_refused_and_nothing_else(data: bytes, syntax: str) -> None:
    with suppress(DataSetRefused):
        assert isinstance(read(data, syntax), dict)


@settings(max_examples=150, deadline=None)
@given(datasets, st.sampled_from(SYNTAXES), st.data())
def test_what_was_right_and_is_damaged_is_refused_or_read(made: Dataset, syntax: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(made, syntax, items_undefined=True))
    for _ in range(data.draw(st.integers(1, 3))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataSetRefused):
        read(whole[: data.draw(st.integers(0, len(whole)))], syntax)


def _deep(depth: int) -> bytes:
    """Sequences in sequences, none of which ends."""
    return b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth


def _closed(depth: int) -> bytes:
    return _deep(depth) + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth


def test_depth_size_and_number_are_bounded() -> None:
    assert read(_closed(MAX_DEPTH), IMPLICIT_VR_LITTLE_ENDIAN)
    for data, words in [
        (_closed(MAX_DEPTH + 1), "too deep"),
        (_deep(200_000), "too deep"),
        (_deep(3), "without its end"),
        (bytes(MAX_DATA_SET + 1), "too long"),
        (b"\x08\x00\x99\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 120_001, "too many"),
        (b"\x08\x00\x95\x11\x10\0\0\0" + b"1.2", "beyond the end"),
        (b"\x08\x00\x95\x11\x02\0\0\0" + b"1." + b"\x08\x00\x95\x11\x02\0\0\0" + b"2.", "twice"),
        (b"\xfe\xff\x0d\xe0\0\0\0\0", "delimiter"),
    ]:
        with pytest.raises(DataSetRefused, match=words) as refused:
            read(data, IMPLICIT_VR_LITTLE_ENDIAN)
        assert refused.value.status == 0x0110
    for data, words in [
        (b"\x08\x00\x95\x1111\x02\0", "no VR"),
        (b"\x08\x00\x95\x11OB\0\0\xff\xff\xff\xff", "undefined length"),
        (b"\x08\x00\x95\x11OB\0\0\xff", "cut short"),
    ]:
        with pytest.raises(DataSetRefused, match=words):
            read(data, EXPLICIT_VR_LITTLE_ENDIAN)
    with pytest.raises(DataSetRefused, match="transfer syntax"):
        read(b"", EXPLICIT_VR_BIG_ENDIAN)


def test_a_sequence_whose_vr_is_unknown_is_read_as_implicit() -> None:
    """PS3.5 section 6.2.2: as gateways write what their dictionary does not know."""
    inside = write({Tag.REFERENCED_SOP_SEQUENCE: [{Tag.TRANSACTION_UID: b"1.2"}]}, IMPLICIT_VR_LITTLE_ENDIAN)[8:]
    for length, end in [(len(inside), b""), (0xFFFFFFFF, b"\xfe\xff\xdd\xe0\0\0\0\0")]:
        data = b"\x08\x00\x99\x11UN\0\0" + length.to_bytes(4, "little") + inside + end
        (item,) = items(read(data, EXPLICIT_VR_LITTLE_ENDIAN), Tag.REFERENCED_SOP_SEQUENCE)
        assert uid(item, Tag.TRANSACTION_UID) == "1.2"


def test_what_is_not_of_its_kind_counts_as_none() -> None:
    found: DataSet = {
        Tag.TRANSACTION_UID: b"1.2.x",
        Tag.STUDY_INSTANCE_UID: [],
        Tag.PERFORMED_PROCEDURE_STEP_STATUS: b"in progress",
        Tag.REFERENCED_SOP_SEQUENCE: b"",
    }
    for tag in (Tag.TRANSACTION_UID, Tag.STUDY_INSTANCE_UID, Tag.SERIES_INSTANCE_UID):
        assert uid(found, tag) == ""
    assert code_string(found, Tag.PERFORMED_PROCEDURE_STEP_STATUS) == ""
    assert items(found, Tag.REFERENCED_SOP_SEQUENCE) == []


def test_what_cannot_be_written_is_a_bug_of_ours() -> None:
    deep: DataSet = {Tag.TRANSACTION_UID: b"1.2"}
    for _ in range(MAX_DEPTH + 1):
        deep = {Tag.REFERENCED_SOP_SEQUENCE: [deep]}
    with pytest.raises(ValueError, match="too deep"):
        write(deep, IMPLICIT_VR_LITTLE_ENDIAN)
    with pytest.raises(ValueError, match="not written"):
        write({}, EXPLICIT_VR_BIG_ENDIAN)


def test_a_request_with_all_references_that_are_taken_fits() -> None:
    longest = "1." * 31 + "11"
    request: DataSet = {
        Tag.TRANSACTION_UID: longest.encode(),
        Tag.REFERENCED_SOP_SEQUENCE: data_set.references([(longest, longest)] * MAX_REFERENCES),
    }
    for syntax in SYNTAXES:
        written = write(request, syntax)
        assert len(items(read(written, syntax), Tag.REFERENCED_SOP_SEQUENCE)) == MAX_REFERENCES
