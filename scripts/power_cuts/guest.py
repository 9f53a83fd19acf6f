"""One boot of a User-mode Linux guest: starting it, hearing its console, cutting its power.

The cut is SIGKILL of the guest's process group: its page cache is gone, what it had handed to its disk stays, as with a
disk that keeps what it has taken. The console is a pipe to us, which outlives the guest.
"""

import ctypes
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from power_cuts import RigError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
PACKAGES = {
    KERNEL: "user-mode-linux",
    "busybox": "busybox-static",
    "dmsetup": "dmsetup",
    "mkfs.ext4": "e2fsprogs",
    "eatmydata": "eatmydata",
}
MEMORY = "192M"
LOOK_S = 0.01
TAIL = 2000  # characters of a console that are shown
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

Stop = Callable[[bytes, float], bool]  # (console so far, seconds since the boot) -> enough


def missing_parts() -> list[str]:
    """Debian packages that are needed here and are not installed; "root" where we are not root."""
    where = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    absent = [package for program, package in PACKAGES.items() if shutil.which(program, path=where) is None]
    return absent + ([] if os.geteuid() == 0 else ["root"])


def kernel_version() -> str:
    """Of the guest."""
    return next((path.name for path in MODULES.glob("*")), "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a guest is booted with. `disks` become /dev/ubda, /dev/ubdb and so on."""

    job: str  #: shell script that the guest runs; it powers off when that ends
    disks: Sequence[Path]
    modules: Sequence[str] = ()  #: kernel modules, by name, in their order


def python_job(module: str, *arguments: str, preload: str = "") -> str:
    """The shell line that runs a module of ours in the guest."""
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": "/run/scratch",
        "LD_PRELOAD": preload,
    }
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items() if value)
    return f"{settings} {shlex.join([sys.executable, '-W', 'ignore', '-m', module, *arguments])}\n"


class Guest:
    """A running guest; leaving its `with` cuts its power."""

    def __init__(self, boot: Boot, work: Path) -> None:
        self.console = b""
        self._begun = time.monotonic()
        job = work / "job.sh"
        job.write_text("".join(f"/bin/busybox insmod {_module(name)}\n" for name in boot.modules) + boot.job)
        command = [KERNEL, f"mem={MEMORY}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        command += [f"init={HERE / 'init.sh'}", f"job={job}", "con=null", "con0=fd:0,fd:1", "quiet"]
        command += [f"ubd{number}={disk}" for number, disk in enumerate(boot.disks)]
        # The guest's memory is a file in TMPDIR; the kernel itself ends it should we die.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(work)},
            preexec_fn=_end_with_us,  # noqa: PLW1509 - our workers have one thread
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def listen(self, enough: Stop, within_s: float) -> bool:
        """Read the console until `enough` says so (True), or the guest ends or the time is over (False)."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (seconds := time.monotonic() - self._begun) < within_s:
                if enough(self.console, seconds):
                    return True
                if selector.select(LOOK_S):
                    piece = os.read(self._process.stdout.fileno(), 1 << 16)
                    if not piece:
                        return enough(self.console, seconds)
                    self.console += piece
        return False

    def cut(self) -> bytes:
        """Cut the power, now; returns the whole console, which may end within a line."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.console += self._process.stdout.read()
            self._process.stdout.close()
        return self.console

    def run_to_end(self, within_s: float) -> str:
        """Let the job end; returns the console. Raises RigError where it does not end well in time."""
        ended = self.listen(lambda console, _: b"JOB ENDED" in console, within_s)
        text = self.cut().decode("utf-8", "replace").replace("\r", "")
        if not ended or "JOB ENDED 0" not in text:
            raise RigError(f"the guest's job failed:\n{text[-TAIL:]}")
        return text


def _end_with_us() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _module(name: str) -> Path:
    found = next(MODULES.glob(f"*/kernel/**/{name}.ko"), None)
    if found is None:
        raise RigError(f"no kernel module {name} under {MODULES}: is user-mode-linux installed whole?")
    return found
