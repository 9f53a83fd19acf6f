"""An engine that something better runs while it can, and this box's processor otherwise: a server, or a plan on a GPU.

Promises: what is preferred has a share of a study's deadline, in however many runs the study is read. The engine here
is left twice the time that it took lately for all that is still to come, or four fifths of the deadline where that is
less; then it is asked, whatever became of the other. Where what is preferred is the quicker, both hold of each run by
itself. What is preferred serves only after the engine's golden cases came out right in the very child that is used
(P8), which may be a connection, and if its inputs and outputs are those of the manifest. What it answers is believed
only if it is of the right kinds and shapes, and finite. Why it was not used is told by `degraded`, in one sentence.

Where it fails it is left alone for a while, longer each time; between two studies `tend` looks whether it is back.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.backoff import backoff_s
from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.model import Reason
from appliance.ports import Array, LoadedEngine, StudyBound
from appliance.runtimes.channel import Patience, TensorSpec
from appliance.runtimes.process import ChildEngine, ChildRuntime

FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0
LOCAL_MARGIN = 2.0  #: times the slowest of the last runs here, which are kept for the next one
FADES = 0.8  #: of what was slow once, from run to run
LEAST_SHARE, LEAST_S = 0.2, 1.0  #: of a deadline, for what is preferred however slow it is here; and worth asking for
SLACK_S = 1.0  #: by which a run may seem to end after its study

Cancelled = Callable[[], bool]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """What should run the engine, and how it is judged."""

    name: str  #: such as "ct-lesion at 192.0.2.30:8001", for messages
    kind: str  #: "the server"
    instead: str  #: who runs it otherwise: "this box"
    model: Path  #: what its child loads: of a server's engine, the bytes that name what it should have
    sha256: str
    inputs: Sequence[TensorSpec]  #: as the manifest has them
    outputs: Sequence[TensorSpec]
    verify: Callable[[LoadedEngine], str]  #: by golden cases: what is wrong, "" if nothing is. Raises RuntimeFailed
    share: float  #: of a deadline, that it may use
    tend_s: float  #: what looking whether it is back may take
    max_message_bytes: int | None = None  #: of its inputs; None: any
    plan_sha256: str = ""  #: where it is a plan
    precision: str = ""  #: where it is another than the model's
    variant_sha256: str = ""  #: of the file that is of this precision
    degraded: str = ""  #: why it is not what is asked for, though better than what is here
    is_final: bool = False  #: once it is found wrong it is not asked again: it cannot be mended where it is


@dataclass(slots=True, kw_only=True)
class _Study:
    """What is read in one run or in many."""

    deadline_s: float
    until: float
    runs: int = 0
    spent_s: float = 0.0  #: on what is preferred
    last_run_s: float = 0.0  #: of it
    is_known_here: bool = False  #: the engine here was told of it


class WithFallback:
    """A ports.LoadedEngine and StudyBound over two: what is preferred, and the one of this box. Used by one thread.

    A run that no study was begun for is one.
    """

    def __init__(
        self,
        runtime: ChildRuntime,
        local: LoadedEngine,
        wanted: Preferred | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Asks nobody yet; `local` is verified, and closed with this. `runtime` starts the child of what is preferred.

        None is preferred: then `local` runs it, and that is as it should be.
        """
        self._runtime, self._local, self._monotonic = runtime, local, monotonic
        self._slowest_s = local.last_run_ms / 1000
        self._study: _Study | None = None
        self._runs = 1  # of a study, lately
        self._took_s = 0.0  # the last run of what is preferred, the way there and back included
        self._preferred: ChildEngine | None = None
        self._verified: int | None = None  # the child that the golden cases came through
        self.closed = False
        self._set(wanted, "it was not asked yet" if wanted else "")

    def prefer(self, wanted: Preferred) -> None:
        """From the next run on, once it is verified."""
        self._set(wanted, "it was not asked yet")

    def rely_on_local(self, why: str) -> None:
        """Prefer none. `why` becomes `degraded`; "": as it should be."""
        self._set(None, why)

    def _set(self, wanted: Preferred | None, why: str) -> None:
        self._hang_up()
        self._wanted = wanted
        self.wrong = ""  #: what was found wrong with what is preferred, where that is final
        self._failures, self._fault, self._rests_until = 0, "", 0.0
        self._here(why)

    def infer(self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Cancelled = _never) -> dict[str, Array]:
        """Run once, over there or here. Raises as the engine here does, and RuntimeCancelled."""
        begun = self._monotonic()
        study, why = self._study_of(begun, deadline_s), self._why
        study.runs += 1
        if (wanted := self._wanted) is not None and not (why := self._why_not(wanted, inputs, study, deadline_s)):
            budget_s = self._budget(wanted, study, deadline_s)
            try:
                outputs = self._ask(wanted, inputs, Patience.of(wanted.kind, budget_s, cancelled))
                study.last_run_s = self._took_s
                return outputs
            except RuntimeCancelled:
                self._hang_up()
                raise
            except RuntimeFailed as error:
                self._note(error)
                why = str(error)
            finally:
                study.spent_s += self._monotonic() - begun
        self._tell_here(study, begun + deadline_s)
        return self._infer_here(inputs, begun + deadline_s, cancelled, why)

    def begin(self, deadline_s: float) -> None:
        """See ports.StudyBound."""
        if self._study is not None:
            self._runs = max(int(FADES * self._runs), self._study.runs, 1)
        self._study = _Study(deadline_s=deadline_s, until=self._monotonic() + deadline_s)

    def _study_of(self, now: float, left_s: float) -> _Study:
        study = self._study
        if study is None or now + left_s > study.until + SLACK_S:
            return _Study(deadline_s=left_s, until=now + left_s)
        return study

    def _tell_here(self, study: _Study, until: float) -> None:
        """Where another one of this kind is behind this, the study begins for it when it is asked."""
        if study is self._study and not study.is_known_here and isinstance(self._local, StudyBound):
            self._local.begin(max(0.0, until - self._monotonic()))
        study.is_known_here = True

    def _infer_here(
        self, inputs: Mapping[str, Array], until: float, cancelled: Cancelled, why: str
    ) -> dict[str, Array]:
        begun = self._monotonic()
        try:
            outputs = self._local.infer(inputs, max(0.0, until - begun), cancelled)
        finally:
            self._here(why)  # what it says of itself is true of its last run
        self._slowest_s = max(FADES * self._slowest_s, self._monotonic() - begun)
        return outputs

    def doubt(self, why: str) -> None:
        """See ports.LoadedEngine: the next question goes to the engine here."""
        if not self._is_here:
            self._note(RuntimeFailed(Reason.ENGINE_FAILED, why))
        else:
            self._local.doubt(why)

    def tend(self, cancelled: Cancelled = _never) -> None:
        """Find out whether what is preferred serves, if that is not known: when there is time. Raises nothing."""
        wanted = self._wanted
        if self._is_here:
            self._here(self._why)  # the engine here may run somewhere else by now
        if wanted is None or self.wrong or self._is_verified() or self._monotonic() < self._rests_until:
            return
        try:
            self._there(wanted, self._connect(wanted, Patience.of(wanted.kind, wanted.tend_s, cancelled)))
        except RuntimeCancelled:
            self._hang_up()
        except RuntimeFailed as error:
            self._note(error)
            self._here(str(error))

    def prove(self) -> None:
        """Let what is preferred run its golden cases once more, where it serves. Raises nothing."""
        wanted, preferred = self._wanted, self._preferred
        if wanted is None or preferred is None or not self._is_verified():
            return
        try:
            self._prove(wanted, preferred, Patience.of(wanted.kind, wanted.tend_s))
        except RuntimeFailed as error:
            self._note(error)
            self._here(str(error))

    def close(self) -> None:
        self.closed = True
        self._hang_up()
        self._local.close()

    def _why_not(self, wanted: Preferred, inputs: Mapping[str, Array], study: _Study, left_s: float) -> str:
        """Why it is not even asked."""
        if self.wrong or self._monotonic() < self._rests_until:
            return self._fault
        if self._budget(wanted, study, left_s) < max(LEAST_S, study.last_run_s):  # it would be cut off in the middle
            return "it has used up its share of the study's time" if study.spent_s else "there is no time to ask it"
        size = sum(array.nbytes for array in inputs.values())
        if wanted.max_message_bytes is not None and size >= wanted.max_message_bytes:
            return f"the inputs have {size} bytes, its messages at most {wanted.max_message_bytes}"
        return ""

    def _budget(self, wanted: Preferred, study: _Study, left_s: float) -> float:
        """Seconds that it may take, the end of a child that hangs included. `left_s`: that the study has left.

        Where it is quicker than the engine here, giving way gains nothing: then only this run's end is looked at.
        """
        if 0 < study.last_run_s < self._slowest_s:
            kept = LOCAL_MARGIN * self._slowest_s + self._runtime.reap_s
            return min(left_s * wanted.share, max(left_s - kept, left_s * LEAST_SHARE))
        runs = max(1, self._runs - study.runs + 1)  # still to come, this one included
        kept = LOCAL_MARGIN * self._slowest_s * runs + self._runtime.reap_s
        least = min(study.deadline_s * LEAST_SHARE - study.spent_s, left_s * LEAST_SHARE)
        return min(study.deadline_s * wanted.share - study.spent_s, max(left_s - kept, least))

    def _ask(self, wanted: Preferred, inputs: Mapping[str, Array], patience: Patience) -> dict[str, Array]:
        """A child that is no more says nothing of what it ran or connected to: then another one is asked."""
        if (preferred := self._preferred) is not None and self._is_verified():
            try:
                return self._run(wanted, preferred, inputs, patience)
            except RuntimeFailed as error:
                if error.reason != Reason.NO_ENGINE:
                    raise
        return self._run(wanted, self._connect(wanted, patience), inputs, patience)

    def _run(
        self, wanted: Preferred, preferred: ChildEngine, inputs: Mapping[str, Array], patience: Patience
    ) -> dict[str, Array]:
        begun = self._monotonic()
        outputs = preferred.infer(inputs, patience.left_s, patience.cancelled)
        self._took_s = self._monotonic() - begun
        if not self._is_verified():
            raise RuntimeFailed(Reason.NO_ENGINE, "its child was started anew meanwhile")
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self._hang_up()
                raise RuntimeFailed(Reason.ENGINE_FAILED, f"it answered nonsense: {name} is not finite")
        self._there(wanted, preferred)
        self.last_run_ms = preferred.last_run_ms
        return outputs

    def _connect(self, wanted: Preferred, patience: Patience) -> ChildEngine:
        """A new child, verified. Raises RuntimeFailed."""
        self._hang_up()
        preferred = self._preferred = ChildEngine(self._runtime, wanted.model, wanted.sha256)
        preferred.start(patience)
        for ours, theirs, what in (
            (wanted.inputs, preferred.inputs, "inputs"),
            (wanted.outputs, preferred.outputs, "outputs"),
        ):
            if fault := _difference(ours, theirs):
                raise self._distrusted(wanted, f"its {what} are not the manifest's: {fault}")
        self._prove(wanted, preferred, patience)
        self._verified = preferred.pid
        return preferred

    def _prove(self, wanted: Preferred, preferred: ChildEngine, patience: Patience) -> None:
        """Raises RuntimeFailed."""
        if fault := wanted.verify(_Patient(preferred, patience)):
            raise self._distrusted(wanted, f"it is not verified: {fault}")

    def _distrusted(self, wanted: Preferred, fault: str) -> RuntimeFailed:
        self._hang_up()
        if wanted.is_final:
            self.wrong = fault
        return RuntimeFailed(Reason.NO_ENGINE, fault)

    def _is_verified(self) -> bool:
        """Whether the child that is there now is the one that was verified: another may run something else."""
        return self._preferred is not None and self._verified is not None and self._preferred.pid == self._verified

    def _hang_up(self) -> None:
        preferred, self._preferred, self._verified = self._preferred, None, None
        if preferred is not None:
            preferred.close()

    def _note(self, error: RuntimeFailed) -> None:
        self._hang_up()
        self._fault = str(error)
        self._failures += 1
        self._rests_until = self._monotonic() + backoff_s(self._failures, FIRST_PAUSE_S, LAST_PAUSE_S)

    def _there(self, wanted: Preferred, preferred: ChildEngine) -> None:
        self._failures, self._fault = 0, ""
        self.runtime, self.device = preferred.runtime, preferred.device
        self.runtime_version = f"{preferred.runtime_version} {wanted.precision}".rstrip()
        self.plan_sha256, self.variant_sha256 = wanted.plan_sha256, wanted.variant_sha256
        self._is_here, self.degraded = False, wanted.degraded

    def _here(self, why: str) -> None:
        local, wanted = self._local, self._wanted
        self._is_here, self._why = True, why
        self.runtime, self.runtime_version, self.device = local.runtime, local.runtime_version, local.device
        self.plan_sha256, self.variant_sha256 = local.plan_sha256, local.variant_sha256
        self.last_run_ms = local.last_run_ms
        told = f"{wanted.name} was not used, {wanted.instead} ran it instead: {why}" if wanted else why
        self.degraded = "; ".join(part for part in (told, local.degraded) if part)


