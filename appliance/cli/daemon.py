"""run, check: the appliance as a whole."""

from typing import Annotated

import typer

from appliance import daemon
from appliance.cli.opening import WRONG, ConfigOption, JsonOption, config_path, teaching
from appliance.cli.tables import Output, complain, plural
from appliance.config import Config, EngineMode, Peer, Receive
from appliance.config.examination import examine
from appliance.errors import ConfigError

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside run --config config/scanside.yaml",
        failed="it could not run: another one runs on the same state folder, say",
    )
)
def run(
    config: ConfigOption = None,
    life: Annotated[int | None, typer.Option("--life", hidden=True, help="Descriptor of whoever it ends with.")] = None,
) -> None:
    """Run the appliance, until it is told to stop.

    It starts one process each for receiving, analysing and forwarding, and starts them anew when they end. Ctrl-C or
    SIGTERM ends it; nothing that was acknowledged to a scanner is lost by that, nor by pulling the plug. Log lines go
    to standard error.
    """
    raise typer.Exit(daemon.supervise(config_path(config), life))


@app.command(
    epilog=teaching(
        "scanside check --config config/scanside.yaml",
        "scanside check --config config/scanside.yaml --json",
        failed="not used",
    )
)
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check a configuration file: every error at once.

    Each error is one line, `file:line: key: reason`, with a guess at what was meant. Certificates and keys are read,
    too; those that systemd gives to the service alone are named. Nothing is started or changed.
    """
    output = Output(as_json=as_json)
    path = config_path(config)
    try:
        examined = examine(path)
    except ConfigError as error:
        output.document({"ok": False, "file": str(path), "errors": error.messages, "remarks": []})
        if not as_json:
            complain(*error.messages, f"{path}: {plural(len(error.messages), 'error')}")
        raise typer.Exit(WRONG) from None
    output.document({"ok": True, "file": str(path), "errors": [], "remarks": list(examined.remarks)})
    output.line(f"{path}: correct")
    for line in _meaning(examined.config):
        output.line(f"  {line}")
    for line in examined.remarks:
        output.line(line, style="yellow")


def _meaning(config: Config) -> list[str]:
    """What the file comes to, in words: a correct file may still not be what was meant."""
    receive = config.receive
    peers = ", ".join(_who(peer) for peer in receive.peers)
    engines = ", ".join(f"{one.id} ({one.mode})" for one in config.engines if one.mode is not EngineMode.OFF)
    destinations = ", ".join(f"{one.name} ({'+'.join(one.takes)})" for one in config.destinations)
    return [
        f"listens as {config.ae_title} on {receive.bind} port {receive.port}{_protection(receive)}",
        f"may send: {peers or 'nobody (receive.peers is empty)'}",
        *_answering(receive),
        f"engines: {engines or 'none'}",
        f"sends on to: {destinations or 'nobody (destinations is empty): what arrives is held'}",
        f"keeps its data in {config.state_dir}",
    ]


def _who(peer: Peer) -> str:
    return f"{peer.ae_title} from {peer.address}" + (f" as {peer.certificate}" if peer.certificate else "")


def _answering(receive: Receive) -> list[str]:
    asking = [
        f"{peer.ae_title} ({peer.commitment}) at {peer.reports_to} {'by TLS' if peer.reports_tls else 'not encrypted'}"
        for peer in receive.peers
        if peer.commitment and peer.reports_to
    ]
    return [f"storage commitment is reported to: {', '.join(asking)}"] if asking else []


def _protection(receive: Receive) -> str:
    if receive.tls is None:
        return ", not encrypted"
    plain = f"; port {receive.unencrypted_port} is not encrypted: {receive.unencrypted_reason}"
    certificates = f"client certificates: {receive.tls.client_certificates}"
    return f", {receive.tls.minimum_version} or newer, {certificates}{plain if receive.unencrypted_port else ''}"
