"""The appliance under rehearsal: `scanside run` in a process group of its own, on a state folder of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.journal.store import Journal
from appliance.rehearsal.patience import Patience, RehearsalFailed
from appliance.wakeup import is_listening
from appliance.wiring.common import PROCESSES

START_S = 60.0
VERIFY_ENGINES_S = 180.0
LAST_WORDS = 400  # bytes of the log


class Box:
    """Leaving its `with` ends the processes, whatever state they are in.

    So does the end of the thread that called `start`, as with a SIGKILL to the whole program: nothing is left running.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], stirred: threading.Event) -> None:
        """`options`: the configuration, without the state folder. `stirred`: see Patience."""
        folder.mkdir(parents=True)
        self.log = folder / "appliance.log"
        self.state = folder / "state"
        self.patience = Patience(stirred=stirred, fault=self._fault, log=self.log)
        self._config = folder / "scanside.yaml"
        self._config.write_text(json.dumps({**options, "state": str(self.state)}, indent=2))
        self._process: subprocess.Popen[bytes] | None = None
        self._bond: socket.socket | None = None  # the supervisor ends with its other end, or with our thread

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def port(self) -> int:
        """Of its listener. Raises RehearsalFailed while there is none."""
        facts = self._facts("receive")
        if facts is None:
            raise RehearsalFailed(f"the appliance does not listen. Its log: {self.log}")
        return int(facts["port"])

    def start(self) -> None:
        """Start it, and wait until all its processes are there. Raises RehearsalFailed."""
        for name in ("receive", "engines", "lanes"):
            self._facts_file(name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "appliance", "run", "--config", str(self._config)]
        self._let_go()
        self._bond, theirs = socket.socketpair()
        with self.log.open("ab") as log, theirs:
            self._process = subprocess.Popen(
                [*command, "--life", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.patience.wait(self._is_up, "all processes of the appliance run", START_S)

    def engines(self) -> dict[str, Any]:
        """What it says of its engines once it has verified them. Raises RehearsalFailed."""
        self.patience.wait(lambda: self._facts("engines") is not None, "the engines are verified", VERIFY_ENGINES_S)
        return self._facts("engines") or {}

    def kill(self) -> None:
        """SIGKILL to all its processes at once: what a power cut is to them."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._let_go()

    def _let_go(self) -> None:
        if self._bond is not None:
            self._bond.close()
            self._bond = None

    def journal(self) -> Journal:
        """A reader's way to its journal; the caller closes it."""
        return Journal(self.state / "journal.sqlite", "rehearsal")

    def _is_up(self) -> bool:
        listening = all(is_listening(self.state / "run", name) for name in PROCESSES)
        return listening and self._facts("receive") is not None

    def _fault(self) -> str:
        if self._process is None or self._process.poll() is None:
            return ""
        return f"the appliance ended with status {self._process.returncode}: {self._last_words()}"

    def _last_words(self) -> str:
        return self.log.read_bytes()[-LAST_WORDS:].decode(errors="replace").strip().rpartition("\n")[2]

    def _facts(self, name: str) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads(self._facts_file(name).read_text())
        except FileNotFoundError:
            return None
        return facts

    def _facts_file(self, name: str) -> Path:
        return self.state / "run" / f"{name}.json"
