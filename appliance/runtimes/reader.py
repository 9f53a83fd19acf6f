"""Reading images in a child process: the daemon's side. A file may cost the child its life, and nothing else.

The child is started once and kept. Each thing it is asked has a deadline and a limit of processor time, and the child
a limit of memory; one that dies, spins, hangs or answers nonsense is killed and reaped, and the file is not read:
ReaderLost. A sudden death is given a second chance in a new child: the kernel may have taken the first for its memory.
After a file whose pixels cannot be read the child is replaced, too: what decoders leave behind when they fail is
unknown.

The wall is against crashes, hangs and bombs. It is none against a child that a file has taken over: that has the
daemon's user id, and may do what the daemon may.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging.film import Film, check_size
from appliance.imaging.headers import ImageHeader, Plane
from appliance.imaging.reading import Frame, ReaderLost
from appliance.model import Reason
from appliance.runtimes.channel import Patience
from appliance.runtimes.memory import memory_file, read_array
from appliance.runtimes.reader_answers import ElementsSaid, HeaderSaid, Hello, Said, SameSaid
from appliance.runtimes.reader_worker import MAX_ANSWER
from appliance.runtimes.spawn import Child, Program

_PROGRAM = Path(__file__).with_name("reader_program.py")
_LOST = Reason.UNDECODABLE  # of a child that is gone
_CHANCES = 2
_CLOSE_S = 1.0

A = TypeVar("A", bound=Said)
Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """How the child is started, and what it may take."""

    interpreter: Path = field(default_factory=lambda: Path(sys.executable))
    memory_mb: int = 4096  #: that it may map (RLIMIT_AS)
    cpu_s: int = 30  #: of processor time for each thing it is asked
    deadline_s: float = 45.0  #: for the same, by the clock: the machine may be busy
    start_s: float = 30.0
    reap_s: float = 5.0  #: how long a killed child may take to go
    requests: int = 20_000  #: after so many another child takes its place

    @property
    def program(self) -> Program:
        options = ["--memory-mb", str(self.memory_mb), "--cpu-s", str(self.cpu_s)]
        return Program(interpreter=self.interpreter, path=_PROGRAM, options=options, max_answer=MAX_ANSWER)


class ChildReader:
    """The child, shared by threads that ask one at a time. It dies with the thread that started it."""

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        self._turn = threading.Lock()
        self._child: Child | None = None
        self._asked = 0
        self._unreaped: list[Child] = []

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        child = self._child
        return None if child is None else child.pid

    @property
    def abandoned(self) -> tuple[int, ...]:
        """Process ids of children that were killed and are still there."""
        return tuple(child.pid for child in self._unreaped if not child.ended)

    def session(self, limit_s: float) -> "ReaderSession":
        """An ImageReader that reads for so many seconds altogether; waiting for its turn does not count."""
        return ReaderSession(self, limit_s)

    def freshen(self) -> None:
        """See to it that a child is there for the next file. Raises RuntimeFailed(ENGINE_FAILED)."""
        with self._turn:
            self._ready()

    def ask(self, request: Message, kind: type[A], patience_s: float, files: Sequence[int] = ()) -> tuple[A, float]:
        """The answer, and for how many seconds it was at work. Raises ReaderLost, RuntimeFailed(ENGINE_FAILED)."""
        with self._turn:
            begun = time.monotonic()
            self._ready()
            patience = Patience.of("reading an image", min(patience_s, self._settings.deadline_s))
            for chance in range(1, _CHANCES + 1):
                child = self._ready()
                self._asked += 1
                try:
                    with ExitStack() as undo:
                        undo.callback(self._discard)
                        said = child.ask(request, kind, patience, files, lost=_LOST)
                        undo.pop_all()
                    return said, time.monotonic() - begun
                except RuntimeFailed as error:
                    if error.reason != _LOST or chance == _CHANCES or child.spun:
                        late = error.reason == Reason.DEADLINE and patience_s < self._settings.deadline_s
                        reason = Reason.DEADLINE if late else Reason.UNDECODABLE
                        raise ReaderLost(reason, f"while the image was read: {error}") from None
            raise AssertionError("the last chance returns or raises")

    def replace(self) -> None:
        """Let another child read the next file."""
        with self._turn:
            self._discard()

    def close(self) -> None:
        """May be called again. A reader that is used after it starts a new child.

        A child at work is left to the end of the thread that started it, which takes it along.
        """
        if not self._turn.acquire(timeout=_CLOSE_S):
            return
        try:
            if self._child is not None:
                self._child.quit()
            self._discard()
        finally:
            self._turn.release()

    def _ready(self) -> Child:
        if self._child is not None and (self._child.ended or self._asked >= self._settings.requests):
            self._discard()
        if self._child is None:
            self._child, self._asked = self._start(), 0
        return self._child

    def _start(self) -> Child:
        self._unreaped = [child for child in self._unreaped if not child.ended]
        if self._unreaped:
            pid = self._unreaped[0].pid
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"an image reader was killed, but is not gone: process {pid}")
        try:
            child = Child(self._settings.program)
            with ExitStack() as undo:
                undo.callback(self._bury, child)
                child.ask({"do": "hello"}, Hello, Patience.of("its start", self._settings.start_s))
                undo.pop_all()
        except RuntimeFailed as error:
            text = f"the image reader does not start: {error}"
            raise RuntimeFailed(Reason.ENGINE_FAILED, text) from error
        return child

    def _discard(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            self._bury(child)

    def _bury(self, child: Child) -> None:
        if not child.kill(self._settings.reap_s):
            self._unreaped.append(child)


class ReaderSession:
    """An imaging.reading.ImageReader with a limit of time; over, too, when the child was lost. Used by one thread."""

    def __init__(self, reader: ChildReader, limit_s: float) -> None:
        self._reader = reader
        self._left_s = limit_s
        self.lost = False

    def header(self, path: Path) -> ImageHeader:
        said = self._ask({"do": "header", "path": _plain(path)}, HeaderSaid)
        if said.header is None:
            raise self._mad()
        return said.header.value(path)

    def elements(self, path: Path, tags: Sequence[int]) -> Dataset:
        said = self._ask({"do": "elements", "path": _plain(path), "tags": list(tags)}, ElementsSaid).dataset()
        if said is None:
            raise self._mad()
        return said

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        images = {key: {**_image(header), "frame": frame} for key, (header, frame) in (("a", a), ("b", b))}
        same = self._ask({"do": "same", **images}, SameSaid).same
        if same is None:
            raise self._mad()
        return same

    def slice_hu(self, header: ImageHeader, plane: Plane) -> NDArray[np.float32]:
        return self._filled({"do": "slice", "image": _image(header), "plane": asdict(plane)}, header)

    def write_hu(self, header: ImageHeader, plane: Plane, fd: int, offset: int) -> None:
        request = {"do": "write", "image": _image(header), "plane": asdict(plane), "offset": offset}
        self._ask(request, Said, [fd])

    def film(self, header: ImageHeader) -> Film:
        return Film(header=header, image=self._filled({"do": "film", "image": _image(header)}, header))

    def _filled(self, request: Message, header: ImageHeader) -> NDArray[np.float32]:
        """Sealed memory takes only pages that are written to: the child checks the size before that."""
        check_size(header.layout)
        shape = (header.layout.rows, header.layout.columns)
        try:
            with memory_file(shape[0] * shape[1] * 4) as fd:
                self._ask(request, Said, [fd])
                return np.asarray(read_array(fd, 0, "float32", shape), np.float32)
        except OSError as error:
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"no memory to pass an image: {error.strerror}") from error

    def _ask(self, request: Message, kind: type[A], files: Sequence[int] = ()) -> A:
        if self._left_s <= 0:
            self.lost = True
            raise ReaderLost(Reason.DEADLINE, "the images were not read in time")
        try:
            said, took_s = self._reader.ask(request, kind, self._left_s, files)
        except ReaderLost:
            self.lost, self._left_s = True, 0.0
            raise
        self._left_s -= took_s
        if said.cannot is None:
            return said
        if request["do"] not in ("header", "elements"):
            self._reader.replace()
        raise CannotAnalyse(said.cannot.reason, said.cannot.detail)

    def _mad(self) -> ReaderLost:
        self.lost = True
        self._reader.replace()
        return ReaderLost(Reason.UNDECODABLE, "the reader answered nothing")


def _plain(path: Path) -> str:
    """The child stands in another folder."""
    return os.path.abspath(path)  # noqa: PTH100 - not resolved: the child is to open the very name


def _image(header: ImageHeader) -> Message:
    layout = asdict(header.layout)
    return {"path": _plain(header.path), "layout": layout, "slope": header.slope, "intercept": header.intercept}
