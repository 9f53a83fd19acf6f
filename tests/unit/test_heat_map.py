"""Maps over a film: regions, their boxes in the film, and what a classifier decides about them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import HeatMap, Letterbox
from appliance.errors import RuntimeFailed
from appliance.imaging import heat_map, preprocess
from appliance.imaging.film import Film
from appliance.imaging.outputs import Said
from tests.sources import CODE, read_film_of

LABELS = {
    name: Label.model_validate({"text": name, "code": CODE, "threshold": threshold})
    for name, threshold in (("opacity", 0.5), ("device", 0.8))
}
OP = {"op": "heat_map", "map": "m", "labels": ["opacity", "device"]}
DECIDED = OP | {"scores": "s"}
#: 200 columns on 40 pixels: 5 of the source for one. A map of 8 x 8: 25 source pixels for each, rows from -50.
CELL = 25


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return read_film_of(tmp_path_factory.mktemp("film"), 100, 200)


def said(film: Film, op: dict[str, Any], maps: NDArray[np.float32], scores: list[float] | None = None) -> Said:
    image = preprocess.run([Letterbox(op="letterbox", size=40)], film.image, (1.0, 1.0))
    answers = {"m": maps} | ({} if scores is None else {"s": np.array([scores], np.float32)})
    return heat_map.heat_map(HeatMap.model_validate(op), LABELS, film, image, answers)


def maps(*cells: tuple[int, int, int, float]) -> NDArray[np.float32]:
    """(label, row, column, value) of an 8 x 8 map for each label, else 0.1."""
    result = np.full((1, 2, 8, 8), 0.1, np.float32)
    for label, row, column, value in cells:
        result[0, label, row, column] = value
    return result


def test_a_region_above_the_threshold_is_a_finding_with_its_peak(film: Film) -> None:
    found = said(film, OP, maps((0, 3, 2, 0.6), (0, 3, 3, 0.9), (0, 5, 6, 0.55), (1, 3, 7, 0.79)))
    first, second = found.findings
    assert (first.label, first.score, first.box) == ("opacity", 0.9, (2 * CELL, 25, 4 * CELL, 50))
    assert (second.score, second.box) == (0.55, (6 * CELL, 75, 7 * CELL, 100))
    assert first.sop_instance_uid == film.header.sop_instance_uid
    assert found.measures == {"opacity": 0.9, "device": 0.79}


def test_regions_are_clipped_to_the_film_and_dropped_beside_it(film: Film) -> None:
    """Rows 0 and 1 of the map lie above the film, 2 to 5 on it."""
    found = said(film, OP, maps((0, 0, 0, 0.9), (0, 1, 4, 0.7), (0, 2, 4, 0.7)))
    assert [finding.box for finding in found.findings] == [(100, 0, 125, 25)]


def test_a_region_in_the_padding_alone_is_none_though_rounding_lets_it_touch_the_film(tmp_path: Path) -> None:
    """The film ends 2.8e-14 pixels after the first row of the map below it begins."""
    wide = read_film_of(tmp_path, 86, 301)
    image = preprocess.run([Letterbox(op="letterbox", size=96)], wide.image, (1.0, 1.0))
    values = np.zeros((1, 2, 14, 14), np.float32)
    values[0, 0, 9:11, 4] = 0.9
    op = HeatMap.model_validate(OP)
    assert heat_map.heat_map(op, LABELS, wide, image, {"m": values}).findings == ()


def test_many_regions_of_one_label_push_no_other_out(film: Film) -> None:
    cells = [(0, row, column, 0.9) for row in (2, 4) for column in (0, 2, 4, 6)]
    found = said(film, OP | {"max_findings": 3}, maps(*cells, (1, 3, 3, 0.8)))
    assert found.unlisted == 6
    assert [finding.label for finding in found.findings] == ["opacity", "opacity", "device"]


def test_a_coarse_map_and_a_fine_one_are_spread_alike(film: Film) -> None:
    coarse, fine = np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 2, 40, 80), np.float32)
    coarse[0, 0, 1, 1], fine[0, 0, 10:20, 20:40] = 0.9, 0.9
    (one,), (other,) = said(film, OP, coarse).findings, said(film, OP, fine).findings
    assert one == other
    assert one.box == (50, 0, 100, 50)


def test_what_a_classifier_decides_is_drawn_about_the_peak_of_its_map(film: Film) -> None:
    """Half of the peak of 0.8 is 0.4: the neighbour at 0.41 belongs to it, the one at 0.39 does not."""
    answer = maps((0, 3, 2, 0.8), (0, 3, 3, 0.41), (0, 4, 2, 0.39), (0, 3, 6, 0.7), (1, 3, 3, 1.0))
    (finding,) = said(film, DECIDED, answer, [0.7, 0.3]).findings
    assert (finding.label, finding.score, finding.box) == ("opacity", 0.7, (50, 25, 100, 50))
    assert said(film, DECIDED, answer, [0.7, 0.3]).measures == {"opacity": 0.7, "device": 0.3}


@pytest.mark.parametrize("answer", [maps((0, 0, 0, 0.9)), np.zeros((1, 2, 8, 8), np.float32)])
def test_what_a_classifier_decides_is_told_where_its_map_says_nothing(film: Film, answer: NDArray[np.float32]) -> None:
    (finding,) = said(film, DECIDED, answer, [0.7, 0.3]).findings
    assert finding.box == (0, 0, 200, 100)


def test_noise_gives_no_more_findings_than_are_wanted(film: Film) -> None:
    noise = np.random.default_rng(1).random((1, 2, 512, 512), np.float32)
    found = said(film, OP | {"max_findings": 5}, noise).findings
    assert len(found) == 5
    assert min(finding.score for finding in found) > 0.99


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros((2, 8, 8)), "m has the shape"),
        (np.zeros((1, 3, 8, 8)), "m has the shape"),
        (np.zeros((1, 2, 0, 8)), "m has the shape"),
        (np.zeros((1, 2, 1, 2049)), "m has the shape"),
        (np.full((1, 2, 8, 8), np.nan), "m is not finite"),
        (np.full((1, 2, 8, 8), 1e300), "m is not finite"),
        (np.full((1, 2, 8, 8), -0.1), r"m lies outside 0\.\.1"),
    ],
)
def test_nonsense_is_an_error_and_no_finding(film: Film, answer: NDArray[np.float64], words: str) -> None:
    with pytest.raises(RuntimeFailed, match=words):
        said(film, OP, answer)  # type: ignore[arg-type]
