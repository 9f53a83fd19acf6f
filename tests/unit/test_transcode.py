"""Objects in another transfer syntax: the same pixels and the same elements, read again by pydicom; or nothing."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from appliance.destinations.reencoding_rules import LOSSLESS
from appliance.dimse.header import part10
from appliance.errors import CannotAnalyse
from appliance.imaging.transcode import transcode
from tests.slices import ct_slice, film, save

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom finds fault with its own files

MOST = 1 << 30
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
COMPRESSED = (JPEGLSLossless, JPEG2000Lossless)
MAY_CHANGE = {"PixelData", "PlanarConfiguration", "PhotometricInterpretation"}

# What is plain or lossless of pydicom's own files, in its package.
LOSSLESS_FILES = """
    CT_small.dcm ExplVR_BigEnd.dcm GDCMJ2K_TextGBR.dcm MR_small.dcm MR_small_RLE.dcm
    MR_small_bigendian.dcm MR_small_expb.dcm MR_small_implicit.dcm MR_small_jp2klossless.dcm
    MR_small_jpeg_ls_lossless.dcm MR_small_padded.dcm SC_rgb_jpeg_gdcm.dcm SC_rgb_rle.dcm SC_rgb_rle_16bit.dcm
    SC_rgb_rle_2frame.dcm SC_rgb_rle_32bit_2frame.dcm SC_rgb_small_odd.dcm SC_rgb_small_odd_big_endian.dcm
    SC_ybr_full_422_uncompressed.dcm UN_sequence.dcm examples_jpeg2k.dcm
    examples_overlay.dcm examples_palette.dcm image_dfl.dcm liver_1frame.dcm liver_expb_1frame.dcm nested_priv_SQ.dcm
    no_meta_group_length.dcm priv_SQ.dcm reportsi.dcm reportsi_with_empty_number_tags.dcm rtdose.dcm
    rtdose_rle.dcm rtplan.dcm test-SR.dcm waveform_ecg.dcm
