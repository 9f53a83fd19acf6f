"""Jobs and results in the journal: revisions, what is claimed twice, what comes late, what a result leaves."""

import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import IllegalTransition
from appliance.journal import jobs, results, urgency
from appliance.journal.jobs import Duty
from appliance.journal.results import Built
from appliance.journal.rows import job_of
from appliance.journal.store import Journal
from appliance.model import Conclusion, EngineIdentity, Evidence, Job, Kind, Outcome, Owed, Reason, Result, Urgency
from appliance.states import Event, JobState
from tests.journals import SERIES, STUDY, Hands, arrival, count, events, open_journal, receive

ENGINE = EngineIdentity(id="ct", version="1", status="reference", package_sha256="a", model_sha256="b")
NOTHING_FOUND = Outcome(conclusion=Conclusion.NO_FINDING, engine=ENGINE, timings_ms={"run": 1.5})
TOO_LATE = Outcome(conclusion=Conclusion.NOT_ANALYSED, reason=Reason.DEADLINE, engine=ENGINE)
DEADLINE_MS = 5_000


class Desk:
    """A journal with one series in it, as analyse sees it."""

    def __init__(self, journal: Journal, hands: Hands) -> None:
        self.journal, self.hands = journal, hands

    def arrive(self, *numbers: int, **changes: Any) -> None:
        receive(self.journal, *(arrival(number, **changes) for number in numbers))

    def take_on(self, scope: str = "series") -> Job:
        """Look at what arrived, as assemble does; returns the newest job."""
        arrived = jobs.arrived(self.journal, 100)
        duties = [
            Duty(
                engine="ct@1",
                scope=scope,
                study_instance_uid=STUDY,
                series_instance_uid=SERIES if scope == "series" else "",
                sop_instance_uid="",
                subject=SERIES if scope == "series" else STUDY,
                instance_id=one.id,
                deadline_ms=DEADLINE_MS,
            )
            for one in arrived
        ]
        jobs.take_on(self.journal, duties, arrived[-1].id)
        return self.newest()

    def newest(self) -> Job:
        row = self.journal.one("SELECT max(id) FROM job")
        assert row is not None
        return self.job(row[0])

    def job(self, number: int) -> Job:
        row = self.journal.one("SELECT * FROM job WHERE id=?", number)
        assert row is not None
        return job_of(row)

    def close(self, job: Job) -> bool:
        digest = jobs.digest_of(jobs.inputs(self.journal, job, SERIES))
        return jobs.close_inputs(self.journal, job, SERIES, digest, Evidence.SILENCE)

    def run(self, job: Job) -> Job:
        """Close its inputs and claim it."""
        assert self.close(job)
        assert jobs.claim(self.journal, self.job(job.id))
        return self.job(job.id)

    def report(self, job: Job, *built: Built) -> bool:
        return results.report(self.journal, self.job(job.id), built, "")

    def states(self) -> list[tuple[int, str]]:
        rows = self.journal.query("SELECT revision, state FROM job ORDER BY id")
        return [(row["revision"], row["state"]) for row in rows]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    hands = Hands()
    journal = open_journal(tmp_path / "j", "analyse", hands)
    yield Desk(journal, hands)
    journal.close()


def built(kind: Kind = Kind.SR, number: int = 1, owed: tuple[Owed, ...] = ()) -> Built:
    result = Result(
        kind=kind,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
        sop_instance_uid=f"2.25.{number}",
        series_instance_uid="2.25.7",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        digest=b"%d" % number,
        size=100,
        file=f"results/000000/{number:09d}.dcm",
    )
    return Built(result=result, modality="SR", patient=b"p" * 32, owed=owed)


def test_each_arrival_is_looked_at_once(desk: Desk) -> None:
    desk.arrive(1, 2, 3)
    first = jobs.arrived(desk.journal, 2)
    assert [one.sop_instance_uid for one in first] == [f"{SERIES}.1", f"{SERIES}.2"]
    jobs.take_on(desk.journal, [], first[-1].id)
    assert [one.sop_instance_uid for one in jobs.arrived(desk.journal, 9)] == [f"{SERIES}.3"]


