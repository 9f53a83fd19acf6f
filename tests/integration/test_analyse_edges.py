"""Assemble, infer and report on one real journal and spool: what is told when something goes wrong on the way."""

import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from appliance import engine_package
from appliance.config import Config
from appliance.digest import digest_of
from appliance.engine_package import EnginePackage
from appliance.errors import OutOfResources, RuntimeCancelled, RuntimeFailed
from appliance.imaging import golden
from appliance.imaging.reading import ImageReader, InProcess
from appliance.journal import identity, inbox, jobs, lookup, performed, results
from appliance.journal.identity import AlarmEvent
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.model import Conclusion, Evidence, Job, Kind, Owed, PerformedSeries, Reason, Urgency
from appliance.ports import Array
from appliance.runtimes.process import ChildRuntime, ChildSettings
from appliance.spool import Incoming, Reserve, Spool
from appliance.stages.assemble import Assembler
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.stages.infer import Inferrer
from appliance.stages.report.stage import Press, Reporter
from appliance.stages.report.wording import CORRECTION_TEXT
from appliance.states import Event, JobState, StepState
from appliance.wiring import analysis, resting
from appliance.wiring.common import open_spool
from appliance.wiring.engine_work import workshop
from appliance.wiring.engines import EngineFacts
from appliance.wiring.plans import Plans
from appliance.wiring.releases import engine_store
from appliance.wiring.remotes import Remotes
from appliance.wiring.team import Surroundings, Team
from tests.journals import TO_PACS, Hands, arrival, events, open_journal, receive
from tests.packages import write_package
from tests.slices import ct_slice, film, save

ENGINES = Path(__file__).resolve().parents[2] / "engines"
DEADLINE_MS = 60_000
SR_OWED = Owed(destination="pacs", urgency=Urgency.RESULT)
NOTHING = np.zeros((1, 10), np.float32)
CLIPPED = np.array([[0, 0, 0, 0, 0, 0, 0.9, 0, 0, 0]], np.float32)


class FullNow(Spool):
    """Says `full` times that the disk is full."""

    full = 0

    def begin(self, head: bytes) -> Incoming:
        if self.full:
            self.full -= 1
            raise OutOfResources("the disk is full")
        return super().begin(head)


class JournalFullNow(Journal):
    """Says `full` times that it cannot grow, to who wants to write durably."""

    full = 0

    def write(self, *, durable: bool) -> Any:
        if durable and self.full:
            self.full -= 1
            raise OutOfResources("the journal cannot grow")
        return super().write(durable=durable)


@dataclass
class Fake:
    """A loaded engine that answers what it is told to."""

    answer: Callable[[], Array] = lambda: NOTHING
    runtime: str = "fake"
    runtime_version: str = "1"
    device: str = "none"
    degraded: str = ""
    variant_sha256: str = ""
    plan_sha256: str = ""
    last_run_ms: float = 1.0
    ran: int = 0
    doubts: list[str] = field(default_factory=list)

    def infer(
        self,
        inputs: Mapping[str, Array],  # noqa: ARG002 - the port's signature
        deadline_s: float,  # noqa: ARG002 - the port's signature
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, Array]:
        self.ran += 1
        if cancelled():
            raise RuntimeCancelled(Reason.ENGINE_FAILED, "cancelled")
        return {"scores": self.answer()}

    def doubt(self, why: str) -> None:
        self.doubts.append(why)

    def close(self) -> None:
        return


