"""send: a scanner's stand-in."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from appliance import scanner
from appliance.cli.opening import FAILED, JsonOption, teaching, unwound_by_signals
from appliance.cli.tables import Column, Output, complain, plural, size_of
from appliance.config.values import ae_title, host
from appliance.dimse.wire import Target
from appliance.scanner import Found, Manner, Sent

SHOWN = 20  # skipped files
NAMED = 3  # files that failed for one reason
NOT_RECOGNISED = "not recognised"
HINT = (
    "The other side does not know these AE titles. On a Scanside box receive.peers must list {calling} with this"
    " machine's address, and ae_title must be {called}."
)

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside send ./study --to 127.0.0.1:11112 --calling CT01 --called SCANSIDE",
        "scanside send study.tar.xz --to pacs.example:104 --called PACS --associations 4",
        failed="something was refused or did not arrive",
    )
)
def send(  # noqa: PLR0913, PLR0917 - a command's parameters are its options
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A DICOM file, a folder of them, or a tar (.gz, .xz).")],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="Our AE title.")] = "SCANNER",
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the other side.")] = "SCANSIDE",
    associations: Annotated[int, typer.Option("--associations", min=1, max=64, help="So many at a time.")] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="In no order, as some scanners do.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files as a scanner would.

    Folders are searched to the bottom. Files that are not DICOM are named and skipped. Each object is sent once, byte
    for byte as stored; nothing is tried again.
    """
    target, output = _target(to, calling, called), Output(as_json=as_json)
    manner = Manner(associations=associations, shuffle=shuffle)
    with unwound_by_signals(), TemporaryDirectory(prefix="scanside-send-") as workdir:
        found = scanner.find(path, Path(workdir))
        begun = time.monotonic()
        results = _send(target, found, manner, output)
        seconds = time.monotonic() - begun
    failed = [sent for sent in results if not sent.stored]
    output.document(_document(target, found, results, seconds))
    _print(output, found, results, seconds)
    if failed:
        if any(NOT_RECOGNISED in sent.error for sent in failed):
            complain(HINT.format(calling=target.calling_ae, called=target.called_ae))
        raise typer.Exit(FAILED)


def _target(to: str, calling: str, called: str) -> Target:
    name, _, port = to.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise typer.BadParameter(f"{to!r} is no HOST:PORT, such as 127.0.0.1:11112", param_hint="--to")
    try:
        return Target(
            host=host(name.removeprefix("[").removesuffix("]")),
            port=int(port),
            calling_ae=ae_title(calling),
            called_ae=ae_title(called),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _send(target: Target, found: Found, manner: Manner, output: Output) -> list[Sent]:
    count = len(found.items)
    with output.progress(f"sending to {target.called_ae}") as tell:
        done: list[Sent] = []

        def one_more(sent: Sent) -> None:
            done.append(sent)
            tell(len(done), count)

        return scanner.send(target, found.items, manner, one_more)


def _document(target: Target, found: Found, results: Sequence[Sent], seconds: float) -> dict[str, Any]:
    return {
        "to": {"host": target.host, "port": target.port, "called_ae": target.called_ae},
        "calling_ae": target.calling_ae,
        "sent": sum(sent.stored for sent in results),
        "failed": sum(not sent.stored for sent in results),
        "bytes": sum(sent.item.stored.size for sent in results if sent.stored),
        "seconds": round(seconds, 3),
        "skipped": [{"file": one.name, "why": one.why} for one in found.skipped],
        "objects": [
            {
                "file": sent.item.name,
                "sop_instance_uid": sent.item.stored.sop_instance_uid,
                "sop_class_uid": sent.item.stored.sop_class_uid,
                "transfer_syntax_uid": sent.item.stored.transfer_syntax_uid,
                "bytes": sent.item.stored.size,
                "status": sent.status,
                "error": sent.error,
                "ms": round(sent.ms, 1),
            }
            for sent in results
        ],
    }


def _print(output: Output, found: Found, results: Sequence[Sent], seconds: float) -> None:
    stored = [sent for sent in results if sent.stored]
    size = sum(sent.item.stored.size for sent in stored)
    rate = f"{size_of(size)} in {seconds:.1f} s, {size_of(size / max(seconds, 0.001))}/s"
    output.line(f"{len(stored)} of {plural(len(found.items), 'object')} stored ({rate})")
    _by_reason(output, "stored with a warning", [sent for sent in stored if sent.status])
    _by_reason(output, "not stored", [sent for sent in results if not sent.stored])
    output.table([Column("skipped, not DICOM"), Column("why")], [(one.name, one.why) for one in found.skipped[:SHOWN]])
    if len(found.skipped) > SHOWN:
        output.line(f"... and {len(found.skipped) - SHOWN} more (--json has them all)", style="dim")


def _by_reason(output: Output, heading: str, results: Sequence[Sent]) -> None:
    """How many there are of each reason, and the first files of each."""
    reasons: dict[str, list[str]] = {}
    for sent in results:
        reasons.setdefault(sent.error or f"status 0x{sent.status or 0:04X}", []).append(sent.item.name)
    output.table(
        [Column(heading, right=True), Column("why"), Column("files")],
        [
            (len(names), why, ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else ""))
            for why, names in reasons.items()
        ],
    )
