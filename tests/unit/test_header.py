"""The header reader against pydicom, and against data sets made to hurt it."""

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from appliance.dimse.header import part10, read_header, read_header_fd, walk_to_end
from appliance.file_head import file_head
from appliance.model import Header

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG_LS, PRIVATE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.80", "1.2.840.113619.5.2"
UNDEFINED = b"\xff\xff\xff\xff"
IN_TIME_S = 2.0  # far above what is needed, far below what an unbounded reader would take

WANT = Header(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3.4",
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.5",
    modality="CT",
    patient=hashlib.sha256(b"P 1\0NHS").digest(),
    stated_count=120,
    requested_priority="STAT",
)


def sample(**changes: Any) -> Dataset:
    """A data set with all that Header has, sequences before, between and after it, and pixels."""
    nested = Dataset()
    nested.ReferencedSOPInstanceUID, nested.StudyInstanceUID = "9.9", "9.9.9"
    outer = Dataset()
    outer.ReferencedInstanceSequence = [nested, nested]
    outer["ReferencedInstanceSequence"].is_undefined_length = True
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.SOPClassUID, data_set.SOPInstanceUID = WANT.sop_class_uid, WANT.sop_instance_uid
    data_set.Modality = "CT"
    data_set.ReferencedSeriesSequence = [outer, outer]
    data_set["ReferencedSeriesSequence"].is_undefined_length = True
    data_set.SourceImageSequence = [nested]
    data_set.PatientName, data_set.PatientID, data_set.IssuerOfPatientID = "Näme^A", "P 1", "NHS"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = WANT.study_instance_uid, WANT.series_instance_uid
    data_set.NumberOfSeriesRelatedInstances = 120
    data_set.private_block(0x0029, "SOMEBODY", create=True).add_new(1, "OB", b"\x01\x02" * 40_000)
    data_set.RequestedProcedurePriority = "STAT"
    data_set.PixelData = bytes(3000)
    data_set["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        setattr(data_set, keyword, value)
    return data_set


def encoded(data_set: Dataset, transfer_syntax: str) -> bytes:
    if transfer_syntax == JPEG_LS:
        data_set.PixelData = encapsulate([b"\x01\x02" * 5000, b"\x03\x04" * 5000])
        data_set["PixelData"].VR, data_set["PixelData"].is_undefined_length = "OB", True
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = transfer_syntax in (IMPLICIT, PRIVATE), transfer_syntax != BIG
    write_dataset(stream, data_set)
    data = stream.getvalue()
    if transfer_syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
        data += b"\0" * (len(data) % 2)
    return data


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("data set")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def header_of(data: bytes, transfer_syntax: str = EXPLICIT) -> Header:
    with in_memory(data) as fd:
        return read_header_fd(fd, 0, transfer_syntax)


@pytest.fixture
def whole(tmp_path: Path) -> Any:
    def is_whole(data: bytes, transfer_syntax: str = EXPLICIT) -> bool:
        path = tmp_path / "data"
        path.write_bytes(b"before" + data)
        return walk_to_end(path, 6, transfer_syntax)

    return is_whole


@pytest.mark.parametrize("transfer_syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG_LS, PRIVATE])
def test_it_finds_all_in_any_encoding(transfer_syntax: str, whole: Any) -> None:
    data = encoded(sample(), transfer_syntax)
    assert header_of(data, transfer_syntax) == WANT
    assert whole(data, transfer_syntax)
    for cut in (len(data) - 2, len(data) // 2, 9, 0):  # -1 would be the padding of a deflated stream
        assert not whole(data[:cut], transfer_syntax)


def test_mislabelled_data_is_read_as_it_is() -> None:
    assert header_of(encoded(sample(), EXPLICIT), IMPLICIT) == WANT
    assert header_of(encoded(sample(), IMPLICIT), EXPLICIT) == WANT


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"SOPInstanceUID": UID("../../etc/cron.d/x", validation_mode=0)}, "sop_instance_uid", ""),
        ({"StudyInstanceUID": ["1.2", "1.3"]}, "study_instance_uid", ""),
        ({"SeriesInstanceUID": ""}, "series_instance_uid", ""),
        ({"PatientID": ""}, "patient", b""),
        ({"PatientID": " P 1 "}, "patient", WANT.patient),
        ({"IssuerOfPatientID": ""}, "patient", hashlib.sha256(b"P 1\0").digest()),
        ({"Modality": "C'T"}, "modality", ""),
        ({"NumberOfSeriesRelatedInstances": None}, "stated_count", 0),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_values_that_are_none(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(header_of(encoded(sample(**changes), EXPLICIT)), field) == value


def test_what_comes_before_the_damage_stays() -> None:
    data = encoded(sample(), EXPLICIT)
    at = data.index(b"1.2.3.5")
    header = header_of(data[: at + 3])
    assert (header.study_instance_uid, header.series_instance_uid) == ("1.2.3", "")  # not "1.2", cut from a longer one


def test_unknown_vrs_are_stepped_over() -> None:
    odd = (
        b"\x09\x00\x10\x00ZZ\0\0\x04\0\0\0abcd"  # a future VR: 32-bit length
        b"\x09\x00\x11\x00??\x04\0abcd"  # no VR: 16-bit length
        b"\x09\x00\x12\x00UN\0\0" + UNDEFINED + b"\xfe\xff\x00\xe0" + UNDEFINED + b"\x08\x00\x60\x00\x02\0\0\0MR"
        b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"  # a sequence nobody knew: implicit inside
    )
    data = encoded(sample(), EXPLICIT)
    at = data.index(b"\x10\x00\x10\x00PN")
    assert header_of(data[:at] + odd + data[at:]) == WANT


def test_an_item_that_nobody_closed_ends_with_its_sequence() -> None:
    data = encoded(sample(), EXPLICIT)
    sequence = b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED + b"\xfe\xff\x00\xe0" + UNDEFINED + b"\xfe\xff\xdd\xe0\0\0\0\0"
    at = data.index(b"\x10\x00\x10\x00PN")
    assert header_of(data[:at] + sequence + data[at:]) == WANT


def nest(depth: int) -> bytes:
    return (b"\x08\x00\x15\x11SQ\0\0" + UNDEFINED + b"\xfe\xff\x00\xe0" + UNDEFINED) * depth


@pytest.mark.parametrize(
    ("data", "transfer_syntax"),
    [
        pytest.param(nest(100_000), EXPLICIT, id="deep"),
        pytest.param(b"\x08\x00\x05\x00CS\0\0" * 300_000, EXPLICIT, id="many"),
        pytest.param(b"\x08\x00\x05\x00OB\0\0\xfe\xff\xff\xff", EXPLICIT, id="4 GiB value"),
        pytest.param(b"\x08\x00\x18\x00UI\xfe\xff" + b"1" * 65534, EXPLICIT, id="long UID"),
        pytest.param(b"\xfe\xff\x0d\xe0\0\0\0\0" * 1000, EXPLICIT, id="ends of nothing"),
        pytest.param(zlib.compress(bytes(1 << 26), wbits=-zlib.MAX_WBITS), DEFLATED, id="bomb"),
        pytest.param(b"\x00\x00\x00\xff\xff" * 1_000_000, DEFLATED, id="deflated nothing, for ever"),
        pytest.param(b"\xff" * 1000, DEFLATED, id="not deflated"),
    ],
)
def test_data_made_to_hurt_costs_little(data: bytes, transfer_syntax: str, whole: Any) -> None:
    begun = time.perf_counter()
    assert header_of(data, transfer_syntax) == Header()
    whole(data, transfer_syntax)
    assert time.perf_counter() - begun < IN_TIME_S


BASES = tuple((syntax, encoded(sample(PixelData=bytes(10)), syntax)) for syntax in (IMPLICIT, EXPLICIT, BIG, DEFLATED))


@settings(max_examples=200, deadline=IN_TIME_S * 1000)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=5),
)
def test_mutated_bytes_never_raise(base: tuple[str, bytes], changes: list[tuple[int, int, bytes]]) -> None:
    transfer_syntax, data = base
    mutated = bytearray(data)
    for at, removed, added in changes:
        mutated[at : at + removed] = added
    with in_memory(bytes(mutated)) as fd:
        read_header_fd(fd, 0, transfer_syntax)
        walk_to_end(Path(f"/proc/self/fd/{fd}"), 0, transfer_syntax)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_it_agrees_with_pydicom_on_real_files(real_data: Path) -> None:
    files = sorted((real_data / "conformance").glob("*.dcm"))
    assert files
    for path in files:
        theirs = dcmread(path, stop_before_pixels=True, force=True)
        found = part10(path)
        assert found.transfer_syntax_uid == theirs.file_meta.TransferSyntaxUID
        ours = read_header(path, found.data_set_offset, found.transfer_syntax_uid)
        pairs = {
            "SOPClassUID": ours.sop_class_uid,
            "SOPInstanceUID": ours.sop_instance_uid,
            "StudyInstanceUID": ours.study_instance_uid,
            "SeriesInstanceUID": ours.series_instance_uid,
            "Modality": ours.modality,
        }
        for keyword, value in pairs.items():
            said = str(theirs.get(keyword) or "")
            is_hash = keyword.endswith("UID") and any(letter in said for letter in "abcdef")  # bad_sequence.dcm
            assert value == ("" if is_hash else said), (path.name, keyword)
        assert bool(ours.patient) == bool(theirs.get("PatientID")), path.name
        assert walk_to_end(path, found.data_set_offset, found.transfer_syntax_uid), path.name


