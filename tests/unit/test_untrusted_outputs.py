"""Whatever a model answers, it is findings within the image or the words that it was nonsense."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import Boxes, Boxes3D, HeatMap, Letterbox, Segmentation
from appliance.errors import RuntimeFailed
from appliance.imaging import boxes, heat_map, preprocess, segmentation
from appliance.imaging.film import Film
from appliance.imaging.outputs import Said
from appliance.imaging.volume import Volume
from appliance.model import Reason
from tests.sources import CODE, read_film_of, read_volume_of

NAMES = ["one", "two"]
LABELS = {name: Label.model_validate({"text": name, "code": CODE, "threshold": 0.3}) for name in NAMES}
ROWS, COLUMNS = 40, 30
SHAPE = (5, 8, 9)
DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])
NUMBERS = st.one_of(st.floats(0, 1), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0, 1, 2, 40, -1]))


def output(*wanted: int) -> st.SearchStrategy[NDArray[Any]]:
    """Mostly of the wanted shape, any numbers."""
    shapes = st.one_of(
        st.just(wanted), st.just(wanted), st.just(wanted[1:]), arrays.array_shapes(max_dims=5, min_side=0, max_side=6)
    )
    return st.tuples(DTYPES, shapes, st.integers(0, 2**32 - 1), st.lists(NUMBERS, min_size=1, max_size=6)).map(_filled)


def _filled(drawn: tuple[type[np.generic], tuple[int, ...], int, list[float]]) -> NDArray[Any]:
    dtype, shape, seed, numbers = drawn
    with np.errstate(all="ignore"):
        values = np.array(numbers, np.float64)[np.random.default_rng(seed).integers(0, len(numbers), shape)]
        if not np.issubdtype(dtype, np.floating):
            values = np.clip(np.nan_to_num(values), -100, 100)
        return values.astype(dtype)


Reader = Callable[[Mapping[str, NDArray[Any]]], Said]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return read_film_of(tmp_path_factory.mktemp("film"), ROWS, COLUMNS)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    folder: Path = tmp_path_factory.mktemp("volume")
    return read_volume_of(folder, SHAPE, (2.0, 1.0, 1.0))


def holds(read: Reader, answers: Mapping[str, NDArray[Any]], columns: int, rows: int) -> None:
    try:
        said = read(answers)
    except RuntimeFailed as error:
        assert error.reason == Reason.ENGINE_FAILED  # noqa: PT017 - either is right
        return
    assert len(said.findings) <= 10
    for finding in said.findings:
        left, top, right, bottom = finding.box
        assert 0 <= left < right <= columns
        assert 0 <= top < bottom <= rows
        assert 0.3 - 1e-4 <= finding.score <= 1
        assert np.isfinite(finding.centre_mm or 0).all()
    assert all(np.isfinite(value) for value in said.measures.values())


@given(b=output(1, 7, 4), s=output(1, 7, 2), c=st.none() | output(1, 7), fractions=st.booleans())
@settings(max_examples=150, deadline=None)
def test_boxes_of_films(film: Film, b: NDArray[Any], s: NDArray[Any], c: NDArray[Any] | None, fractions: bool) -> None:
    layout: Literal["corners", "centre_size"] = "centre_size" if fractions else "corners"
    op = Boxes(
        op="boxes", boxes="b", scores="s", classes=None if c is None else "c", labels=("one", "two"),
        fractions=fractions, layout=layout,
    )  # fmt: skip
    image = preprocess.run([Letterbox(op="letterbox", size=32)], film.image, (1.0, 1.0))
    answers = {"b": b, "s": s if c is None else s[..., 0] if s.ndim and s.size else s} | ({} if c is None else {"c": c})
    holds(partial(boxes.boxes, op, LABELS, film, image), answers, COLUMNS, ROWS)


@given(m=output(1, 2, 6, 5), s=st.none() | output(1, 2))
@settings(max_examples=100, deadline=None)
def test_heat_maps(film: Film, m: NDArray[Any], s: NDArray[Any] | None) -> None:
    op = HeatMap(op="heat_map", map="m", scores=None if s is None else "s", labels=("one", "two"))
    image = preprocess.run([Letterbox(op="letterbox", size=32)], film.image, (1.0, 1.0))
    answers = {"m": m} if s is None else {"m": m, "s": s}
    holds(partial(heat_map.heat_map, op, LABELS, film, image), answers, COLUMNS, ROWS)


@given(b=output(7, 6), s=output(7, 2), axes=st.sampled_from(["xyz", "zyx"]))
@settings(max_examples=100, deadline=None)
def test_boxes_of_volumes(volume: Volume, b: NDArray[Any], s: NDArray[Any], axes: str) -> None:
    op = Boxes3D.model_validate({"op": "boxes_3d", "boxes": "b", "scores": "s", "labels": NAMES, "axes": axes})
    image = preprocess.run([], volume.hu, volume.voxel_mm)
    holds(partial(boxes.boxes_3d, op, LABELS, volume, image), {"b": b, "s": s}, SHAPE[2], SHAPE[1])


@given(p=output(1, 2, *SHAPE), c=output(1, 1, *SHAPE), kind=st.sampled_from(["probabilities", "classes"]))
@settings(max_examples=100, deadline=None)
def test_segmentations(volume: Volume, p: NDArray[Any], c: NDArray[Any], kind: str) -> None:
    op = Segmentation.model_validate({"op": "segmentation", "output": "p", "kind": kind, "labels": NAMES})
    image = preprocess.run([], volume.hu, volume.voxel_mm)
    answers = {"p": p if kind == "probabilities" else c}
    holds(partial(segmentation.segmentation, op, LABELS, volume, image), answers, SHAPE[2], SHAPE[1])
