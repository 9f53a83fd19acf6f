"""A radiograph through the grey-scale chain of PS3.3 C.11, and what is no radiograph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from appliance.errors import CannotAnalyse
from appliance.imaging.film import read_film
from appliance.imaging.headers import read_header
from appliance.model import Reason
from tests.slices import film, save

RAMP = np.array([[0, 100, 1000, 2000, 3000, 4095]], np.uint16)


def shown(folder: Path, dataset: Dataset) -> list[float]:
    """The first row of the film as it is displayed."""
    image: NDArray[np.float32] = read_film(read_header(save(folder / "film.dcm", dataset))).image
    assert image.dtype == np.float32
    return [float(value) for value in image[0]]


def expected(function: str, centre: float, width: float, value: float) -> float:
    """The formulas of C.11.2.1.2 and C.11.2.1.3 with ymin 0 and ymax 1."""
    if function == "SIGMOID":
        return float(1 / (1 + np.exp(min(80, -4 * (value - centre) / width))))
    if function == "LINEAR_EXACT":
        return min(1, max(0, (value - centre) / width + 0.5))
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0
    if value > centre - 0.5 + (width - 1) / 2:
        return 1
    return (value - (centre - 0.5)) / (width - 1) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 300), (2000, 1)])
def test_windows_are_those_of_the_standard(tmp_path: Path, function: str, centre: int, width: int) -> None:
    found = shown(tmp_path, film(RAMP, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function))
    assert found == pytest.approx([expected(function, centre, width, float(value)) for value in RAMP[0]], abs=1e-6)


def test_the_first_of_several_windows_counts_and_none_means_the_full_range(tmp_path: Path) -> None:
    several = shown(tmp_path, film(RAMP, WindowCenter=[1000, 50], WindowWidth=[300, 20]))
    assert several == shown(tmp_path, film(RAMP, WindowCenter=1000, WindowWidth=300))
    assert shown(tmp_path, film(RAMP)) == pytest.approx([float(value) / 4095 for value in RAMP[0]], abs=1e-6)


def test_monochrome1_is_turned_so_that_dense_is_bright(tmp_path: Path) -> None:
    window = {"WindowCenter": 1500, "WindowWidth": 2000}
    bright = shown(tmp_path, film(RAMP, **window))
    dark = shown(tmp_path, film(RAMP, PhotometricInterpretation="MONOCHROME1", **window))
    assert dark == pytest.approx([1 - value for value in bright], abs=1e-6)


def test_the_window_works_on_rescaled_values(tmp_path: Path) -> None:
    found = shown(tmp_path, film(RAMP, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=1500, WindowWidth=4000))
    values = [2 * float(value) - 500 for value in RAMP[0]]
    assert found == pytest.approx([expected("LINEAR", 1500, 4000, value) for value in values], abs=1e-6)


def lut(first: int, bits: int, data: list[int]) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(data), first, bits]
    item.add_new("LUTData", "OW", np.array(data, "<u2").tobytes())
    return Sequence([item])


def test_a_voi_lut_goes_before_a_window(tmp_path: Path) -> None:
    dataset = film(RAMP, WindowCenter=1, WindowWidth=2)
    dataset.VOILUTSequence = lut(1000, 10, [0, *[512] * 1000, 1023])
    assert shown(tmp_path, dataset) == pytest.approx([0, 0, 0, 512 / 1023, 1, 1])


def test_a_modality_lut_goes_before_the_window(tmp_path: Path) -> None:
    dataset = film(np.array([[0, 1, 2, 9]], np.uint16), WindowCenter=50.5, WindowWidth=101)
    dataset.ModalityLUTSequence = lut(0, 16, [0, 25, 100])
    assert shown(tmp_path, dataset) == pytest.approx([0, 0.25, 1, 1])


@pytest.mark.parametrize(("vr", "first"), [("SS", -2), ("US", 0xFFFE)])
def test_a_lut_of_signed_values_starts_below_zero(tmp_path: Path, vr: str, first: int) -> None:
    dataset = film(np.array([[-2, -1, 0]], np.int16), BitsStored=16)
    dataset.VOILUTSequence = lut(0, 8, [0, 51, 255])
    dataset.VOILUTSequence[0].add_new("LUTDescriptor", vr, [3, first, 8])
    assert shown(tmp_path, dataset) == pytest.approx([0, 0.2, 1])


def test_8_bit_films_and_padding(tmp_path: Path) -> None:
    dataset = film(np.array([[0, 51, 255]], np.uint8), PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    assert shown(tmp_path, dataset) == pytest.approx([0, 0.8, 0])


@pytest.mark.parametrize(
    ("spacing", "found"), [(None, None), ([0.0, 0.0], None), (["", ""], None), ([0.15, 0.15], (0.15, 0.15))]
)
def test_no_millimetres_where_the_spacing_is_nothing(tmp_path: Path, spacing: Any, found: Any) -> None:
    header = read_header(save(tmp_path / "film.dcm", film(RAMP, PixelSpacing=spacing)))
    assert header.pixel_spacing == found


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "Columns": 2}, "a colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a colour image"),
        ({"NumberOfFrames": 6, "Columns": 1}, "6 frames"),
    ],
)
def test_what_is_no_radiograph_is_unsuitable(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotAnalyse, match=words) as caught:
        shown(tmp_path, film(RAMP, **elements))
    assert caught.value.reason is Reason.UNSUITABLE


@pytest.mark.parametrize(("keyword", "value"), [("LUTDescriptor", [5, 0]), ("LUTDescriptor", [50, 0, 8])])
def test_a_broken_lut_is_undecodable(tmp_path: Path, keyword: str, value: list[int]) -> None:
    dataset = film(RAMP)
    dataset.VOILUTSequence = lut(0, 8, [0, 255])
    setattr(dataset.VOILUTSequence[0], keyword, value)
    with pytest.raises(CannotAnalyse) as caught:
        shown(tmp_path, dataset)
    assert caught.value.reason is Reason.UNDECODABLE
