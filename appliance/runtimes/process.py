"""Engines in child processes: the daemon's side. A child can be killed at any moment, and nothing else dies with it.

Promises: `infer` returns checked arrays or raises by its deadline plus the time to reap (`reap_s`); a child that
failed in any way is killed at once and started anew by the next call; no descriptor, memory or process is left over,
but for a child that even SIGKILL does not end (stuck in a driver): it is listed in `ChildRuntime.abandoned`, and while
it is there no other is started.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import RuntimeFailed
from appliance.model import Reason
from appliance.ports import Array
from appliance.runtimes.channel import ArraySpec, Done, Hello, Loaded, Patience, Ran, RanAgain, TensorSpec
from appliance.runtimes.memory import layout, memory_file
from appliance.runtimes.passage import Kinds, Passage, kinds_of, places_of, read_places
from appliance.runtimes.spawn import Child, ChildSettings

__all__ = ["ChildEngine", "ChildRuntime", "ChildSettings"]


class ChildRuntime:
    """A ports.Runtime: one child for each loaded engine.

    A child dies with the thread that called `load` (or `infer`, where that started it anew), not only with the
    process: that thread should live as long as its engine.
    """

    def __init__(self, settings: ChildSettings) -> None:
        self.name = settings.runtime
        self._settings = settings
        self._unreaped: list[Child] = []

    @property
    def reap_s(self) -> float:
        """How long a child that is killed may take to go."""
        return self._settings.reap_s

    @property
    def abandoned(self) -> tuple[int, ...]:
        """Process ids of children that were killed and are still there: "AI off"."""
        self._unreaped = [child for child in self._unreaped if not child.ended]
        return tuple(child.pid for child in self._unreaped)

    def probe(self) -> str:
        """Why no child can start or find its runtime, "" if one can. Raises nothing."""
        try:
            child, _ = self.start(self.load_patience())
        except RuntimeFailed as error:
            return str(error)
        child.quit()
        self.bury(child)
        return ""

    def load(self, model: Path, sha256: str) -> "ChildEngine":
        """Raises RuntimeFailed: NO_ENGINE where interpreter, runtime or model are at fault, else as `infer`."""
        engine = ChildEngine(self, model, sha256)
        engine.start(self.load_patience())
        return engine

    def start(self, patience: Patience) -> tuple[Child, Hello]:
        """A child that has said hello. Raises RuntimeFailed."""
        if self.abandoned:
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"killed, but not gone: process {self.abandoned[0]}; AI is off")
        child = Child(self._settings.program)
        with ExitStack() as undo:
            undo.callback(self.bury, child)
            hello = child.ask(self._hello(), Hello, patience, lost=Reason.NO_ENGINE)
            undo.pop_all()
        return child, hello

    def _hello(self) -> dict[str, Any]:
        return {"do": "hello", "settings": dict(self._settings.runtime_settings)}

    def bury(self, child: Child) -> None:
        """Kill it and wait; give it up after `reap_s`."""
        if not child.kill(self._settings.reap_s):
            self._unreaped.append(child)

    def output_limit(self) -> int:
        return self._settings.memory_mb << 20

    def load_patience(self) -> Patience:
        return Patience.of("load", self._settings.load_deadline_s)


class ChildEngine:
    """A ports.LoadedEngine. Used by one thread."""

    def __init__(self, runtime: ChildRuntime, model: Path, sha256: str) -> None:
        self.runtime = runtime.name
        self.runtime_version = ""
        self.device = ""
        self.degraded = ""
        self.plan_sha256 = self.variant_sha256 = ""
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.last_run_ms = 0.0  #: inside the runtime's own run call, as measured in the child
        self.last_note = ""  #: how that went, as the runtime says
        self._runtime = runtime
        self._model = model
        self._sha256 = sha256
        self._child: Child | None = None
        self._passage: Passage | None = None  # that this child has

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.pid

    def printed(self) -> list[str]:
        """Whole lines that the child has printed since this was asked last."""
        return [] if self._child is None else self._child.printed()

    def start(self, patience: Patience) -> None:
        """Start a child and load the model there. Raises RuntimeFailed, and then there is no child."""
        patience = patience.at_most(self._runtime.load_patience())
        with ExitStack() as undo, _opened(self._model) as fd:
            undo.callback(self._discard)
            self._child, hello = self._runtime.start(patience)
            loaded = self._child.ask({"do": "load", "sha256": self._sha256}, Loaded, patience, [fd])
            undo.pop_all()
        self.runtime_version, self.device = hello.version, loaded.device or hello.device
        self.inputs, self.outputs = loaded.inputs, loaded.outputs

    def infer(
        self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Array]:
        """Run once, in a new child if the last one is gone. NaN passes: what an answer means is not known here.

        Raises RuntimeFailed with the reason DEADLINE or ENGINE_FAILED, or RuntimeCancelled; the child is killed then,
        unless it was the inputs that do not fit the model.
        """
        kinds = kinds_of(inputs)
        if self._passage is None or self._passage.kinds != kinds:
            self._check_inputs(inputs)
        patience = Patience.of("inference", deadline_s, cancelled)
        try:
            return self._run(self._living_child(patience), inputs, kinds, patience)
        except BaseException:
            self._discard()
            raise

    def doubt(self, why: str) -> None:
        """There is no other to ask."""

    def close(self) -> None:
        """May be called again. An engine that is used after it starts a new child."""
        if self._child is not None:
            self._child.quit()
        self._discard()

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        specs = {spec.name: spec for spec in self.inputs}
        problems = [f"{name} is missing" for name in sorted(specs.keys() - inputs.keys())]
        problems += [f"{name} is no input of the model" for name in sorted(inputs.keys() - specs.keys())]
        known = sorted(specs.keys() & inputs.keys())
        problems += filter(None, (specs[name].mismatch(inputs[name].dtype, inputs[name].shape) for name in known))
        if problems:
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"wrong input: {'; '.join(problems)}")

    def _living_child(self, patience: Patience) -> Child:
        if self._child is None or self._child.ended:
            self._discard()
            self.start(patience)
        if self._child is None:
            raise RuntimeFailed(Reason.ENGINE_FAILED, "no child")
        return self._child

    def _run(self, child: Child, inputs: Mapping[str, Array], kinds: Kinds, patience: Patience) -> dict[str, Array]:
        try:
            if self._passage is not None and self._passage.kinds == kinds:
                ran, outputs = self._again(child, self._passage, inputs, patience)
            else:
                ran, outputs = self._first(child, inputs, kinds, patience)
        except (OSError, MemoryError) as error:
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"no memory to pass arrays: {error}") from error
        self.last_run_ms, self.last_note = ran.run_ms, ran.note
        return outputs

    def _first(
        self, child: Child, inputs: Mapping[str, Array], kinds: Kinds, patience: Patience
    ) -> tuple[RanAgain, dict[str, Array]]:
        self._let_go()
        passage = self._passage = Passage(kinds, self._room())
        passage.fill(inputs)
        ran = child.ask(passage.request(patience.left_s), Ran, patience, [passage.fd])
        outputs = self._outputs(child, passage, ran.outputs, ran.offsets, patience)
        if not passage.lasts:
            self._let_go()
        return ran, outputs

    def _again(
        self, child: Child, passage: Passage, inputs: Mapping[str, Array], patience: Patience
    ) -> tuple[RanAgain, dict[str, Array]]:
        passage.fill(inputs)
        ran = child.ask({"do": "again", "deadline_s": patience.left_s}, RanAgain, patience)
        if ran.outputs is None and passage.outputs:
            return ran, read_places(passage.fd, passage.outputs)
        return ran, self._outputs(child, passage, ran.outputs or (), ran.offsets, patience)

    def _outputs(
        self,
        child: Child,
        passage: Passage,
        specs: Sequence[ArraySpec],
        offsets: Sequence[int],
        patience: Patience,
    ) -> dict[str, Array]:
        self._check_outputs(specs)
        passage.outputs = places_of(specs, offsets, passage.room) if offsets else []
        if offsets:
            return read_places(passage.fd, passage.outputs)
        if not passage.lasts:
            self._let_go()  # before as much again is needed
        return self._fetch(child, specs, patience)

    def _room(self) -> int:
        """Bytes for the outputs, where the model says how large they will be: it saves asking for them."""
        sizes = [spec.bytes_if_fixed for spec in self.outputs]
        _, size = layout([size for size in sizes if size is not None])
        return size if None not in sizes and size <= self._runtime.output_limit() else 0

    def _check_outputs(self, specs: Sequence[ArraySpec]) -> None:
        """Their kinds and sizes, before a byte of them is given room."""
        if [spec.name for spec in specs] != [spec.name for spec in self.outputs]:
            raise RuntimeFailed(Reason.ENGINE_FAILED, "the outputs are not those of the model")
        for promised, given in zip(self.outputs, specs, strict=True):
            if text := promised.mismatch(np.dtype(given.dtype), given.shape):
                raise RuntimeFailed(Reason.ENGINE_FAILED, f"wrong output: {text}")
        if (size := layout([spec.size for spec in specs])[1]) > self._runtime.output_limit():
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"the outputs take {size} bytes: over the memory limit")

    def _fetch(self, child: Child, specs: Sequence[ArraySpec], patience: Patience) -> dict[str, Array]:
        offsets, size = layout([spec.size for spec in specs])
        with memory_file(size) as fd:
            child.ask({"do": "fetch", "offsets": offsets}, Done, patience, [fd])
            return read_places(fd, places_of(specs, offsets, range(size)))

    def _let_go(self) -> None:
        if self._passage is not None:
            passage, self._passage = self._passage, None
            passage.close()

    def _discard(self) -> None:
        self._let_go()
        if self._child is not None:
            child, self._child = self._child, None
            self._runtime.bury(child)


@contextmanager
def _opened(model: Path) -> Iterator[int]:
    try:
        fd = os.open(model, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFailed(Reason.NO_ENGINE, f"{model.name} cannot be read: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