def test_a_waiting_job_takes_what_comes_and_its_deadline_moves(desk: Desk) -> None:
    desk.arrive(1)
    first = desk.take_on()
    desk.hands.ms += 1_000
    desk.arrive(2, 3)
    job = desk.take_on()
    assert (job.id, job.revision, job.state) == (first.id, 1, "waiting")
    assert job.last_instance_id == 3
    assert job.deadline_tick == first.deadline_tick + 1_000
    assert len(jobs.inputs(desk.journal, job)) == 3


@pytest.mark.promise("P6")
@pytest.mark.parametrize("state", [JobState.READY, JobState.RUNNING, JobState.CONCLUDED])
def test_what_arrives_after_the_inputs_were_closed_supersedes(desk: Desk, state: JobState) -> None:
    desk.arrive(1)
    job = desk.take_on()
    assert desk.close(job)
    if state is not JobState.READY:
        jobs.claim(desk.journal, desk.job(job.id))
    if state is JobState.CONCLUDED:
        jobs.conclude(desk.journal, desk.job(job.id), Event.CONCLUDE, NOTHING_FOUND)
    stale = desk.job(job.id)
    assert stale.state == state

    desk.arrive(2)
    desk.take_on()
    assert desk.states() == [(1, "superseded"), (2, "waiting")]
    if state is JobState.CONCLUDED:
        assert not desk.report(stale)
    else:
        assert not jobs.conclude(desk.journal, stale, Event.CONCLUDE, NOTHING_FOUND)
        assert not jobs.conclude_late(desk.journal, stale, NOTHING_FOUND)
    assert desk.states() == [(1, "superseded"), (2, "waiting")]


def test_a_reported_job_stays_and_its_successor_names_what_it_replaces(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on())
    assert job.predecessor == ""
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    assert desk.report(job, built(Kind.SR, 1), built(Kind.SC, 2))

    desk.arrive(2)
    successor = desk.take_on()
    assert desk.states() == [(1, "reported"), (2, "waiting")]
    assert successor.predecessor == "2.25.1"


@pytest.mark.promise("P12")
def test_closing_inputs_does_not_overtake_an_arrival(desk: Desk) -> None:
    desk.arrive(1)
    seen = desk.take_on()
    desk.arrive(2)
    desk.take_on()
    assert not desk.close(seen)
    assert desk.states() == [(1, "waiting")]
    assert desk.close(desk.newest())
    assert (desk.newest().series_instance_uid, desk.newest().evidence) == (SERIES, Evidence.SILENCE)


@pytest.mark.promise("P3")
def test_the_same_inputs_give_no_second_result(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on("study"))
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    desk.report(job)
    other = {"series_instance_uid": f"{STUDY}.99"}
    receive(desk.journal, arrival(5, header=other))  # another series of the study, not the one that was read
    again = desk.take_on("study")
    assert again.revision == 2
    assert not desk.close(again)
    assert desk.states() == [(1, "reported"), (2, "superseded")]


