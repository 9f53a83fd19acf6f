"""Assemble on a real journal: duties, deadlines, and studies that are not what they should be."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance import engine_package
from appliance.imaging.reading import InProcess
from appliance.journal import inbox, jobs
from appliance.journal.store import Journal
from appliance.model import Conclusion, Evidence, Job, Reason
from appliance.stages.assemble import Assembler
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.states import JobState
from tests.journals import Hands, arrival, count, open_journal, receive

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_MS, SILENCE_MS = 60_000, 20_000


@dataclass
class Analysis:
    journal: Journal
    hands: Hands
    folder: Path
    logged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        package = engine_package.load(ROOT / "engines" / "ct-lesion")
        assert package.manifest.one_per == "study"
        desk = Desk(
            journal=self.journal,
            path=lambda file: self.folder / file,
            engines=[EngineOnDuty(package=package, publish=False, deadline_ms=DEADLINE_MS)],
            log=lambda event, **_: self.logged.append(event),
            reader=lambda _: InProcess(),
        )
        self.assembler = Assembler(desk)

    def close_series(self) -> None:
        self.hands.ms += SILENCE_MS
        inbox.close(self.journal, [(series, Evidence.SILENCE) for series in inbox.open_series(self.journal)])

    def job(self) -> Job:
        (job,) = jobs.unfinished(self.journal, *jobs.UNFINISHED)
        return job


@pytest.fixture
def analysis(tmp_path: Path) -> Iterator[Analysis]:
    hands = Hands()
    journal = open_journal(tmp_path / "j", "analyse", hands)
    yield Analysis(journal, hands, tmp_path)
    journal.close()


def test_one_study_gives_one_job_which_is_ready_when_its_series_is_closed(analysis: Analysis) -> None:
    receive(analysis.journal, *(arrival(number) for number in range(1, 6)))
    assert analysis.assembler.step()
    assert analysis.job().state == JobState.WAITING
    assert not analysis.assembler.step()
    analysis.close_series()
    assert analysis.assembler.step()
    job = analysis.job()
    assert (job.state, job.evidence, job.last_instance_id) == (JobState.READY, Evidence.SILENCE, 5)
    assert len(jobs.inputs(analysis.journal, job)) == 5


def test_what_no_engine_is_responsible_for_gives_no_job(analysis: Analysis) -> None:
    receive(analysis.journal, arrival(1, header={"modality": "MR"}))
    receive(analysis.journal, arrival(2, header={"series_instance_uid": ""}))
    receive(analysis.journal, arrival(3, sop_class_uid="1.2.840.10008.5.1.4.1.1.7"))
    analysis.assembler.step()
    assert count(analysis.journal, "job") == 0
    assert jobs.arrived(analysis.journal, 9) == []


@pytest.mark.promise("P6")
def test_whatever_happens_a_deadline_concludes_it(analysis: Analysis) -> None:
    receive(analysis.journal, arrival(1))
    analysis.assembler.step()
    assert analysis.assembler.next_due_s() == pytest.approx(DEADLINE_MS / 1000)
    analysis.hands.ms += DEADLINE_MS - 1
    assert not analysis.assembler.step()
    analysis.hands.ms += 1
    assert analysis.assembler.step()
    outcome = analysis.job().outcome
    assert outcome is not None
    assert (outcome.conclusion, outcome.reason) == (Conclusion.NOT_ANALYSED, Reason.DEADLINE)


@pytest.mark.promise("P6")
def test_a_series_that_calls_itself_two_things_is_told_and_holds_nothing_up(analysis: Analysis) -> None:
    """Its first instance names a modality no engine takes, a later one a modality that one does."""
    receive(analysis.journal, arrival(1, header={"modality": "OT"}), arrival(2))
    analysis.assembler.step()
    outcome = analysis.job().outcome
    assert outcome is not None
    assert (outcome.conclusion, outcome.reason) == (Conclusion.NOT_ANALYSED, Reason.UNSUITABLE)

    other = {"study_instance_uid": "1.2.9", "series_instance_uid": "1.2.9.1"}
    receive(analysis.journal, arrival(3, header=other))
    analysis.close_series()
    analysis.assembler.step()
    assert [job.state for job in jobs.unfinished(analysis.journal, *jobs.UNFINISHED)] == ["concluded", "ready"]
