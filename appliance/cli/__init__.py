"""The `scanside` command. A module per family of commands; this one knows them by a table, and what errors look like.

Exit codes of every command: 0 what was asked holds, 1 it does not, 2 the configuration or the command line is wrong,
130 Ctrl-C. Expected errors are one message on standard error, never a traceback.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from appliance import __version__
from appliance.cli.lazy import Entry, LazyGroup
from appliance.cli.tables import complain
from appliance.errors import ConfigError, ScansideError

COMMANDS = {
    "run": Entry("appliance.cli.daemon", "Run the appliance, until it is told to stop."),
    "check": Entry("appliance.cli.daemon", "Check a configuration file: every error at once."),
    "demo": Entry("appliance.cli.demo", "Rehearse everything on this machine: scanner, appliance, PACS."),
    "rehearse": Entry("appliance.cli.rehearse", "Hold the drills of a bad network, and write an acceptance report."),
    "status": Entry("appliance.cli.status", "What runs, what is owed to whom, and what needs somebody."),
    "trace": Entry("appliance.cli.trace", "Everything that happened to a study, series or instance."),
    "deliveries": Entry("appliance.cli.queue", "List what is owed to destinations."),
    "requeue": Entry("appliance.cli.queue", "Send held deliveries after all."),
    "abandon": Entry("appliance.cli.queue", "Give a held delivery up, by name and with a reason."),
    "export": Entry("appliance.cli.export", "Write what is owed, or a study, as a DICOM file-set on a stick."),
    "recover": Entry("appliance.cli.recover", "Rebuild a lost journal from the spool."),
    "engines": Entry("appliance.cli.engines", "Look after the engine packages."),
    "send": Entry("appliance.cli.send", "Send DICOM files as a scanner would."),
}


class Commands(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    cls=Commands,
    name="scanside",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scanside {__version__}")
        raise typer.Exit


EXAMPLES = """\b
Begin with:
  scanside demo              the whole way from scanner to PACS, on this machine
  scanside check --config config/scanside.yaml
  scanside COMMAND --help    what a command does, with examples

Exit codes: 0 what was asked holds; 1 it does not; 2 wrong configuration or command line; 130 Ctrl-C."""


@app.callback(epilog=EXAMPLES)
def scanside(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Scanside keeps what a scanner sends, reads it beside the patient, and delivers it to PACS."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends in SystemExit."""
    try:
        app(arguments, prog_name="scanside")
    except ConfigError as error:
        complain(*error.messages)
        sys.exit(2)
    except ScansideError as error:
        complain(f"scanside: {error}")
        sys.exit(1)
    except OSError as error:
        complain(f"scanside: {error.filename or 'error'}: {error.strerror or error}")
        if isinstance(error, PermissionError):
            complain("Use the account that the appliance runs under: sudo -u scanside scanside ...")
        sys.exit(1)
