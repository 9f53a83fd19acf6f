"""What a model marks in a volume: parts, their volume and axes, where they lie, and what is left out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import PreprocessOp, Resample, Segmentation
from appliance.errors import RuntimeFailed
from appliance.imaging import preprocess, segmentation
from appliance.imaging.components import parts
from appliance.imaging.grid import identity
from appliance.imaging.measure import axes
from appliance.imaging.outputs import Said
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.volume import Volume
from tests.sources import CODE, read_volume_of

Window = tuple[slice, slice, slice]
SHAPE, MM = (12, 40, 50), (2.0, 0.5, 0.5)
LABELS = {
    name: Label.model_validate({"text": name, "code": CODE, "threshold": threshold})
    for name, threshold in (("blood", 0.5), ("oedema", 0.4))
}
OP = {"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["blood", "oedema"]}
CLASSES = OP | {"kind": "classes"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return read_volume_of(tmp_path_factory.mktemp("volume"), SHAPE, MM)


def said(volume: Volume, op: dict[str, Any], answer: NDArray[Any], *steps: PreprocessOp) -> Said:
    image = preprocess.run(steps, volume.hu, volume.voxel_mm)
    return segmentation.segmentation(Segmentation.model_validate(op), LABELS, volume, image, {"p": answer})


def marked(
    *boxes: tuple[int, tuple[slice, slice, slice], float], shape: tuple[int, ...] = SHAPE
) -> NDArray[np.float32]:
    answer = np.zeros((1, 2, *shape), np.float32)
    for channel, window, value in boxes:
        answer[0, channel][window] = value
    return answer


BLOCK = (slice(3, 6), slice(10, 20), slice(12, 18))


def test_a_block_is_measured(volume: Volume) -> None:
    """3 x 10 x 6 voxels of 2 x 0.5 x 0.5 mm."""
    answer = marked((0, BLOCK, 0.6))
    answer[0, 0, 4, 11, 13] = 0.95
    found = said(volume, OP, answer)
    (finding,) = found.findings
    assert finding.has_score
    assert (finding.label, finding.score, finding.volume_mm3) == ("blood", 0.95, 90)
    assert found.measures == {"blood_ml": 0.09, "oedema_ml": 0.0}
    assert finding.box == (12, 10, 18, 20)
    assert finding.centre_mm == (7.2, 7.2, 8.0)  # columns and rows 14.5 of 0.5 mm, slice 4 of 2 mm
    # From corner to corner between the centres of pixels, and a pixel: hypot(4.5, 2.5) + 0.5.
    assert finding.long_axis_mm == pytest.approx(5.6, abs=0.05)
    assert finding.sop_instance_uid == volume.stack.slices[3].header.sop_instance_uid


def test_the_slice_with_the_longest_axis_is_shown(volume: Volume) -> None:
    answer = marked((0, BLOCK, 0.6), (0, (slice(6, 7), slice(15, 16), slice(12, 40)), 0.6))
    (finding,) = said(volume, OP, answer).findings
    assert finding.sop_instance_uid == volume.stack.slices[6].header.sop_instance_uid
    assert finding.box == (12, 15, 40, 16)
    assert (finding.long_axis_mm, finding.short_axis_mm) == (14.0, 0.5)


def test_the_largest_comes_first_and_small_ones_are_left_out(volume: Volume) -> None:
    small, middle = (slice(0, 1), slice(0, 2), slice(0, 2)), (slice(8, 10), slice(0, 10), slice(0, 8))
    answer = marked((0, small, 1.0), (0, middle, 0.5), (1, BLOCK, 0.4))
    found = said(volume, OP, answer).findings
    assert [(f.label, f.volume_mm3) for f in found] == [("oedema", 90), ("blood", 80), ("blood", 2)]
    assert [f.score for f in found] == [0.4, 0.5, 1]
    assert [f.volume_mm3 for f in said(volume, OP | {"min_ml": 0.08}, answer).findings] == [90, 80]
    assert [f.volume_mm3 for f in said(volume, OP | {"largest_only": True}, answer).findings] == [90, 80]
    assert [f.volume_mm3 for f in said(volume, OP | {"max_findings": 1}, answer).findings] == [90, 80]
    assert said(volume, OP | {"min_ml": 1.0}, answer).measures == {"blood_ml": 0.08, "oedema_ml": 0.09}


def test_large_parts_of_one_label_push_no_other_out(volume: Volume) -> None:
    rows = [(0, (slice(0, 2), slice(row, row + 2), slice(0, 40)), 0.9) for row in range(0, 39, 3)]
    answer = marked(*rows, (1, (slice(8, 9), slice(4, 6), slice(4, 6)), 0.5))
    found = said(volume, OP, answer)
    assert [finding.label for finding in found.findings] == ["blood"] * 9 + ["oedema"]
    assert found.unlisted == 4  # rows
    assert said(volume, OP | {"max_findings": 2}, answer).unlisted == 12
    assert said(volume, OP | {"max_findings": 2, "min_ml": 0.1}, answer).unlisted == 0
    assert said(volume, OP | {"largest_only": True}, answer).unlisted == 0


def test_a_channel_of_background_is_no_label(volume: Volume) -> None:
    answer = np.concatenate([np.ones((1, 1, *SHAPE), np.float32), marked((0, BLOCK, 0.6))], axis=1)
    (finding,) = said(volume, OP | {"background": True}, answer).findings
    assert (finding.label, finding.box) == ("blood", (12, 10, 18, 20))


def test_classes_are_numbers_of_labels(volume: Volume) -> None:
    answer = np.zeros((1, 1, *SHAPE), np.int64)
    answer[0, 0][BLOCK] = 2
    found = said(volume, CLASSES, answer)
    (finding,) = found.findings
    assert not finding.has_score
    assert (finding.box, found.measures) == ((12, 10, 18, 20), {"blood_ml": 0.0, "oedema_ml": 0.09})
    assert (finding.label, finding.score, finding.volume_mm3) == ("oedema", 1.0, 90)


def test_what_is_marked_on_a_resampled_grid_lies_where_it_was_in_the_source(volume: Volume) -> None:
    """At 1 mm an element stands for two rows and two columns of the source, and half a slice."""
    shape = preprocess.run([Resample(op="resample", spacing_mm=1.0)], volume.hu, volume.voxel_mm).image.shape
    answer = marked((0, (slice(5, 7), slice(7, 9), slice(9, 12)), 0.9), shape=shape)
    (finding,) = said(volume, OP, answer, Resample(op="resample", spacing_mm=1.0)).findings
    assert finding.volume_mm3 == 12
    assert finding.box == (18, 14, 24, 18)
    assert finding.centre_mm == pytest.approx((10.25, 7.75, 5.5), abs=0.051)


def test_what_is_marked_beyond_the_volume_does_not_count(volume: Volume) -> None:
    grown = (16, 48, 64)
    image = ModelImage(image=np.zeros(grown, np.float32), masks={}, grid=identity(MM))
    answer = marked((0, (slice(10, 16), slice(30, 48), slice(40, 64)), 0.9), shape=grown)
    op = Segmentation.model_validate(OP)
    found = segmentation.segmentation(op, LABELS, volume, image, {"p": answer})
    assert [f.volume_mm3 for f in found.findings] == [2 * 10 * 10 * 0.5]
    assert found.findings[0].box == (40, 30, 50, 40)
    answer = marked((0, (slice(12, 16), slice(0, 48), slice(0, 64)), 0.9), shape=grown)
    assert segmentation.segmentation(op, LABELS, volume, image, {"p": answer}).findings == ()


def test_noise_gives_no_more_findings_than_are_wanted(volume: Volume) -> None:
    noise = np.random.default_rng(1).random((1, 2, *SHAPE), np.float32)
    noise[:, :, ::2, ::2, ::2] = 0
    assert len(said(volume, OP | {"max_findings": 3}, noise).findings) <= 3


@pytest.mark.parametrize(
    ("op", "answer", "words"),
    [
        (OP, np.zeros((1, 1, *SHAPE)), "p has the shape"),
        (OP, np.zeros((1, 2, 12, 40, 49)), "p has the shape"),
        (OP, np.full((1, 2, *SHAPE), np.nan), "not finite"),
        (OP, np.full((1, 2, *SHAPE), 1.01), r"outside 0\.\.1"),
        (CLASSES, np.full((1, 1, *SHAPE), 3), "classes that are none of 2 labels"),
        (CLASSES, np.full((1, 1, *SHAPE), -1), "classes that are none of 2 labels"),
        (CLASSES, np.full((1, 1, *SHAPE), 0.5), "whole numbers"),
    ],
)
def test_nonsense_is_an_error_and_no_finding(
    volume: Volume, op: dict[str, Any], answer: NDArray[Any], words: str
) -> None:
    with pytest.raises(RuntimeFailed, match=words):
        said(volume, op, answer)


# Its parts.


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_ends_of_rows_have_the_axes_of_all_pixels(seed: int) -> None:
    section = np.random.default_rng(seed).random((9, 11)) < 0.3
    section[4, 5] = True
    rows, columns = segmentation._ends_of_rows(section)
    all_rows, all_columns = np.nonzero(section)
    assert axes(rows, columns, (0.7, 0.7)) == axes(all_rows, all_columns, (0.7, 0.7))


def test_parts_are_ranked_by_size_or_by_peak() -> None:
    marked = np.zeros((3, 8), np.bool_)
    marked[0, :3], marked[2, 4:6], marked[2, 7] = True, True, True
    values = np.zeros((3, 8), np.float32)
    values[2, 7], values[2, 5] = 0.9, 0.5
    assert [part.weight for part in parts(marked, 2)] == [3, 2]
    first, second = parts(marked, 2, values)
    assert (first.window, second.weight) == ((slice(2, 3), slice(7, 8)), 0.5)
    assert second.mask.tolist() == [[True, True]]
    assert parts(np.zeros((2, 2), np.bool_), 2) == []


def test_a_part_is_told_from_another_in_its_window() -> None:
    marked = np.ones((5, 5), np.bool_)
    marked[1:4, 1:4] = False
    marked[2, 2] = True
    ring, dot = parts(marked, 2)
    assert (ring.weight, int(ring.mask.sum()), bool(ring.mask[2, 2])) == (16, 16, False)
    assert dot.window == (slice(2, 3), slice(2, 3))
