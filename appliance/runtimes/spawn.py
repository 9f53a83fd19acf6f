"""One child process: started, asked, killed. What it says when it dies is kept for the error.

Whatever it prints goes to a pipe that never blocks it and is read when it matters; nothing of it reaches a log
unless it died, and then one line.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import RuntimeFailed
from appliance.model import Reason
from appliance.runtimes.channel import Answer, Channel, Done, Patience
from appliance.runtimes.child import MAX_MESSAGE

_PROGRAM = Path(__file__).with_name("child.py")
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_PIPE_BYTES = 64 * 1024
_EXIT_S = 1.0  # between "quit", or the end of the socket, and the end of the process

A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child runs."""

    interpreter: Path  #: a Python >= 3.10
    path: Path
    options: Sequence[str]
    threads: int = 1
    max_answer: int = MAX_MESSAGE  #: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """How children of one runtime are started."""

    interpreter: Path  #: a Python >= 3.10 with numpy and the runtime
    runtime: str = "onnx"
    threads: int = 1
    memory_mb: int = 4096  #: of private memory (RLIMIT_DATA), and of the outputs of one run
    load_deadline_s: float = 60.0  #: start, imports and load together
    reap_s: float = 5.0  #: how long a killed child may take to go
    runtime_settings: Mapping[str, Any] = field(default_factory=dict)  #: what the runtime itself must know; JSON

    @property
    def program(self) -> Program:
        options = ["--runtime", self.runtime, "--threads", str(self.threads), "--memory-mb", str(self.memory_mb)]
        return Program(interpreter=self.interpreter, path=_PROGRAM, options=options, threads=self.threads)


class Child:
    """A running child. Whoever makes one calls `kill` in the end."""

    def __init__(self, program: Program) -> None:
        """Raises RuntimeFailed(NO_ENGINE) where the interpreter cannot be started."""
        try:
            with ExitStack() as ours, ExitStack() as theirs:
                near, far = socket.socketpair()
                ours.enter_context(near)
                theirs.enter_context(far)
                self._words, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                ours.callback(os.close, self._words)
                theirs.callback(os.close, said)
                self._process = _start(program, far.fileno(), said)
                self._channel = Channel(near, program.max_answer)
                self._unread = ""
                self._descriptors = ours.pop_all()
        except OSError as error:
            text = f"{program.interpreter} cannot be started: {error.strerror or error}"
            raise RuntimeFailed(Reason.NO_ENGINE, text) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def spun(self) -> bool:
        """Whether it was its processor time that ended it."""
        return self._process.poll() == -signal.SIGXCPU

    def ask(
        self,
        request: dict[str, Any],
        kind: type[A],
        patience: Patience,
        files: Sequence[int] = (),
        lost: Reason = Reason.ENGINE_FAILED,
    ) -> A:
        """Raises RuntimeFailed, with the reason `lost` where the child is gone."""
        try:
            return self._channel.ask(request, files, kind, patience)
        except (EOFError, OSError) as error:
            raise RuntimeFailed(lost, self._epitaph()) from error

    def quit(self) -> None:
        """Let it end by itself, for a moment."""
        with suppress(RuntimeFailed, subprocess.TimeoutExpired):
            self.ask({"do": "quit"}, Done, Patience.of("quit", _EXIT_S))
            self._process.wait(_EXIT_S)

    def kill(self, reap_s: float) -> bool:
        """End it at once, however it is. False if it is still there after `reap_s`. May be called again."""
        self._process.kill()
        self._descriptors.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(reap_s)
        return self.ended

    def _epitaph(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_S)
        status = self._process.returncode
        if status is None:
            how = "the child closed its socket"
        elif status >= 0:
            how = f"the child ended with status {status}"
        else:
            how = f"the child was killed by {signal.Signals(-status).name}"
        words = self._last_line()
        return f"{how}: {words}" if words else how

    def printed(self) -> list[str]:
        """Whole lines that it has printed since this was asked last; waits for none."""
        *lines, self._unread = (self._unread + self._read_words()).split("\n")
        self._unread = self._unread[-_PIPE_BYTES:]
        return lines

    def _last_line(self) -> str:
        last = (self._unread + self._read_words()).strip().rpartition("\n")[2]
        return "".join(c if c.isprintable() else " " for c in last)[:300]

    def _read_words(self) -> str:
        with suppress(BlockingIOError):
            return os.read(self._words, _PIPE_BYTES).decode(errors="replace")
        return ""


def _start(program: Program, connection: int, output: int) -> subprocess.Popen[bytes]:
    """Isolated (-I): no script folder, no user site, no PYTHON* variables. A session of its own: no Ctrl-C."""
    command = [str(program.interpreter), "-I", str(program.path), *program.options]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": str(program.threads),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command, stdin=connection, stdout=output, stderr=output, env=environment, start_new_session=True
    )
