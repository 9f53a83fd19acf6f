"""The state machines, as data. Everything that decides a transition lives in this file.

An instance has no state: once recorded it is a fact. SERIES is owned by receive, JOB by analyse, DELIVERY by
forward, ENGINE by the store of engines. `step` is the only way to a new state: an illegal transition raises, and
nothing happens. The README's diagram is printed from these tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from appliance.errors import IllegalTransition


class SeriesState(StrEnum):
    OPEN = "open"  #: instances may still come
    CLOSED = "closed"  #: evidence says that all have come


class JobState(StrEnum):
    WAITING = "waiting"  #: inputs are still arriving
    READY = "ready"  #: inputs are complete
    RUNNING = "running"  #: claimed by the one owner
    CONCLUDED = "concluded"  #: an outcome is committed
    REPORTED = "reported"  #: results are built and owed, or there is nothing to send
    SUPERSEDED = "superseded"  #: a later revision of the inputs took its place


class DeliveryState(StrEnum):
    QUEUED = "queued"  #: owed
    DELIVERED = "delivered"  #: the destination answered success
    COMMITTED = "committed"  #: the destination answers for it (storage commitment)
    HELD = "held"  #: will not succeed by itself
    ABANDONED = "abandoned"  #: given up by a named person, with a reason


class StepState(StrEnum):
    """A performed procedure step as its modality tells it; the values are DICOM's (0040,0252)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class ReportState(StrEnum):
    """How far the answer to a commitment request has come."""

    ASKED = "asked"  #: the promise to report is given
    JUDGED = "judged"  #: what will be reported is settled
    REPORTED = "reported"  #: the peer has taken the report


class ProofState(StrEnum):
    """How far a transaction of storage commitment with a destination has come."""

    NOTED = "noted"  #: it may have been asked
    ASKED = "asked"  #: it has promised a report
    LAPSED = "lapsed"  #: asked anew in another transaction; a late report counts all the same
    ANSWERED = "answered"  #: it has spoken of every reference


class EngineStage(StrEnum):
    """How far a release of an engine has come on this machine."""

    IMPORTED = "imported"  #: here, every byte as its manifest says
    VALIDATED = "validated"  #: right on its golden cases, on the processor
    BUILT = "built"  #: compiled for this device
    VERIFIED = "verified"  #: right on its golden cases on what will run it, and measured
    SHADOW = "shadow"  #: runs and is recorded; nothing leaves the box
    ACTIVE = "active"  #: the one whose results count
    RETIRED = "retired"  #: served, and may again
    REFUSED = "refused"  #: found wrong; serves no more unless it is checked anew


class Event(StrEnum):
    EVIDENCE = "evidence"
    INSTANCE_ARRIVED = "instance_arrived"
    INPUTS_CLOSED = "inputs_closed"
    CLAIMED = "claimed"
    DEFERRED = "deferred"
    CONCLUDE = "conclude"
    DEADLINE = "deadline"
    REPORT = "report"
    SUPERSEDE = "supersede"
    DELIVER = "deliver"
    COMMIT = "commit"
    COMMITMENT_FAILED = "commitment_failed"
    COMMITMENT_FAILED_FOR_GOOD = "commitment_failed_for_good"
    REFUSE = "refuse"
    REQUEUE = "requeue"
    ABANDON = "abandon"
    COMPLETE = "complete"
    DISCONTINUE = "discontinue"
    JUDGE = "judge"
    REPORT_TAKEN = "report_taken"
    PROMISE = "promise"
    LAPSE = "lapse"
    ANSWER = "answer"
    VALIDATE = "validate"
    BUILD = "build"
    VERIFY = "verify"
    SHADOW = "shadow"
    ACTIVATE = "activate"
    RETIRE = "retire"


