"""engines: what is there, what of it serves, and how a release comes to serve."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import typer

from appliance import engine_package
from appliance.cli import engine_steps
from appliance.cli.opening import FAILED, ConfigOption, JsonOption, load_config, teaching
from appliance.cli.tables import Column, Output, plural, run_by
from appliance.config import Config, EngineMode
from appliance.engine_store import leaving
from appliance.engine_store.book import SHIPPED, Book
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import CertificateUnusable, EngineRefused, PackageInvalid
from appliance.wiring.common import MB
from appliance.wiring.model_files import MODEL
from appliance.wiring.releases import engine_store, report_of

app = typer.Typer(rich_markup_mode=None)
engines = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Look after the engine packages.\n\nImport a release, prove it, let it serve, and go back to the one before.",
    epilog=teaching(
        "scanside engines list",
        "scanside engines import ./ct-lesion-0.3.0.zip",
        "scanside engines check ct-lesion       its golden cases, on the processor",
        "scanside engines build ct-lesion       compile it for this device, where that can be",
        "scanside engines verify ct-lesion      prove it on what will run it, and measure it",
        "scanside engines activate ct-lesion    from the next study on",
        "scanside engines rollback ct-lesion    and back again",
        "scanside engines remove ct-lesion --old    what nothing needs any more",
        failed="see each command",
    ),
)
app.add_typer(engines, name="engines")
engine_steps.add_to(engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A release. `valid`: every byte as its manifest says."""

    id: str
    version: str = ""
    release: str = ""  #: VERSION-SHA12; shipped: it lies in engines_dir, and was not imported
    status: str = ""  #: reference or site_accepted
    mode: str  #: shadow, publish, off, or "" where the configuration does not name it
    stage: str = ""  #: how far an imported one has come
    place: str = ""  #: active, shadow, off (it was turned off), or "" where it has none
    title: str = ""
    needed: str = ""  #: what an imported one cannot be removed for; "": nothing needs it
    mb: float = 0.0  #: of an imported one, with its plans
    valid: bool
    why_not: str = ""
    package_sha256: str = ""
    last: str = ""  #: the last that happened to it
    runtime: str = ""  #: with its version: what it was verified on last
    plan_sha256: str = ""  #: of the plan that was verified then; "": the model itself