@pytest.mark.promise("P7")
def test_a_job_is_urgent_where_its_sender_says_so(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.take_on()
    assert urgency.urgent(desk.journal, [job]) == set()
    receive(desk.journal, arrival(2), owed=(Owed(destination="", urgency=Urgency.URGENT_IMAGE, held="unrouted"),))
    job = desk.take_on()
    assert urgency.urgent(desk.journal, [job]) == {job.id}
    desk.arrive(3)
    job = desk.take_on()
    assert urgency.urgent(desk.journal, [job]) == {job.id}  # whatever came last
    other = replace(job, id=99, study_instance_uid="1.2.99")
    assert urgency.urgent(desk.journal, [other, job]) == {job.id}


def test_whether_a_study_is_urgent_is_looked_up_and_not_searched_for(desk: Desk) -> None:
    plan = [row["detail"] for row in desk.journal.query(f"EXPLAIN QUERY PLAN {urgency.IN_STUDY}", STUDY)]
    assert [line.partition(" USING ")[0] for line in plan] == ["SEARCH i", "SEARCH d"]
    assert "delivery_urgent" in plan[1]
    receive(desk.journal, arrival(1), owed=(Owed(destination="pacs", urgency=Urgency.URGENT_IMAGE),))
    with desk.journal.write(durable=False) as tx:  # as one that an earlier version made
        tx.sql("DROP INDEX delivery_urgent")
    job = desk.take_on()
    assert urgency.urgent(desk.journal, [job]) == {job.id}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("how_urgent", [Urgency.RESULT, Urgency.URGENT_SR])
def test_a_job_is_urgent_where_a_finding_of_its_study_was(desk: Desk, how_urgent: Urgency) -> None:
    desk.arrive(1)
    running = desk.run(desk.take_on())
    jobs.conclude(desk.journal, running, Event.CONCLUDE, NOTHING_FOUND)
    assert desk.report(running, built(owed=(Owed(destination="pacs", urgency=how_urgent),)))
    desk.arrive(2)
    job = desk.take_on()
    assert urgency.urgent(desk.journal, [job]) == ({job.id} if how_urgent is Urgency.URGENT_SR else set())


def test_a_claim_counts_and_is_given_once(desk: Desk) -> None:
    desk.arrive(1)
    desk.close(desk.take_on())
    ready = desk.newest()
    assert jobs.claim(desk.journal, ready)
    assert not jobs.claim(desk.journal, ready)
    assert jobs.defer(desk.journal, desk.newest(), "the runtime died")
    assert not jobs.defer(desk.journal, replace(ready, state=JobState.RUNNING), "again")
    assert (desk.newest().state, desk.newest().attempts) == ("ready", 1)
    assert events(desk.journal)[-3:] == ["job_ready", "job_running", "job_deferred"]


def test_an_early_outcome_is_kept_overwritten_and_used_or_not(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.take_on()
    jobs.keep_provisional(desk.journal, job, "one", NOTHING_FOUND)
    assert (desk.newest().provisional_digest, desk.newest().outcome) == ("one", NOTHING_FOUND)
    jobs.keep_provisional(desk.journal, job, "two", None)
    assert (desk.newest().provisional_digest, desk.newest().outcome) == ("two", None)
    assert desk.newest().state == JobState.WAITING

    running = desk.run(job)
    jobs.keep_provisional(desk.journal, running, "three", NOTHING_FOUND)  # too late for that
    assert desk.newest().provisional_digest == "two"
    jobs.conclude(desk.journal, running, Event.CONCLUDE, NOTHING_FOUND)
    assert (desk.newest().provisional_digest, desk.newest().outcome) == ("", NOTHING_FOUND)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("state", [JobState.WAITING, JobState.READY, JobState.RUNNING])
def test_a_deadline_concludes_and_what_comes_after_it_does_not_change_that(desk: Desk, state: JobState) -> None:
    desk.arrive(1)
    job = desk.take_on()
    if state is not JobState.WAITING:
        desk.close(job)
    if state is JobState.RUNNING:
        jobs.claim(desk.journal, desk.job(job.id))
    seen = desk.job(job.id)
    assert seen.state == state
    assert jobs.conclude(desk.journal, seen, Event.DEADLINE, TOO_LATE)
    assert not jobs.conclude(desk.journal, seen, Event.DEADLINE, TOO_LATE)
    told = desk.newest()
    assert (told.state, told.outcome) == ("concluded", TOO_LATE)
    assert told.concluded_at
    with pytest.raises(IllegalTransition):
        jobs.conclude(desk.journal, told, Event.DEADLINE, TOO_LATE)


@pytest.mark.promise("P6")
def test_a_late_outcome_is_a_revision_of_its_own(desk: Desk) -> None:
    desk.arrive(1)
    running = desk.run(desk.take_on())
    jobs.conclude(desk.journal, running, Event.DEADLINE, TOO_LATE)
    desk.report(running, built(Kind.SR, 1))
    late = replace(NOTHING_FOUND, late=True)
    assert jobs.conclude_late(desk.journal, running, late)
    assert not jobs.conclude_late(desk.journal, running, late)

    assert desk.states() == [(1, "reported"), (2, "concluded")]
    job = desk.newest()
    assert (job.outcome, job.predecessor) == (late, "2.25.1")
    same = ("input_digest", "series_instance_uid", "evidence", "last_instance_id", "subject", "scope")
    assert [getattr(job, name) for name in same] == [getattr(running, name) for name in same]


@pytest.mark.promise("P6")
def test_a_late_outcome_takes_the_place_of_a_deadline_nobody_was_told_of(desk: Desk) -> None:
    desk.arrive(1)
    running = desk.run(desk.take_on())
    jobs.conclude(desk.journal, running, Event.DEADLINE, TOO_LATE)
    untold = desk.job(running.id)
    late = replace(NOTHING_FOUND, late=True)
    assert jobs.conclude_late(desk.journal, running, late)
    assert not results.report(desk.journal, untold, [built()], "")
    assert desk.states() == [(1, "superseded"), (2, "concluded")]
    assert desk.newest().outcome == late


@pytest.mark.promise("P3")
def test_results_and_what_is_owed_for_them_are_one_transaction(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on())
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    owed = (Owed(destination="pacs", urgency=Urgency.URGENT_SR), Owed(destination="ris", urgency=Urgency.RESULT))
    assert desk.report(job, built(Kind.SR, 1, owed), built(Kind.SC, 2))

    rows = desk.journal.query("SELECT * FROM instance WHERE job=? ORDER BY id", job.id)
    assert [(row["origin"], row["kind"], row["sop_instance_uid"]) for row in rows] == [
        ("result", "sr", "2.25.1"),
        ("result", "sc", "2.25.2"),
    ]
    deliveries = desk.journal.query("SELECT * FROM delivery WHERE instance=? ORDER BY id", rows[0]["id"])
    assert [(row["destination"], row["urgency"], row["state"]) for row in deliveries] == [
        ("pacs", Urgency.URGENT_SR, "queued"),
        ("ris", Urgency.RESULT, "queued"),
    ]
    assert events(desk.journal)[-3:] == ["result_built", "result_built", "job_reported"]
    assert not desk.report(job, built(Kind.SR, 3))
    assert count(desk.journal, "instance") == 3


@pytest.mark.promise("P3")
def test_when_one_result_cannot_be_recorded_none_is(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on())
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    same_file = replace(built(Kind.SC, 2), result=replace(built(Kind.SC, 2).result, file=built().result.file))
    with pytest.raises(sqlite3.IntegrityError):
        desk.report(job, built(), same_file)
    assert desk.newest().state == "concluded"
    assert count(desk.journal, "instance") == 1


def test_a_result_is_nobodys_input(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on())
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    desk.report(job, built())
    assert jobs.arrived(desk.journal, 9) == []
    assert len(jobs.inputs(desk.journal, desk.newest())) == 1


@pytest.mark.promise("P3")
def test_inputs_are_the_newest_versions_up_to_what_the_job_has_seen(desk: Desk) -> None:
    desk.arrive(1, 2)
    desk.arrive(1, content=b"corrected", file="received/000000/000000003.dcm")
    job = desk.take_on()
    desk.arrive(2, content=b"later", file="received/000000/000000004.dcm")
    desk.arrive(3, file="received/000000/000000005.dcm")
    found = {one.sop_instance_uid: one.digest for one in jobs.inputs(desk.journal, job)}
    assert found == {
        f"{SERIES}.1": arrival(1, b"corrected").digest,
        f"{SERIES}.2": arrival(2).digest,
    }


def test_a_digest_names_the_set_whatever_the_order(desk: Desk) -> None:
    desk.arrive(*range(1, 9))
    instances = jobs.inputs(desk.journal, desk.take_on())
    shuffled = random.Random(1).sample(instances, len(instances))
    assert jobs.digest_of(shuffled) == jobs.digest_of(instances)
    assert jobs.digest_of(instances[1:]) != jobs.digest_of(instances)
    assert jobs.digest_of([replace(instances[0], digest=b"x"), *instances[1:]]) != jobs.digest_of(instances)


def test_an_outcome_comes_back_as_it_went_in_and_an_implausible_clock_is_noted(desk: Desk) -> None:
    desk.arrive(1)
    job = desk.run(desk.take_on())
    wall_clock = desk.journal.clock.wall_clock
    desk.journal.clock = replace(desk.journal.clock, wall_clock=lambda: wall_clock().replace(year=1970))
    jobs.conclude(desk.journal, job, Event.CONCLUDE, NOTHING_FOUND)
    told = desk.newest()
    assert told.outcome == NOTHING_FOUND
    assert told.implausible_clock
    line = desk.journal.one("SELECT detail FROM history WHERE event='job_concluded'")
    assert line is not None
    assert json.loads(line["detail"])["conclusion"] == "no_finding"
