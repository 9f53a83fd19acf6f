"""What a header may say that would make a reading wrong: of another scale, of a part, mirrored, or of gigabytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom import config
from pydicom.dataelem import DataElement

from appliance import engine_package
from appliance.engine_manifest import Accepts, Manifest, contradictions
from appliance.engine_ops import Resample
from appliance.errors import CannotAnalyse
from appliance.imaging import acceptance, analysis, film, geometry, preprocess, volume
from appliance.imaging.headers import read_header
from appliance.imaging.reading import IN_PROCESS
from appliance.model import Reason
from tests.slices import ct_slice, save, stack
from tests.slices import film as a_film

ENGINES = Path(__file__).resolve().parents[2] / "engines"
PIXELS = np.full((6, 8), 1000, np.uint16)


def test_rounded_positions_do_not_add_up_to_a_shift(tmp_path: Path) -> None:
    levels = [round(1.25 * number + 1e-9, 1) for number in range(201)]  # steps of 1.2 and 1.3
    made = geometry.stack([read_header(path) for path in stack(tmp_path, levels)])
    assert made.spacing == pytest.approx(1.25, abs=1e-3)
    assert made.to_patient((200, 0, 0))[2] == pytest.approx(levels[-1], abs=0.1)


def test_an_intercept_counts_without_a_slope(tmp_path: Path) -> None:
    header = read_header(save(tmp_path / "a.dcm", ct_slice(0, PIXELS, RescaleSlope=None)))
    assert (header.planes[0].slope, header.planes[0].intercept) == (1.0, -1024.0)


@pytest.mark.promise("P6")
def test_values_that_are_not_said_to_be_hounsfield_units_are_not_read_as_such(tmp_path: Path) -> None:
    paths = stack(tmp_path, [0, 3, 6], RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(CannotAnalyse, match="Hounsfield") as caught:
        volume.build(geometry.stack([read_header(path) for path in paths]), tmp_path)
    assert caught.value.reason is Reason.UNDECODABLE


@pytest.mark.promise("P6")
def test_of_several_frames_with_one_position_none_is_read(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{z}.dcm", ct_slice(z, np.stack([PIXELS] * 3), NumberOfFrames=3, Rows=6, Columns=8))
        for z in (0, 3, 6)
    ]
    assert [read_header(path).planes for path in paths] == [(), (), ()]
    with pytest.raises(CannotAnalyse) as caught:
        geometry.stack([read_header(path) for path in paths])
    assert caught.value.reason is Reason.GEOMETRY


@pytest.mark.promise("P9")
def test_a_wrong_pixel_spacing_does_not_cost_gigabytes() -> None:
    hu = np.zeros((40, 512, 512), np.int16)
    with pytest.raises(CannotAnalyse, match="no part of a person") as caught:
        preprocess.run([Resample(op="resample", spacing_mm=2.0)], hu, (3.0, 20.0, 20.0))
    assert caught.value.reason is Reason.UNSUITABLE


@pytest.mark.promise("P9")
def test_a_film_larger_than_any_detector_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "film.dcm", a_film(PIXELS, Rows=9000, Columns=9000))
    with pytest.raises(CannotAnalyse, match="9000 x 9000") as caught:
        film.read_film(read_header(path))
    assert caught.value.reason is Reason.UNSUITABLE


@pytest.mark.parametrize("stated", [["R", "F"], ["L", "H"], ["A", "F"], ["PR", "FL"]])
def test_a_film_that_says_it_is_turned_or_mirrored_gets_no_side_wrong(tmp_path: Path, stated: list[str]) -> None:
    package = engine_package.load(ENGINES / "cxr-acquisition")
    path = save(tmp_path / "film.dcm", a_film(PIXELS, PatientOrientation=stated))
    with pytest.raises(CannotAnalyse, match="turned or mirrored") as caught:
        analysis.prepare(package, [path], tmp_path, IN_PROCESS)
    assert caught.value.reason is Reason.UNSUITABLE


@pytest.mark.parametrize("stated", [None, "", ["L", "F"], ["LA", "FP"]])
def test_a_film_that_lies_as_it_should_or_does_not_say_is_read(tmp_path: Path, stated: Any) -> None:
    header = read_header(save(tmp_path / "film.dcm", a_film(PIXELS, PatientOrientation=stated)))
    rules = {"modality": ["CR"], "sop_class": [header.sop_class_uid], "orientation": "coronal"}
    acceptance.check_film(header, Accepts.model_validate(rules))


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        *[("047Y", 47), ("018M", 1.5), ("004W", 4 / 52.18), ("010D", 10 / 365.25)],
        *((none, None) for none in ("", "47", "Y", "-47Y", "0047Y", "4.5Y", "047X")),
    ],
)
def test_an_age_is_read_as_the_standard_writes_it(tmp_path: Path, stated: str, years: float | None) -> None:
    dataset = a_film(PIXELS)
    dataset.add(DataElement(0x00101010, "AS", stated, validation_mode=config.IGNORE))
    header = read_header(save(tmp_path / "film.dcm", dataset))
    assert header.age_years == (None if years is None else pytest.approx(years))
    rules = {"modality": ["CR"], "sop_class": [header.sop_class_uid], "age_years": {"min": 16, "max": 90}}
    accepts = Accepts.model_validate(rules)
    if years in (None, 47):
        assert acceptance.suitable([header], accepts) == [header]
    else:
        with pytest.raises(CannotAnalyse, match="outside the 16 to 90 years") as caught:
            acceptance.suitable([header], accepts)
        assert caught.value.reason is Reason.UNSUITABLE
        assert "1.5" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"preprocess": [{"op": "crop_to_mask", "mask": "lung"}, *[]]}, "no op before it makes lung"),
        ({"postprocess": {"mask": "heart"}}, "no op makes heart"),
        ({"scope": "instance", "one_per": None, "prefer": None}, "the op lesion_candidates reads one series"),
    ],
)
def test_a_manifest_that_would_fail_on_every_study_contradicts_itself(changes: dict[str, Any], where: str) -> None:
    manifest = engine_package.load(ENGINES / "ct-lesion").manifest
    data = manifest.model_dump(by_alias=True, mode="json")
    changed = data | changes | {"postprocess": data["postprocess"] | changes.get("postprocess", {})}
    assert where in [reason for _, reason in contradictions(Manifest.model_validate(changed))]


def test_no_engine_reads_a_whole_study() -> None:
    data = engine_package.load(ENGINES / "ct-lesion").manifest.model_dump(by_alias=True, mode="json")
    with pytest.raises(ValidationError):
        Manifest.model_validate(data | {"scope": "study", "one_per": None, "prefer": None})


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "elements",
    [
        {"ImagePositionPatient": ["-10", "-20", "1e200"]},
        {"PixelSpacing": ["1e7", "1"]},
        {"RescaleSlope": "-1e7"},
        {"RescaleIntercept": "1e300"},
        {"SliceThickness": "1e300"},
    ],
)
def test_numbers_of_no_patient_are_not_read(tmp_path: Path, elements: dict[str, Any]) -> None:
    path = save(tmp_path / "a.dcm", ct_slice(0, PIXELS, **elements))
    with pytest.raises(CannotAnalyse) as caught:
        read_header(path)
    assert caught.value.reason is Reason.UNDECODABLE


@pytest.mark.promise("P9")
@pytest.mark.parametrize("side", ["Rows", "Columns"])
def test_a_side_longer_than_its_element_can_say_is_not_read(tmp_path: Path, side: str) -> None:
    dataset = a_film(PIXELS)
    del dataset[side]
    dataset.add_new(side, "UL", 65536)
    with pytest.raises(CannotAnalyse) as caught:
        read_header(save(tmp_path / "a.dcm", dataset))
    assert caught.value.reason is Reason.UNDECODABLE


@pytest.mark.promise("P9")
@pytest.mark.parametrize("z", [float("nan"), float("inf"), 1.7e308, -1.7e308])
def test_positions_that_are_no_numbers_make_no_stack(tmp_path: Path, z: float) -> None:
    headers = [read_header(path) for path in stack(tmp_path, [0, 3, 6, 9])]
    plane = replace(headers[1].planes[0], position=(-10.0, -20.0, z))
    headers[1] = replace(headers[1], planes=(plane,))
    with pytest.raises(CannotAnalyse) as caught:
        geometry.stack(headers)
    assert caught.value.reason is Reason.GEOMETRY


def test_a_series_is_ranked_wherever_its_slices_are(tmp_path: Path) -> None:
    headers = [read_header(path) for path in stack(tmp_path, [0, 3])]
    plane = replace(headers[1].planes[0], position=(0.0, 0.0, 1e200))
    prefer = engine_package.load(ENGINES / "ct-lesion").manifest.prefer
    *_, count, _ = acceptance.rank([headers[0], replace(headers[1], planes=(plane,))], prefer)
    assert count == -2
