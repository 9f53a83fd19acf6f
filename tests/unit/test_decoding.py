"""Decoding: every transfer syntax reads alike, and damage or lies end as one error with a reason in words."""

import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from appliance.errors import CannotAnalyse
from appliance.imaging import geometry, volume
from appliance.imaging.headers import read_header
from appliance.imaging.pixels import read_frame
from appliance.model import Reason
from tests.slices import ct_slice, save


def built(paths: list[Path], folder: Path) -> volume.Volume:
    return volume.build(geometry.stack([read_header(path) for path in paths]), folder)


def one(folder: Path, dataset: Dataset) -> Path:
    return save(folder / "one.dcm", dataset)


# Transfer syntaxes.


@pytest.fixture
def noisy() -> Dataset:
    pixels = np.random.default_rng(3).integers(0, 4096, (64, 96), np.uint16)
    return ct_slice(0, pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_slices_read_like_plain_ones(tmp_path: Path, noisy: Dataset, syntax: UID) -> None:
    plain = read_frame(read_header(one(tmp_path, noisy)))[0]
    noisy.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(read_frame(read_header(one(tmp_path, noisy)))[0], plain)


def test_implicit_and_big_endian_slices_read_like_plain_ones(tmp_path: Path, noisy: Dataset) -> None:
    noisy.PixelPaddingValue = 1
    plain = read_frame(read_header(one(tmp_path, noisy)))
    noisy.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit = read_frame(read_header(one(tmp_path, noisy)))
    noisy.PixelData = np.frombuffer(noisy.PixelData, "<u2").byteswap().tobytes()
    noisy.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    big = read_frame(read_header(one(tmp_path, noisy)))
    for other in (implicit, big):
        assert np.array_equal(other[0], plain[0])
        assert plain[1] is not None
        assert other[1] is not None
        assert np.array_equal(other[1], plain[1])


def enhanced(frames: int) -> Dataset:
    """An enhanced CT of which each frame has its own position and rescale (PS3.3 A.38)."""
    pixels = np.arange(frames, dtype=np.uint16)[:, None, None] + np.full((frames, 4, 4), 200, np.uint16)
    dataset = ct_slice(0, pixels, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = frames
    shared, groups = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = [0.8, 0.5]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    for frame in range(frames):
        group, position, transformation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 30 - 2.5 * frame]
        transformation.RescaleSlope, transformation.RescaleIntercept = 2, -1000 - frame
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def test_an_enhanced_ct_is_one_stack(tmp_path: Path) -> None:
    found = built([one(tmp_path, enhanced(5))], tmp_path)
    assert found.voxel_mm == (2.5, 0.8, 0.5)
    assert found.hu[:, 0, 0].tolist() == [2 * (200 + frame) - 1000 - frame for frame in (4, 3, 2, 1, 0)]


def test_an_enhanced_ct_without_positions_is_refused(tmp_path: Path) -> None:
    dataset = enhanced(3)
    del dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    undecodable(one(tmp_path, dataset))


# What is damaged, or lies.


def undecodable(path: Path) -> str:
    with pytest.raises(CannotAnalyse) as caught:
        read_frame(read_header(path))
    assert caught.value.reason is Reason.UNDECODABLE
    assert "Secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Rows": 65535, "Columns": 65535}, "not read"),
        ({"Rows": 0}, "a frame of 0 x 4"),
        ({"Rows": 5}, "bytes declared"),
        ({"NumberOfFrames": 9}, "bytes declared"),
        ({"SamplesPerPixel": 3}, "3 samples"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"BitsStored": 17, "HighBit": 16}, "17 bits"),
        ({"ImagePositionPatient": [1, 2]}, "header cannot be read"),
        ({"PixelSpacing": [0.5]}, ""),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    dataset = ct_slice(0, np.zeros((4, 4), np.uint16), **elements)
    if words:
        assert words in undecodable(one(tmp_path, dataset))
    else:
        assert read_header(one(tmp_path, dataset)).planes == ()


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path, ct_slice(0, np.zeros((4, 4), np.uint16), RescaleIntercept=-1024.5))
    path.write_bytes(path.read_bytes().replace(b"-1024.5 ", b"nan     "))
    assert "header cannot be read (ValueError)" in undecodable(path)


