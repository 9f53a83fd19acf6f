"""What a manifest accepts, which series of a study it prefers, and what is known before anything is run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engine_manifest import Accepts, Prefer
from appliance.errors import CannotAnalyse
from appliance.imaging import acceptance, analysis, geometry
from appliance.imaging.headers import ImageHeader, read_header
from appliance.imaging.reading import IN_PROCESS
from appliance.model import Reason
from tests.slices import ct_slice, save, stack

CT = "1.2.840.10008.5.1.4.1.1.2"


def accepts(**rules: Any) -> Accepts:
    return Accepts.model_validate({"modality": ["CT"], "sop_class": [CT], **rules})


def header(folder: Path, **elements: Any) -> ImageHeader:
    return read_header(save(folder / "one.dcm", ct_slice(0, np.zeros((2, 2), np.uint16), **elements)))


@pytest.mark.parametrize(
    ("elements", "rules", "words"),
    [
        ({"Modality": "PT"}, {}, "PT of class"),
        ({"SOPClassUID": "1.2.3"}, {}, "CT of class 1.2.3"),
        (
            {"BodyPartExamined": "HEAD"},
            {"body_part": ["CHEST", "LUNG"]},
            "body part is HEAD, the engine reads CHEST, LUNG",
        ),
        ({"ViewPosition": "LL"}, {"view": ["PA"]}, "the view is LL"),
        (
            {"ImageType": ["DERIVED", "LOCALIZER"]},
            {"image_type_excludes": ["LOCALIZER"]},
            "only images of type LOCALIZER",
        ),
    ],
)
def test_what_an_engine_does_not_take_is_unsuitable(
    tmp_path: Path, elements: dict[str, Any], rules: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotAnalyse, match=re.escape(words)) as caught:
        acceptance.suitable([header(tmp_path, **elements)], accepts(**rules))
    assert caught.value.reason is Reason.UNSUITABLE


def test_a_tag_that_is_missing_is_accepted(tmp_path: Path) -> None:
    found = header(tmp_path, BodyPartExamined=None, ImageType=None)
    rules = accepts(body_part=["CHEST"], view=["PA"], image_type_excludes=["LOCALIZER"])
    assert acceptance.suitable([found], rules) == [found]


def test_an_image_type_of_one_value_is_a_word(tmp_path: Path) -> None:
    assert header(tmp_path, ImageType="LOCALIZER").image_type == ("LOCALIZER",)


def test_localisers_and_other_objects_are_left_out(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3, 6])
    paths.append(save(tmp_path / "dose.dcm", ct_slice(98, np.zeros((2, 2), np.uint16), SOPClassUID="1.2.3")))
    scout = save(tmp_path / "scout.dcm", ct_slice(99, np.zeros((2, 2), np.uint16), ImageType=["ORIGINAL", "LOCALIZER"]))
    headers = [read_header(path) for path in [scout, *paths]]
    assert len(acceptance.suitable(headers, accepts(image_type_excludes=["LOCALIZER"]))) == 3


@pytest.mark.parametrize(
    ("rules", "reason", "words"),
    [
        (
            {"spacing_mm": {"min": 0.3, "max": 2.5}},
            Reason.UNSUITABLE,
            "3.00 mm apart, the engine reads 0.3 to 2.5 mm",
        ),
        ({"slices": {"min": 20, "max": 90}}, Reason.INCOMPLETE, "5 slices, the engine needs 20"),
        ({"slices": {"min": 1, "max": 4}}, Reason.UNSUITABLE, "5 slices, the engine reads up to 4"),
    ],
)
def test_stacks_outside_the_manifest_are_told_apart(
    tmp_path: Path, rules: dict[str, Any], reason: Reason, words: str
) -> None:
    found = geometry.stack([read_header(path) for path in stack(tmp_path, [0, 3, 6, 9, 12])])
    with pytest.raises(CannotAnalyse, match=re.escape(words)) as caught:
        acceptance.check_stack(found, accepts(**rules))
    assert caught.value.reason is reason


def test_a_closed_geometry_has_no_gap_and_no_broken_file(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3, 6, 9, 12])
    assert analysis.closed_geometry(paths, IN_PROCESS)
    assert analysis.closed_geometry(paths[1:], IN_PROCESS)
    assert not analysis.closed_geometry(paths[:2] + paths[3:], IN_PROCESS)
    assert not analysis.closed_geometry(paths[:1], IN_PROCESS)
    assert not analysis.closed_geometry([], IN_PROCESS)
    paths[2].write_bytes(b"")
    assert not analysis.closed_geometry(paths, IN_PROCESS)


def series(folder: Path, uid: str, step: float, count: int = 4, **elements: Any) -> list[ImageHeader]:
    (folder / uid).mkdir()
    levels = [index * step for index in range(count)]
    return [read_header(path) for path in stack(folder / uid, levels, SeriesInstanceUID=uid, **elements)]


def test_the_first_kernel_that_matches_wins_then_the_spacing(tmp_path: Path) -> None:
    prefer = Prefer(kernel=("B[67]0f", "(?i)lung"), spacing_mm=1.0)
    ranked = [
        series(tmp_path, "1.4", 2.0, ConvolutionKernel=["Br59f", "B60f"]),
        series(tmp_path, "1.3", 5.0, ConvolutionKernel="B70f"),
        series(tmp_path, "1.2", 1.0, ConvolutionKernel="LUNG"),
        series(tmp_path, "1.1", 1.0, ConvolutionKernel="STANDARD"),
        series(tmp_path, "1.0", 3.0),
    ]
    keys = [acceptance.rank(headers, prefer) for headers in ranked]
    assert keys == sorted(keys)


def test_more_slices_are_preferred_and_the_uid_decides_the_rest(tmp_path: Path) -> None:
    longer, second, first = series(tmp_path, "1.9", 2.0, 6), series(tmp_path, "1.3", 2.0), series(tmp_path, "1.2", 2.0)
    keys = [acceptance.rank(headers, None) for headers in (longer, first, second)]
    assert keys == sorted(keys)


def test_a_series_that_cannot_be_read_is_preferred_last(tmp_path: Path) -> None:
    readable = series(tmp_path, "1.2", 2.0)
    assert acceptance.rank(readable, Prefer(spacing_mm=1.0)) < acceptance.rank([], Prefer(spacing_mm=1.0))
