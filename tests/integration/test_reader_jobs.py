"""Jobs whose images cost the reader child its life: concluded and told, and the next is read well (P6, P9)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from appliance.errors import RuntimeFailed
from appliance.imaging.headers import ImageHeader
from appliance.imaging.reading import InProcess, ReaderLost
from appliance.model import Conclusion, Job, Reason
from appliance.runtimes.reader import ChildReader, ReaderSettings
from appliance.stages.assemble import PUT_OFF_MS
from appliance.stages.report.stage import MAX_LOST
from appliance.states import JobState
from tests.contract.test_reader_child import FAKE, MB, shim
from tests.integration.test_analyse_edges import CLIPPED, DEADLINE_MS, Rig, a_film, axial
from tests.slices import film

SMALL = ReaderSettings(memory_mb=1024, cpu_s=5, deadline_s=10, reap_s=2)
SEGFAULT = FAKE.format(body="ctypes.string_at(0)")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Rig, ChildReader]]]:
    made: list[tuple[Rig, ChildReader]] = []

    def start(settings: ReaderSettings, engine: str = "cxr-acquisition") -> tuple[Rig, ChildReader]:
        reader = ChildReader(settings)
        made.append((Rig(tmp_path, engines=(engine,), reader=reader.session), reader))
        return made[-1]

    yield start
    for rig, reader in made:
        reader.close()
        rig.journal.close()


Make = Callable[..., tuple[Rig, ChildReader]]


def a_compressed_film(study: str) -> Dataset:
    dataset = a_film(study)
    dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    return dataset


def check_not_analysed(rig: Rig, job: Job, words: str) -> None:
    assert job.state == JobState.REPORTED
    assert job.outcome is not None
    assert (job.outcome.conclusion, job.outcome.reason) == (Conclusion.NOT_ANALYSED, Reason.UNDECODABLE)
    assert words in job.outcome.detail
    told = [one for one in rig.results() if one.StudyInstanceUID == job.study_instance_uid]
    assert len(told) == 1
    assert told[0].PatientID == "1"
    assert rig.inferrer.failing == {}  # the engine is well


def check_read(job: Job) -> None:
    assert job.outcome is not None
    assert job.outcome.conclusion is Conclusion.FINDING


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
def test_a_film_that_crashes_its_decoder_is_not_analysed_and_the_next_is(tmp_path: Path, make: Make) -> None:
    rig, _ = make(replace(SMALL, interpreter=shim(tmp_path, SEGFAULT)))
    rig.fake.answer = lambda: CLIPPED
    rig.arrive(a_compressed_film("1.2.3"), a_film("1.2.4"))
    rig.run()
    crashed, read = rig.jobs()
    check_not_analysed(rig, crashed, "killed by SIGSEGV")
    check_read(read)


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
def test_a_reader_that_hangs_on_a_film_is_killed_and_the_next_film_is_read(make: Make) -> None:
    rig, reader = make(replace(SMALL, deadline_s=1))
    rig.fake.answer = lambda: CLIPPED
    rig.arrive(a_film("1.2.3"))
    rig.assembler.step()
    reader.freshen()
    stopped = psutil.Process(reader.pid)
    stopped.suspend()
    rig.run()
    assert not stopped.is_running()
    check_not_analysed(rig, rig.jobs()[0], "passed its deadline of 1 s")
    rig.arrive(a_film("1.2.4"))
    rig.run()
    check_read(rig.jobs()[1])


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
def test_a_film_that_takes_more_memory_than_there_is_is_not_analysed(make: Make) -> None:
    rig, reader = make(replace(SMALL, memory_mb=280, cpu_s=30, deadline_s=60))
    rig.fake.answer = lambda: CLIPPED
    pixels = np.zeros((4096, 8192), np.uint16)
    here = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.1"}
    large = film(pixels, PatientID="1", **here)
    large.compress(JPEGLSLossless, generate_instance_uid=False)
    assert len(large.PixelData) < MB
    rig.arrive(large, a_film("1.2.4"))
    rig.run()
    crashed, read = rig.jobs()
    check_not_analysed(rig, crashed, "")
    check_read(read)
    assert reader.pid is not None


@pytest.mark.promise("P6")
def test_a_reader_that_cannot_start_is_no_fault_of_the_image_and_the_result_waits(tmp_path: Path, make: Make) -> None:
    rig, _ = make(replace(SMALL, interpreter=tmp_path / "python"))
    rig.arrive(a_film())
    with pytest.raises(RuntimeFailed, match="does not start"):
        rig.run()
    (job,) = rig.jobs()
    assert job.state == JobState.CONCLUDED
    assert job.outcome is not None
    assert job.outcome.reason is Reason.ENGINE_FAILED
    assert "the image reader does not start" in job.outcome.detail
    assert rig.results() == []
    shim(tmp_path, "")
    rig.run()
    assert [one.PatientID for one in rig.results()] == ["1"]


class Deadly(InProcess):
    """A reader that some series cost its life, and that counts what it was asked."""

    def __init__(self, series: str, asked: list[str]) -> None:
        self._series, self._asked, self._lost = series, asked, False

    @property
    def lost(self) -> bool:
        return self._lost

    def header(self, path: Path) -> ImageHeader:
        header = super().header(path)
        self._asked.append(header.series_instance_uid)
        if header.series_instance_uid == self._series:
            self._die()
        return header

    def elements(self, path: Path, tags: Sequence[int]) -> Dataset:
        found = super().elements(path, tags)
        self._asked.append(str(found.SeriesInstanceUID))
        if found.SeriesInstanceUID == self._series:
            self._die()
        return found

    def _die(self) -> None:
        self._lost = True
        raise ReaderLost(Reason.UNDECODABLE, "killed")


@pytest.fixture
def deadly(tmp_path: Path) -> Iterator[tuple[Rig, list[str]]]:
    asked: list[str] = []
    made = Rig(tmp_path, engines=("ct-lesion",), reader=lambda _: Deadly("1.2.3.4", asked))
    yield made, asked
    made.journal.close()


@pytest.mark.promise("P9")
def test_a_series_that_costs_the_reader_its_life_is_asked_about_once_for_each_verdict(
    deadly: tuple[Rig, list[str]],
) -> None:
    rig, asked = deadly
    rig.arrive(*axial("1.2.3.4", 3, 3.0), *axial("1.2.3.5", 4, 3.0))
    rig.close_series()
    assert rig.assembler.step()  # one such series is enough for one step
    assert asked == ["1.2.3.4"] + ["1.2.3.5"] * 4
    while rig.assembler.step():
        pass
    assert asked.count("1.2.3.4") == 1
    (job,) = rig.jobs()
    assert job.series_instance_uid == "1.2.3.5"  # what can be read is preferred


@pytest.mark.promise("P9")
def test_headers_that_cost_the_reader_its_life_are_not_tried_without_end(deadly: tuple[Rig, list[str]]) -> None:
    rig, asked = deadly
    rig.arrive(*axial("1.2.3.4", 9, 3.0))
    rig.assembler.step()
    rig.hands.ms += 60_001
    rig.run()
    assert [job.state for job in rig.jobs()] == [JobState.REPORTED]
    assert asked == ["1.2.3.4"] * (MAX_LOST + 1)
    assert "result_not_built" in rig.logged


class Troubled(InProcess):
    """A reader that raises what it is told to, of the images of some series."""

    def __init__(self, series: str, trouble: list[Exception]) -> None:
        self._series, self._trouble, self._lost = series, trouble, False

    @property
    def lost(self) -> bool:
        return self._lost

    def header(self, path: Path) -> ImageHeader:
        header = super().header(path)
        if self._trouble and header.series_instance_uid == self._series:
            self._lost = isinstance(self._trouble[0], ReaderLost)
            raise self._trouble[0]
        return header


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[tuple[Rig, list[Exception]]]:
    trouble: list[Exception] = []
    made = Rig(tmp_path, engines=("ct-lesion",), reader=lambda _: Troubled("1.2.3.4", trouble))
    yield made, trouble
    made.journal.close()


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeFailed(Reason.ENGINE_FAILED, "the image reader does not start"),
        ReaderLost(Reason.DEADLINE, "the images were not read in time"),
    ],
)
def test_a_moment_without_a_reader_does_not_decide_which_series_is_read(
    troubled: tuple[Rig, list[Exception]], error: Exception
) -> None:
    rig, trouble = troubled
    rig.arrive(*axial("1.2.3.4", 24, 3.0), *axial("1.2.3.5", 30, 4.0))
    rig.close_series()
    trouble.append(error)
    while rig.assembler.step():
        pass
    assert [job.state for job in rig.jobs()] == [JobState.WAITING]
    assert rig.assembler.next_due_s() <= PUT_OFF_MS / 1000
    trouble.clear()
    rig.hands.ms += PUT_OFF_MS
    while rig.assembler.step():
        pass
    assert [(job.state, job.series_instance_uid) for job in rig.jobs()] == [(JobState.READY, "1.2.3.4")]


@pytest.mark.promise("P6")
def test_a_reader_that_does_not_come_back_is_told_at_the_deadline(troubled: tuple[Rig, list[Exception]]) -> None:
    rig, trouble = troubled
    rig.arrive(*axial("1.2.3.4", 3, 3.0), *axial("1.2.3.5", 3, 4.0))
    rig.close_series()
    trouble.append(RuntimeFailed(Reason.ENGINE_FAILED, "the image reader does not start"))
    rig.assembler.step()
    rig.hands.ms += DEADLINE_MS
    rig.assembler.step()
    (job,) = rig.jobs()
    assert job.outcome is not None
    assert job.outcome.reason is Reason.DEADLINE


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
@pytest.mark.parametrize("error", [OverflowError("1e200"), ValueError("1e200"), ZeroDivisionError()])
def test_headers_that_cannot_be_reckoned_with_end_no_process(
    troubled: tuple[Rig, list[Exception]], error: Exception
) -> None:
    rig, trouble = troubled
    rig.arrive(*axial("1.2.3.4", 3, 3.0))
    rig.assembler.step()
    rig.close_series()
    trouble.append(error)
    rig.run()
    (job,) = rig.jobs()
    check_not_analysed(rig, job, f"cannot be reckoned with ({type(error).__name__})")
    rig.arrive(*axial("1.2.3.5", 4, 3.0))
    rig.close_series()
    rig.run()
    assert rig.jobs()[-1].series_instance_uid == "1.2.3.5"  # what can be reckoned with is preferred


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
def test_a_series_with_a_position_beyond_all_bounds_is_preferred_last(make: Make) -> None:
    rig, _ = make(SMALL, "ct-lesion")
    far = axial("1.2.3.4", 3, 3.0)
    far[1].ImagePositionPatient = ["-10", "-20", "1e200"]
    rig.arrive(*far, *axial("1.2.3.5", 4, 3.0))
    rig.close_series()
    rig.assembler.step()
    assert [job.series_instance_uid for job in rig.jobs()] == ["1.2.3.5"]


@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
def test_a_film_of_sides_beyond_all_bounds_is_undecodable(make: Make) -> None:
    rig, _ = make(SMALL)
    huge = a_film()
    for side in ("Rows", "Columns"):
        del huge[side]
        huge.add_new(side, "UL", 2**31 - 1)
    rig.arrive(huge)
    rig.run()
    check_not_analysed(rig, rig.jobs()[0], "header cannot be read")


class Swapped(InProcess):
    """Answers with the elements of another file, or with none."""

    def __init__(self, other: Dataset) -> None:
        self._other = other

    def elements(self, path: Path, tags: Sequence[int]) -> Dataset:  # noqa: ARG002 - the port's signature
        return self._other


@pytest.mark.promise("P10")
@pytest.mark.parametrize("uid", ["1.2.99", None])
def test_a_header_of_another_image_names_no_patient(tmp_path: Path, uid: str | None) -> None:
    other = Dataset()
    if uid is not None:
        other.SOPInstanceUID, other.PatientID = uid, "2"
    rig = Rig(tmp_path, reader=lambda _: Swapped(other))
    rig.arrive(a_film())
    rig.run()
    assert rig.results() == []
    assert "header_unreadable" in rig.logged
    assert "result_not_built" in rig.logged
    rig.journal.close()
