"""The two seams with more than one real implementation: where things are sent, and what runs an engine."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from appliance.model import CommitmentAnswer, CommitmentReport, Reference, Sent

Array = NDArray[np.generic]


class Outgoing(Protocol):
    """What a destination needs to know of a stored object. model.Delivery is one."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def size(self) -> int: ...


#: Called before each piece of an object with how many bytes it would be: waits until some may go, and says how many.
#: They count as sent. Raises TransientDeliveryError where the object shall not be sent to its end now.
Turn = Callable[[int], int]


def at_once(wanted: int) -> int:
    """A Turn that never waits."""
    return wanted


class Session(Protocol):
    """An open way to a destination (an association, say). One thread at a time; leaving the `with` closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        """Send one stored Part 10 file, unchanged. Returns "" or the text of a warning status.

        Raises TransientDeliveryError (the session is unusable after it unless `alive`), ObjectRefused (this item only,
        also when its SOP class or transfer syntax is not taken), DestinationRefused. May be called again with the
        same item: sending is at least once.
        """
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def bytes_s(self) -> float:
        """The goodput while something is under way; 0: not known."""
        ...

    @property
    def round_trip_s(self) -> float:
        """The least that was seen; 0: not known, or none."""
        ...

    @property
    def held_back(self) -> bool | None:
        """Whether something else than the line's width holds it back, as loss does: then several sessions carry more.

        None: not known yet.
        """
        ...


@runtime_checkable
class RecodingSession(Protocol):
    """What a Session has besides, where it may send an object in another transfer syntax than it is stored in."""

    @property
    def sent(self) -> Sent | None:
        """What the last `send` sent instead of the object as it is stored; None: just that."""
        ...

    @property
    def weighs_line(self) -> bool:
        """Whether what it sends depends on how quick the line is, and that is not known yet: one object first, then."""
        ...

    def prepare(self, item: Outgoing, path: Path) -> None:
        """What comes next: begin with what takes time before it is sent; waits for nothing. It may never be sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoding:
    """A stored Part 10 file that is wanted in another transfer syntax, and where to."""

    source: Path
    target: Path  #: made anew; whoever asked removes it
    transfer_syntax_uid: str
    most: int  #: bytes that it may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoded:
    """It is there, and was compared with its source."""

    size: int  #: bytes
    seconds: float  #: that it took, by the clock
    cpu_s: float  #: of processor time


class Recoder(Protocol):
    """Who decodes and encodes, without loss, at a distance from what may go wrong. One thing at a time, in order."""

    def recode(self, wanted: Recoding) -> Future[Recoded]:
        """Waits for nothing. The future raises CannotRecode; RuntimeFailed where there is nobody to do it just now."""
        ...


class Destination(Protocol):
    """Somewhere objects are owed. Knows no journal and no spool."""

    def open(self, items: Sequence[Outgoing]) -> Session:
        """Open a session able to carry these items. Raises TransientDeliveryError or DestinationRefused."""
        ...

    def probe(self) -> None:
        """Ask whether it would take something from us now (C-ECHO, say). Raises as `open`."""
        ...


class ReportTaker(Protocol):
    """A peer that asked what we answer for, and is told. Knows no journal."""

    def report(self, report: CommitmentReport) -> int:
        """Tell it; returns the status of its answer, 0 where it has taken the report.

        Raises DeliveryError. May be called again with the same report: telling is at least once.
        """
        ...


class CommitmentSession(Protocol):
    """An open way to ask a destination for storage commitment. Used by one thread; leaving the `with` closes it.

    `hear` notes a report that comes this way, durably; it raises DataSetRefused or OutOfResources where it cannot.
    """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def request(
        self, transaction_uid: str, asked: Sequence[Reference], hear: Callable[[CommitmentAnswer], None]
    ) -> int:
        """Ask; returns the status of the answer, 0 where a report is promised.

        Raises TransientDeliveryError: it may have been asked, or not.
        """
        ...

    def listen(self, within_s: float, hear: Callable[[CommitmentAnswer], None]) -> bool:
        """Wait so long for one report; whether another may still come. Raises TransientDeliveryError."""
        ...


class Committer(Protocol):
    """A destination that is asked whether it answers for what it got. Knows no journal."""

    def open(self) -> CommitmentSession:
        """Raises TransientDeliveryError, and DestinationRefused where it does not do that for us."""
        ...


class CatalogueSession(Protocol):
    """An open way to ask what a destination has. Used by one thread; leaving the `with` closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def alive(self) -> bool: ...

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs it shows of a series. Raises TransientDeliveryError; `alive` says whether to go on."""
        ...


class Catalogue(Protocol):
    """A destination that can be asked what it has. Knows no journal."""

    def open(self) -> CatalogueSession:
        """Raises TransientDeliveryError, and DestinationRefused where it does not answer us."""
        ...


class LoadedEngine(Protocol):
    """An engine in a runtime child, warm. Used by one thread. What it says of itself is true of the last `infer`."""

    runtime: str
    runtime_version: str
    device: str
    degraded: str  #: why it does not run where it should, in words; "" if it does
    plan_sha256: str  #: of the plan that runs; "": the model itself does
    variant_sha256: str  #: of the file that it was compiled from, where that is a variant of the model
    last_run_ms: float  #: of the last `infer`: inside the runtime's run call, measured in the child

    def infer(
        self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Array]:
        """Run once. Raises RuntimeFailed when the child fails, answers nonsense or passes the deadline."""
        ...

    def doubt(self, why: str) -> None:
        """Its last answer turned out to mean nothing: where there are several that may answer, another does next."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class StudyBound(Protocol):
    """What a LoadedEngine has besides, where it divides a study's time between several that may answer."""

    def begin(self, deadline_s: float) -> None:
        """A study begins, which has so many seconds altogether, in however many runs it is read."""
        ...


class Runtime(Protocol):
    """Something that runs engines (ONNX Runtime, TensorRT ...)."""

    name: str

    def probe(self) -> str:
        """Why it cannot work here, in words; "" if it can. Never crashes the caller."""
        ...

    def load(self, model: Path, sha256: str) -> LoadedEngine:
        """Load a model file whose bytes must hash to `sha256`. Raises RuntimeFailed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """An engine compiled for this device: a file that is on the disk, whole."""

    path: Path
    sha256: str
    key: str  #: what it was built for and with; another key is another plan


class PlanBuilder(Protocol):
    """Something that compiles a model for this device, in a child process of low priority. Never on a study's way."""

    def probe(self) -> str:
        """Why it cannot build here, in words; "" if it can. Never crashes the caller."""
        ...

    def find(self, model: Path, sha256: str, folder: Path, /) -> BuiltPlan:
        """The plan in `folder` that was built for all that there is now, every byte of it checked.

        Raises PlanRefused, RuntimeFailed where nothing is here that would run it.
        """
        ...

    def build(
        self, model: Path, sha256: str, folder: Path, progress: Callable[[str, int, int], None], deadline_s: float, /
    ) -> BuiltPlan:
        """Compile a model file whose bytes must hash to `sha256` into `folder`, atomically, by the deadline.

        `progress` is told a phase, and how many steps of it are done, of how many; several times a second, also where
        nothing is new. What it raises ends the build, and is raised. Raises RuntimeFailed.
        """
        ...