"""


def made(path: Path, syntax: UID, folder: Path, most: int = MOST) -> Path:
    target = folder / f"made-{syntax}"
    with target.open("w+b") as output:
        size = transcode(path, output, syntax, most)
    assert target.stat().st_size == size
    return target


def noisy(**elements: object) -> Dataset:
    return ct_slice(0, np.random.default_rng(3).integers(0, 4096, (64, 96), np.uint16), **elements)


def same(a: Dataset, b: Dataset, path: str = "") -> None:
    """All but group lengths, and how pixels are packed."""
    tags = [{one.tag for one in side if one.tag.element} for side in (a, b)]
    beside = {0x7FE00001, 0x7FE00002, 0x7FE00003}
    assert tags[0] - beside == tags[1] - beside, path
    for tag in tags[0] - beside:
        ours, theirs = a[tag], b[tag]
        if ours.keyword in MAY_CHANGE and not path:
            continue
        if ours.VR == "SQ":
            assert len(ours.value) == len(theirs.value)
            for one, other in zip(ours.value, theirs.value, strict=True):
                same(one, other, f"{path}/{tag}")
        elif tag.is_private and not a.original_encoding[1]:
            continue  # pydicom takes what is UN by its private dictionary, and so in the wrong order
        elif ours.VR != theirs.VR and {ours.VR, theirs.VR} & {"UN", "US", "SS"}:
            continue  # whose meaning only one of the two encodings tells
        else:
            assert ours.value == theirs.value, f"{path}/{tag}"


def same_object(before: Path, after: Path, syntax: UID) -> None:
    a, b = dcmread(before), dcmread(after)
    assert b.file_meta.TransferSyntaxUID == syntax
    same(a, b)
    if a.get("PixelData") and "BitsAllocated" in a:
        a.pixel_array_options(raw=True)
        b.pixel_array_options(raw=True)
        assert np.array_equal(a.pixel_array, b.pixel_array)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("stored", PLAIN)
def test_an_image_is_compressed_without_loss(tmp_path: Path, stored: UID, syntax: UID) -> None:
    dataset = noisy(PixelPaddingValue=63536, SmallestImagePixelValue=0, PatientComments="x" * 9_000)
    dataset.add_new(0x00090010, "LO", "ACME")
    dataset.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
    item = Dataset()
    item.CodeValue = "1"
    dataset.AnatomicRegionSequence = Sequence([item, Dataset()])
    path = tmp_path / "a.dcm"
    dataset.file_meta.TransferSyntaxUID = stored
    dcmwrite(path, dataset, enforce_file_format=True)
    after = made(path, syntax, tmp_path)
    same_object(path, after, syntax)
    assert after.stat().st_size < path.stat().st_size
    back = made(after, stored, tmp_path)
    same_object(path, back, stored)
    assert dcmread(back).PixelData == dataset.PixelData


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize(
    "pixels",
    [
        np.random.default_rng(1).integers(-2048, 2048, (65, 33), np.int16),
        np.random.default_rng(2).integers(0, 256, (65, 33), np.uint8),
        np.random.default_rng(2).integers(0, 256, (3, 64, 33), np.uint8),
        np.zeros((64, 64), np.uint16),
    ],
    ids=["signed", "odd-bytes", "frames", "black"],
)
def test_whatever_the_pixels_are(tmp_path: Path, pixels: np.ndarray, syntax: UID) -> None:
    frames = {"NumberOfFrames": len(pixels)} if pixels.ndim == 3 else {}
    dataset = film(pixels, **frames)
    dataset.PixelData += bytes(len(dataset.PixelData) % 2)
    path = save(tmp_path / "a.dcm", dataset)
    after = made(path, syntax, tmp_path)
    same_object(path, after, syntax)
    assert dcmread(made(after, ExplicitVRLittleEndian, tmp_path)).PixelData == dataset.PixelData


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_colours_are_compressed_and_come_back(tmp_path: Path, syntax: UID) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (64, 70 * 3), np.uint8)
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Columns": 70}
    path = save(tmp_path / "a.dcm", film(pixels, **rgb))
    after = made(path, syntax, tmp_path)
    same_object(path, after, syntax)
    back = dcmread(made(after, ExplicitVRLittleEndian, tmp_path))
    assert back.PixelData == pixels.tobytes()
    assert back.PhotometricInterpretation == "RGB"


@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("name", LOSSLESS_FILES.split())
def test_pydicoms_own_files_are_the_same_uncompressed(tmp_path: Path, name: str, syntax: UID) -> None:
    path = Path(get_testdata_file(name, download=False) or "")
    same_object(path, made(path, syntax, tmp_path), syntax)


def test_what_is_not_pixels_stays_byte_for_byte_where_the_encoding_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", noisy())
    after = made(path, JPEGLSLossless, tmp_path)
    whole, made_of = path.read_bytes(), after.read_bytes()
    element = struct.pack("<HH", 0x7FE0, 0x0010)
    start = whole.index(struct.pack("<HH", 0x0008, 0x0016) + b"UI")
    head = whole[start : whole.index(element)]
    assert head in made_of
    assert made_of[made_of.index(head) + len(head) :].startswith(element + b"OB\0\0\xff\xff\xff\xff")


def test_deflated_is_inflated_and_a_bomb_is_not(tmp_path: Path) -> None:
    dataset = noisy()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(tmp_path / "a.dcm", dataset)
    same_object(path, made(path, ExplicitVRLittleEndian, tmp_path), ExplicitVRLittleEndian)
    whole = path.read_bytes()
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = whole.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian)
    end = dcmread(path).file_meta.FileMetaInformationGroupLength + 144
    assert start <= end
    path.write_bytes(whole[:end] + deflater.compress(bytes(64 << 20)) + deflater.flush())
    with pytest.raises(CannotAnalyse, match="inflates to more"):
        made(path, ExplicitVRLittleEndian, tmp_path, 1 << 20)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_damaged_frames_make_nothing(tmp_path: Path, syntax: UID) -> None:
    dataset = noisy()
    dataset.compress(syntax, generate_instance_uid=False)
    path = save(tmp_path / "a.dcm", dataset)
    whole = path.read_bytes()
    at = whole.rindex(struct.pack("<HH", 0x7FE0, 0x0010)) + 60
    path.write_bytes(whole[:at] + bytes(400) + whole[at + 400 :])
    with pytest.raises(CannotAnalyse):
        made(path, ExplicitVRLittleEndian, tmp_path)


@pytest.mark.parametrize(
    "bent",
    [
        {"HighBit": 15},
        {"Rows": 63},
        {"BitsStored": 8, "HighBit": 7},
        {"PhotometricInterpretation": "YBR_FULL"},
        {"NumberOfFrames": 7},
        {"BitsAllocated": 1},
    ],
)
def test_pixels_that_are_not_what_the_header_says_are_not_compressed(tmp_path: Path, bent: dict[str, object]) -> None:
    path = save(tmp_path / "a.dcm", noisy(**bent))
    with pytest.raises(CannotAnalyse):
        made(path, JPEGLSLossless, tmp_path)


def test_overlays_in_unused_bits_are_not_lost(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (64, 96), np.uint16) | 0x8000
    path = save(tmp_path / "a.dcm", ct_slice(0, pixels))
    with pytest.raises(CannotAnalyse):
        made(path, JPEGLSLossless, tmp_path)
    same_object(path, made(path, ImplicitVRLittleEndian, tmp_path), ImplicitVRLittleEndian)


@pytest.mark.parametrize("cut", [1, 1000, 12_000])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, JPEGLSLossless])
def test_a_file_cut_short_makes_nothing(tmp_path: Path, cut: int, syntax: UID) -> None:
    path = save(tmp_path / "a.dcm", noisy())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CannotAnalyse):
        made(path, syntax, tmp_path)


def test_no_text_of_a_refusal_quotes_the_patient(tmp_path: Path) -> None:
    dataset = noisy(Rows=63)
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(CannotAnalyse) as caught:
        made(path, JPEGLSLossless, tmp_path)
    assert "Secret" not in str(caught.value)


def test_big_endian_numbers_are_turned_and_text_is_not(tmp_path: Path) -> None:
    dataset = noisy(PixelPaddingValue=258)
    dataset["PixelData"].VR = "OW"
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "a.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    for syntax in PLAIN:
        after = dcmread(made(path, syntax, tmp_path))
        assert after.PixelPaddingValue == 258
        assert after.PatientName == "Secret^Name"
        assert np.array_equal(after.pixel_array, dcmread(path).pixel_array)


def test_big_endian_pixels_of_32_bits_are_left_alone(tmp_path: Path) -> None:
    """PS3.5 has the words of OW turned, and some writers turn whole pixels: nobody can tell which they did."""
    path = Path(get_testdata_file("rtdose_expb.dcm", download=False) or "")
    with pytest.raises(CannotAnalyse, match="big endian"):
        made(path, ExplicitVRLittleEndian, tmp_path)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_another_decoder_reads_the_same_pixels(tmp_path: Path, kind: type, syntax: UID) -> None:
    pixels: np.ndarray = (
        np.random.default_rng(7).integers(-2048 if kind is np.int16 else 0, 2048, (65, 96)).astype(kind)
    )
    path = save(tmp_path / "a.dcm", film(pixels))
    found = dcmread(made(path, syntax, tmp_path))
    found.pixel_array_options(raw=True, decoding_plugin="gdcm")
    assert np.array_equal(found.pixel_array, pixels)


@pytest.mark.promise("P3")
def test_the_conformance_cases_are_the_same_uncompressed(tmp_path: Path, real_data: Path) -> None:
    """All that lost nothing when they were compressed; of the others those that no decoder here knows make nothing."""
    made_of = 0
    for path in sorted((real_data / "conformance").glob("*.dcm")):
        for syntax in PLAIN:
            try:
                after = made(path, syntax, tmp_path)
            except CannotAnalyse:
                assert str(part10(path).transfer_syntax_uid) not in LOSSLESS, path.name
                continue
            made_of += 1
            same_object(path, after, syntax)
    assert made_of >= 30
