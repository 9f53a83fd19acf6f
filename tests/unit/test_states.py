"""The state machines: every step the tables have, and no other."""

import itertools
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.errors import IllegalTransition
from appliance.journal import jobs, outbox
from appliance.journal.jobs import Duty
from appliance.journal.outbox import Settlement
from appliance.model import Conclusion, EngineIdentity, Evidence, Job, Outcome
from appliance.states import (
    DELIVERY,
    ENGINE,
    JOB,
    MACHINES,
    PROOF,
    REPORT,
    SERIES,
    STEP,
    DeliveryState,
    EngineStage,
    Event,
    JobState,
    Machine,
    ProofState,
    ReportState,
    SeriesState,
    StepState,
    mermaid,
)
from tests.journals import SERIES as SERIES_UID
from tests.journals import STUDY, arrival, open_journal, receive

STATES: dict[str, type[StrEnum]] = {
    "series": SeriesState,
    "job": JobState,
    "delivery": DeliveryState,
    "step": StepState,
    "report": ReportState,
    "proof": ProofState,
    "engine": EngineStage,
}
ALL: tuple[Machine[Any], ...] = (*MACHINES, STEP, REPORT, PROOF, ENGINE)
LEGAL = [(machine, state, event, after) for machine in ALL for (state, event), after in machine.steps.items()]
ILLEGAL = [
    (machine, state, event)
    for machine in ALL
    for state, event in itertools.product(STATES[machine.name], Event)
    if (state, event) not in machine.steps
]


def name(value: object) -> str:
    return value.name if isinstance(value, Machine) else str(value)


@pytest.mark.parametrize(("machine", "state", "event", "after"), LEGAL, ids=name)
def test_legal_steps(machine: Machine[Any], state: StrEnum, event: Event, after: StrEnum) -> None:
    assert machine.step(state, event) is after


def test_every_other_step_raises_and_names_what_was_asked() -> None:
    assert len(ILLEGAL) > len(LEGAL)
    for machine, state, event in ILLEGAL:
        with pytest.raises(IllegalTransition, match=f"^{machine.name}: no transition {state} -{event}->$"):
            machine.step(state, event)


def reached(machine: Machine[Any], start: StrEnum) -> set[StrEnum]:
    found, look_at = {start}, [start]
    while look_at:
        state = look_at.pop()
        new = {after for (before, _), after in machine.steps.items() if before is state} - found
        found |= new
        look_at += new
    return found


@pytest.mark.parametrize("machine", ALL, ids=name)
def test_every_state_can_be_reached_and_left_for_an_end(machine: Machine[Any]) -> None:
    assert reached(machine, machine.initial) == set(STATES[machine.name])
    for state in STATES[machine.name]:
        assert machine.final & reached(machine, state), state


def test_ends_are_ends() -> None:
    assert {state for state in JobState if not (reached(JOB, state) - {state})} == JOB.final
    assert {state for state in DeliveryState if not (reached(DELIVERY, state) - {state})} == DELIVERY.final


@pytest.mark.promise("P4")
def test_only_a_held_delivery_can_be_abandoned() -> None:
    assert [state for (state, event) in DELIVERY.steps if event is Event.ABANDON] == [DeliveryState.HELD]


@pytest.mark.promise("P8")
def test_only_a_release_that_was_verified_is_activated() -> None:
    before = {state for (state, event) in ENGINE.steps if event in (Event.ACTIVATE, Event.SHADOW)}
    assert before == {EngineStage.VERIFIED, EngineStage.SHADOW, EngineStage.RETIRED}
    without = {step: after for step, after in ENGINE.steps.items() if step[1] is not Event.VERIFY}
    unverified = reached(Machine("engine", ENGINE.initial, without, ENGINE.final), ENGINE.initial)
    assert unverified.isdisjoint({EngineStage.SHADOW, EngineStage.ACTIVE, EngineStage.RETIRED})


@pytest.mark.promise("P6")
def test_a_deadline_concludes_a_job_in_any_state_before_concluded() -> None:
    for state in (JobState.WAITING, JobState.READY, JobState.RUNNING):
        assert JOB.step(state, Event.DEADLINE) is JobState.CONCLUDED


def test_the_diagram_has_each_step_once() -> None:
    assert mermaid(SERIES) == (
        "stateDiagram-v2\n"
        "    [*] --> open\n"
        "    open --> closed: evidence\n"
        "    closed --> open: instance_arrived\n"
        "    closed --> [*]"
    )
    for machine in ALL:
        lines = mermaid(machine).splitlines()
        steps = [f"    {a} --> {b}: {event}" for (a, event), b in machine.steps.items()]
        assert lines == [lines[0], f"    [*] --> {machine.initial}", *steps, *lines[2 + len(steps) :]]
        assert set(lines[2 + len(steps) :]) == {f"    {state} --> [*]" for state in machine.final}


