"""engines import, check, build, verify, activate, rollback, remove: how a release comes to serve, and how it goes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.engine_debts import still_owed
from appliance.cli.opening import (
    FAILED,
    ByOption,
    ConfigOption,
    JsonOption,
    load_config,
    person,
    ring,
    teaching,
    untrusted,
)
from appliance.cli.tables import Column, Output
from appliance.config import Config, EngineMode
from appliance.engine_store import leaving
from appliance.engine_store.book import OFF
from appliance.engine_store.store import Named
from appliance.errors import EngineRefused
from appliance.imaging import patches
from appliance.wakeup import is_listening
from appliance.wiring.common import MB
from appliance.wiring.engine_work import Workshop, check_room, workshop

WantedArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID[@VERSION]",
        show_default=False,
        help="The engine; without a version the release that was imported last, else the shipped one (ID@shipped).",
    ),
]
BUILD_S = 3600.0


def add_to(engines: typer.Typer) -> None:
    """Every command of this module, in the order in which they are used."""
    add: Callable[..., Any] = engines.command
    add("import", epilog=_IMPORT)(import_package)
    add("check", epilog=_CHECK)(check)
    add("build", epilog=_BUILD)(build)
    add("verify", epilog=_VERIFY)(verify)
    add("activate", epilog=_ACTIVATE)(activate)
    add("rollback", epilog=_ROLLBACK)(rollback)
    add("remove", epilog=_REMOVE)(remove)


_IMPORT = teaching(
    "scanside engines import ./ct-lesion-0.3.0.zip",
    "scanside engines import ./engines/my-engine",
    failed="it is no package, it is not signed by whom the configuration asks for, or there is no room",
)


def import_package(
    path: Annotated[Path, typer.Argument(metavar="PATH", show_default=False, help="The package: a folder or a zip.")],
    config: ConfigOption = None,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Copy a package into the store of this box, every byte checked. Nothing in it is executed, and nothing serves yet.

    Where the configuration names a key (engines_key), the package must be signed by its owner. May be repeated.
    """
    at, output = _bench(config, by), Output(as_json=as_json)
    named, is_new = at.shop.store.take(path, at.shop.by, check_room(at.config, at.config.store_dir))
    output.document({"engine": named.engine_id, "release": named.release, "stage": named.stage, "new": is_new})
    output.line(f"{named} {'is imported' if is_new else f'was here already: {named.stage}'}.", style="bold green")
    output.line(f"    Next: scanside engines check {named}", style="dim")


_CHECK = teaching(
    "scanside engines check ct-lesion",
    "scanside engines check ct-lesion@0.3.0 --json",
    failed="it gives other numbers or other findings than its package says; an imported release is then refused",
)


def check(wanted: WantedArgument, config: ConfigOption = None, by: ByOption = "", as_json: JsonOption = False) -> None:
    """Run the golden cases of each of its models on the processor: numbers within tolerances, and the same findings."""
    at, output = _bench(config, by), Output(as_json=as_json)
    named = at.shop.store.find(wanted)
    with output.progress("golden cases") as progress:
        found = at.shop.check(named, progress)
    limit = patches.limit(at.shop.store.load(named).manifest)
    checked = [asdict(one) for one in found]
    output.document({"engine": named.engine_id, "release": named.release, "checked": checked, "limit": limit})
    output.table(
        [Column("model", style="bold"), Column("file"), Column("golden cases"), Column("runtime"), Column("device")],
        [(one.precision, one.file, "right", f"{one.runtime} {one.runtime_version}", one.device) for one in found],
    )
    if limit:
        output.line(limit + ".")
    _say_next(output, at.shop, named)


_BUILD = teaching(
    "scanside engines build ct-lesion",
    "scanside engines build ct-lesion@0.3.0 --deadline 7200",
    failed="nothing on this machine compiles engines (the reason is told, and the processor serves), or it failed",
)


def build(
    wanted: WantedArgument,
    config: ConfigOption = None,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="Seconds that it may take.")] = BUILD_S,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Compile it for this device. Takes minutes, in a process of low priority; what serves goes on meanwhile."""
    at, output = _bench(config, by), Output(as_json=as_json)
    named = at.shop.store.find(wanted)
    with output.phases() as progress:
        plan = at.shop.build(named, progress, deadline)
    output.document({"engine": named.engine_id, "release": named.release, "plan": asdict(plan)})
    output.line(f"{named} is compiled: {plan.path.name}", style="bold green")
    _say_next(output, at.shop, named)


_VERIFY = teaching(
    "scanside engines verify ct-lesion",
    "scanside engines verify ct-lesion@0.3.0 --json | jq .measured",
    failed="it is not right on what will run it; its plan is then refused, or an imported release",
)


def verify(wanted: WantedArgument, config: ConfigOption = None, by: ByOption = "", as_json: JsonOption = False) -> None:
    """Prove it on what will run it, and measure time and memory. Writes verify.json beside the release.

    That is its plan, where one was built for this machine as it is now, else the processor. Inputs and outputs must be
    those of the manifest, golden numbers within tolerances, and findings the same. A plan that is not right is refused;
    the release is not.
    """
    at, output = _bench(config, by), Output(as_json=as_json)
    named = at.shop.store.find(wanted)
    with output.progress("runs") as progress:
        report, path = at.shop.verify(named, progress)
    output.document(asdict(report) | {"path": path})
    measured = report.measured
    numbers = [Column(name, right=True) for name in ("p50 ms", "p99 ms", "peak memory")]
    output.table(
        [Column("runtime"), Column("device"), Column("golden cases"), *numbers],
        [
            (
                f"{report.runtime} {report.runtime_version}",
                report.device,
                f"{report.golden_cases} right",
                measured.p50_ms,
                measured.p99_ms,
                f"{measured.peak_memory_mb:g} MB",
            )
        ],
    )
    if report.plan:
        output.line(f"    on its plan {report.plan} ({report.precision}), sha256 {report.plan_sha256}", style="dim")
    if report.not_its_plan:
        output.line(f"! not on the plan that is asked for: {report.not_its_plan}", style="bold red")
    _say_next(output, at.shop, named)


_ACTIVATE = teaching(
    "scanside engines activate ct-lesion",
    "scanside engines activate ct-lesion@0.3.0 --shadow",
    "scanside engines activate ct-lesion@shipped",
    failed="it was not verified, or serves already; nothing was changed",
)


def activate(
    wanted: WantedArgument,
    config: ConfigOption = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Beside what is active: it runs and is recorded, nothing of it is sent.")
    ] = False,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a verified release serve, from the next study on. The one before it is kept: `scanside engines rollback`.

    A running appliance proves it once more on its golden cases, between two studies, and only then lets it serve; if
    that fails, the one before goes on, and `scanside status` says so. No restart is needed.
    """
    at, output = _bench(config, by), Output(as_json=as_json)
    named = at.shop.store.find(wanted)
    at.shop.store.activate(named, at.shop.by, shadow=shadow)
    _told(output, at, named, "in shadow" if shadow else "active")