S = TypeVar("S", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Machine(Generic[S]):
    """One state machine: its first state, its legal steps, and the states that end it."""

    name: str
    initial: S
    steps: Mapping[tuple[S, Event], S]
    final: frozenset[S]

    def step(self, state: S, event: Event) -> S:
        """The state after `event`; raises IllegalTransition where the table has none."""
        try:
            return self.steps[state, event]
        except KeyError:
            raise IllegalTransition(f"{self.name}: no transition {state.value} -{event.value}->") from None


SERIES = Machine(
    name="series",
    initial=SeriesState.OPEN,
    steps={
        (SeriesState.OPEN, Event.EVIDENCE): SeriesState.CLOSED,
        (SeriesState.CLOSED, Event.INSTANCE_ARRIVED): SeriesState.OPEN,  # revision + 1
    },
    final=frozenset({SeriesState.CLOSED}),
)

_J = JobState
JOB = Machine(
    name="job",
    initial=_J.WAITING,
    steps={
        (_J.WAITING, Event.INPUTS_CLOSED): _J.READY,
        (_J.READY, Event.CLAIMED): _J.RUNNING,
        (_J.RUNNING, Event.DEFERRED): _J.READY,
        (_J.RUNNING, Event.CONCLUDE): _J.CONCLUDED,
        (_J.WAITING, Event.CONCLUDE): _J.CONCLUDED,  # a provisional outcome holds, or no engine is capable
        (_J.READY, Event.CONCLUDE): _J.CONCLUDED,
        (_J.WAITING, Event.DEADLINE): _J.CONCLUDED,
        (_J.READY, Event.DEADLINE): _J.CONCLUDED,
        (_J.RUNNING, Event.DEADLINE): _J.CONCLUDED,
        (_J.CONCLUDED, Event.REPORT): _J.REPORTED,
        **{(state, Event.SUPERSEDE): _J.SUPERSEDED for state in (_J.WAITING, _J.READY, _J.RUNNING, _J.CONCLUDED)},
    },
    final=frozenset({_J.REPORTED, _J.SUPERSEDED}),
)

_D = DeliveryState
DELIVERY = Machine(
    name="delivery",
    initial=_D.QUEUED,
    steps={
        (_D.QUEUED, Event.DELIVER): _D.DELIVERED,
        (_D.DELIVERED, Event.COMMIT): _D.COMMITTED,
        (_D.QUEUED, Event.REFUSE): _D.HELD,
        (_D.HELD, Event.REQUEUE): _D.QUEUED,
        (_D.HELD, Event.ABANDON): _D.ABANDONED,
        (_D.DELIVERED, Event.COMMITMENT_FAILED): _D.QUEUED,
        (_D.DELIVERED, Event.COMMITMENT_FAILED_FOR_GOOD): _D.HELD,  # the third time
    },
    final=frozenset({_D.COMMITTED, _D.ABANDONED}),
)

#: Owned by receive, which only takes down what modalities say.
STEP = Machine(
    name="step",
    initial=StepState.IN_PROGRESS,
    steps={
        (StepState.IN_PROGRESS, Event.COMPLETE): StepState.COMPLETED,
        (StepState.IN_PROGRESS, Event.DISCONTINUE): StepState.DISCONTINUED,
    },
    final=frozenset({StepState.COMPLETED, StepState.DISCONTINUED}),
)

#: Born asked by receive, owned by forward.
REPORT = Machine(
    name="report",
    initial=ReportState.ASKED,
    steps={
        (ReportState.ASKED, Event.JUDGE): ReportState.JUDGED,
        (ReportState.JUDGED, Event.REPORT_TAKEN): ReportState.REPORTED,
    },
    final=frozenset({ReportState.REPORTED}),
)

#: Owned by forward, which asks its destinations.
PROOF = Machine(
    name="proof",
    initial=ProofState.NOTED,
    steps={
        (ProofState.NOTED, Event.PROMISE): ProofState.ASKED,
        (ProofState.NOTED, Event.LAPSE): ProofState.LAPSED,
        (ProofState.ASKED, Event.LAPSE): ProofState.LAPSED,
        (ProofState.NOTED, Event.ANSWER): ProofState.ANSWERED,  # its report may come before its promise
        (ProofState.ASKED, Event.ANSWER): ProofState.ANSWERED,
        (ProofState.LAPSED, Event.ANSWER): ProofState.ANSWERED,
    },
    final=frozenset({ProofState.ANSWERED}),
)

_E = EngineStage
_PROVED = (_E.VERIFIED, _E.SHADOW, _E.ACTIVE, _E.RETIRED)
#: Of each release of an engine, by itself: at most one of an engine is active, and one in shadow (engine_store).
ENGINE = Machine(
    name="engine",
    initial=_E.IMPORTED,
    steps={
        (_E.IMPORTED, Event.VALIDATE): _E.VALIDATED,
        (_E.REFUSED, Event.VALIDATE): _E.VALIDATED,
        (_E.VALIDATED, Event.BUILD): _E.BUILT,
        (_E.VALIDATED, Event.VERIFY): _E.VERIFIED,  # nothing here compiles it: the processor serves
        (_E.BUILT, Event.VERIFY): _E.VERIFIED,
        (_E.VERIFIED, Event.BUILD): _E.BUILT,
        (_E.VERIFIED, Event.SHADOW): _E.SHADOW,
        (_E.RETIRED, Event.SHADOW): _E.SHADOW,
        (_E.VERIFIED, Event.ACTIVATE): _E.ACTIVE,
        (_E.SHADOW, Event.ACTIVATE): _E.ACTIVE,
        (_E.RETIRED, Event.ACTIVATE): _E.ACTIVE,
        (_E.SHADOW, Event.RETIRE): _E.RETIRED,
        (_E.ACTIVE, Event.RETIRE): _E.RETIRED,
        **{(stage, Event.VALIDATE): stage for stage in (_E.VALIDATED, _E.BUILT, *_PROVED)},  # once more, and right
        **{(stage, Event.BUILD): stage for stage in (_E.BUILT, _E.SHADOW, _E.ACTIVE, _E.RETIRED)},  # for another driver
        **{(stage, Event.VERIFY): stage for stage in _PROVED},
        **{(stage, Event.REFUSE): _E.REFUSED for stage in _E},
    },
    final=frozenset({_E.RETIRED, _E.REFUSED}),
)

#: Of what this appliance is for; the three above are how it asks and is asked.
MACHINES: tuple[Machine[Any], ...] = (SERIES, JOB, DELIVERY)


def mermaid(machine: Machine[Any]) -> str:
    """The machine as a Mermaid state diagram, in the order of its table."""
    lines = ["stateDiagram-v2", f"    [*] --> {machine.initial.value}"]
    lines += [f"    {a.value} --> {b.value}: {event.value}" for (a, event), b in machine.steps.items()]
    return "\n".join(lines + [f"    {state.value} --> [*]" for state in sorted(machine.final)])
