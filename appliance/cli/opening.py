"""What commands share: the options every command has, and the way to the configuration and the journal."""

import getpass
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from appliance.config import Config, load
from appliance.errors import ConfigError, ScansideError
from appliance.journal.store import Journal
from appliance.latch import latched
from appliance.wakeup import Bell

USUAL_CONFIG = Path("/etc/scanside/scanside.yaml")
FAILED = 1  #: exit code: what was asked did not hold
WRONG = 2  #: exit code: the configuration or the command line is wrong

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="SCANSIDE_CONFIG",
        metavar="FILE",
        show_default=False,
        help=f"The configuration file. [default: {USUAL_CONFIG}]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]

ByOption = Annotated[
    str, typer.Option("--by", metavar="NAME", show_default=False, help="Who decides. [default: your login name]")
]


def teaching(*examples: str, failed: str) -> str:
    """The end of a command's help: examples to copy, and its exit codes. The backspace keeps click from refilling."""
    shown = "\n".join(f"  {example}" for example in examples)
    return f"\b\nExamples:\n{shown}\n\nExit codes: 0 ok; 1 {failed}; 2 wrong configuration or command line."


def config_path(given: Path | None) -> Path:
    """The file to use. Raises ConfigError where none was named and the usual one is not there."""
    if given is not None:
        return given
    if USUAL_CONFIG.exists():
        return USUAL_CONFIG
    raise ConfigError(
        [f"no configuration: there is no {USUAL_CONFIG}. Name yours with --config FILE, or in SCANSIDE_CONFIG."]
    )


def load_config(given: Path | None) -> Config:
    """Raises ConfigError."""
    return load(config_path(given))


@contextmanager
def open_journal(config: Config) -> Iterator[Journal]:
    """The journal of an appliance that has run at least once. Raises ScansideError where there is none, StoreFailed."""
    if not config.journal_path.exists():
        raise ScansideError(
            f"no journal at {config.journal_path}: this appliance has never run. Start it with `scanside run`, or"
            " name another configuration with --config."
        )
    journal = Journal(config.journal_path, "cli")
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def writable_journal(config: Config) -> Iterator[Journal]:
    """As `open_journal`, for a command that changes something. Raises ScansideError where nothing may be changed."""
    if why_not := untrusted(config):
        raise ScansideError(f"nothing was changed: {why_not}")
    with open_journal(config) as journal:
        yield journal


def untrusted(config: Config) -> str:
    """Why nothing may be written to the journal now, in words, or ""."""
    if reason := latched(config.spool_dir):
        return (
            f"writing to the disk failed ({reason}), and until the appliance has proved it anew, what is written may be"
            " lost. Look at the disk (dmesg, smartctl), see that the appliance runs, and ask again when `scanside"
            " status` does not tell of it any more."
        )
    return ""


def person(named: str) -> str:
    """Who answers for it: the name given, else the login name, of the person behind sudo where there is one."""
    if named.strip():
        return named.strip()
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        raise typer.BadParameter("this account has no name: say who decides", param_hint="--by") from None


def ring_forward(config: Config) -> None:
    """Wake the forward process: there is something new to send."""
    ring(config, "forward")


def ring(config: Config, name: str) -> None:
    """Wake a process of the appliance, if it is there."""
    bell = Bell(config.run_dir, f"cli-{os.getpid()}")
    bell.ring(name)
    bell.close()


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that processes are ended and folders removed."""

    def unwind(number: int, _: object) -> None:
        sys.exit(128 + number)

    both = (signal.SIGTERM, signal.SIGHUP)
    heeded = [one for one in both if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores one
    before = {one: signal.signal(one, unwind) for one in heeded}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