def part10_bytes(meta: FileMetaDataset, data: bytes) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, meta)
    return bytes(128) + b"DICM" + stream.getvalue() + data


def test_part10(tmp_path: Path) -> None:
    data = encoded(sample(), EXPLICIT)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(EXPLICIT)
    path = tmp_path / "a.dcm"
    path.write_bytes(part10_bytes(meta, data))
    found = part10(path)
    assert (found.sop_class_uid, found.sop_instance_uid) == (WANT.sop_class_uid, WANT.sop_instance_uid)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID("1.2.8"), UID("1.2.9")
    path.write_bytes(part10_bytes(meta, data))
    found = part10(path)
    assert (found.sop_class_uid, found.sop_instance_uid, found.transfer_syntax_uid) == ("1.2.8", "1.2.9", EXPLICIT)
    assert path.read_bytes()[found.data_set_offset :] == data
    assert found.size == len(data)


def test_a_data_set_that_begins_with_group_2_is_not_taken_for_the_head(tmp_path: Path) -> None:
    data = b"\x02\0\x10\0UI\x02\x001\0" + encoded(sample(), EXPLICIT)
    path = tmp_path / "a.dcm"
    path.write_bytes(file_head("1.2.8", "1.2.9", EXPLICIT, "CT01") + data)
    found = part10(path)
    assert (found.sop_class_uid, found.transfer_syntax_uid, found.size) == ("1.2.8", EXPLICIT, len(data))
    assert path.read_bytes()[found.data_set_offset :] == data


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(128) + b"DICM", part10_bytes(FileMetaDataset(), b"abc")])
def test_what_is_no_part10_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Part 10"):
        part10(path)
