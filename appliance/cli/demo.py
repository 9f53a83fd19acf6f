"""demo: the rehearsal, told to people or to machines."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import appliance
from appliance.cli.opening import FAILED, JsonOption, teaching, unwound_by_signals
from appliance.cli.tables import Column, Output, complain, plural, size_of
from appliance.errors import ScansideError
from appliance.rehearsal.patience import RehearsalFailed
from appliance.rehearsal.play import Plan, rehearse
from appliance.rehearsal.proof import ResultProof
from appliance.rehearsal.report import NO_DEVICE, Report, document, failures
from appliance.rehearsal.stage import Cast
from appliance.rehearsal.timeline import Timeline
from appliance.rehearsal.truth import Planted, Said

SHOWN = 10  # findings

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside demo",
        "scanside demo --outage",
        "scanside demo --study study.tar.xz --keep",
        failed="something did not hold; each thing is named",
    )
)
def demo(
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="PATH", show_default=False, help="Your own DICOM: file, folder or tar."),
    ] = None,
    outage: Annotated[
        bool, typer.Option("--outage", help="Cut the PACS away, kill the appliance, bring both back.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the files, and say where.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rehearse everything on this machine: scanner, appliance, PACS.

    A simulated scanner sends a synthetic chest with planted nodules (or your study) over a real DICOM association; the
    appliance, the same as `scanside run`, stores it, reads it and delivers images and results to a small PACS. Then
    every byte in the PACS is compared with what was sent. Everything stays on loopback and in a temporary folder, needs
    no rights, and takes about half a minute.
    """
    output = Output(as_json=as_json)
    try:
        _rehearse(output, study, outage=outage, keep=keep)
    except ScansideError as error:
        output.document({"failures": [str(error)]})
        raise


def _rehearse(output: Output, study: Path | None, *, outage: bool, keep: bool) -> None:
    with unwound_by_signals(), _folder(keep=keep) as folder:
        plan = Plan(folder=folder, cast=Cast(engines_dir=engines_dir()), study=study, outage=outage)
        with output.waiting() as tell:
            report = rehearse(plan, tell)
        output.document(document(report, files_stay=keep) | {"folder": str(folder) if keep else None})
        _print(output, report, folder if keep else None)
        if faults := failures(report):
            complain(*(f"! {fault}" for fault in faults))
            raise typer.Exit(FAILED)


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """A temporary folder; it stays if asked for, and where a message points into it."""
    folder = Path(tempfile.mkdtemp(prefix="scanside-demo-"))
    stays = keep
    try:
        yield folder
    except RehearsalFailed:
        stays = True
        raise
    finally:
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)


def engines_dir() -> Path:
    """The packages that come with the source tree, or with an installed package."""
    package = Path(appliance.__file__).parent
    for folder in (package.parent / "engines", package / "engines"):
        if folder.is_dir():
            return folder
    raise ScansideError(f"there is no engines folder beside {package}: run scripts/demo from the source tree")


def _print(output: Output, report: Report, folder: Path | None) -> None:
    images, outage = report.images, report.course.outage
    _print_timelines(output, report.timelines)
    _print_findings(output, report.planted, report.findings)
    _print_results(output, report.results, kept=folder is not None)
    output.line()
    if outage:
        output.line(
            f"Outage: {outage.owed_when_scanned} deliveries waited while the PACS was gone, {outage.owed_after_kill}"
            f" after all processes were killed; {plural(report.resent, 'object')} sent twice, none lost."
        )
    same = "every byte as sent" if images.holds else "NOT all as sent"
    output.line(f"{images.in_pacs} of {plural(images.sent, 'image')} in the PACS, {same}.", style="bold")
    output.line(NO_DEVICE)
    if folder is not None:
        output.line(f"Everything is kept in {folder}")
    else:
        output.line(f"Took {report.seconds:.0f} s. All files are removed again (--keep leaves them).", style="dim")


def _print_timelines(output: Output, timelines: Sequence[Timeline]) -> None:
    subjects = Counter(one.engine for one in timelines)
    for one in timelines:
        of_what = f" on {one.subject}" if subjects[one.engine] > 1 else ""
        output.line()
        output.line(f"{one.engine}{of_what}: milliseconds from the last byte in", style="bold")
        rows = [(f"{moment.ms:+,}", moment.text) for moment in one.moments]
        output.table([Column("ms", right=True), Column("what")], rows)


def _print_findings(output: Output, planted: Sequence[Planted], findings: Sequence[Said]) -> None:
    if planted:
        output.line()
        output.line("Planted nodules, and what was found", style="bold")
        output.table(
            [
                Column("planted at (mm)"),
                Column("diameter", right=True),
                Column("found"),
                Column("off by", right=True),
                Column("score", right=True),
                Column("rank", right=True),
            ],
            [_planted_row(one) for one in planted],
        )
    others = [one for one in findings if one not in [match.found for match in planted]]
    if others:
        output.line()
        output.line("Found, but not planted" if planted else "Findings, best first", style="bold")
    columns = [Column("engine"), Column("finding"), Column("score", right=True), Column("where (mm)"), Column("size")]
    output.table(columns, [_finding_row(one) for one in others[:SHOWN]])
    if len(others) > SHOWN:
        output.line(f"... and {len(others) - SHOWN} more", style="dim")


def _planted_row(one: Planted) -> tuple[object, ...]:
    where, size = _place(one.nodule.centre_mm), f"{one.nodule.diameter_mm:g} mm"
    if one.found is None or one.distance_mm is None:
        return where, size, "NO", "", "", ""
    return where, size, "yes", f"{one.distance_mm:.1f} mm", f"{one.found.finding.score:.2f}", one.found.rank


def _finding_row(one: Said) -> tuple[object, ...]:
    finding = one.finding
    where = _place(finding.centre_mm) if finding.centre_mm else ""
    size = f"{finding.long_axis_mm:.0f} mm" if finding.long_axis_mm else ""
    score = f"{finding.score:.2f}" if finding.has_score else ""
    return one.engine, finding.label, score, where, size


def _place(centre_mm: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in centre_mm)


def _print_results(output: Output, results: Sequence[ResultProof], *, kept: bool) -> None:
    if not results:
        return
    output.line()
    output.line("Results in the PACS", style="bold")
    columns = [Column("engine"), Column("kind"), Column("size", right=True), Column("as built")]
    rows = [(one.engine, one.kind, size_of(one.size), "yes" if one.byte_identical else "NO") for one in results]
    if not kept:
        output.table(columns, rows)
    else:
        paths = [(str(one.path or ""),) for one in results]
        output.table([*columns, Column("file")], [(*row, *path) for row, path in zip(rows, paths, strict=True)])
