"""The picture's pixels: what stands where, at which size, and that lines are cut and never wrapped."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont
from pydicom.sr.coding import Code

from appliance.model import Conclusion, EngineIdentity, Finding, Outcome, Reason
from appliance.stages.report import Label, ReportContext
from appliance.stages.report.drawing import LONGEST_SIDE, MOST_FINDINGS, NARROWEST, draw, shortened

AT = datetime(2026, 11, 24, 2, 15, tzinfo=UTC)


def context(findings: int = 0, reason: Reason | None = None, detail: str = "") -> ReportContext:
    conclusion = Conclusion.FINDING if findings else Conclusion.NO_FINDING
    finding = Finding(label="lesion", score=0.8, sop_instance_uid="1.2", box=(0, 0, 9, 9))
    return ReportContext(
        node="box",
        outcome=Outcome(
            conclusion=Conclusion.NOT_ANALYSED if reason else conclusion,
            reason=reason,
            detail=detail,
            findings=(finding,) * findings,
            engine=EngineIdentity(id="e", version="1.0.0", status="reference", package_sha256="", model_sha256=""),
        ),
        title="Lesions",
        labels={"lesion": Label(text="Nodule", code=Code("27925004", "SCT", "Nodule"), threshold=0.5)},
        study_instance_uid="1.2",
        engine_key="e@1.0.0",
        input_digest="",
        revision=1,
        concluded_at=AT,
    )


@pytest.mark.parametrize("shape", [(512, 512), (2048, 1800), (1024, 1024), (100, 2000), (3000, 200), (1, 1)])
def test_the_key_image_is_shown_whole_in_its_proportions(shape: tuple[int, int]) -> None:
    green = np.zeros((*shape, 3), np.uint8)
    green[..., 1] = 255
    picture = draw(context(), AT, green)
    columns = picture.shape[1]
    assert NARROWEST <= columns <= LONGEST_SIDE
    rows_shown, columns_shown = (np.nonzero((picture == (0, 255, 0)).all(axis=2).any(axis=axis))[0] for axis in (1, 0))
    assert rows_shown[0] == columns // 16, "directly below the bar"
    assert max(len(rows_shown), len(columns_shown)) <= LONGEST_SIDE
    assert len(rows_shown) / shape[0] == pytest.approx(len(columns_shown) / shape[1], rel=0.02)
    assert picture.shape[0] > rows_shown[-1] + 1, "words below"


def test_words_stand_outside_the_key_image() -> None:
    key_image = np.random.default_rng(1).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    picture = draw(context(findings=3), AT, key_image)
    assert np.array_equal(picture[64 : 64 + 1024], key_image)


def test_a_card_without_an_image() -> None:
    picture = draw(context(reason=Reason.DEADLINE, detail="no answer within 300 s"), AT, None)
    assert picture.shape[1] == LONGEST_SIDE
    assert picture.shape[0] < 400
    assert picture.mean() < 64


def test_at_most_so_many_findings_are_listed() -> None:
    step = LONGEST_SIDE // 32
    few, many, more = (draw(context(findings=n), AT, None).shape[0] for n in (1, MOST_FINDINGS + 1, 50))
    assert many == more
    assert many - few == step * MOST_FINDINGS  # the last line says how many are not shown


def test_the_same_facts_give_the_same_pixels() -> None:
    key_image = np.random.default_rng(2).integers(0, 255, (600, 500, 3), dtype=np.uint8)
    assert np.array_equal(draw(context(findings=2), AT, key_image), draw(context(findings=2), AT, key_image))


@settings(deadline=None, max_examples=50)
@given(words=st.text(max_size=200), width=st.integers(20, 600))
def test_a_line_fits_and_is_marked_where_it_is_cut(words: str, width: int) -> None:
    font = ImageFont.load_default(20)
    line = shortened(words, font, width)
    assert "\n" not in line
    whole = " ".join(words.split())
    if line != whole:
        assert line.endswith("...")
        assert whole.startswith(line[:-3])
        assert font.getlength(line) <= width
    else:
        assert font.getlength(line) <= width