@dataclass
class Rig:
    folder: Path
    engines: Sequence[str] = ("cxr-acquisition",)
    hands: Hands = field(default_factory=Hands)
    fake: Fake = field(default_factory=Fake)
    stopping: bool = False
    reader: Callable[[float], ImageReader] = lambda _: InProcess()
    logged: list[str] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        self.journal = JournalFullNow(self.folder / "j", "analyse")
        self.journal.clock = replace(self.journal.clock, base_ms=1_000_000, boot_time_ms=self.hands)
        self.spool = FullNow(self.folder, "results", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
        packages = [engine_package.load(ENGINES / name) for name in self.engines]
        self.put_on_duty(*packages)

    def put_on_duty(self, *packages: EnginePackage) -> None:
        on_duty = [EngineOnDuty(package=package, publish=True, deadline_ms=DEADLINE_MS) for package in packages]
        self.desk = Desk(
            journal=self.journal,
            path=lambda file: self.folder / file,
            engines=on_duty,
            log=lambda event, **_: self.logged.append(event),
            reader=self.reader,
        )
        self.assembler = Assembler(self.desk)
        loaded = {package.key: self.fake for package in packages}
        self.inferrer = Inferrer(self.desk, loaded, {}, self.folder, lambda: self.stopping)
        self.start_reporter()

    def start_reporter(self) -> None:
        self.reporter = Reporter(
            self.desk,
            Press(
                node="test",
                spool=self.spool,
                rules=(),
                routes=lambda *_: [SR_OWED],
                takers=lambda _, source, __: source.modality in ("CT", "CR"),
                ring=lambda *_: None,
                utc_offset=lambda _: timedelta(0),
            ),
        )

    def arrive(self, *datasets: Dataset, patient: bytes = b"p" * 32, owed: Owed = TO_PACS) -> None:
        for dataset in datasets:
            self.number += 1
            file = f"received/000000/{self.number:09d}.dcm"
            path = save(self.place(file), dataset)
            self.know(file, path.read_bytes(), dataset, patient, owed)

    def place(self, file: str) -> Path:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def know(
        self, file: str, content: bytes, dataset: Dataset, patient: bytes = b"p" * 32, owed: Owed = TO_PACS
    ) -> None:
        header = {
            "sop_instance_uid": dataset.SOPInstanceUID,
            "study_instance_uid": dataset.StudyInstanceUID,
            "series_instance_uid": dataset.SeriesInstanceUID,
            "modality": dataset.Modality,
            "patient": patient,
        }
        one = arrival(
            self.number,
            header=header,
            file=file,
            sop_instance_uid=dataset.SOPInstanceUID,
            sop_class_uid=str(dataset.SOPClassUID),
            digest=digest_of(content),
        )
        receive(self.journal, one, owed=(owed,))

    def close_series(self) -> None:
        inbox.close(self.journal, [(series, Evidence.SILENCE) for series in inbox.open_series(self.journal)])

    def run(self) -> None:
        """Until nothing is left to do."""
        busy = True
        while busy:
            busy = self.assembler.step() | self.inferrer.step(lambda: self.assembler.early) | self.reporter.step()

    def jobs(self) -> list[Job]:
        rows = self.journal.query("SELECT id FROM job ORDER BY id")
        found = {job.id: job for study in self.studies() for job in self.of_study(study)}
        return [found[row["id"]] for row in rows]

    def studies(self) -> list[str]:
        return [row[0] for row in self.journal.query("SELECT DISTINCT study_instance_uid FROM job")]

    def of_study(self, study: str) -> list[Job]:
        return lookup.jobs_of(self.journal, study)

    def results(self, kind: Kind = Kind.SR) -> list[Dataset]:
        rows = self.journal.query(
            "SELECT c.file FROM instance i JOIN copy c ON c.instance=i.id WHERE i.origin='result' AND i.kind=?"
            " ORDER BY i.id",
            kind,
        )
        return [dcmread(self.folder / row["file"]) for row in rows]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.journal.close()


@pytest.fixture
def ct(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, engines=("ct-lesion",))
    yield made
    made.journal.close()


def a_film(study: str = "1.2.3", number: int = 1, **elements: Any) -> Dataset:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    here = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.4", "SOPInstanceUID": f"{study}.4.{number}"}
    return film(pixels, **here | {"PatientID": "1", "InstanceNumber": number} | elements)


def axial(series: str, count: int, spacing: float, **elements: Any) -> list[Dataset]:
    pixels = np.zeros((4, 4), np.uint16)
    slices = []
    for number in range(count):
        uid = f"{series}.{number + 1}"
        here = {"SeriesInstanceUID": series, "SOPInstanceUID": uid, "SliceThickness": spacing, "PatientID": "1"}
        slices.append(ct_slice(number * spacing, pixels, **here | {"InstanceNumber": number + 1} | elements))
    return slices


@pytest.mark.promise("P7")
def test_whichever_engine_one_study_is_run_at_a_time_urgent_ones_first_and_no_other_starves(rig: Rig) -> None:
    """So two engines that run on one GPU never run there at once."""
    urgent = replace(TO_PACS, urgency=Urgency.URGENT_IMAGE)
    rig.put_on_duty(
        engine_package.load(ENGINES / "cxr-acquisition"), engine_package.load(write_package(rig.folder / "films"))
    )
    at_work: list[str] = []

    def answering(name: str, scores: Array) -> Fake:
        def answer() -> Array:
            at_work.append(name)
            assert at_work == [name]
            at_work.remove(name)
            return scores

        return Fake(answer)

    fakes = {"cxr-acquisition": answering("cxr", NOTHING), "films": answering("films", np.zeros((1, 1), np.float32))}
    loaded = {engine.key: fakes[engine.package.manifest.id] for engine in rig.desk.engines}
    rig.inferrer = Inferrer(rig.desk, loaded, {}, rig.folder)
    rig.arrive(*(a_film(f"1.{number}") for number in range(3)))
    rig.arrive(*(a_film(f"9.{number}") for number in range(3)), owed=urgent)
    while rig.assembler.step():
        pass
    while rig.inferrer.step(list):
        pass
    rows = rig.journal.query("SELECT study_instance_uid FROM history WHERE event='job_running' ORDER BY id")
    assert "".join(row[0][0] for row in rows) == "999919911111"
    assert [fake.ran for fake in fakes.values()] == [6, 6]


@pytest.mark.promise("P7")
def test_what_runs_in_shadow_has_its_turn_once_half_its_time_has_passed_though_others_never_end(rig: Rig) -> None:
    films = engine_package.load(write_package(rig.folder / "films"))
    rig.put_on_duty(engine_package.load(ENGINES / "cxr-acquisition"), films)
    sent, shadow = rig.desk.engines
    rig.desk = replace(rig.desk, engines=[sent, replace(shadow, publish=False)])
    rig.assembler = Assembler(rig.desk)
    ran: list[str] = []

    def answering(letter: str, scores: Array) -> Fake:
        def answer() -> Array:
            ran.append(letter)
            return scores

        return Fake(answer)

    fakes = {sent.key: answering("a", NOTHING), shadow.key: answering("s", np.zeros((1, 1), np.float32))}
    rig.inferrer = Inferrer(rig.desk, fakes, {}, rig.folder)
    for number in range(19):  # one after the other, as quickly as they are read
        rig.hands.ms = number * DEADLINE_MS // 20
        rig.arrive(a_film(f"1.{number}"))
        while rig.assembler.step():
            pass
        assert rig.inferrer.step(list)
    assert "".join(ran) == "a" * 14 + "saaaa"  # the first of them is old from the 11th step on


@dataclass
class Dividing(Fake):
    """As one that divides a study's time between two."""

    begun: list[float] = field(default_factory=list)

    def begin(self, deadline_s: float) -> None:
        assert self.ran == len(self.begun)
        self.begun.append(deadline_s)


@pytest.mark.promise("P6")
def test_an_engine_that_divides_a_study_s_time_is_told_of_it_before_it_is_asked(rig: Rig) -> None:
    told = Dividing()
    rig.inferrer = Inferrer(rig.desk, {rig.desk.engines[0].key: told}, {}, rig.folder)
    rig.arrive(a_film("1.1"), a_film("1.2"))
    rig.run()
    assert (told.begun, told.ran) == ([DEADLINE_MS / 1000] * 2, 2)


@pytest.mark.promise("P6")
def test_a_deadline_is_told_once(rig: Rig) -> None:
    def hang() -> Array:
        rig.hands.ms += DEADLINE_MS + 1
        rig.assembler.step()
        raise RuntimeFailed(Reason.DEADLINE, "inference passed its deadline")

    rig.fake.answer = hang
    rig.arrive(a_film())
    rig.run()
    assert [(job.revision, job.state) for job in rig.jobs()] == [(1, JobState.REPORTED)]
    assert len(rig.results()) == 1


def test_an_answer_that_means_nothing_is_doubted_so_that_another_may_be_asked(rig: Rig) -> None:
    answers = [CLIPPED + 1, CLIPPED]
    rig.fake.answer = lambda: answers.pop(0)
    rig.arrive(a_film())
    rig.run()
    (why,) = rig.fake.doubts
    assert "outside 0..1" in why
    (job,) = rig.jobs()
    assert (job.attempts, job.state) == (2, JobState.REPORTED)
    assert job.outcome is not None
    assert job.outcome.conclusion is Conclusion.FINDING


@pytest.mark.promise("P8")
def test_the_plan_that_ran_is_named_in_outcome_and_report(rig: Rig) -> None:
    rig.fake.answer, rig.fake.plan_sha256 = lambda: CLIPPED, "c" * 64
    rig.arrive(a_film())
    rig.run()
    (job,) = rig.jobs()
    assert job.outcome is not None
    assert job.outcome.engine.plan_sha256 == "c" * 64
    assert f"plan sha256: {'c' * 64}" in words_of(rig.results()[0])


@pytest.mark.promise("P6")
def test_an_answer_after_the_deadline_is_told_and_says_that_it_is_late(rig: Rig) -> None:
    def slow() -> Array:
        rig.hands.ms += DEADLINE_MS + 1
        rig.assembler.step()
        return CLIPPED

    rig.fake.answer = slow
    rig.arrive(a_film())
    rig.run()
    last = rig.jobs()[-1]
    assert last.state == JobState.REPORTED
    assert last.outcome is not None
    assert last.outcome.late
    assert last.outcome.conclusion is Conclusion.FINDING


@pytest.mark.promise("P6")
def test_a_deadline_that_comes_before_any_input_is_known_gives_each_study_a_result_of_its_own(ct: Rig) -> None:
    ct.arrive(*axial("1.2.3.4", 2, 3.0))
    ct.arrive(*axial("1.2.4.4", 2, 3.0, StudyInstanceUID="1.2.4"))
    ct.assembler.step()
    ct.hands.ms += DEADLINE_MS + 1
    ct.run()
    found = ct.results()
    assert len(found) == 2
    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID
    assert found[0].SeriesInstanceUID != found[1].SeriesInstanceUID


@pytest.mark.promise("P6")
def test_a_deadline_is_told_to_who_takes_the_images_whatever_else_the_study_holds(ct: Rig) -> None:
    ct.arrive(*axial("1.2.3.7", 1, 3.0, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67"))
    ct.arrive(*axial("1.2.3.4", 2, 3.0))
    ct.assembler.step()
    ct.hands.ms += DEADLINE_MS + 1
    ct.run()
    (report,) = ct.results()
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [one.SeriesInstanceUID for one in series] == ["1.2.3.4"]


@pytest.mark.promise("P6")
@pytest.mark.parametrize("where", ["spool", "journal"])
def test_a_shortage_however_long_costs_no_result_and_leaves_no_files(rig: Rig, where: str) -> None:
    rig.fake.answer = lambda: CLIPPED
    rig.arrive(a_film())
    while not any(job.state == JobState.CONCLUDED for job in rig.jobs()):
        rig.assembler.step()
        rig.inferrer.step(list)
    if where == "spool":
        rig.spool.full = 10
    else:
        rig.journal.full = 10
    for _ in range(10):
        with pytest.raises(OutOfResources):
            rig.reporter.step()
    assert rig.spool.files() == []
    rig.run()
    assert len(rig.results()) == 1
    assert len(rig.spool.files()) == 2


@pytest.mark.promise("P6")
def test_when_building_ends_the_process_the_words_are_sent_without_the_picture(rig: Rig) -> None:
    rig.fake.answer = lambda: CLIPPED
    rig.arrive(a_film())
    while not any(job.state == JobState.CONCLUDED for job in rig.jobs()):
        rig.assembler.step()
        rig.inferrer.step(list)
    job = rig.jobs()[0]
    assert [results.count_try(rig.journal, job) for _ in range(2)] == [1, 2]  # and the process ended
    rig.start_reporter()
    rig.run()
    (report,), (card,) = rig.results(), rig.results(Kind.SC)
    assert report.StudyInstanceUID == "1.2.3"
    assert card.Columns == 1024  # a card of words: a key image would be enlarged to 768


@pytest.mark.promise("P6")
def test_an_outcome_waits_for_the_journal_and_is_not_found_out_again(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.assembler.step()
    rig.journal.full = 4
    for _ in range(4):
        with pytest.raises(OutOfResources):
            rig.inferrer.step(list)
    rig.run()
    assert [job.state for job in rig.jobs()] == [JobState.REPORTED]
    assert rig.fake.ran == 1


def test_a_stop_is_no_fault_of_the_engine(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.assembler.step()
    rig.stopping = True
    rig.inferrer.step(list)
    assert [job.state for job in rig.jobs()] == [JobState.RUNNING]
    rig.stopping = False
    rig.run()
    assert rig.jobs()[0].outcome is not None
    assert rig.jobs()[0].state == JobState.REPORTED
    assert "job_deferred" in events(rig.journal)


@pytest.mark.promise("P6")
def test_inputs_are_not_closed_over_an_arrival_that_was_not_looked_at(ct: Rig) -> None:
    slices = axial("1.2.3.4", 3, 3.0)
    ct.arrive(*slices[:2])
    ct.assembler.step()
    ct.arrive(slices[2])
    ct.close_series()
    (job,) = jobs.unfinished(ct.journal, JobState.WAITING)
    digest = jobs.digest_of(jobs.inputs(ct.journal, job, "1.2.3.4"))
    assert not jobs.close_inputs(ct.journal, job, "1.2.3.4", digest, Evidence.COUNT)
    ct.assembler.step()
    (job,) = jobs.unfinished(ct.journal, JobState.READY)
    assert len(jobs.inputs(ct.journal, job)) == 3


def test_of_a_study_the_series_that_the_engine_can_take_is_read(ct: Rig) -> None:
    scout = axial("1.2.3.9", 1, 0.6, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ConvolutionKernel="T20s")
    belly = axial("1.2.3.8", 25, 1.5, BodyPartExamined="ABDOMEN", ConvolutionKernel="B70f")
    lungs = axial("1.2.3.4", 25, 5.0, ConvolutionKernel="B30f")
    ct.arrive(*scout, *belly, *lungs)
    ct.assembler.step()
    ct.close_series()
    ct.assembler.step()
    (job,) = jobs.unfinished(ct.journal, JobState.READY)
    assert job.series_instance_uid == "1.2.3.4"


@pytest.mark.promise("P8")
def test_of_two_packages_of_one_version_the_one_that_spoke_is_the_author(rig: Rig) -> None:
    (gone,) = rig.desk.engines
    new = replace(gone, package=replace(gone.package, package_sha256="f" * 64))
    desk = replace(rig.desk, engines=[new], former=lambda: [gone])
    assert desk.author(gone.key, gone.package.package_sha256) is gone
    assert desk.author(gone.key, new.package.package_sha256) is new
    assert desk.author(gone.key, "0" * 64) is new
    assert desk.author("other@1", gone.package.package_sha256) is None


@pytest.mark.promise("P6")
def test_one_unreadable_image_does_not_silence_a_study(ct: Rig) -> None:
    slices = axial("1.2.3.4", 5, 3.0)
    ct.arrive(*slices[:2])
    ct.number += 1
    broken = ct.place(f"received/000000/{ct.number:09d}.dcm")
    broken.write_bytes(b"no DICOM at all")
    ct.know(str(broken.relative_to(ct.folder)), broken.read_bytes(), slices[2])
    ct.arrive(*slices[3:])
    ct.assembler.step()
    ct.close_series()
    ct.run()
    (job,) = ct.jobs()
    assert job.outcome is not None
    assert job.outcome.reason is Reason.UNDECODABLE
    (report,) = ct.results()
    assert report.PatientID == "1"


@pytest.mark.promise("P9")
def test_a_header_that_would_inflate_without_end_is_read_as_far_as_headers_go(rig: Rig) -> None:
    dataset = a_film()
    dataset.PixelData = bytes(64 << 20)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    rig.arrive(dataset)
    tracemalloc.start()
    rig.run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (report,) = rig.results()
    assert report.PatientID == "1"
    assert most < 32 << 20


@pytest.mark.promise("P6")
def test_a_new_version_of_an_engine_takes_over_what_the_old_one_owed(rig: Rig) -> None:
    new = rig.desk.engines[0].package
    old = replace(new, manifest=new.manifest.model_copy(update={"version": "0.0.9"}))
    rig.put_on_duty(old)
    rig.arrive(a_film(number=1), a_film(number=2))
    rig.assembler.step()
    rig.put_on_duty(new)
    rig.run()
    assert [(job.engine.partition("@")[2], job.state) for job in rig.jobs()] == [
        ("0.0.9", JobState.SUPERSEDED),
        ("0.0.9", JobState.SUPERSEDED),
        ("0.2.0", JobState.REPORTED),
        ("0.2.0", JobState.REPORTED),
    ]
    assert len(rig.results()) == 2


@pytest.mark.promise("P6")
def test_what_was_reported_before_the_last_result_is_no_reason_to_stay_silent(ct: Rig) -> None:
    (one,) = axial("1.2.3.4", 1, 3.0)
    (other,) = axial("1.2.3.5", 1, 3.0)
    outcome = None
    for revision, (series, arriving) in enumerate([("1.2.3.4", one), ("1.2.3.5", other), ("1.2.3.4", None)], 1):
        if arriving is not None:
            ct.arrive(arriving)
        else:
            ct.arrive(*axial("1.2.3.6", 1, 3.0))
        ct.assembler.step()
        job = ct.jobs()[-1]
        assert job.revision == revision
        inputs = [i for i in jobs.inputs(ct.journal, job, series) if i.series_instance_uid == series]
        assert jobs.close_inputs(ct.journal, job, series, jobs.digest_of(inputs), Evidence.SILENCE)
        ready = ct.jobs()[-1]
        outcome = outcome or ct.inferrer._not_analysed(ready, Reason.QUALITY, "")
        jobs.conclude(ct.journal, ready, Event.CONCLUDE, outcome)
        results.report(ct.journal, ready, [], "")
    assert [job.state for job in ct.jobs()] == [JobState.REPORTED] * 3


@pytest.mark.promise("P6")
def test_the_same_uid_in_two_studies_is_a_duty_in_each(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.arrive(a_film(StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.4"))
    rig.run()
    assert [(job.study_instance_uid, job.state) for job in rig.jobs()] == [
        ("1.2.3", JobState.REPORTED),
        ("1.2.9", JobState.REPORTED),
    ]
    assert [(one.StudyInstanceUID, "PredecessorDocumentsSequence" in one) for one in rig.results()] == [
        ("1.2.3", False),
        ("1.2.9", False),
    ]


@pytest.mark.promise("P6")
def test_a_study_that_names_two_patients_is_not_analysed(rig: Rig) -> None:
    rig.arrive(a_film(number=1))
    rig.arrive(a_film(number=2, PatientID="2", SeriesInstanceUID="1.2.3.5"), patient=b"q" * 32)
    rig.run()
    last = rig.jobs()[-1]
    assert last.outcome is not None
    assert last.outcome.reason is Reason.MIXED_IDENTITY
    assert [one.event for one in identity.alarms(rig.journal)] == [AlarmEvent.MIXED]
    assert "patient_identity_mixed" in rig.logged


def words_of(report: Dataset) -> str:
    return " ".join(str(item.value) for item in report.iterall() if item.keyword == "TextValue")


@pytest.mark.promise("P6")
def test_when_the_patient_changes_after_a_result_left_all_are_told_and_the_next_result_corrects_it(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.run()
    assert not identity.alarms(rig.journal)
    rig.arrive(a_film(PatientID="2"), patient=b"q" * 32)
    rig.arrive(a_film(PatientID="2", InstanceNumber=7), patient=b"q" * 32)
    rig.run()

    (alarm,) = identity.alarms(rig.journal)
    assert (alarm.event, alarm.study_instance_uid) == (AlarmEvent.CHANGED, "1.2.3")
    assert rig.logged.count("patient_identity_changed_after_a_result_left") == 1
    assert events(rig.journal, study_instance_uid="1.2.3").count("patient_identity_changed") == 1
    first, *_, last = rig.results()
    assert CORRECTION_TEXT not in words_of(first)
    assert CORRECTION_TEXT in words_of(last)
    (earlier,) = last.PredecessorDocumentsSequence
    named = earlier.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named in {one.SOPInstanceUID for one in rig.results()}
    assert last.PatientID == "2"


def test_a_revision_with_the_same_patient_corrects_no_identity(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.run()
    rig.arrive(a_film(InstanceNumber=7))
    rig.run()
    assert not identity.alarms(rig.journal)
    assert CORRECTION_TEXT not in words_of(rig.results()[-1])


def test_alarms_are_shown_for_a_week(rig: Rig) -> None:
    rig.arrive(a_film())
    rig.run()
    rig.arrive(a_film(PatientID="2"), patient=b"q" * 32)
    rig.run()
    rig.hands.ms += identity.SHOWN_MS + 1
    assert not identity.alarms(rig.journal)
    rig.arrive(a_film(InstanceNumber=9), patient=b"p" * 32)
    rig.run()
    assert len(identity.alarms(rig.journal)) == 1


def engines_dir(folder: Path) -> Path:
    shutil.copytree(ENGINES / "cxr-acquisition", folder / "engines" / "cxr-acquisition")
    return folder / "engines" / "cxr-acquisition"


def team_of(config: Config, rig: Rig) -> Team:
    around = Surroundings(
        config=config,
        store=engine_store(config),
        runtime=ChildRuntime(ChildSettings(interpreter=Path(sys.executable))),
        journal=rig.journal,
        log=lambda *_, **__: None,
        remotes=Remotes(config),
        plans=Plans(workshop(config, "test"), lambda *_, **__: None, lambda: False),
    )
    return Team(around)


class Told(list[dict[str, Any]]):
    """What `status` is told of engines; the time is moved by hand."""

    def __init__(self, engines: Sequence[EngineOnDuty], loaded: Mapping[str, Fake], unfit: Mapping[str, str]) -> None:
        self.now = "monday"
        self.facts = EngineFacts(
            engines=engines,
            loaded=loaded,
            unfit=unfit,
            publish=self.append,
            utc=lambda: self.now,
            log=lambda *_, **__: None,
        )


def told(engines: Sequence[EngineOnDuty], loaded: Mapping[str, Fake], unfit: Mapping[str, str]) -> Told:
    made = Told(engines, loaded, unfit)
    made.facts.tell({}, ())
    return made


@pytest.mark.promise("P6")
def test_an_engine_that_fails_again_and_again_is_off_until_it_answers(rig: Rig) -> None:
    def fail() -> Array:
        raise RuntimeFailed(Reason.ENGINE_FAILED, "the child was killed by SIGKILL")

    key = rig.desk.engines[0].key
    status = told(rig.desk.engines, {key: rig.fake}, {})
    rig.fake.answer = fail
    for study in ("1.2.3", "1.2.4", "1.2.5"):
        rig.arrive(a_film(study))
        rig.run()
        status.now += "+"
        status.facts.tell(rig.inferrer.failing, ())
    rig.fake.answer = lambda: NOTHING
    rig.arrive(a_film("1.2.6"))
    rig.run()
    status.facts.tell(rig.inferrer.failing, ())
    off = {"serves": False, "reason": "the child was killed by SIGKILL", "since": "monday++"}
    on = {"serves": True, "reason": "", "since": ""}
    assert [{name: fact[key][name] for name in on} for fact in status] == [on, off, on]


@pytest.mark.promise("P6")
def test_a_child_that_cannot_be_killed_turns_all_engines_off_until_it_is_gone(rig: Rig) -> None:
    key = rig.desk.engines[0].key
    status = told(rig.desk.engines, {key: rig.fake}, {})
    status.facts.tell({}, (4711,))
    status.facts.tell({}, (4711,))
    status.facts.tell({}, ())
    assert [(fact[key]["serves"], "4711" in fact[key]["reason"]) for fact in status] == [
        (True, False),
        (False, True),
        (True, False),
    ]


@pytest.mark.promise("P6")
def test_an_engine_whose_files_were_altered_keeps_its_duties_and_does_not_serve(tmp_path: Path, rig: Rig) -> None:
    package = engines_dir(tmp_path)
    (package / "model.onnx").write_bytes(b"altered")
    config = Config.model_validate(
        {"state": str(tmp_path), "engines_dir": str(package.parent), "engines": [{"id": "cxr-acquisition"}]}
    )
    team = team_of(config, rig)
    assert [engine.key for engine in team.engines] == ["cxr-acquisition@0.2.0"]
    assert "altered" in team.unfit["cxr-acquisition@0.2.0"]
    facts: Any = told(team.engines, {}, team.unfit)[-1]
    assert facts["cxr-acquisition@0.2.0"] | {"reason": ""} == {
        "serves": False,
        "on_duty": True,
        "publish": False,
        "reason": "",
        "runtime": "",
        "device": "",
        "plan_sha256": "",
        "degraded": "",
        "since": "monday",
    }

    (package / "engine.yaml").write_text("schema: 1")
    team = team_of(config, rig)
    assert list(team.engines) == []
    facts = told(team.engines, {}, team.unfit)[-1]
    assert not facts["cxr-acquisition"]["on_duty"]


@pytest.mark.promise("P6")
def test_what_a_former_release_said_is_still_told(rig: Rig) -> None:
    rig.fake.answer = lambda: CLIPPED
    rig.arrive(a_film())
    while not any(job.state == JobState.CONCLUDED for job in rig.jobs()):
        rig.assembler.step()
        rig.inferrer.step(list)
    old = rig.desk.engines[0]
    new = replace(old.package, manifest=old.package.manifest.model_copy(update={"version": "9.0.0"}))
    rig.put_on_duty(new)
    rig.desk = replace(rig.desk, former=lambda: [old])
    rig.start_reporter()
    rig.run()
    assert [(job.engine, job.state) for job in rig.jobs()] == [(old.key, JobState.REPORTED)]
    assert len(rig.results()) == 1


@pytest.mark.promise("P6")
def test_only_failures_of_the_engine_itself_count_against_it_and_one_study_once(rig: Rig) -> None:
    def fail(reason: Reason) -> Callable[[], Array]:
        def answer() -> Array:
            raise RuntimeFailed(reason, "it failed")

        return answer

    key = rig.desk.engines[0].key
    rig.fake.answer = fail(Reason.ENGINE_FAILED)
    for study in ("1.2.3", "1.2.4"):
        rig.arrive(a_film(study))
        rig.run()
    assert rig.inferrer.faults[key].count == 2
    assert rig.inferrer.faults[key].job.study_instance_uid == "1.2.4"
    rig.fake.answer = fail(Reason.DEADLINE)
    rig.arrive(a_film("1.2.5"))
    rig.assembler.step()
    rig.hands.ms += DEADLINE_MS * 2 // 3  # it waited for others
    rig.run()
    assert rig.inferrer.faults[key].count == 2
    rig.arrive(a_film("1.2.6"))
    rig.run()
    assert rig.inferrer.faults[key].count == 3
    rig.fake.answer = lambda: NOTHING
    rig.arrive(a_film("1.2.7"))
    rig.run()
    assert rig.inferrer.faults == {}


@pytest.mark.promise("P8")
@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short", "other names", "other shape"])
def test_a_golden_case_that_is_none_is_a_fault_of_the_engine_and_ends_nothing(
    tmp_path: Path, rig: Rig, content: bytes | str
) -> None:
    folder = engines_dir(tmp_path)
    package = replace(engine_package.load(folder), folder=folder)
    case = folder / package.manifest.golden[0].case
    if content == "other names":
        np.savez(case, film=NOTHING)
    elif content == "other shape":
        np.savez(case, film=NOTHING, scores=np.zeros(10, np.float32))
    else:
        assert isinstance(content, bytes)
        case.write_bytes(content)
    assert golden.fault(package, rig.fake).startswith(f"golden case {package.manifest.golden[0].case}: ")


class Readerless:
    """A report stage that nobody reads images for; it stops the process that waits for it."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def step(self) -> bool:
        self._life.stopping.set()
        raise RuntimeFailed(Reason.ENGINE_FAILED, "the image reader does not start")


@pytest.mark.promise("P6")
def test_a_reader_that_cannot_start_is_called_so_and_infer_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    life, logged = Life(), list[str]()
    config = Config(state=tmp_path, engines_dir=tmp_path)
    spool = open_spool(config, "results")
    journal = resting.opened(config, spool, lambda *_, **__: None)
    made = analysis.Analysis(config, journal, spool, life, lambda event, **_: logged.append(event))
    made._reporter = Readerless(life)  # type: ignore[assignment]
    made.assemble_and_report()
    assert logged == ["reader_unavailable"]
    assert made._go.is_set()
    made.close()
    made._bell.close()
    made._assembler._desk.journal.close()


def test_of_many_series_that_wait_for_images_the_longest_waiting_are_told(tmp_path: Path) -> None:
    hands = Hands()
    journal = open_journal(tmp_path / "journal", hands=hands)
    count = performed.MAX_AWAITED + 5
    for number in range(1, count + 1):
        receive(journal, arrival(number, header={"series_instance_uid": f"1.7.{number}"}))
    for number in range(count, 0, -1):  # the step of the last to arrive ended first
        hands.ms += 1000
        step, series = f"1.9.{number}", f"1.7.{number}"
        performed.create(journal, step, "CT01", ["1.2.3"])
        named = PerformedSeries(series_instance_uid=series, sop_instance_uids=(f"{series}.1", f"{series}.2"))
        performed.update(journal, step, "CT01", performed.Change(state=StepState.COMPLETED, series=(named,)))
    told = [one.series_instance_uid for one in performed.awaited(journal)]
    assert told == [f"1.7.{count - n}" for n in range(performed.MAX_AWAITED)]
    journal.close()
