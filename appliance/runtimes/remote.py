"""An engine that a server runs while it can, and this box otherwise.

Promises: the server has a share of the deadline, and the engine here is left twice the time that it took lately, or
four fifths of the deadline where that is less; then it is asked, whatever became of the server. The server serves only
after the engine's golden cases came out right over the very connection that is used (P8), and its inputs and outputs
are those of the manifest. What it answers is believed only if it is of the right kinds and shapes, and finite. Why the
server was not used is told by `degraded`, in one sentence.

A server that fails is left alone for a while, longer each time; between two studies `tend` looks whether it is back.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.backoff import backoff_s
from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.model import Reason
from appliance.ports import Array, LoadedEngine
from appliance.runtimes.channel import Patience, TensorSpec
from appliance.runtimes.process import ChildEngine, ChildRuntime

FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0
TEND_S = 20.0  #: what looking whether the server is back may take
LOCAL_MARGIN = 2.0  #: times the slowest of the last runs here, which are kept for the next one
FADES = 0.8  #: of what was slow once, from run to run
LEAST_SHARE, LEAST_S = 0.2, 1.0  #: of a deadline, that the server has however slow it is here; and worth asking it for

Cancelled = Callable[[], bool]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """What is asked for at a server, and how it is judged."""

    name: str  #: such as "ct-lesion at 192.0.2.30:8001", for messages
    model: Path  #: of this box: its bytes name what the server should have
    sha256: str
    inputs: Sequence[TensorSpec]  #: as the manifest has them
    outputs: Sequence[TensorSpec]
    verify: Callable[[LoadedEngine], str]  #: by golden cases: what is wrong, "" if nothing is. Raises RuntimeFailed
    share: float  #: of a deadline, that the server may use
    max_message_bytes: int


class RemoteFirst:
    """A ports.LoadedEngine over two: a server's, and the one of this box. Used by one thread."""

    def __init__(self, wanted: RemoteModel, runtime: ChildRuntime, local: LoadedEngine) -> None:
        """Asks nobody yet; `local` is verified, and closed with this. `runtime` is one of kserve children."""
        self._wanted, self._runtime, self._local = wanted, runtime, local
        self._remote: ChildEngine | None = None
        self._verified: int | None = None  # the child, which is the connection, that the golden cases came through
        self._failures, self._fault = 0, ""
        self._rests_until = 0.0
        self.closed = False
        self._slowest_s = local.last_run_ms / 1000
        self._here("it was not asked yet")

    def infer(self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Cancelled = _never) -> dict[str, Array]:
        """Run once, over there or here. Raises as the engine here does, and RuntimeCancelled."""
        until = time.monotonic() + deadline_s
        if not (why := self._why_not(inputs, deadline_s)):
            try:
                return self._ask(inputs, Patience.of("the server", self._budget(deadline_s), cancelled))
            except RuntimeCancelled:
                self._hang_up()
                raise
            except RuntimeFailed as error:
                self._note(error)
                why = str(error)
        self._here(why)
        begun = time.monotonic()
        outputs = self._local.infer(inputs, max(0.0, until - begun), cancelled)
        self._slowest_s = max(FADES * self._slowest_s, time.monotonic() - begun)
        self.last_run_ms = self._local.last_run_ms
        return outputs

    def doubt(self, why: str) -> None:
        """See ports.LoadedEngine: the next question goes to the engine here."""
        if self.runtime == self._runtime.name:
            self._note(RuntimeFailed(Reason.ENGINE_FAILED, why))

    def tend(self, cancelled: Cancelled = _never) -> None:
        """Find out whether the server serves, if that is not known: when there is time for it. Raises nothing."""
        if self._is_verified() or time.monotonic() < self._rests_until:
            return
        try:
            self._there(self._connect(Patience.of("the server", TEND_S, cancelled)))
        except RuntimeCancelled:
            self._hang_up()
        except RuntimeFailed as error:
            self._note(error)
            self._here(str(error))

    def close(self) -> None:
        self.closed = True
        self._hang_up()
        self._local.close()

    def _why_not(self, inputs: Mapping[str, Array], deadline_s: float) -> str:
        """Why the server is not even asked."""
        if time.monotonic() < self._rests_until:
            return self._fault
        if self._budget(deadline_s) < LEAST_S:
            return "there is no time to ask it"
        size = sum(array.nbytes for array in inputs.values())
        if size >= self._wanted.max_message_bytes:
            return f"the inputs have {size} bytes, its messages at most {self._wanted.max_message_bytes}"
        return ""

    def _budget(self, deadline_s: float) -> float:
        """Seconds that the server may take, the end of a child that hangs included."""
        kept = LOCAL_MARGIN * self._slowest_s + self._runtime.reap_s
        return min(deadline_s * self._wanted.share, max(deadline_s - kept, deadline_s * LEAST_SHARE))

    def _ask(self, inputs: Mapping[str, Array], patience: Patience) -> dict[str, Array]:
        """A connection that is no more says nothing of the server: then it is asked over another one."""
        if (remote := self._remote) is not None and self._is_verified():
            try:
                return self._run(remote, inputs, patience)
            except RuntimeFailed as error:
                if error.reason != Reason.NO_ENGINE:
                    raise
        return self._run(self._connect(patience), inputs, patience)

    def _run(self, remote: ChildEngine, inputs: Mapping[str, Array], patience: Patience) -> dict[str, Array]:
        outputs = remote.infer(inputs, patience.left_s, patience.cancelled)
        if not self._is_verified():
            raise RuntimeFailed(Reason.NO_ENGINE, "its child was started anew meanwhile")
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                self._hang_up()
                raise RuntimeFailed(Reason.ENGINE_FAILED, f"it answered nonsense: {name} is not finite")
        self._there(remote)
        self.last_run_ms = remote.last_run_ms
        return outputs

    def _connect(self, patience: Patience) -> ChildEngine:
        """A new connection, verified. Raises RuntimeFailed."""
        self._hang_up()
        wanted = self._wanted
        remote = self._remote = ChildEngine(self._runtime, wanted.model, wanted.sha256)
        remote.start(patience)
        for ours, theirs, what in (
            (wanted.inputs, remote.inputs, "inputs"),
            (wanted.outputs, remote.outputs, "outputs"),
        ):
            if fault := _difference(ours, theirs):
                self._hang_up()
                raise RuntimeFailed(Reason.NO_ENGINE, f"its {what} are not the manifest's: {fault}")
        if fault := wanted.verify(_Patient(remote, patience)):
            self._hang_up()
            raise RuntimeFailed(Reason.NO_ENGINE, f"it is not verified: {fault}")
        self._verified = remote.pid
        return remote

    def _is_verified(self) -> bool:
        """Whether the child that is there now is the one that was verified: another has another connection."""
        return self._remote is not None and self._verified is not None and self._remote.pid == self._verified

    def _hang_up(self) -> None:
        remote, self._remote, self._verified = self._remote, None, None
        if remote is not None:
            remote.close()

    def _note(self, error: RuntimeFailed) -> None:
        self._hang_up()
        self._fault = str(error)
        self._failures += 1
        self._rests_until = time.monotonic() + backoff_s(self._failures, FIRST_PAUSE_S, LAST_PAUSE_S)

    def _there(self, remote: ChildEngine) -> None:
        self._failures, self._fault = 0, ""
        self.runtime, self.runtime_version, self.device = remote.runtime, remote.runtime_version, remote.device
        self.degraded = ""

    def _here(self, why: str) -> None:
        local = self._local
        self.runtime, self.runtime_version, self.device = local.runtime, local.runtime_version, local.device
        self.last_run_ms = local.last_run_ms
        self.degraded = f"{self._wanted.name} was not used, this box ran it instead: {why}"