class _Patient:
    """What is preferred as its verification sees it: with less time, and cancelled like what it is for."""

    def __init__(self, preferred: ChildEngine, patience: Patience) -> None:
        self._preferred, self._patience = preferred, patience
        self.runtime, self.runtime_version, self.device = (
            preferred.runtime,
            preferred.runtime_version,
            preferred.device,
        )
        self.degraded = self.plan_sha256 = self.variant_sha256 = ""
        self.last_run_ms = 0.0

    def infer(self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Cancelled = _never) -> dict[str, Array]:
        ours = self._patience
        pid = self._preferred.pid
        outputs = self._preferred.infer(inputs, min(deadline_s, ours.left_s), lambda: ours.cancelled() or cancelled())
        if self._preferred.pid != pid:
            raise RuntimeFailed(Reason.NO_ENGINE, "its child was started anew meanwhile")
        self.last_run_ms = self._preferred.last_run_ms
        return outputs

    def doubt(self, why: str) -> None:
        """Whoever verifies says so by a fault."""

    def close(self) -> None:
        self._preferred.close()


def _difference(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> str:
    """What keeps the tensors over there from taking the place of ours; a length that they leave open fits any."""
    mine, other = {spec.name: spec for spec in ours}, {spec.name: spec for spec in theirs}
    if names := sorted(mine.keys() ^ other.keys()):
        return f"{', '.join(names)} on one side only"
    for name, spec in mine.items():
        if fault := other[name].mismatch(np.dtype(spec.dtype), spec.shape):
            return fault
    return ""