def test_missing_things_are_refused(tmp_path: Path) -> None:
    dataset = ct_slice(0, np.zeros((4, 4), np.uint16))
    del dataset.PixelData
    assert "there are none" in undecodable(one(tmp_path, dataset))
    (tmp_path / "empty").write_bytes(b"")
    assert "header cannot be read" in undecodable(tmp_path / "empty")
    assert "header cannot be read" in undecodable(tmp_path / "absent")
    (tmp_path / "text").write_bytes(b"not DICOM" * 100)
    assert "InvalidDicomError" in undecodable(tmp_path / "text")


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = one(tmp_path, ct_slice(0, np.zeros((4, 4), np.uint16))).read_bytes()
    for length in range(0, len(content), 7):
        cut = tmp_path / "cut.dcm"
        cut.write_bytes(content[:length])
        undecodable(cut)


def test_a_length_that_lies_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path, ct_slice(0, np.zeros((4, 4), np.uint16)))
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010)) + 8
    path.write_bytes(content[:at] + struct.pack("<I", 0xFFFFFFFE) + content[at + 4 :])
    assert "4294967294 bytes declared, 32 in the file" in undecodable(path)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    dataset = ct_slice(0, np.zeros((4, 4), np.uint16))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "deflated" in undecodable(one(tmp_path, dataset))


def test_sequences_nested_without_end_are_refused(tmp_path: Path) -> None:
    item, sequence = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), b"\x40\x00\x20\xa7SQ\x00\x00\xff\xff\xff\xff"
    path = one(tmp_path, ct_slice(0, np.zeros((4, 4), np.uint16)))
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    path.write_bytes(content[:at] + (sequence + item) * 20000)
    assert "nested more than" in undecodable(path)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_no_decoder_sees_a_codestream_that_contradicts_the_header(tmp_path: Path, noisy: Dataset, syntax: UID) -> None:
    noisy.compress(syntax, generate_instance_uid=False)
    noisy.Rows, noisy.Columns = 96, 64
    assert "the codestream is (64, 96, 1), the header says (96, 64, 1)" in undecodable(one(tmp_path, noisy))


def test_no_decoder_sees_a_codestream_of_more_components_than_the_header_says(tmp_path: Path, noisy: Dataset) -> None:
    """A J2K file of some hundred bytes may state 16,384 of them, each as large as the image."""
    noisy.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = one(tmp_path, noisy)
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 40
    path.write_bytes(content[:at] + b"\x40\x00" + content[at + 2 :])
    assert "the codestream is (64, 96, 16384)" in undecodable(path)


def test_a_few_bytes_are_no_large_frame(tmp_path: Path) -> None:
    empty = ct_slice(0, np.zeros((8, 8), np.uint16))
    empty.compress(RLELossless, generate_instance_uid=False)
    empty.Rows, empty.Columns = 8192, 8192
    assert "cannot be a frame of 8192 x 8192" in undecodable(one(tmp_path, empty))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, noisy: Dataset, syntax: UID | None) -> None:
    if syntax is not None:
        noisy.compress(syntax, generate_instance_uid=False)
    content = bytearray(one(tmp_path, noisy).read_bytes())
    damage = random.Random(5)
    for _ in range(150):
        broken = bytearray(content)
        for _ in range(damage.randrange(1, 6)):
            broken[damage.randrange(132, len(broken))] = damage.randrange(256)
        path = tmp_path / "broken.dcm"
        path.write_bytes(broken)
        with suppress(CannotAnalyse):
            read_frame(read_header(path))
