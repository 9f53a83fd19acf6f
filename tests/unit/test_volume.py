"""Slices to a volume in HU: order, geometry, rescaling, and every way in which files can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging import geometry, volume
from appliance.imaging.headers import read_header
from appliance.imaging.hounsfield import AIR_HU
from appliance.imaging.reading import IN_PROCESS
from appliance.model import Reason
from tests.slices import ct_slice, save, stack

Pixels = NDArray[Any]


def built(paths: list[Path], folder: Path, orientation: str | None = None) -> volume.Volume:
    return volume.build(geometry.stack([read_header(path) for path in paths], orientation), folder)


def refusal(paths: list[Path], folder: Path, orientation: str | None = None) -> CannotAnalyse:
    with pytest.raises(CannotAnalyse) as caught:
        built(paths, folder, orientation)
    assert "Secret" not in str(caught.value)
    return caught.value


def one(folder: Path, dataset: Dataset) -> Path:
    return save(folder / "one.dcm", dataset)


def hu_of(folder: Path, dataset: Dataset) -> Pixels:
    """The volume's first slice, where the second is the same data set 3 mm higher."""
    first = save(folder / "a.dcm", dataset)
    dataset.SOPInstanceUID = "9.9"
    dataset.ImagePositionPatient = [-10, -20, float(dataset.ImagePositionPatient[2]) + 3]
    return np.asarray(built([first, save(folder / "b.dcm", dataset)], folder).hu[0])


# Order and geometry.


@given(order=st.permutations(range(7)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_come_in_any_order_and_the_volume_is_the_same(order: list[int], tmp_path: Path) -> None:
    paths = stack(tmp_path, [-30, -27, -24, -21, -18, -15, -12])
    found = built([paths[index] for index in order], tmp_path)
    assert found.hu[:, 0, 0].tolist() == [1000 - 1024 + index for index in range(7)]
    assert found.voxel_mm == (3.0, 0.8, 0.5)


def test_slices_follow_the_normal_not_the_instance_number(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{z}.dcm", ct_slice(z, np.full((4, 4), 100 + z, np.uint16), InstanceNumber=20 - z))
        for z in range(10)
    ]
    assert built(paths, tmp_path).hu[:, 0, 0].tolist() == [100 - 1024 + z for z in range(10)]


def test_coordinates_are_those_of_the_standard(tmp_path: Path) -> None:
    """PS3.3 C.7.6.2.1.1, for a patient lying prone: columns run to the right, rows to the front."""
    paths = stack(tmp_path, [5, 8, 11], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    found = built(paths, tmp_path).stack
    assert found.to_patient((0, 0, 0)) == (-10, -20, 5)
    assert found.to_patient((2, 3, 4)) == pytest.approx((-10 - 4 * 0.5, -20 - 3 * 0.8, 11))


def test_a_stack_seen_from_the_head_runs_the_other_way(tmp_path: Path) -> None:
    paths = stack(tmp_path, [5, 8, 11], ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    found = built(paths, tmp_path)
    assert found.stack.normal == (0, 0, -1)
    assert [item.along for item in found.stack.slices] == [-11, -8, -5]
    assert found.stack.to_patient((0, 0, 0)) == (-10, -20, 11)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    error = refusal(stack(tmp_path, [0, 3, 6, 12, 15, 18, 27, 30]), tmp_path)
    assert error.reason is Reason.INCOMPLETE
    assert str(error) == "about 3 slices missing between 6.0 and 12.0 mm, between 18.0 and 27.0 mm"
    headers = [read_header(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert not geometry.is_closed(headers, IN_PROCESS)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.999, 0.04]}, "different orientations"),
        ({"PixelSpacing": [0.8, 0.6]}, "different pixel spacings"),
        ({"SeriesInstanceUID": "1.2.9"}, "more than one series"),
        ({"GantryDetectorTilt": 12.5}, "the gantry was tilted by 12.5 degrees"),
        ({"ImagePositionPatient": [-10, -22, 6]}, "shifted against each other by 2.0 mm"),
        ({"ImagePositionPatient": [-10, -20, 6.9]}, "irregular spacing"),
        ({"ImagePositionPatient": None}, "no two slices with a position"),
        ({"ImagePositionPatient": [-10, -20, 3]}, "two different slices at 3.0 mm"),
    ],
)
def test_what_is_no_single_stack_is_refused(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    paths = stack(tmp_path, [0, 3, 6, 9, 12])
    save(paths[2], ct_slice(6, np.full((6, 8), 7, np.uint16), **elements))
    error = refusal(paths, tmp_path)
    assert error.reason is Reason.GEOMETRY
    assert words in str(error)


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3, 6])
    save(paths[1], ct_slice(3, np.zeros((5, 8), np.uint16)))
    assert str(refusal(paths, tmp_path)) == "slices of different size: 5 x 8, 6 x 8"


