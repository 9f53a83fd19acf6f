"""From outputs to findings: peaks, isolation, measurement, sides, and what nonsense leads to."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import LabelScores, LesionCandidates
from appliance.errors import RuntimeFailed
from appliance.imaging import blobs, candidates, findings, geometry, volume
from appliance.imaging.candidates import ScoreVolume
from appliance.imaging.film import Film, read_film
from appliance.imaging.grid import identity
from appliance.imaging.headers import ImageHeader, Plane, read_header
from appliance.imaging.measure import Seed, measure
from appliance.imaging.measure import ball as ball_of
from appliance.imaging.outputs import Said
from appliance.imaging.preprocess import ModelImage
from appliance.model import Reason
from tests.slices import ct_slice, film, save
from tests.sources import read_volume_of

Float = NDArray[np.float32]
LUNG, SOLID = -850, 40
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}
LESION = LesionCandidates(op="lesion_candidates", score="score", radius="radius", mask="lung", label="lesion")
LEARNT = LESION.model_copy(update={"learnt": True})
LABELS = {"lesion": Label.model_validate({"text": "Lesion", "code": CODE, "threshold": 0.4})}


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float, mm: tuple[float, ...]) -> NDArray[np.bool_]:
    squares = sum(((np.indices(shape)[axis] - centre[axis]) * mm[axis]) ** 2 for axis in range(3))
    return np.asarray(squares <= radius**2)


def scored(*peaks: tuple[tuple[int, int, int], float, float], solid: NDArray[np.bool_] | None = None) -> ScoreVolume:
    """A 2 mm volume of lung; each peak (index, score, radius in mm) is a ball whose score falls off from its centre."""
    shape = (40, 40, 40)
    score, radius, hu = np.zeros(shape, np.float32), np.ones(shape, np.float32), np.full(shape, LUNG, np.float32)
    for index, value, mm in peaks:
        inside = ball(shape, index, mm, (2.0,) * 3)
        distance = np.linalg.norm(np.indices(shape) - np.array(index).reshape(3, 1, 1, 1), axis=0)
        fall = np.where(inside, value * np.exp(-((distance / 3) ** 2)), 0).astype(np.float32)
        score, hu[inside] = np.maximum(score, fall), SOLID
        radius[inside] = mm
    if solid is not None:
        hu[solid] = SOLID
    return ScoreVolume(score=score, radius_mm=radius, hu=hu, mask=np.ones(shape, np.float32), voxel_mm=(2.0,) * 3)


def test_peaks_are_ranked_and_one_lesion_is_one_candidate() -> None:
    found = candidates.find(scored(((10, 10, 10), 0.6, 6.0), ((30, 28, 26), 0.9, 8.0)), 0.4, -400)
    assert [item.index for item in found] == [(30, 28, 26), (10, 10, 10)]
    assert [item.score for item in found] == pytest.approx([0.9, 0.6])


def test_what_runs_on_into_something_larger_is_marked_down() -> None:
    wall = np.zeros((40, 40, 40), np.bool_)
    wall[:, :, 22:] = True
    free = candidates.find(scored(((20, 20, 20), 0.9, 8.0)), 0.1, -400)[0]
    vessel = np.zeros((40, 40, 40), np.bool_)
    vessel[20, 20, :] = True
    fed = candidates.find(scored(((20, 20, 20), 0.9, 8.0), solid=vessel), 0.1, -400)[0]
    grown = candidates.find(scored(((20, 20, 20), 0.9, 8.0), solid=wall), 0.1, -400)[0]
    assert free.score == pytest.approx(0.9)
    assert fed.score > 0.95 * free.score
    assert grown.score < 0.6 * free.score
    assert blobs.find(scored(((20, 20, 20), 0.9, 8.0), solid=wall), 0.1)[0].score == pytest.approx(0.9)


def test_a_blob_is_one_candidate_however_long_it_is() -> None:
    volume = scored(((20, 20, 20), 0.9, 6.0))
    volume.score[20, 20, 20:30] = np.linspace(0.9, 0.5, 10)
    assert len(blobs.find(volume, 0.4)) == 1


def test_equal_peaks_about_a_lesion_between_coarse_elements_are_one_in_its_middle() -> None:
    volume = scored(((10, 10, 10), 0.0, 2.0))
    volume.score[18:22, 18:22, 18:22] = 0.7
    volume.score[19:21, 19:21, 19:21] = 0.2
    found = blobs.find(volume, 0.4)
    assert [item.index for item in found] == [pytest.approx((19.5, 19.5, 19.5), abs=0.1)]


def test_a_radius_far_from_the_extent_of_the_scores_is_drawn_to_it() -> None:
    volume = scored(((20, 20, 20), 0.9, 12.0))
    volume.radius_mm[:] = 6.0
    assert blobs.find(volume, 0.4)[0].radius_mm == 6.0
    volume.radius_mm[:] = 40.0
    assert 6.0 < blobs.find(volume, 0.4)[0].radius_mm < 8.0
    volume.radius_mm[:] = 2.0
    assert 3.0 < blobs.find(volume, 0.4)[0].radius_mm < 6.0


def test_two_blobs_are_ranked() -> None:
    found = blobs.find(scored(((10, 10, 10), 0.6, 6.0), ((30, 28, 26), 0.9, 8.0)), 0.4)
    assert [item.index for item in found] == [pytest.approx((30, 28, 26)), pytest.approx((10, 10, 10))]


def test_nothing_above_the_threshold_is_nothing() -> None:
    assert candidates.find(scored(((20, 20, 20), 0.39, 8.0)), 0.4, -400) == []


# Measuring.


class Case:
    """A CT of lung with solid ellipsoids, and the model image that covers it voxel by voxel."""

    def __init__(self, folder: Path, mm: tuple[float, float, float], *lesions: tuple[tuple[float, ...], float]) -> None:
        shape = (24, 64, 80)
        hu = np.full(shape, LUNG, np.int16)
        for centre, radius in lesions:
            hu[ball(shape, centre, radius, mm)] = SOLID
        paths = [
            save(
                folder / f"{index}.dcm",
                ct_slice(
                    index * mm[0],
                    (plane + 1024).astype(np.uint16),
                    PixelSpacing=list(mm[1:]),
                    ImagePositionPatient=[-40 * mm[2], -30, index * mm[0]],
                ),
            )
            for index, plane in enumerate(hu)
        ]
        self.mm = mm
        built = volume.build(geometry.stack([read_header(path) for path in paths]), folder)
        self.volume = replace(built, hu=np.array(built.hu))
        self.image = ModelImage(
            image=hu.astype(np.float32), masks={"lung": np.ones(shape, np.float32)}, grid=identity(mm)
        )
        self.outputs = {name: np.zeros((1, 1, *shape), np.float32) for name in ("score", "radius")}
        for centre, radius in lesions:
            index = (0, 0, *(round(part) for part in centre))
            self.outputs["score"][index], self.outputs["radius"][index] = 0.8, radius

    def seed(self, centre: tuple[float, ...], radius: float) -> Seed:
        return Seed(centre=centre, radius_mm=radius, hull=self.image.masks["lung"], grid=self.image.grid)

    def said(self, **changes: Any) -> Said:
        return findings.lesion_candidates(LESION, LABELS, self.volume, self.image, {**self.outputs, **changes})


def test_a_ball_is_measured_in_millimetres(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 10.0))
    found = measure(case.volume, case.seed((12.4, 31.0, 39.0), 9.0), -400)
    assert found is not None
    assert found.key_slice == 12
    assert found.centre == pytest.approx((12, 30, 40), abs=0.1)
    assert found.long_axis_mm == pytest.approx(20, abs=1.0)
    assert found.short_axis_mm == pytest.approx(20, abs=1.0)
    assert found.volume_mm3 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.05)
    left, top, right, bottom = found.box
    assert (left, right) == pytest.approx((40 + 0.5 - 10 / 0.7, 40 + 0.5 + 10 / 0.7), abs=1)
    assert (top, bottom) == pytest.approx((30 + 0.5 - 10 / 0.7, 30 + 0.5 + 10 / 0.7), abs=1)


def test_a_vessel_does_not_lengthen_the_axes(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 10.0))
    case.volume.hu[12, 30, :] = SOLID
    found = measure(case.volume, case.seed((12, 30, 40), 10.0), -400)
    assert found is not None
    assert found.long_axis_mm == pytest.approx(20, abs=2.0)


def test_where_nothing_is_solid_nothing_is_measured(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7))
    assert measure(case.volume, case.seed((12, 30, 40), 5.0), -400) is None


def test_a_mass_that_fell_out_of_the_hull_is_bounded_by_its_radius(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 10.0))
    case.volume.hu[:, :, 40:] = SOLID  # the chest wall that it has grown into
    case.image.masks["lung"][:, :, 34:] = 0
    found = measure(case.volume, case.seed((12, 30, 40), 10.0), -400)
    assert found is not None
    assert found.long_axis_mm == pytest.approx(20, abs=2.0)
    assert found.centre == pytest.approx((12, 30, 40), abs=2)


def test_a_ball_is_a_voxel_at_least(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7))
    assert ball_of(case.volume, case.seed((12.4, 30, 40), 0.1)).box == (40, 30, 41, 31)
    large = ball_of(case.volume, case.seed((12, 30, 40), 10.0))
    assert large.long_axis_mm == pytest.approx(20, abs=1.0)
    assert large.volume_mm3 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.05)


@given(
    centre=st.tuples(st.floats(0, 23), st.floats(0, 63), st.floats(0, 79)),
    radius=st.floats(2, 30),
)
@settings(max_examples=40, deadline=None)
def test_a_box_never_leaves_the_image(centre: tuple[float, float, float], radius: float) -> None:
    plane = Plane(
        frame=0,
        position=(0, 0, 0),
        row_direction=(1, 0, 0),
        column_direction=(0, 1, 0),
        pixel_spacing=(0.7, 0.7),
        slope=1,
        intercept=0,
    )
    only = geometry.Slice(header=cast(ImageHeader, None), plane=plane, along=0.0)
    hu = np.full((24, 64, 80), SOLID, np.int16)
    source = volume.Volume(hu=hu, stack=geometry.Stack(slices=(only,), spacing=2.0, normal=(0, 0, 1)))
    seed = Seed(centre=centre, radius_mm=radius, hull=np.ones(hu.shape, np.float32), grid=identity((2.0, 0.7, 0.7)))
    found = measure(source, seed, -400)
    assert found is not None
    left, top, right, bottom = found.box
    assert 0 <= left < right <= 80
    assert 0 <= top < bottom <= 64
    assert 0 <= found.key_slice < 24


# Lesions.


def test_findings_name_their_slice_side_and_place(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((6, 30, 20), 7.0), ((15, 40, 60), 5.0))
    case.image.masks["lung"][:, :, 36:44] = 0  # between the lungs
    said = case.said()
    assert [finding.laterality for finding in said.findings] == ["R", "L"]
    first = said.findings[0]
    assert first.sop_instance_uid == case.volume.stack.slices[6].header.sop_instance_uid
    assert first.centre_mm == pytest.approx((-40 * 0.7 + 20 * 0.7, -30 + 30 * 0.7, 12), abs=0.2)
    assert said.measures["candidates"] == 2


def test_of_one_lung_alone_no_side_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((6, 30, 20), 7.0), ((15, 40, 60), 5.0))
    assert [finding.laterality for finding in case.said().findings] == ["", ""]


def test_what_is_not_solid_is_dropped_unless_the_model_has_learnt_it(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 8.0))
    inside = case.volume.hu == SOLID
    case.volume.hu[inside], case.outputs["score"][0, 0, inside], case.outputs["radius"][:] = -600, 0.8, 8.0
    case.volume.hu[10:14, 38:40, :] = SOLID  # a vessel that passes by
    said = findings.lesion_candidates(LEARNT, LABELS, case.volume, case.image, case.outputs)
    assert len(said.findings) == 1
    assert said.findings[0].long_axis_mm == pytest.approx(16, abs=1.5)
    assert said.findings[0].centre_mm == pytest.approx(case.volume.stack.to_patient((12, 30, 40)), abs=0.5)
    case.volume.hu[10:14, 38:40, :] = LUNG
    assert not case.said().findings


def test_two_peaks_in_one_lesion_are_one_finding(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 10.0))
    case.outputs["score"][0, 0, 12, 30, 55], case.outputs["radius"][0, 0, 12, 30, 55] = 0.7, 8.0
    assert len(case.said().findings) == 1


def test_at_most_as_many_findings_as_the_manifest_says(tmp_path: Path) -> None:
    places = [(12.0, 10.0 + 20 * row, 10.0 + 20 * column) for row in range(3) for column in range(4)]
    case = Case(tmp_path, (2.0, 0.7, 0.7), *((place, 4.0) for place in places))
    said = case.said()
    assert (len(said.findings), said.unlisted) == (LESION.max_findings, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": np.full((1, 1, 24, 64, 80), np.nan, np.float32)}, "score is not finite"),
        ({"score": np.full((1, 1, 24, 64, 80), 1.01, np.float32)}, "score lies outside 0..1"),
        ({"score": np.full((1, 1, 24, 64, 80), -0.1, np.float32)}, "score lies outside 0..1"),
        ({"score": np.zeros((1, 1, 24, 64, 81), np.float32)}, "has the shape"),
        ({"radius": np.full((1, 1, 24, 64, 80), 1e4, np.float32)}, "radius lies outside"),
        ({"radius": np.full((1, 1, 24, 64, 80), np.inf, np.float32)}, "radius is not finite"),
    ],
)
def test_nonsense_gives_no_finding_at_all(tmp_path: Path, changes: dict[str, Float], words: str) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7), ((12, 30, 40), 10.0))
    with pytest.raises(RuntimeFailed, match=words) as caught:
        case.said(**changes)
    assert caught.value.reason is Reason.ENGINE_FAILED


def test_a_missing_output_is_nonsense(tmp_path: Path) -> None:
    case = Case(tmp_path, (2.0, 0.7, 0.7))
    del case.outputs["radius"]
    with pytest.raises(RuntimeFailed, match="no radius"):
        case.said()


# Labels.


@pytest.fixture
def radiograph(tmp_path: Path) -> Film:
    return read_film(read_header(save(tmp_path / "film.dcm", film(np.zeros((50, 80), np.uint16)))))


SCORES = LabelScores(
    op="label_scores", scores="scores", labels=("inverted", "clipped"), regions={"clipped": (0.0, 0.2, 0.25, 1.0)}
)
TWO = dict.fromkeys(("inverted", "clipped"), LABELS["lesion"])


def test_a_label_at_its_threshold_is_a_finding_on_its_region(radiograph: Film) -> None:
    said = findings.label_scores(SCORES, TWO, radiograph, {"scores": np.array([[0.39, 0.4]], np.float32)})
    assert [(finding.label, finding.box) for finding in said.findings] == [("clipped", (0, 10, 20, 50))]
    assert said.measures == {"inverted": 0.39, "clipped": 0.4}


def test_labels_come_with_the_highest_score_first(radiograph: Film) -> None:
    said = findings.label_scores(SCORES, TWO, radiograph, {"scores": np.array([[0.5, 0.9]], np.float32)})
    assert [finding.label for finding in said.findings] == ["clipped", "inverted"]
    assert said.findings[1].box == (0, 0, 80, 50)


@pytest.mark.parametrize("scores", [[[0.5]], [[0.5, 1.5]], [[0.5, np.nan]], [0.5, 0.5]])
def test_nonsense_scores_are_refused(radiograph: Film, scores: list[Any]) -> None:
    with pytest.raises(RuntimeFailed):
        findings.label_scores(SCORES, TWO, radiograph, {"scores": np.array(scores, np.float32)})


def test_a_label_of_a_volume_is_on_the_whole_of_its_middle_slice(tmp_path: Path) -> None:
    """A judge of quality, say: it has no place in the patient, and no size."""
    source = read_volume_of(tmp_path, (5, 12, 20), (2.0, 0.5, 0.5))
    op = LabelScores(op="label_scores", scores="scores", labels=("inverted", "clipped"))
    said = findings.label_scores(op, TWO, source, {"scores": np.array([[0.1, 0.9]], np.float32)})
    (finding,) = said.findings
    assert finding.sop_instance_uid == source.stack.slices[2].header.sop_instance_uid
    assert (finding.box, finding.centre_mm, finding.long_axis_mm) == ((0, 0, 20, 12), None, None)
