"""recover: a new journal from the spool (P12)."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.opening import ConfigOption, JsonOption, load_config, teaching
from appliance.cli.tables import Output, plural
from appliance.config import Config
from appliance.daemon import sole_owner
from appliance.errors import ScansideError
from appliance.wiring.recover import Rebuilt, rebuild

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside recover --config /etc/scanside/scanside.yaml",
        failed="the appliance runs on this state folder, there is no spool, the disk fails, or nobody confirmed",
    )
)
def recover(
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a lost journal from the spool.

    For when the journal is gone or broken and the images are still there. A journal that is there is set aside, never
    deleted. Then everything in the spool is owed to its destinations once more: they will get objects that they may
    have already. What came malformed is kept and delivered as it came; files whose end is missing were never
    acknowledged to a scanner, and are put aside. Stop the appliance first.

    What was in the journal only is lost: history, what scanners said of their work (MPPS), and requests for storage
    commitment that were not reported yet. A scanner whose request was lost gets no report: it must ask again.
    """
    loaded, output = load_config(config), Output(as_json=as_json)
    if not loaded.spool_dir.is_dir():
        raise ScansideError(f"nothing to recover: there is no spool at {loaded.spool_dir}")
    with sole_owner(loaded):
        if not yes:
            _confirm(loaded)
        rebuilt = _rebuild(loaded, output)
    done = rebuilt.recovered
    asking = sorted({peer.ae_title for peer in loaded.receive.peers if peer.commitment})
    output.document(asdict(done) | {"set_aside": [str(path) for path in rebuilt.set_aside], "must_ask_again": asking})
    output.line(f"{plural(done.instances, 'object')} and {plural(done.results, 'result')} recovered and owed again")
    if done.repeats:
        output.line(f"{plural(done.repeats, 'file')} twice in the spool: one copy removed")
    for file in done.quarantined:
        output.line(f"put aside, its end is missing: {file}")
    for path in rebuilt.set_aside:
        output.line(f"the journal that was there: {path}")
    if asking:
        output.line(
            f"lost: requests for storage commitment that were not reported yet. Ask again at {', '.join(asking)} for"
            " what it holds unconfirmed; until it has our report, it must not delete its images."
        )
    output.line("Now start the appliance.")


def _confirm(config: Config) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to ask: say --yes", param_hint="--yes")
    question = f"Set {config.journal_path} aside, and owe everything in {config.spool_dir} to its destinations again?"
    if not typer.confirm(question, err=True):
        raise ScansideError("nothing was changed")


def _rebuild(config: Config, output: Output) -> Rebuilt:
    with output.progress("reading the spool") as tell:
        return rebuild(config, tell)