def test_a_slice_sent_twice_counts_once(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3, 6])
    again = save(tmp_path / "again.dcm", ct_slice(3, np.full((6, 8), 1001, np.uint16), SOPInstanceUID="7.7"))
    assert built([again, *paths], tmp_path).hu.shape == (3, 6, 8)


def test_an_orientation_that_was_not_asked_for_is_unsuitable(tmp_path: Path) -> None:
    paths = [
        save(
            tmp_path / f"{y}.dcm",
            ct_slice(
                0,
                np.zeros((4, 4), np.uint16),
                ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
                ImagePositionPatient=[0, y, 0],
                SOPInstanceUID=f"1.{y + 1}",
            ),
        )
        for y in range(3)
    ]
    assert refusal(paths, tmp_path, "axial").reason is Reason.UNSUITABLE
    assert built(paths, tmp_path, "coronal").voxel_mm[0] == 1


# Values.


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3])
    save(paths[1], ct_slice(3, np.full((6, 8), 300, np.uint16), RescaleSlope=2.5, RescaleIntercept=-1000.4))
    assert built(paths, tmp_path).hu[:, 0, 0].tolist() == [1000 - 1024, round(300 * 2.5 - 1000.4)]


@given(
    stored=st.integers(0, 4095), garbage=st.integers(0, 15), signed=st.booleans(), intercept=st.integers(-2000, 2000)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bits_above_those_stored_are_no_pixel(
    stored: int, garbage: int, signed: bool, intercept: int, tmp_path: Path
) -> None:
    pixels = np.full((2, 2), garbage << 12 | stored, np.uint16)
    dataset = ct_slice(0, pixels, PixelRepresentation=int(signed), RescaleIntercept=intercept)
    value = stored - 4096 if signed and stored >= 2048 else stored
    assert (hu_of(tmp_path, dataset) == value + intercept).all()


def test_bits_below_those_stored_are_no_pixel(tmp_path: Path) -> None:
    dataset = ct_slice(0, np.full((2, 2), 1500 << 4 | 9, np.uint16), HighBit=15)
    assert (hu_of(tmp_path, dataset) == 1500 - 1024).all()


def test_values_beyond_int16_saturate(tmp_path: Path) -> None:
    dataset = ct_slice(0, np.array([[0, 65535]], np.uint16), BitsStored=16, RescaleSlope=2)
    assert hu_of(tmp_path, dataset).tolist() == [[-1024, 32767]]


@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (np.array([[-2000, 30]], np.int16), {"BitsStored": 16, "PixelPaddingValue": -2000}),
        (
            np.array([[-1500, 30]], np.int16),
            {"BitsStored": 16, "PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1400},
        ),
        (np.array([[63536, 30]], np.uint16), {"BitsStored": 12, "PixelPaddingValue": 63536}),
        (np.array([[0, 30]], np.uint16), {"BitsStored": 12, "PixelPaddingValue": 0}),
    ],
)
def test_padding_becomes_air(tmp_path: Path, pixels: Pixels, elements: dict[str, Any]) -> None:
    dataset = ct_slice(0, pixels, RescaleIntercept=-100, **elements)
    assert hu_of(tmp_path, dataset).tolist() == [[AIR_HU, -70]]


def test_a_volume_that_cannot_be_written_is_no_fault_of_the_images(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="cannot be written: No such file"):
        built(stack(tmp_path, [0, 3]), tmp_path / "absent")
