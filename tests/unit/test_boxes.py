"""Boxes of a model: checked, thinned out, and back to where they are in the source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import Boxes, Boxes3D, CropToMask, Letterbox, Resample
from appliance.errors import RuntimeFailed
from appliance.imaging import boxes, preprocess
from appliance.imaging.film import Film
from appliance.imaging.grid import Grid, identity
from appliance.imaging.outputs import Said
from appliance.imaging.preprocess import ModelImage
from tests.sources import CODE, read_film_of, read_volume_of

SIZE = 50
LABELS = {
    name: Label.model_validate({"text": name, "code": CODE, "threshold": threshold})
    for name, threshold in (("hernia", 0.5), ("device", 0.8))
}
ONE = {"op": "boxes", "boxes": "b", "scores": "s", "labels": ["hernia"]}
TWO = ONE | {"labels": ["hernia", "device"]}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return read_film_of(tmp_path_factory.mktemp("film"), 100, 200)


def boxed(film: Film) -> ModelImage:
    return preprocess.run([Letterbox(op="letterbox", size=SIZE)], film.image, (1.0, 1.0))


def said(film: Film, op: dict[str, Any], **answers: Any) -> Said:
    arrays = {name: np.asarray(value) for name, value in answers.items()}
    return boxes.boxes(Boxes.model_validate(op), LABELS, film, boxed(film), arrays)


def f32(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def test_a_box_lies_where_the_letterbox_took_it_from(film: Film) -> None:
    """200 columns on 50 pixels: 4 of the source for one; 100 rows in the middle, 12.5 pixels from the top."""
    (finding,) = said(film, ONE, b=f32([[[10, 20, 20, 30]]]), s=f32([[0.9]])).findings
    assert finding.box == (40, 30, 80, 70)
    assert (finding.label, finding.score, finding.centre_mm) == ("hernia", 0.9, None)
    assert finding.sop_instance_uid == film.header.sop_instance_uid


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({"layout": "centre_size"}, [15, 25, 10, 10]),
        ({"fractions": True}, [0.2, 0.4, 0.4, 0.6]),
        ({"layout": "centre_size", "fractions": True}, [0.3, 0.5, 0.2, 0.2]),
    ],
)
def test_the_ways_to_write_a_box(film: Film, changes: dict[str, Any], box: list[float]) -> None:
    (finding,) = said(film, ONE | changes, b=f32([box]), s=f32([0.9])).findings
    assert finding.box == (40, 30, 80, 70)


def test_a_box_is_clipped_to_the_film_and_dropped_outside_it(film: Film) -> None:
    """The film is between 12.5 and 37.5 pixels from the top of the square; the rest is filled up."""
    sizes = [[0, 0, 10, 20], [0, 0, 50, 12], [-1e30, 13, 60, 1e30], [20, 20, 20, 30], [20.001, 20, 20.002, 30]]
    found = said(film, ONE, b=f32(sizes), s=f32([0.6, 0.9, 0.7, 0.8, 0.8])).findings
    assert [finding.box for finding in found] == [(0, 2, 200, 100), (0, 0, 40, 30)]


def test_overlapping_boxes_of_one_label_are_one_finding_and_of_two_labels_two(film: Film) -> None:
    """The first two share 8 of 12 columns: an intersection over union of two thirds."""
    places = f32([[10, 15, 20, 25], [12, 15, 22, 25], [30, 15, 40, 25]])
    scores = f32([[0.7, 0.0], [0.9, 0.85], [0.4, 0.79]])
    found = said(film, TWO, b=places, s=scores).findings
    assert [(f.label, f.score, f.box[0]) for f in found] == [("hernia", 0.9, 48), ("device", 0.85, 48)]
    found = said(film, TWO | {"iou": 0.7}, b=places, s=scores).findings
    assert [(f.label, f.score) for f in found] == [("hernia", 0.9), ("device", 0.85), ("hernia", 0.7)]
    bounded = said(film, TWO | {"iou": 0.7, "max_findings": 1}, b=places, s=scores)
    assert ([f.label for f in bounded.findings], bounded.measures) == (["hernia", "device"], {"boxes": 3.0})
    assert bounded.unlisted == 1


def test_classes_are_numbers_of_labels_and_padding_is_not_looked_at(film: Film) -> None:
    places = f32([[1, 15, 9, 25], [11, 15, 19, 25], [0, 0, 0, 0]])
    op = TWO | {"classes": "c", "first_class": 1}
    found = said(film, op, b=places, s=f32([0.9, 0.7, 0.0]), c=np.array([2, 1, -1])).findings
    assert [(f.label, f.score) for f in found] == [("device", 0.9), ("hernia", 0.7)]
    with pytest.raises(RuntimeFailed, match="classes that are none of 2 labels"):
        said(film, op, b=places, s=f32([0.9, 0.7, 0.6]), c=np.array([2, 1, -1]))


def test_no_box_is_no_finding(film: Film) -> None:
    assert said(film, ONE, b=f32(np.zeros((0, 4))), s=f32([])) == Said(findings=(), measures={"boxes": 0.0})
    assert not said(film, ONE, b=f32([[1, 15, 9, 25]]), s=f32([0.49])).findings


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"s": [0.9]}, "no b"),
        ({"b": [[1, 2, 3]], "s": [0.9]}, r"b has the shape \(1, 3\)"),
        ({"b": [[[1, 2, 3, 4]]] * 2, "s": [0.9]}, r"b has the shape \(2, 1, 4\)"),
        ({"b": [1, 2, 3, 4], "s": [0.9]}, "b has the shape"),
        ({"b": [[1, 2, 3, 4]], "s": [0.9, 0.8]}, "s has the shape"),
        ({"b": [[1, 2, np.nan, 4]], "s": [0.1]}, "b is not finite"),
        ({"b": [[1, 2, 3, 4]], "s": [1.1]}, r"s lies outside 0\.\.1"),
        ({"b": [[3, 2, 1, 4]], "s": [0.9]}, "end before they begin"),
        ({"b": np.zeros((100_001, 4)), "s": np.zeros(100_001)}, "100001 boxes of 1 labels"),
    ],
)
def test_nonsense_is_an_error_and_no_finding(film: Film, answers: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeFailed, match=f"nonsense: .*{words}"):
        said(film, ONE, **{name: f32(value) for name, value in answers.items()})


def test_classes_that_are_no_whole_numbers_are_nonsense(film: Film) -> None:
    with pytest.raises(RuntimeFailed, match="whole numbers"):
        said(film, TWO | {"classes": "c"}, b=f32([[1, 2, 3, 4]]), s=f32([0.9]), c=f32([0.5]))


def test_many_boxes_cost_little(film: Film) -> None:
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 45, (100_000, 2))
    places = np.concatenate([low, low + rng.uniform(1, 5, low.shape)], axis=1)
    found = said(film, ONE | {"max_findings": 50}, b=f32(places), s=f32(rng.uniform(0.5, 1, 100_000))).findings
    assert len(found) == 50
    assert min(finding.score for finding in found) > 0.99  # only the best thousand are looked at


@pytest.mark.parametrize("count", [999, 5000])
def test_many_boxes_of_one_label_push_no_other_out(film: Film, count: int) -> None:
    """Neither before overlapping ones are thinned out nor after."""
    places = f32([[1, 15, 9, 25]] + [[x, 15, x + 0.1, 16] for x in np.linspace(10, 45, count)])
    classes = np.array([1] + [0] * count)
    scores = f32([0.81] + [0.95] * count)
    found = said(film, TWO | {"classes": "c"}, b=places, s=scores, c=classes).findings
    assert ([f.label for f in found[:-1]], found[-1].label) == (["hernia"] * 9, "device")
    each = np.zeros((count + 1, 2), np.float32)
    each[np.arange(count + 1), classes] = scores
    assert said(film, TWO, b=places, s=each).findings == found


def test_as_many_of_each_label_are_looked_at_as_may_be_listed_again() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 256, 200_000), rng.random(200_000, np.float32)
    best = boxes._best_of_each(labels, scores, 256)
    assert best.size == 256 * 128
    assert best.size * 256 <= boxes.MOST_SCORES
    assert (np.diff(scores[best]) <= 0).all()
    assert set(best[labels[best] == 7]) == set(sorted(np.flatnonzero(labels == 7), key=lambda n: -scores[n])[:128])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 2048), st.tuples(*[st.floats(0, 1)] * 2))
@settings(max_examples=100, deadline=None)
def test_mapping_back_is_the_inverse_of_the_letterbox(
    rows: int, columns: int, size: int, place: tuple[float, float]
) -> None:
    scale = max(rows, columns) / size
    grid = Grid(
        origin=tuple((length - 1) / 2 - (size - 1) / 2 * scale for length in (rows, columns)),
        step=(scale, scale),
        spacing_mm=(1.0, 1.0),
    )
    source = np.multiply(place, (rows, columns))
    forward = (source + (max(rows, columns) - np.array([rows, columns])) / 2) / scale
    assert np.allclose(grid.edges_to_source(forward), source, atol=1e-6 * max(rows, columns))


def test_what_is_seen_in_the_letterbox_is_found_in_the_film(tmp_path: Path) -> None:
    """A white square of the film, its edges as the model sees them, and back."""
    film = read_film_of(tmp_path, 120, 90)
    film.image[40:60, 30:75] = 1
    seen = boxed(film)
    rows, columns = np.nonzero(f32(seen.image) > 0.5)
    box = f32([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    op = Boxes.model_validate(ONE)
    (finding,) = boxes.boxes(op, LABELS, film, seen, {"b": box, "s": f32([0.9])}).findings
    assert finding.box == pytest.approx((30, 40, 75, 60), abs=0.51 * 120 / SIZE)


# Suppression.


def naive(corners: NDArray[np.float64], scores: NDArray[np.float32], iou: float) -> list[int]:
    """As it is told in words: the best that is left stays, and takes all away that overlap it too much."""
    left = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if overlap(corners[best], corners[other]) <= iou]
    return kept


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    common, sizes = 1.0, [1.0, 1.0]
    for axis in range(one.shape[1]):
        common *= max(0.0, min(one[1, axis], other[1, axis]) - max(one[0, axis], other[0, axis]))
        sizes = [size * (box[1, axis] - box[0, axis]) for size, box in zip(sizes, (one, other), strict=True)]
    return common / (sum(sizes) - common)


@given(
    axes=st.sampled_from([2, 3]),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    iou=st.sampled_from([0.1, 0.3, 0.5, 0.9]),
)
@settings(max_examples=80, deadline=None)
def test_suppression_is_what_it_is_told_to_be(axes: int, seed: int, count: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (count, axes))
    corners = np.stack([low, low + rng.uniform(1, 10, low.shape)], axis=1)
    scores = f32(rng.integers(0, 8, count) / 8)  # with ties
    assert boxes.suppressed(corners, scores, iou) == naive(corners, scores, iou)


# Volumes.

THREE = {"op": "boxes_3d", "boxes": "b", "scores": "s", "labels": ["hernia"]}
ANSWER = {"b": f32([[2, 3, 4, 6, 9, 12]]), "s": f32([0.9])}


def test_a_box_of_a_volume_has_its_centre_in_millimetres(tmp_path: Path) -> None:
    """Voxels of 2 x 0.5 x 0.5 mm, resampled to 1 mm: two rows and columns of the source for one voxel."""
    volume = read_volume_of(tmp_path, (12, 40, 50), (2.0, 0.5, 0.5))
    image = preprocess.run([Resample(op="resample", spacing_mm=1.0)], volume.hu, volume.voxel_mm)
    assert image.grid.origin == (0.0, 0.5, 0.5)
    (finding,) = boxes.boxes_3d(Boxes3D.model_validate(THREE), LABELS, volume, image, ANSWER).findings
    # z: 3.5 voxels of 1 mm; y: 5.5 and x: 7.5 voxels, of which the first has its centre at 0.25 mm.
    assert finding.centre_mm == pytest.approx((7.75, 5.75, 3.5), abs=0.051)
    assert finding.box == (8, 6, 24, 18)
    assert finding.sop_instance_uid == volume.stack.slices[2].header.sop_instance_uid  # 1.75 slices from the first
    assert finding.long_axis_mm is None


def test_corners_may_begin_with_x(tmp_path: Path) -> None:
    volume = read_volume_of(tmp_path, (12, 40, 50), (2.0, 0.5, 0.5))
    image = preprocess.run([], volume.hu, volume.voxel_mm)
    mirrored = {"b": f32([[4, 3, 2, 12, 9, 6]]), "s": f32([0.9])}
    one = boxes.boxes_3d(Boxes3D.model_validate(THREE), LABELS, volume, image, ANSWER).findings
    other = boxes.boxes_3d(Boxes3D.model_validate(THREE | {"axes": "xyz"}), LABELS, volume, image, mirrored).findings
    assert one == other
    assert one[0].box == (4, 3, 12, 9)


def test_a_box_in_what_was_filled_up_beyond_the_volume_is_dropped(tmp_path: Path) -> None:
    volume = read_volume_of(tmp_path, (10, 20, 20), (1.0, 1.0, 1.0))
    crop = CropToMask(op="crop_to_mask", mask="m", margin_mm=1, multiple_of=16)
    whole = ModelImage(
        image=np.zeros((10, 20, 20), np.float32),
        masks={"m": np.ones((10, 20, 20), np.float32)},
        grid=identity((1.0, 1.0, 1.0)),
    )
    image = preprocess._cropped(crop, whole)
    assert image.image.shape == (16, 32, 32)
    beyond = {"b": f32([[11, 0, 0, 15, 5, 5], [8, 10, 10, 14, 30, 14]]), "s": f32([0.9, 0.8])}
    (finding,) = boxes.boxes_3d(Boxes3D.model_validate(THREE), LABELS, volume, image, beyond).findings
    assert finding.box == (10, 10, 14, 20)
    assert finding.centre_mm == (11.5, 14.5, 8.5)
