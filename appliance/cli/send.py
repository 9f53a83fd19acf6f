"""send: a scanner's stand-in."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from appliance import scanner
from appliance.cli.opening import FAILED, JsonOption, teaching, unwound_by_signals
from appliance.cli.tables import Column, Output, complain, plural, size_of
from appliance.config.values import ae_title, host
from appliance.dimse.wire import Security, Target
from appliance.errors import CertificateUnusable
from appliance.scanner import Found, Manner, Sent

SHOWN = 20  # skipped files
NAMED = 3  # files that failed for one reason
NOT_RECOGNISED = "not recognised"
HINT = (
    "The other side does not know these AE titles. On a Scanside box receive.peers must list {calling} with this"
    " machine's address, and ae_title must be {called}."
)
TLS_HINT = " Over TLS, 'certificate' of that peer must be a name in the certificate given with --tls-certificate."
TLS_PERHAPS = "If that port speaks TLS, use --tls-ca, see --help."
#: What an error says, and what to do about it.
HINTS = (
    ("mismatch, certificate is not valid for", "Its certificate names somebody else: give that name with --tls-name."),
    ("TLS: certificate refused", "--tls-ca must hold the certificate of who certified the other side."),
    ("requires a certificate of ours", "Give it one, with --tls-certificate and --tls-key."),
    ("may be missing", "Give it --tls-certificate and --tls-key, if it asks for a certificate."),
    ("our certificate", "It wants another one than that of --tls-certificate, by an authority that it trusts."),
    ("plain text on the TLS port, or no TLS", "That port speaks no TLS: leave --tls-ca out, or use its other port."),
    ("not a DICOM upper layer PDU", TLS_PERHAPS),
    ("before any answer", TLS_PERHAPS),
)

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside send ./study --to 127.0.0.1:11112 --calling CT01 --called SCANSIDE",
        "scanside send study.tar.xz --to pacs.example:104 --called PACS --associations 4",
        "scanside send ./study --to box.example:2762 --tls-ca ca.pem --tls-certificate ct01.pem --tls-key ct01.key",
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
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca", metavar="FILE", show_default=False, help="Speak TLS; PEM file of who certifies the other side."
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            "--tls-certificate", metavar="FILE", show_default=False, help="PEM file of the certificate we show."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", show_default=False, help="PEM file of its private key.")
    ] = None,
    tls_name: Annotated[
        str,
        typer.Option("--tls-name", metavar="NAME", show_default=False, help="Name in its certificate. [default: HOST]"),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files as a scanner would.

    Folders are searched to the bottom. Files that are not DICOM are named and skipped. Each object is sent once, byte
    for byte as stored; nothing is tried again. With --tls-ca all goes by TLS, and nothing to whoever cannot prove by
    its certificate that it is the one meant.
    """
    target, output = _target(to, calling, called), Output(as_json=as_json)
    papers = _Papers(ca=tls_ca, certificate=tls_certificate, key=tls_key, name=tls_name)
    target = replace(target, security=_security(target, papers))
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
        complain(*_hints(target, {sent.error for sent in failed}))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Papers:
    """What is said of TLS."""

    ca: Path | None
    certificate: Path | None
    key: Path | None
    name: str


def _security(target: Target, papers: _Papers) -> Security | None:
    if (papers.certificate is None) != (papers.key is None):
        raise typer.BadParameter("go together: one was given", param_hint="--tls-certificate and --tls-key")
    if papers.ca is None:
        if papers.certificate or papers.name:
            what = "is needed for TLS: the file of who certifies the other side"
            raise typer.BadParameter(what, param_hint="--tls-ca")
        return None
    from appliance.dimse.tls import ClientTls  # noqa: PLC0415 - OpenSSL takes 6 MB, and most use none

    try:
        name = host(papers.name) if papers.name else target.host
        security = ClientTls(ca=papers.ca, server_name=name, certificate=papers.certificate, key=papers.key)
        security.context()
    except CertificateUnusable as error:
        raise typer.BadParameter(str(error), param_hint=f"--tls-{error.part}") from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tls-name") from None
    return security


def _hints(target: Target, errors: set[str]) -> list[str]:
    """What to do about it, once for each kind of error."""
    found = [next((hint for words, hint in HINTS if words in error), "") for error in sorted(errors)]
    if any(NOT_RECOGNISED in error for error in errors):
        hint = HINT.format(calling=target.calling_ae, called=target.called_ae)
        found.append(hint + (TLS_HINT if target.security is not None else ""))
    return list(dict.fromkeys(filter(None, found)))


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
        "tls": target.security is not None,
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
