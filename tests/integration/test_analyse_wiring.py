"""The analyse process: a step that hangs is noticed, and local times are those of the moment they name."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.life import Life
from appliance.wiring.analyse import HUNG_AFTER_S, Analysis, _utc_offset


@pytest.fixture
def in_london(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "GMT0BST,M3.5.0/1,M10.5.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_result_of_summer_bears_summer_time_whenever_the_box_was_started(in_london: None) -> None:  # noqa: ARG001
    assert _utc_offset(datetime(2026, 7, 1, tzinfo=UTC)) == timedelta(hours=1)
    assert _utc_offset(datetime(2026, 12, 1, tzinfo=UTC)) == timedelta(0)


@pytest.mark.promise("P6")
def test_a_step_that_does_not_end_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    analysis = Analysis(Config(state=tmp_path, engines_dir=tmp_path), Life(), lambda *_, **__: None)
    with analysis._timed("infer"):
        assert not analysis.hangs
        analysis._step_began["infer"] -= HUNG_AFTER_S + 1
        assert analysis.hangs
    assert not analysis.hangs
    analysis._bell.close()
    analysis._assembler._desk.journal.close()