@engines.command(
    "list",
    epilog=teaching(
        "scanside engines list --config config/scanside.yaml",
        "scanside engines list --json",
        "scanside trace ct-lesion     its whole history",
        failed="an engine that the configuration uses is not valid, or was turned off or rolled back by itself",
    ),
)
def list_engines(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the engines, each file checked against its hash.

    Shows those that the configuration names, those that lie in its engines_dir, and every release that was imported:
    how far it has come, which of them serves or is kept to roll back to, what room it takes, and what it was verified
    on. Whether it does so just now, after its golden cases, and by what, is told by `scanside status`.
    """
    loaded, output = load_config(config), Output(as_json=as_json)
    store = engine_store(loaded)
    found = [one for name in _names(loaded, store) for one in _listed(loaded, store, name)]
    alarms = {name: alarm for name in _names(loaded, store) if (alarm := _alarm(store, name))}
    output.document({"engines": [asdict(one) for one in found], "alarms": alarms})
    if not found:
        output.line(f"No engines in {loaded.engines_dir}, none configured.")
    columns = [Column(name) for name in ("release", "status", "mode", "stage", "serves", "verified on", "valid")]
    columns.insert(5, Column("MB", right=True))
    output.table([Column("id", style="bold"), *columns], [_row(one) for one in found])
    for one in found:
        if not one.valid:
            name = one.id if one.release == SHIPPED else f"{one.id}@{one.release}"
            output.line(f"{name} is not valid:", style="bold red")
            for line in one.why_not.splitlines():
                output.line(f"  {line}")
    for alarm in alarms.values():
        output.line(f"! {alarm}", style="bold red")
    _say_old(output, store)
    wrong = [one for one in found if not one.valid and one.place and one.mode not in ("", EngineMode.OFF)]
    if wrong or alarms:
        raise typer.Exit(FAILED)


def _row(one: Listed) -> tuple[object, ...]:
    release = f"{one.version} ({one.release})" if one.release == SHIPPED else one.release
    proved_on = run_by(one.runtime, one.plan_sha256)
    valid = "yes" if one.valid else "NO"
    place = one.place or ("rollback" if one.needed else "")
    room = f"{one.mb:.1f}" if one.stage else ""
    return one.id, release, one.status, one.mode or "(not used)", one.stage, place, room, proved_on, valid


def _say_old(output: Output, store: EngineStore) -> None:
    """What could go, and how."""
    for name in store.ids():
        with suppress(EngineRefused):  # told already
            if old := leaving.old(store, name):
                room = sum(leaving.size(store, named) for named in old) / MB
                output.line(f"Nothing needs {plural(len(old), 'old release')} of {name}, {room:.1f} MB:", style="dim")
                output.line(f"    scanside engines remove {name} --old", style="dim")


def _names(config: Config, store: EngineStore) -> list[str]:
    """The configured ones in their order, then others that lie there or were imported."""
    configured = [one.id for one in config.engines]
    folder = config.engines_dir
    lying = sorted(path.parent.name for path in folder.glob(f"*/{engine_package.MANIFEST}")) if folder.is_dir() else []
    return list(dict.fromkeys([*configured, *lying, *store.ids()]))


def _alarm(store: EngineStore, name: str) -> str:
    try:
        return store.book(name).alarm
    except EngineRefused as error:
        return str(error)


def _listed(config: Config, store: EngineStore, name: str) -> Iterator[Listed]:
    try:
        book = store.book(name)
    except EngineRefused:
        book = Book()
    for release in (SHIPPED, *book.releases):
        stage = book.releases[release].stage if release in book.releases else None
        folder = store.root / name / release if stage else config.engines_dir / name
        is_wanted = not book.releases or folder.is_dir()  # one that only was imported is in no engines_dir
        if stage or is_wanted:
            named = Named(engine_id=name, release=release, folder=folder, stage=stage)
            yield _one(config, store, named, book)


def _one(config: Config, store: EngineStore, named: Named, book: Book) -> Listed:
    options = config.engine(named.engine_id)
    places = {book.stopped: "off", book.shadow: "shadow", book.active: "active"}
    lines = [line for line in book.history if line.release == named.release]
    known = {
        "id": named.engine_id,
        "release": named.release,
        "mode": options.mode if options else "",
        "stage": named.stage or "",
        "place": places.get(named.release, ""),
        **_kept(store, named),
        **_proof(store, named),
        "last": f"{lines[-1].at} {lines[-1].event} by {lines[-1].by}: {lines[-1].why}" if lines else "",
    }
    try:
        package = store.load(named)
    except (PackageInvalid, EngineRefused, CertificateUnusable) as error:
        version = book.releases[named.release].version if named.stage else ""
        return Listed(**known, version=version, valid=False, why_not=str(error))
    manifest = package.manifest
    return Listed(
        **known,
        version=manifest.version,
        status=manifest.status,
        title=manifest.title,
        valid=True,
        package_sha256=package.package_sha256,
    )


def _kept(store: EngineStore, named: Named) -> dict[str, Any]:
    if named.stage is None:
        return {}
    needed = leaving.needed(store, named.engine_id).get(named.release, "")
    return {"needed": needed, "mb": round(leaving.size(store, named) / MB, 1)}


def _proof(store: EngineStore, named: Named) -> dict[str, str]:
    """What it was verified on last; nothing of one that was not."""
    report = report_of(store, named) or {}
    parts = [str(report.get(name, "")) for name in ("runtime", "runtime_version", "precision")]
    runtime = " ".join(part for part in parts if part not in ("", MODEL))
    return {"runtime": runtime, "plan_sha256": str(report.get("plan_sha256", ""))}
