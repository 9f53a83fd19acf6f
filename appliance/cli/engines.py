"""engines: the packages under engines_dir, and whether each is what its manifest says."""

from dataclasses import asdict, dataclass

import typer

from appliance import engine_package
from appliance.cli.opening import FAILED, ConfigOption, JsonOption, load_config, teaching
from appliance.cli.tables import Column, Output
from appliance.config import Config, EngineMode
from appliance.errors import PackageInvalid

app = typer.Typer(rich_markup_mode=None)
engines = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Look after the engine packages.",
    epilog=teaching("scanside engines list", failed="see each command"),
)
app.add_typer(engines, name="engines")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    id: str
    version: str = ""
    status: str = ""  #: reference or site_accepted
    mode: str  #: shadow, publish, off, or "" where the configuration does not name it
    title: str = ""
    valid: bool
    why_not: str = ""
    package_sha256: str = ""


@engines.command(
    "list",
    epilog=teaching(
        "scanside engines list --config config/scanside.yaml",
        "scanside engines list --json",
        failed="an engine that the configuration uses is not valid",
    ),
)
def list_engines(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the engines, each file checked against its hash.

    Shows those that the configuration names and those that lie in its engines_dir. Whether a valid one also serves,
    after its golden cases, is told by `scanside status`.
    """
    loaded, output = load_config(config), Output(as_json=as_json)
    found = [_listed(loaded, name) for name in _names(loaded)]
    output.document({"engines": [asdict(one) for one in found]})
    if not found:
        output.line(f"No engines in {loaded.engines_dir}, none configured.")
    output.table(
        [Column("id", style="bold"), Column("version"), Column("status"), Column("mode"), Column("valid")],
        [(one.id, one.version, one.status, one.mode or "(not used)", "yes" if one.valid else "NO") for one in found],
    )
    for one in found:
        if not one.valid:
            output.line(f"{one.id} is not valid:", style="bold red")
            for line in one.why_not.splitlines():
                output.line(f"  {line}")
    if any(not one.valid and one.mode not in ("", EngineMode.OFF) for one in found):
        raise typer.Exit(FAILED)


def _names(config: Config) -> list[str]:
    """The configured ones in their order, then others that lie there."""
    configured = [one.id for one in config.engines]
    folder = config.engines_dir
    lying = sorted(path.parent.name for path in folder.glob(f"*/{engine_package.MANIFEST}")) if folder.is_dir() else []
    return list(dict.fromkeys([*configured, *lying]))


def _listed(config: Config, name: str) -> Listed:
    options = config.engine(name)
    mode = options.mode if options else ""
    try:
        package = engine_package.load(config.engines_dir / name)
    except PackageInvalid as error:
        return Listed(id=name, mode=mode, valid=False, why_not=str(error))
    manifest = package.manifest
    return Listed(
        id=manifest.id,
        version=manifest.version,
        status=manifest.status,
        mode=mode,
        title=manifest.title,
        valid=True,
        package_sha256=package.package_sha256,
    )
