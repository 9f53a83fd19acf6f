"""The analyse process: a step that hangs is noticed, and local times are those of the moment they name."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.config import Config, Engine, EngineMode
from appliance.errors import StoreFailed
from appliance.journal import copies, jobs
from appliance.journal.jobs import Duty
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Reserve, Spool
from appliance.wiring import resting
from appliance.wiring.analysis import HUNG_AFTER_S, Analysis, _utc_offset
from appliance.wiring.common import EX_OK, open_spool
from appliance.wiring.resting import RESULTS_AT_A_TIME
from tests.journals import SERIES, STUDY, arrival, open_journal, receive
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


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


def results_of_another(tmp_path: Path, number: int) -> Spool:
    (tmp_path / "run").mkdir()
    spool = Spool(tmp_path / "spool", "results", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
    for _ in range(number):
        file = spool.begin(b"head")
        file.write([memoryview(b"a result")])
        file.finish()
    journal = Journal(tmp_path / "journal.sqlite", "test")
    spool.own(journal.identity)
    journal.close()
    return spool


def quiet(*_: object, **__: object) -> None:
    pass


def started(tmp_path: Path) -> Analysis:
    config = Config(state=tmp_path, engines_dir=tmp_path)
    spool = open_spool(config, "results")
    return Analysis(config, resting.opened(config, spool, quiet), spool, Life(), quiet)


@pytest.mark.promise("P4")
def test_a_journal_that_knows_none_of_many_results_removes_none(tmp_path: Path) -> None:
    spool = results_of_another(tmp_path, RESULTS_AT_A_TIME + copies.CHUNK + 1)
    with pytest.raises(StoreFailed, match="is it the right journal"):
        started(tmp_path)
    assert len(spool.files()) == RESULTS_AT_A_TIME + copies.CHUNK + 1


@pytest.mark.promise("P12")
def test_results_of_a_run_that_was_cut_short_are_swept(tmp_path: Path) -> None:
    spool = results_of_another(tmp_path, 2)
    analysis = started(tmp_path)
    assert spool.files() == []
    analysis._bell.close()
    analysis._assembler._desk.journal.close()


@pytest.mark.promise("P6")
def test_a_step_that_does_not_end_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    analysis = started(tmp_path)
    with analysis._timed("infer"):
        assert not analysis.hangs
        analysis._step_began["infer"] -= HUNG_AFTER_S + 1
        assert analysis.hangs
    assert not analysis.hangs
    analysis._bell.close()
    analysis._assembler._desk.journal.close()


# Without engines


def test_what_arrives_without_engines_is_given_to_none_that_comes_later(tmp_path: Path) -> None:
    config, life, said = Config(state=tmp_path, engines_dir=tmp_path), Life(), list[str]()
    spool = open_spool(config, "results")
    journal = resting.opened(config, spool, quiet)
    (tmp_path / "work" / "volume").mkdir(parents=True)
    receive(journal, *(arrival(number) for number in range(1, resting.LOOK_AT + 2)))
    assert resting.is_idle(config, journal)
    ended: list[int] = []
    arguments = (config, journal, spool, life, lambda event, **_: said.append(event))
    resting_process = threading.Thread(target=lambda: ended.append(resting.run(*arguments)))
    resting_process.start()
    eventually(lambda: not jobs.arrived(journal, 1), what="all of it is passed over")
    receive(journal, arrival(1000))
    eventually(lambda: not jobs.arrived(journal, 1), 10, "what comes later, too, though nobody rings")
    life.stopping.set()
    resting_process.join(10)
    assert (ended, said) == ([EX_OK], ["analysing"])
    assert json.loads((config.run_dir / "engines.json").read_text()) == {}
    assert not (tmp_path / "work").exists()
    journal.close()


def test_nobody_rests_while_there_is_an_engine_or_a_job_of_a_former_one(tmp_path: Path) -> None:
    config = Config(state=tmp_path, engines_dir=tmp_path)
    journal = open_journal(tmp_path / "journal")

    def with_engine(mode: EngineMode) -> Config:
        return config.model_copy(update={"engines": (Engine(id="films", mode=mode),)})

    assert resting.is_idle(with_engine(EngineMode.OFF), journal)
    assert not resting.is_idle(with_engine(EngineMode.SHADOW), journal)
    (recorded,) = receive(journal, arrival(1))
    duty = Duty(
        engine="gone@1",
        scope="series",
        study_instance_uid=STUDY,
        series_instance_uid=SERIES,
        sop_instance_uid="",
        subject=SERIES,
        instance_id=recorded.instance_id,
        deadline_ms=1000,
    )
    jobs.take_on(journal, [duty], recorded.instance_id)
    assert not resting.is_idle(config, journal)
    journal.close()


def test_nothing_that_reads_is_loaded_to_rest() -> None:
    code = "import sys, appliance.daemon, appliance.wiring.analyse; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert set(loaded) & {"numpy", "pydicom", "highdicom", "scipy", "structlog"} == set()


IMPORTED = """
import sys
from appliance.wiring.analyse import DECODERS, NoDecoders
sys.meta_path.insert(0, NoDecoders())
import appliance.wiring.analysis
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
assert not JPEGLSLosslessDecoder.is_available
print(sorted(name for name in sys.modules if name.partition(".")[0] in DECODERS))
"""


@pytest.mark.promise("P9")
def test_no_decoder_is_in_the_process_that_knows_the_journal() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
