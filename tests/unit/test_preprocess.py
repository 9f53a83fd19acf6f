"""The declared preparation: values, and above all where each of them lies in the source image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance import phantom
from appliance.engine_ops import (
    CropToMask,
    Letterbox,
    LungHull,
    Normalise,
    PercentileWindow,
    PreprocessOp,
    Resample,
    SlidingWindow,
    Window,
)
from appliance.errors import CannotAnalyse
from appliance.imaging import geometry, preprocess, volume
from appliance.imaging.grid import Grid, isotropic
from appliance.imaging.headers import read_header
from appliance.imaging.preprocess import ModelImage
from appliance.model import Reason

RESAMPLE = Resample(op="resample", spacing_mm=2.0)
HULL = LungHull(op="lung_hull", output="lung")
CROP = CropToMask(op="crop_to_mask", mask="lung", margin_mm=10, multiple_of=4)
Ramp = Callable[[float, float, float], float]


@given(
    voxel=st.tuples(*[st.floats(0.3, 5.0)] * 3),
    spacing=st.floats(1.0, 4.0),
    slope=st.tuples(*[st.integers(-9, 9)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_each_resampled_voxel_lies_where_its_grid_says(
    voxel: tuple[float, float, float], spacing: float, slope: tuple[int, int, int]
) -> None:
    """A volume that rises evenly along each axis shows at every voxel what lies at that place of the source."""
    places = np.indices((12, 30, 25))
    ramp = sum(factor * axis for factor, axis in zip(slope, places, strict=True)).astype(np.int16)
    found, grid = isotropic(ramp, voxel, spacing)
    z, y, x = (
        origin + step * axis for origin, step, axis in zip(grid.origin, grid.step, np.indices(found.shape), strict=True)
    )
    assert np.allclose(found, slope[0] * z + slope[1] * y + slope[2] * x, atol=1e-2)
    assert all(step * mm == pytest.approx(spacing) for step, mm in zip(grid.step, voxel, strict=True))
    ends = grid.to_source([size - 1 for size in found.shape])
    assert all(end <= size - 1 for end, size in zip(ends, ramp.shape, strict=True))


def test_blocks_are_means_so_that_noise_shrinks() -> None:
    noise = np.random.default_rng(1).normal(0, 100, (8, 64, 64)).astype(np.int16)
    found, _ = isotropic(noise, (2.0, 0.5, 0.5), 2.0)
    assert found.shape == (8, 16, 16)
    assert found.std() == pytest.approx(25, rel=0.1)


def test_a_grid_finds_the_nearest_element_of_a_source_index() -> None:
    grid = Grid(origin=(3.0,), step=(2.5,), spacing_mm=(2.0,)).cut([2])
    assert grid.to_source((1,)) == (10.5,)
    assert grid.from_source(0, np.array([8, 9, 10, 11])).tolist() == [0, 0, 1, 1]


# Lungs.


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelImage, phantom.Truth, volume.Volume]:
    folder = tmp_path_factory.mktemp("chest")
    on_the_wall = phantom.Nodule(centre_mm=(-126, 10, 10), diameter_mm=12)
    truth = phantom.write_ct(folder / "ct", 3, nodules=(*phantom.DEFAULT_NODULES, on_the_wall))
    source = volume.build(geometry.stack([read_header(path) for path in truth.files]), folder)
    return preprocess.run((RESAMPLE, HULL), source.hu, source.voxel_mm), truth, source


def inside(image: ModelImage, source: volume.Volume, place: phantom.Vector) -> bool:
    first = np.array(source.stack.to_patient((0, 0, 0)))
    index = (np.array(place) - first)[::-1] / source.voxel_mm
    z, y, x = (round((i - o) / s) for i, o, s in zip(index, image.grid.origin, image.grid.step, strict=True))
    return bool(image.masks["lung"][z, y, x])


def test_lesions_lie_in_the_hull_and_the_mediastinum_does_not(
    chest: tuple[ModelImage, phantom.Truth, volume.Volume],
) -> None:
    image, truth, source = chest
    assert all(inside(image, source, nodule.centre_mm) for nodule in truth.nodules)
    outside = {"trachea": (0, 12, 60), "spine": (0, 74, 0), "heart": (10, -30, -20), "muscle": (150, 0, 0)}
    assert not {name for name, place in outside.items() if inside(image, source, place)}


def test_the_crop_holds_the_hull_and_keeps_every_place(
    chest: tuple[ModelImage, phantom.Truth, volume.Volume],
) -> None:
    image, truth, source = chest
    cropped = preprocess.run((RESAMPLE, HULL, CROP), source.hu, source.voxel_mm)
    assert all(size % 4 == 0 for size in cropped.image.shape)
    assert cropped.image.size < 0.7 * image.image.size
    assert cropped.masks["lung"].sum() == image.masks["lung"].sum()
    assert all(inside(cropped, source, nodule.centre_mm) for nodule in truth.nodules)


def test_a_volume_without_lungs_is_unsuitable() -> None:
    with pytest.raises(CannotAnalyse, match="no lung") as caught:
        preprocess.run((RESAMPLE, HULL), np.full((30, 60, 60), 40, np.int16), (3.0, 2.0, 2.0))
    assert caught.value.reason is Reason.UNSUITABLE


@pytest.mark.parametrize(
    ("steps", "shape"),
    [((RESAMPLE, RESAMPLE), (10, 20, 20)), ((HULL,), (10, 20, 20)), ((RESAMPLE,), (20, 20))],
)
def test_ops_on_what_they_cannot_work_on_are_refused(steps: tuple[PreprocessOp, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(CannotAnalyse):
        preprocess.run(steps, np.zeros(shape, np.int16), (3.0, 1.0, 1.0)[: len(shape)])


# Films.


def letterboxed(image: NDArray[np.float32], size: int) -> ModelImage:
    return preprocess.run((Letterbox(op="letterbox", size=size),), image, (0.2, 0.2))


def test_a_letterbox_is_centred_and_continues_the_edges() -> None:
    wide = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (200, 1))
    found = letterboxed(wide, 100)
    assert found.image.shape == (100, 100)
    assert found.grid.step == (4, 4)
    assert found.grid.to_source((49.5, 49.5)) == (99.5, 199.5)
    assert np.allclose(found.image[0], found.image[50])
    columns = np.array([found.grid.to_source((0, column))[1] for column in range(1, 99)])
    assert np.allclose(found.image[50, 1:99], columns / 399, atol=1e-3)


def test_a_small_film_is_enlarged() -> None:
    found = letterboxed(np.array([[0, 1], [0, 1]], np.float32), 32)
    assert found.image[:, 0].max() == 0
    assert found.image[:, -1].min() == pytest.approx(1)
    assert (np.diff(found.image[7]) >= -1e-6).all()


def test_windows_are_linear_and_clipped() -> None:
    image = np.array([[-2.0, 0.0, 1.0, 3.0]], np.float32)
    found = preprocess.run((Window(op="window", low=-1, high=2),), image, (1.0, 1.0)).image
    assert np.allclose(found, [[0, 1 / 3, 2 / 3, 1]])


def test_a_percentile_window_does_not_mind_the_scale_of_the_film() -> None:
    film = np.random.default_rng(2).random((80, 60), np.float32)
    step = (PercentileWindow(op="percentile_window"),)
    found = preprocess.run(step, film, (1.0, 1.0)).image
    assert np.allclose(found, preprocess.run(step, film * 7 + 3, (1.0, 1.0)).image, atol=1e-5)
    assert found.min() == 0
    assert found.max() == 1


def test_an_even_film_does_not_divide_by_zero() -> None:
    step = (PercentileWindow(op="percentile_window"), Letterbox(op="letterbox", size=32))
    assert np.isfinite(preprocess.run(step, np.full((50, 40), 0.3, np.float32), (1.0, 1.0)).image).all()


def test_a_model_input_that_would_be_too_large_is_refused(tmp_path: Path) -> None:
    huge = np.memmap(tmp_path / "huge", np.int16, "w+", shape=(600, 512, 512))
    with pytest.raises(CannotAnalyse, match="too many"):
        preprocess.run((), huge, (1.0, 1.0, 1.0))


# What the model alone sees.


def test_a_film_is_given_a_channel_for_each_mean() -> None:
    film = np.array([[0.0, 0.5], [0.75, 1.0]], np.float32)
    op = Normalise(op="normalise", mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, -1.0))
    image = preprocess.run([op], film, (1.0, 1.0))
    assert np.array_equal(image.image, film)
    given = preprocess.channels([op], image.image)
    assert given.shape == (1, 3, 2, 2)
    assert given[0, 0].tolist() == [[-1, 0], [0.5, 1]]
    assert given[0, 1].tolist() == film.tolist()
    assert given[0, 2].tolist() == [[1, 0.5], [0.25, 0]]
    assert np.allclose(preprocess.film_of([op], given), film)
    assert preprocess.channels([], film).shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match="channels"):
        preprocess.film_of([op], film[None, None])


def test_hounsfield_units_are_clipped_by_window_and_normalised_after_it() -> None:
    """Clipped to [-1000, 400], mean -300, std 350: after `window` the mean is 0.5, the std 0.25."""
    hu = np.array([[[-1024, -1000, -300, 50, 400, 3000]]], np.int16)
    steps = [Window(op="window", low=-1000, high=400), Normalise(op="normalise", mean=(0.5,), std=(0.25,))]
    image = preprocess.run(steps, hu, (1.0, 1.0, 1.0)).image
    wanted = (np.clip(hu, -1000, 400) + 300.0) / 350
    assert np.allclose(preprocess.channels(steps, image)[0, 0], wanted, atol=1e-6)


def test_two_windows_show_what_the_second_leaves_of_the_first() -> None:
    """From [-1000, 1000] the second takes the upper half: HU from 0 to 1000."""
    first, second = Window(op="window", low=-1000, high=1000), Window(op="window", low=0.5, high=1)
    assert preprocess.hu_window([RESAMPLE]) is None
    assert preprocess.hu_window([first]) == (-1000, 1000)
    low, high = preprocess.hu_window([RESAMPLE, first, second]) or (0.0, 0.0)
    assert (low, high) == (0, 1000)
    hu = np.array([[[-500, 0, 250, 1000]]], np.int16)
    seen = preprocess.run([first, second], hu, (1.0, 1.0, 1.0)).image
    assert np.allclose(seen, np.clip((hu - low) / (high - low), 0, 1))


def test_patches_may_be_of_a_larger_volume_than_one_run() -> None:
    hu = np.broadcast_to(np.int16(0), (256, 256, 260))
    with pytest.raises(CannotAnalyse, match="too many for the model"):
        preprocess.run([], hu, (1.0, 1.0, 1.0))
    sliding = SlidingWindow(op="sliding_window", size=(64, 64, 64))
    assert preprocess.run([sliding], hu, (1.0, 1.0, 1.0)).image.shape == hu.shape
    with pytest.raises(CannotAnalyse, match="too many for the model"):
        preprocess.run([sliding], np.broadcast_to(np.int16(0), (512, 256, 260)), (1.0, 1.0, 1.0))