_ROLLBACK = teaching(
    "scanside engines rollback ct-lesion",
    failed="nothing was active before it; nothing was changed",
)


def rollback(
    engine_id: Annotated[str, typer.Argument(metavar="ID", show_default=False, help="The engine.")],
    config: ConfigOption = None,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go back to the release that was active before."""
    at, output = _bench(config, by), Output(as_json=as_json)
    at.shop.store.roll_back(engine_id, at.shop.by)
    back = at.shop.store.on_duty(engine_id).active
    if back is None:
        raise EngineRefused(f"{engine_id} is off")
    _told(output, at, back, "active again")


_REMOVE = teaching(
    "scanside engines remove ct-lesion@0.1.0",
    "scanside engines remove ct-lesion --old",
    failed="it is needed, or a process uses it; nothing was changed",
)


def remove(
    wanted: Annotated[
        str, typer.Argument(metavar="ID@VERSION", show_default=False, help="The release; with --old the engine.")
    ],
    config: ConfigOption = None,
    old: Annotated[
        bool, typer.Option("--old", help="All releases that served or were refused, and that nothing needs any more.")
    ] = False,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove an imported release and its plans from this box, for good.

    What is active or in shadow, what `engines rollback` goes back to, and what has results to be reported stays.
    """
    at, output = _bench(config, by), Output(as_json=as_json)
    engine_id, _, version = wanted.partition("@")
    if bool(version) == old:
        raise typer.BadParameter("name one release as ID@VERSION, or ID with --old", param_hint="ID@VERSION")
    store, gone, stay = at.shop.store, dict[str, int](), list[str]()
    for named in leaving.old(store, engine_id) if old else [store.find(wanted)]:
        try:
            gone[str(named)] = leaving.remove(store, named, at.shop.by, partial(still_owed, at.config, store, named))
        except EngineRefused as error:
            if not old:
                raise
            stay.append(str(error))
    output.document({"removed": [{"release": name, "bytes": size} for name, size in gone.items()], "stay": stay})
    for name, size in gone.items():
        output.line(f"{name} is removed: {size / MB:.1f} MB.", style="bold green")
    for why in stay:
        output.line(f"! {why}", style="bold red")
    if not gone and not stay:
        output.line(f"Nothing of {engine_id} is old: `scanside engines list` shows what is there.")
    if stay:
        raise typer.Exit(FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What a command works with."""

    config: Config
    shop: Workshop


def _bench(given: Path | None, by: str) -> _Bench:
    """Raises ConfigError; EngineRefused where nothing may be written now."""
    config = load_config(given)
    if why_not := untrusted(config):
        raise EngineRefused(f"nothing was changed: {why_not}")
    return _Bench(config=config, shop=workshop(config, person(by)))


def _told(output: Output, at: _Bench, named: Named, what: str) -> None:
    """What serves from now on, and what must be known of it."""
    running = is_listening(at.config.run_dir, "analyse")
    if running:
        ring(at.config, "analyse")
    output.document({"engine": named.engine_id, "release": named.release, "place": what, "running": running})
    output.line(f"{named} is {what}.", style="bold green")
    options = at.config.engine(named.engine_id)
    if options is None or options.mode is EngineMode.OFF:
        output.line(f"    It does not run: the configuration has no entry for {named.engine_id} under engines, or off.")
    elif running:
        output.line("    The running appliance takes it up between two studies: see `scanside status`.", style="dim")
    else:
        output.line("    The appliance does not run; it takes it up when it starts.", style="dim")


_NEXT = {"validated": ("verify",), "built": ("verify",), "verified": ("activate",)}


def _say_next(output: Output, shop: Workshop, named: Named) -> None:
    stage = shop.store.find(str(named)).stage
    output.line(f"{named} is {stage or 'right; it is not imported, so nothing is recorded'}.", style="bold green")
    for command in _NEXT.get(stage or OFF, ()):
        output.line(f"    Next: scanside engines {command} {named}", style="dim")
