"""What is refused of a header before pydicom sees it, and that pydicom would have taken what is not."""

import struct
from io import BytesIO

import pytest
from benchmarks import hostile_objects
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from appliance.errors import CannotAnalyse
from appliance.imaging import bounds

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
OBJECTS = hostile_objects.data_sets()


def refusal(content: bytes, syntax: UID = ExplicitVRLittleEndian) -> str:
    """Why it is refused, "" if it is not; the file stands where it stood."""
    file = BytesIO(b"head" + content)
    file.seek(4)
    try:
        bounds.check(file, syntax)
    except CannotAnalyse as error:
        return str(error)
    assert file.tell() == 4
    return ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nested-200", "nested more than 24 deep"),
        ("nested-5000", "nested more than 24 deep"),
        ("length-fffffffe", ""),  # pixels, which are looked at by themselves
        ("many-elements", ""),
        ("large-header", ""),
    ],
)
def test_hostile_headers(name: str, words: str) -> None:
    assert words in refusal(OBJECTS[name])
    assert bool(refusal(OBJECTS[name])) == bool(words)


def test_too_much_is_refused() -> None:
    private = struct.pack("<HH2sHI", 0x29, 0x1010, b"OB", 0, bounds.MAX_HEADER) + bytes(bounds.MAX_HEADER)
    assert "more than 64 MB" in refusal(private)
    assert "longer than the file" in refusal(private[:-1])
    assert "more than 500000 elements" in refusal(struct.pack("<HH2sH", 0x29, 0x10, b"LO", 0) * 500_001)


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("depth", "refused"), [(bounds.MAX_DEPTH, False), (bounds.MAX_DEPTH + 1, True)])
def test_depth_is_counted_in_every_encoding(syntax: UID, depth: int, refused: bool, defined: bool) -> None:
    assert bool(refusal(encoded(nest(depth, defined), syntax), syntax)) == refused


def nest(depth: int, defined: bool) -> Dataset:
    inner = Dataset()
    inner.PatientID = "X"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = [inner]
        outer["ContentSequence"].is_undefined_length = not defined
        inner = outer
    return inner


def encoded(dataset: Dataset, syntax: UID) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_ordinary_header_is_passed(syntax: UID) -> None:
    """Icons with compressed pixels inside a sequence, private and unknown elements, empty and long values."""
    icon, dataset = Dataset(), Dataset()
    icon.Rows = 2
    if syntax == ExplicitVRLittleEndian:
        icon.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00SQUN"
        icon["PixelData"].VR, icon["PixelData"].is_undefined_length = "OB", True
    dataset.IconImageSequence = [icon, Dataset()]
    dataset.private_block(0x0029, "SOMEBODY", create=True).add_new(1, "UN", b"\x01" * 70_000)
    dataset.PatientName, dataset.StudyDate, dataset.ReferencedImageSequence = "A^B", "", []
    content = encoded(dataset, syntax)
    assert refusal(content, syntax) == ""
    assert refusal(content, ExplicitVRLittleEndian if syntax == ImplicitVRLittleEndian else syntax) == ""


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
def test_nothing_else_escapes(content: bytes, syntax: UID) -> None:
    try:
        refusal(content, syntax)
    except struct.error:
        read_dataset(BytesIO(content), syntax.is_implicit_VR, syntax.is_little_endian)
