"""Running our code under strace, to see its system calls and let one of them fail; and on a small disk."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.missing import missing

ROOT = Path(__file__).resolve().parent.parent
STRACE = shutil.which("strace")


@dataclass(frozen=True, slots=True)
class Traced:
    """What became of it: its exit status, what it printed, and the calls asked for, in order."""

    status: int
    output: str
    calls: list[str]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def python(script: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(script), *(str(argument) for argument in arguments)]


def traced(folder: Path, command: Sequence[str], *, calls: str = "", inject: str = "", path: str = "") -> Traced:
    """Run a command under strace, which looks at `calls`. `inject` as in its -e inject=, on `path` if that is given."""
    if STRACE is None:
        missing("strace is not installed")
    log = folder / "strace.log"
    options = [
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-yy",
        "-s",
        "32",
        "-o",
        str(log),
        "-e",
        f"trace={calls or inject.partition(':')[0]}",
    ]
    options += ["-e", f"inject={inject}"] if inject else []
    options += ["-P", path] if path else []
    done = subprocess.run(
        [STRACE, *options, *command], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    if "ptrace" in done.stderr and "Operation not permitted" in done.stderr:
        missing("tracing is not permitted here")
    lines = [line.split(" ", 1)[1].strip() for line in log.read_text().splitlines()]
    return Traced(status=done.returncode, output=done.stdout + done.stderr, calls=lines)


def on_small_disk(folder: Path, kib: int, command: Sequence[str]) -> str:
    """Run a command while `folder` is a file system of `kib` KiB of its own; returns what it printed."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        missing("a small file system needs root and unshare")
    folder.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={kib}k none "$1" && shift && exec "$@"'
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", mount, "sh", str(folder), *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        missing("mounting is not permitted here")
    assert done.returncode == 0, done.stderr
    return done.stdout
