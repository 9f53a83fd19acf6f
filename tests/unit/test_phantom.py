"""The phantom: the same bytes each time, valid DICOM, and a truth that its pixels bear out."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from appliance import phantom
from tests.missing import missing


def digest(folder: Path) -> str:
    names = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(name.name.encode() + name.read_bytes() for name in names)).hexdigest()


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> phantom.Truth:
    return phantom.write_ct(tmp_path_factory.mktemp("ct"), 7, slices=30)


@pytest.fixture(scope="module")
def cr(tmp_path_factory: pytest.TempPathFactory) -> phantom.Truth:
    return phantom.write_cr(tmp_path_factory.mktemp("cr"), 7)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        phantom.write_ct(tmp_path / name, seed, slices=4)
        phantom.write_cr(tmp_path / name, seed)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_every_uid_is_its_own(ct: phantom.Truth, cr: phantom.Truth) -> None:
    uids = [*ct.sop_instance_uids, *cr.sop_instance_uids, ct.series_instance_uid, cr.series_instance_uid]
    assert len(set(uids)) == len(uids) == 33
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)
    assert [str(pydicom.dcmread(file).SOPInstanceUID) for file in ct.files] == list(ct.sop_instance_uids)


def test_files_go_from_foot_to_head_and_numbers_against_it(ct: phantom.Truth) -> None:
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in ct.files]
    assert np.diff([header.ImagePositionPatient[2] for header in headers]) == pytest.approx([3.0] * 29)
    assert [header.InstanceNumber for header in headers] == list(range(30, 0, -1))


def test_nodules_are_where_the_truth_says(ct: phantom.Truth) -> None:
    volume = np.stack([pydicom.dcmread(file).pixel_array.astype(int) - 1024 for file in ct.files])
    first = pydicom.dcmread(ct.files[0]).ImagePositionPatient
    for nodule in ct.nodules:
        x, y, z = (nodule.centre_mm[axis] - float(first[axis]) for axis in range(3))
        row, column, level = round(y / phantom.PIXEL_MM), round(x / phantom.PIXEL_MM), round(z / 3)
        width = round(nodule.diameter_mm / 2 / phantom.PIXEL_MM)
        assert volume[level, row, column - 2 : column + 3].mean() == pytest.approx(40, abs=40)
        assert volume[level, row, column + width + 4 : column + width + 9].mean() < -600


@pytest.mark.parametrize("kind", ["ct", "cr"])
def test_a_strict_reader_finds_no_fault(kind: str, request: pytest.FixtureRequest) -> None:
    program = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if program is None:
        missing("dciodvfy (dicom3tools) is not installed")
    for file in request.getfixturevalue(kind).files[:2]:
        found = subprocess.run([program, str(file)], capture_output=True, text=True, check=False)
        assert not [line for line in found.stderr.splitlines() if line.startswith(("Error", "Warning"))]


def test_a_film_shows_two_dark_lungs_beside_a_bright_middle(cr: phantom.Truth) -> None:
    film = pydicom.dcmread(cr.files[0]).pixel_array
    right, middle, left = film[500:520, 280:320].mean(), film[500:520, 490:530].mean(), film[420:440, 740:780].mean()
    assert middle > 1.3 * max(right, left)
