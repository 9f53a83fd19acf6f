"""`scanside run`: a supervisor, and a process per concern, none able to take another down.

Each process is started anew when it ends or falls silent, with back-off. The supervisor's own loop is what systemd's
watchdog covers; a silent child is the supervisor's business. When the supervisor dies, the kernel ends its children.
"""

import argparse
import fcntl
import importlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config import Config, load
from appliance.disk import make_folder
from appliance.errors import ConfigError, ScansideError
from appliance.life import READY, Life, leave_no_core
from appliance.logs import configure
from appliance.wiring.common import EX_FAILED, PROCESSES, without_values

SILENT_S = 60.0
FIRST_RESTART_S = 0.2
LAST_RESTART_S = 30.0
STEADY_S = 60.0  # after running so long, the next restart is quick again
STOP_S = 15.0

Log = Callable[..., None]


@dataclass(slots=True)
class Child:
    """One process of the appliance, as the supervisor sees it."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    started: float = 0.0
    heard: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    ready: bool = False


@dataclass(slots=True)
class Supervisor:
    config_path: Path
    log: Log
    notify: Callable[[str], None]
    children: list[Child] = field(default_factory=lambda: [Child(name) for name in PROCESSES])
    stopping: bool = False
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _told_ready: bool = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT; returns the exit code."""
        wake = self._wake_on_signals()
        self._selector.register(wake, selectors.EVENT_READ, None)
        while not self.stopping:
            self._start_due()
            self._listen()
            self._reap()
            self.notify("WATCHDOG=1")
            if not self._told_ready and all(child.ready or child.failures for child in self.children):
                self._told_ready = True
                self.notify("READY=1")
                self.log("ready")
        self.notify("STOPPING=1")
        self._end_all()
        return 0

    def _wake_on_signals(self) -> socket.socket:
        """Signals end the wait at once and are handled between steps."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        signal.set_wakeup_fd(writing.detach())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return reading

    def _start_due(self) -> None:
        for child in self.children:
            if child.process is None and time.monotonic() >= child.start_at:
                self._start(child)

    def _start(self, child: Child) -> None:
        now = time.monotonic()
        child.started = child.heard = now
        try:
            child.line, child.process = self._spawn(child.name)
        except OSError as error:  # no memory or descriptors for one more: the others go on
            self._ended(child, str(error.strerror), now)
            return
        self._selector.register(child.line, selectors.EVENT_READ, child)
        self.log("started", child=child.name, pid=child.process.pid)

    def _spawn(self, name: str) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = [sys.executable, "-m", "appliance.daemon", name, "--config", str(self.config_path)]
        with theirs, ExitStack() as undo:
            undo.push(ours)
            process = subprocess.Popen(
                [*command, "--life", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
            undo.pop_all()
        return ours, process

    def _listen(self) -> None:
        waits = [child.start_at for child in self.children if child.process is None]
        timeout = min([5.0, *(max(0.0, at - time.monotonic()) for at in waits)])
        for key, _ in self._selector.select(timeout):
            child: Child | None = key.data
            data = self._read(key.fileobj)
            if child is not None and data:
                child.heard = time.monotonic()
                child.ready = child.ready or READY in data
            elif child is not None:
                self._hang_up(child)

    @staticmethod
    def _read(line: object) -> bytes:
        assert isinstance(line, socket.socket)  # noqa: S101 - only sockets are registered
        try:
            return line.recv(4096)
        except OSError:
            return b""

    def _reap(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.process is None:
                continue
            if now - child.heard > SILENT_S and child.process.poll() is None:
                self.log("silent", child=child.name, pid=child.process.pid)
                child.process.kill()
                child.heard = now  # one that cannot be killed is told of now and then, not at each look
            status = child.process.poll()
            if status is not None:
                self._ended(child, status, now)

    def _ended(self, child: Child, status: int | str, now: float) -> None:
        child.failures = 1 if now - child.started > STEADY_S else child.failures + 1
        wait_s = min(LAST_RESTART_S, FIRST_RESTART_S * 2.0 ** min(child.failures - 1, 16))
        self.log("ended", child=child.name, status=status, restart_in_s=wait_s)
        child.process, child.ready = None, False
        child.start_at = now + wait_s
        self._hang_up(child)

    def _hang_up(self, child: Child) -> None:
        if child.line is not None:
            self._selector.unregister(child.line)
            child.line.close()
            child.line = None

    def _end_all(self) -> None:
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def systemd_notifier() -> Callable[[str], None]:
    """Tell systemd READY and WATCHDOG where it listens, nobody elsewhere."""
    if "NOTIFY_SOCKET" not in os.environ:
        return lambda _: None
    try:
        daemon = importlib.import_module("systemd.daemon")
    except ImportError as error:
        raise ScansideError("started by systemd with Type=notify, but systemd-python is not installed") from error
    notify: Callable[[str], None] = daemon.notify
    return notify


@contextmanager
def sole_owner(config: Config) -> Iterator[None]:
    """Hold the state folder: a second daemon, or `recover` beside one, would undo what the other does.

    The lock ends with the process that holds it, however it ends. Raises ScansideError where another one holds it.
    """
    make_folder(config.run_dir)
    fd = os.open(config.state_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise ScansideError(f"{config.state_dir} is in use: an appliance runs on it (pid {holder})") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def supervise(config_path: Path, life: int | None = None) -> int:
    """Run the appliance until it is told to stop, or whoever holds the other end of the socket `life` dies.

    Raises ConfigError, ScansideError before anything starts.
    """
    leave_no_core()
    bond = Life(life)
    config = load(config_path)
    log = configure("supervisor").info
    with sole_owner(config):
        status = Supervisor(config_path=config_path.resolve(), log=log, notify=systemd_notifier()).run()
    bond.close()
    return status


def _tell_failures_by(log: Log) -> None:
    """Whatever nobody catches, in any thread. Python would print the error's words: a data set's, perhaps (P10)."""

    def tell(_: type[BaseException], error: BaseException, *__: object) -> None:
        log("failed", reason=without_values(error))

    sys.excepthook = tell
    threading.excepthook = lambda failed: tell(failed.exc_type, failed.exc_value or RuntimeError())


def main() -> int:
    """One process of the appliance, started by the supervisor."""
    parser = argparse.ArgumentParser(prog="appliance.daemon", description=main.__doc__)
    parser.add_argument("process", choices=PROCESSES)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--life", type=int, help="descriptor of the supervisor's line")
    arguments = parser.parse_args()
    leave_no_core()
    life = Life(arguments.life)
    life.stop_on_signals()
    log = configure(arguments.process).error
    _tell_failures_by(log)
    try:
        process = importlib.import_module(f"appliance.wiring.{arguments.process}")
        return int(process.run(load(arguments.config), life))
    except ConfigError as error:
        log("config_wrong", messages=error.messages)
        return 2
    except (ScansideError, OSError) as error:
        log("failed", reason=str(error))
        return EX_FAILED


if __name__ == "__main__":
    sys.exit(main())
