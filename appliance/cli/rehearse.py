"""rehearse: what a bad network and a moody PACS do, done on purpose on loopback, and a report that a site can file."""

import hashlib
import shutil
import socket
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance import __version__
from appliance.cli.demo import engines_dir
from appliance.cli.opening import FAILED, USUAL_CONFIG, ConfigOption, JsonOption, teaching, unwound_by_signals
from appliance.cli.tables import Column, Output, complain, plural
from appliance.config import load
from appliance.errors import ConfigError, ScansideError
from appliance.rehearsal import acceptance
from appliance.rehearsal.acceptance import Verdict
from appliance.rehearsal.acceptance_report import Paper, html
from appliance.rehearsal.drills import DRILLS, Drill
from appliance.rehearsal.patience import RehearsalFailed
from appliance.rehearsal.stage import Cast, Tell

NO_CONFIG = "none was named: the rehearsal's own settings only"

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside rehearse",
        "scanside rehearse --report acceptance.html",
        "scanside rehearse --drill down --drill 'forgets us' --json",
        failed="a drill did not pass; each thing is named",
    )
)
def rehearse(
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", show_default=False, help="Write an HTML report to file and print."),
    ] = None,
    drill: Annotated[
        list[str] | None,
        typer.Option("--drill", metavar="NAME", show_default=False, help="Only this drill; may be given again."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold the drills of a bad network, and write an acceptance report.

    The appliance's own processes, on loopback and in a temporary folder, send a synthetic study to a PACS that is down,
    slow, full, breaks off, loses its answers, answers late, forgets our AE title, or grants one association. Each image
    and result must arrive byte for byte. Takes about a minute; touches no PACS of yours. The configuration is only
    named in the report, with its digest.
    """
    output = Output(as_json=as_json)
    try:
        paper = _hold(output, _chosen(drill or []), config)
    except ScansideError as error:
        output.document({"passed": False, "failures": [str(error)]})
        raise
    if report is not None:
        report.write_text(html(paper), encoding="utf-8")
    output.document(_document(paper))
    _print(output, paper, report)
    if not paper.passed:
        complain(*(f"! {one.drill}: {fault}" for one in paper.verdicts for fault in one.faults))
        raise typer.Exit(FAILED)


def _chosen(names: list[str]) -> list[Drill]:
    """Raises ConfigError where there is no such drill."""
    known = {one.name: one for one in DRILLS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError([f"there is no drill '{name}': choose from {', '.join(known)}" for name in unknown])
    return [known[name] for name in dict.fromkeys(names)] or list(DRILLS)


def _hold(output: Output, drills: list[Drill], config: Path | None) -> Paper:
    file = config or (USUAL_CONFIG if USUAL_CONFIG.exists() else None)
    node = load(file).node if file is not None else "rehearsal"
    begun = time.monotonic()
    with unwound_by_signals(), output.waiting() as tell:
        verdicts = _verdicts(drills, tell)
    return Paper(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        node=node,
        version=__version__,
        config=str(file) if file is not None else NO_CONFIG,
        config_sha256=hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else "",
        seconds=time.monotonic() - begun,
        verdicts=verdicts,
    )


def _verdicts(drills: list[Drill], tell: Tell) -> list[Verdict]:
    """In a temporary folder, which stays where something did not hold: the appliance's log is in it."""
    folder = Path(tempfile.mkdtemp(prefix="scanside-rehearse-"))
    failed = False
    try:
        verdicts = list(acceptance.run(folder, Cast(engines_dir=engines_dir()), drills, tell))
        failed = not all(one.passed for one in verdicts)
    except RehearsalFailed:
        failed = True
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        tell(f"the appliance's log and all files are kept in {folder}")
    return verdicts


def _document(paper: Paper) -> dict[str, object]:
    told = asdict(paper) | {"passed": paper.passed, "seconds": round(paper.seconds, 1)}
    return told | {"verdicts": [asdict(one) | {"passed": one.passed} for one in paper.verdicts]}


def _print(output: Output, paper: Paper, report: Path | None) -> None:
    output.line()
    output.table(
        [
            Column("drill"),
            Column("what happened"),
            Column("objects", right=True),
            Column("sent again", right=True),
            Column("drained in", right=True),
            Column("verdict"),
        ],
        [_row(one) for one in paper.verdicts],
    )
    output.line()
    failed = sum(not one.passed for one in paper.verdicts)
    words = f"{plural(failed, 'drill')} FAILED" if failed else "All drills passed"
    output.line(f"{words}, in {paper.seconds:.0f} s.", style="bold")
    if report is not None:
        output.line(f"The report: {report}")


def _row(one: Verdict) -> tuple[object, ...]:
    verdict = "passed" if one.passed else f"FAILED: {'; '.join(one.faults)}"
    return one.drill, one.what, one.objects, one.resent, f"{one.drained_s:.1f} s", verdict
