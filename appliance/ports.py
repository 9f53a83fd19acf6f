"""The two seams with more than one real implementation: where things are sent, and what runs an engine."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from appliance.model import CommitmentReport

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


class Session(Protocol):
    """An open way to a destination (an association, say). Used by one thread; leaving the `with` closes it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, item: Outgoing, path: Path) -> str:
        """Send one stored Part 10 file, unchanged. Returns "" or the text of a warning status.

        Raises TransientDeliveryError (the session is unusable after it unless `alive`), ObjectRefused (this item only,
        also when its SOP class or transfer syntax is not taken), DestinationRefused. May be called again with the
        same item: sending is at least once.
        """
        ...

    @property
    def alive(self) -> bool: ...


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


class LoadedEngine(Protocol):
    """An engine in a runtime child, warm. Used by one thread."""

    runtime: str
    runtime_version: str
    device: str
    last_run_ms: float  #: of the last `infer`: inside the runtime's run call, measured in the child

    def infer(
        self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Array]:
        """Run once. Raises RuntimeFailed when the child fails, answers nonsense or passes the deadline."""
        ...

    def close(self) -> None: ...


class Runtime(Protocol):
    """Something that runs engines (ONNX Runtime, TensorRT ...)."""

    name: str

    def probe(self) -> str:
        """Why it cannot work here, in words; "" if it can. Never crashes the caller."""
        ...

    def load(self, model: Path, sha256: str) -> LoadedEngine:
        """Load a model file whose bytes must hash to `sha256`. Raises RuntimeFailed."""
        ...
