"""Re-encoding stored objects in a child process: the side of those who send. The child is the reader's program, with
its limits; see `reader_program`.

It is started when something is to be done, in a thread of its own with which it dies, and goes when nothing was for a
while. One that dies, spins, hangs or answers nonsense is killed and reaped, and that object is not re-encoded.
"""

import os
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import CannotRecode, RuntimeFailed
from appliance.model import Reason
from appliance.ports import Recoded, Recoding
from appliance.runtimes.channel import Answer, Patience
from appliance.runtimes.spawn import Child, Program

#: What it compresses to without loss: JPEG-LS, JPEG 2000.
LOSSLESS_SYNTAXES = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90")
MAX_ANSWER = 1 << 16

_PROGRAM = Path(__file__).with_name("reader_program.py")
_LOST = Reason.UNDECODABLE  # of a child that is gone
_CHANCES = 2  # the kernel may have taken the first child for its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoderSettings:
    """How the child is started, and what it may take."""

    interpreter: Path = field(default_factory=lambda: Path(sys.executable))
    memory_mb: int = 4096  #: that it may map (RLIMIT_AS)
    cpu_s: int = 120  #: of processor time for each object
    deadline_s: float = 15.0  #: for each object, by the clock, and
    bytes_s: float = 4e6  #: a second more for so many bytes of it
    start_s: float = 30.0
    reap_s: float = 5.0  #: how long a killed child may take to go
    idle_s: float = 30.0  #: without work, until it goes

    @property
    def program(self) -> Program:
        options = ["--memory-mb", str(self.memory_mb), "--cpu-s", str(self.cpu_s)]
        return Program(interpreter=self.interpreter, path=_PROGRAM, options=options, max_answer=MAX_ANSWER)


class _Cannot(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, Field(max_length=64)]
    detail: Annotated[str, Field(max_length=500)]


class _Said(Answer):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cannot: _Cannot | None = None
    size: Annotated[int, Field(ge=0, lt=2**63)] = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    cpu_s: Annotated[float, Field(ge=0)] = 0.0


class _Hello(Answer):
    protocol: Literal[1]


_Job = tuple[Recoding, Future[Recoded]]


class ChildRecoder:
    """A ports.Recoder, for one destination. Used by many threads."""

    def __init__(self, settings: RecoderSettings) -> None:
        self._settings = settings
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._child: Child | None = None  # the thread's
        self._unreaped: list[Child] = []

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        child = self._child
        return None if child is None else child.pid

    def recode(self, wanted: Recoding) -> Future[Recoded]:
        """See ports.Recoder."""
        future: Future[Recoded] = Future()
        with self._lock:
            self._jobs.put((wanted, future))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="recoder", daemon=True)
                self._thread.start()
        return future

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._settle(*job)
        except BaseException:
            try:
                self._discard()
            finally:
                self._refuse_rest()
            raise

    def _refuse_rest(self) -> None:
        """Nobody is there any more to do what waits."""
        with self._lock:
            self._thread = None
            with suppress(queue.Empty):
                while True:
                    _, future = self._jobs.get_nowait()
                    if future.set_running_or_notify_cancel():
                        future.set_exception(RuntimeFailed(Reason.ENGINE_FAILED, "the re-encoder has ended"))

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get(timeout=self._settings.idle_s)
        except queue.Empty:
            self._discard()  # as long as it is ours: a thread that is started from now on has its own
            with self._lock:
                if not self._jobs.empty():
                    return self._jobs.get()
                self._thread = None
                return None

    def _settle(self, wanted: Recoding, future: Future[Recoded]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._recode(wanted))
        except (CannotRecode, RuntimeFailed) as error:
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(error)
            raise

    def _recode(self, wanted: Recoding) -> Recoded:
        with _made(wanted.target) as fd:
            for _ in range(_CHANCES):
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)
                child = self._ready()
                try:
                    return self._ask(child, wanted, fd)
                except RuntimeFailed as error:
                    self._discard()
                    failed = error
                if failed.reason != _LOST or child.spun:
                    break
        if failed.reason in (_LOST, Reason.DEADLINE):
            raise CannotRecode(f"while it was re-encoded: {failed}")
        raise failed

    def _ask(self, child: Child, wanted: Recoding, fd: int) -> Recoded:
        settings = self._settings
        seconds = settings.deadline_s + max(_size(wanted.source), wanted.most // 16) / settings.bytes_s
        request = {
            "do": "transcode",
            "path": os.path.abspath(wanted.source),  # noqa: PTH100 - the child stands in another folder
            "syntax": wanted.transfer_syntax_uid,
            "most": wanted.most,
        }
        said = child.ask(request, _Said, Patience.of("re-encoding", seconds), [fd], lost=_LOST)
        if said.cannot is not None:
            self._discard()  # what decoders leave behind when they fail is unknown
            raise CannotRecode(said.cannot.detail)
        return Recoded(size=said.size, seconds=said.seconds, cpu_s=said.cpu_s)

    def _ready(self) -> Child:
        if self._child is not None and self._child.ended:
            self._discard()
        if self._child is None:
            self._child = self._start()
        return self._child

    def _start(self) -> Child:
        self._unreaped = [child for child in self._unreaped if not child.ended]
        if self._unreaped:
            text = f"a re-encoder was killed, but is not gone: process {self._unreaped[0].pid}"
            raise RuntimeFailed(Reason.ENGINE_FAILED, text)
        child = Child(self._settings.program)
        with ExitStack() as undo:
            undo.callback(self._bury, child)
            patience = Patience.of("its start", self._settings.start_s)
            child.ask({"do": "hello"}, _Hello, patience, lost=Reason.ENGINE_FAILED)
            undo.pop_all()
        return child

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            self._bury(child)

    def _bury(self, child: Child) -> None:
        if not child.kill(self._settings.reap_s):
            self._unreaped.append(child)


@contextmanager
def _made(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RuntimeFailed(Reason.ENGINE_FAILED, f"{path.name} cannot be made: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CannotRecode(f"the stored file cannot be read: {error.strerror}") from error