class _Patient:
    """The server's engine as its verification sees it: with less time, and cancelled like what it is for."""

    def __init__(self, remote: ChildEngine, patience: Patience) -> None:
        self._remote, self._patience = remote, patience
        self.runtime, self.runtime_version, self.device = remote.runtime, remote.runtime_version, remote.device
        self.degraded = ""
        self.last_run_ms = 0.0

    def infer(self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Cancelled = _never) -> dict[str, Array]:
        ours = self._patience
        pid = self._remote.pid
        outputs = self._remote.infer(inputs, min(deadline_s, ours.left_s), lambda: ours.cancelled() or cancelled())
        if self._remote.pid != pid:
            raise RuntimeFailed(Reason.NO_ENGINE, "its child was started anew meanwhile")
        self.last_run_ms = self._remote.last_run_ms
        return outputs

    def doubt(self, why: str) -> None:
        """Whoever verifies says so by a fault."""

    def close(self) -> None:
        self._remote.close()


def _difference(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> str:
    """What keeps a server's tensors from taking the place of ours; a length that it leaves open fits any."""
    mine, other = {spec.name: spec for spec in ours}, {spec.name: spec for spec in theirs}
    if names := sorted(mine.keys() ^ other.keys()):
        return f"{', '.join(names)} on one side only"
    for name, spec in mine.items():
        if fault := other[name].mismatch(np.dtype(spec.dtype), spec.shape):
            return fault
    return ""