class Deliveries(RuleBasedStateMachine):
    """The outbox against a model: one delivery, asked for everything at any time."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.journal = open_journal(Path(self.folder.name) / "j")
        receive(self.journal, arrival(1))
        self.state, self.told = "queued", 1

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()

    @rule(event=st.sampled_from([Event.DELIVER, Event.REFUSE]))
    def settle(self, event: Event) -> None:
        (delivery,) = [one for state in DeliveryState for one in outbox.list_deliveries(self.journal, state, 9)]
        outbox.settle(self.journal, [Settlement(delivery=delivery, event=event, started_tick=0, attempts=1)])
        if self.state == "queued":
            self.became("delivered" if event is Event.DELIVER else "held")

    @rule()
    def requeue(self) -> None:
        done = bool(outbox.requeue(self.journal, {1: ()}, "A. Person"))
        assert done is (self.state == "held")
        if done:
            self.became("queued")

    @rule()
    def abandon(self) -> None:
        done = outbox.abandon(self.journal, 1, "A. Person", "duplicate study")
        assert done is (self.state == "held")
        if done:
            self.became("abandoned")

    def became(self, state: str) -> None:
        self.state, self.told = state, self.told + 1

    @invariant()
    def the_journal_agrees(self) -> None:
        row = self.journal.one("SELECT state, (SELECT count(*) FROM history) AS lines FROM delivery")
        assert row is not None
        assert (row["state"], row["lines"]) == (self.state, self.told)


OUTCOME = Outcome(
    conclusion=Conclusion.NO_FINDING,
    engine=EngineIdentity(id="e", version="1", status="reference", package_sha256="", model_sha256=""),
)


class Jobs(RuleBasedStateMachine):
    """Jobs under stale and fresh owners: what the journal says is always a state the table allows."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.journal = open_journal(Path(self.folder.name) / "j")
        self.arrived = 0
        self.arrive()
        self.seen: list[Job] = []

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()

    @rule()
    def arrive(self) -> None:
        self.arrived += 1
        receive(self.journal, arrival(self.arrived))
        duty = Duty(
            engine="e@1",
            scope="series",
            study_instance_uid=STUDY,
            series_instance_uid=SERIES_UID,
            sop_instance_uid="",
            subject=SERIES_UID,
            instance_id=self.arrived,
            deadline_ms=1000,
        )
        jobs.take_on(self.journal, [duty], self.arrived)

    @rule()
    def look(self) -> None:
        self.seen += jobs.unfinished(self.journal, *jobs.UNFINISHED)

    @rule(data=st.data(), what=st.sampled_from(["close", "claim", "defer", "conclude", "deadline", "keep"]))
    def act_on_what_was_seen(self, data: st.DataObject, what: str) -> None:
        if not self.seen:
            return
        job = data.draw(st.sampled_from(self.seen))
        before = self.state_of(job)
        try:
            self.do(what, job)
        except IllegalTransition:
            assert self.state_of(job) == before

    def do(self, what: str, job: Job) -> None:
        if what == "close":
            digest = jobs.digest_of(jobs.inputs(self.journal, job))
            jobs.close_inputs(self.journal, job, SERIES_UID, digest, Evidence.SILENCE)
        elif what == "claim":
            jobs.claim(self.journal, job)
        elif what == "defer":
            jobs.defer(self.journal, job, "to see")
        elif what == "keep":
            jobs.keep_provisional(self.journal, job, "digest", OUTCOME)
        else:
            event = Event.DEADLINE if what == "deadline" else Event.CONCLUDE
            jobs.conclude(self.journal, job, event, OUTCOME)

    def state_of(self, job: Job) -> str:
        row = self.journal.one("SELECT state FROM job WHERE id=?", job.id)
        assert row is not None
        return str(row["state"])

    @invariant()
    def only_the_newest_revision_is_alive(self) -> None:
        rows = self.journal.query("SELECT revision, state, outcome, provisional_digest FROM job ORDER BY revision")
        assert [row["revision"] for row in rows] == list(range(1, len(rows) + 1))
        assert all(row["state"] in JOB.final for row in rows[:-1])
        for row in rows:
            if row["state"] == JobState.CONCLUDED:
                assert row["outcome"]
                assert not row["provisional_digest"]


TestDeliveries = Deliveries.TestCase
TestJobs = Jobs.TestCase
TestDeliveries.settings = TestJobs.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
