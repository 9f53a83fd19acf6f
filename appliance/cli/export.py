"""export: for the day the network is down and a person carries a stick."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.opening import (
    FAILED,
    ByOption,
    ConfigOption,
    JsonOption,
    load_config,
    open_journal,
    person,
    teaching,
    untrusted,
    unwound_by_signals,
)
from appliance.cli.stick import Stick, Unusable, stick
from appliance.cli.tables import Output, complain, plural, size_of
from appliance.config import Config
from appliance.config.values import uid as checked_uid
from appliance.errors import OutOfResources, ScansideError, StoreFailed
from appliance.journal import exports
from appliance.journal.exports import Carried, Wanted
from appliance.journal.store import Journal
from appliance.model import Instance

MOST = 500_000  # objects on one stick: their directory is made in memory
NAMED = 20  # objects that could not be written

app = typer.Typer(rich_markup_mode=None)


@dataclass(slots=True)
class _Load:
    """What is to be written, and what became of it."""

    objects: list[Instance] = field(default_factory=list)
    listed: set[int] = field(default_factory=set)  #: ids of those that the directory can name
    left_out: int = 0  #: results that may not go with the others
    written: Counter[str] = field(default_factory=Counter)  #: objects, by study
    sizes: Counter[str] = field(default_factory=Counter)  #: bytes of data sets, by study
    failed: dict[str, str] = field(default_factory=dict)  #: SOP Instance UID -> why
    delivered: int = 0  #: objects that were not owed any more when it was their turn
    made_up: int = 0
    unlisted: int = 0

    @property
    def size(self) -> int:
        return sum(one.size for one in self.objects)


@app.command(
    epilog=teaching(
        "scanside export --to /media/stick --owed",
        "scanside export --to ./study --study 1.2.826.0.1.3680043.8.498.1",
        failed="the folder is not empty or too small, or something could not be written (each object is named)",
    )
)
def export(  # noqa: PLR0913, PLR0917 - a command's parameters are its options
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="An empty folder, or one to be made.")],
    study: Annotated[
        str, typer.Option("--study", metavar="UID", show_default=False, help="A study, all that is here of it.")
    ] = "",
    owed: Annotated[bool, typer.Option("--owed", help="All that is queued or held.")] = False,
    destination: Annotated[
        str, typer.Option("--destination", metavar="NAME", show_default=False, help="Only what is for this one.")
    ] = "",
    config: ConfigOption = None,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Write what is owed, or a study, as a DICOM file-set on a stick.

    With a DICOMDIR, as any PACS can read it; data sets are as they were received. Deliveries stay as they are: what is
    owed is still sent when the network is back, and PACS gets it twice. Results of reference engines are left out
    unless --destination names one that accepts them. The stick holds patient data: look after it.
    """
    if owed == bool(study):
        raise typer.BadParameter("give --study UID, or --owed")
    loaded, who, output = load_config(config), person(by), Output(as_json=as_json)
    target = to.absolute()
    if target.resolve().is_relative_to(loaded.state_dir):
        raise ScansideError(f"{target} is where we keep our own files: name another folder")
    with open_journal(loaded) as journal, unwound_by_signals():
        load = _look(journal, _wanted(loaded, study, destination))
        with stick(target, load.size, len(load.objects)) as writer:
            _write(_Source(loaded, journal, owed), load, writer, output)
        load.made_up, load.unlisted = writer.made_up, writer.unlisted
        not_noted = _note(loaded, journal, load, who, str(target))
    _tell(load, target, not_noted, output)


def _wanted(config: Config, study: str, destination: str) -> Wanted:
    if destination and config.destination(destination) is None:
        names = ", ".join(one.name for one in config.destinations) or "none"
        raise typer.BadParameter(f"no destination {destination}; there is {names}", param_hint="--destination")
    try:
        uid = checked_uid(study.strip()) if study else ""
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--study") from None
    guarded = frozenset(one.name for one in config.destinations if one.accept_reference)
    return Wanted(study_instance_uid=uid, destination=destination, guarded=guarded)


def _look(journal: Journal, wanted: Wanted) -> _Load:
    """Raises ScansideError where there is nothing to write, or too much for one stick."""
    ids = exports.wanted_ids(journal, wanted)
    if len(ids) > MOST:
        raise ScansideError(f"{len(ids)} objects are more than {MOST}: export study by study, with --study")
    load = _Load()
    for one, may_go in exports.instances(journal, ids, wanted):
        if not may_go:
            load.left_out += 1
        elif one.file or not wanted.study_instance_uid:
            load.objects.append(one)
    if not load.objects:
        what = (
            f"nothing of study {wanted.study_instance_uid} is here" if wanted.study_instance_uid else "nothing is owed"
        )
        raise ScansideError(what + (f"; {_left_out(load.left_out)}" if load.left_out else ""))
    newest = {one.sop_instance_uid: one.id for one in load.objects}  # of versions under one UID
    sorted_ = (one for one in load.objects if one.study_instance_uid and one.series_instance_uid)
    load.listed = {one.id for one in sorted_ if newest[one.sop_instance_uid] == one.id}
    return load


@dataclass(frozen=True, slots=True)
class _Source:
    config: Config
    journal: Journal
    owed: bool  #: only what is owed is asked for


def _write(source: _Source, load: _Load, writer: Stick, output: Output) -> None:
    with output.progress("writing") as tell:
        for count, one in enumerate(load.objects, 1):
            try:
                if not one.file:
                    raise Unusable("its local copy is gone")  # noqa: TRY301 - one place for what cannot be written
                writer.add(one, source.config.spool_dir / one.file, listed=one.id in load.listed)
            except Unusable as error:
                if source.owed and not exports.is_owed(source.journal, one.id):
                    load.delivered += 1
                else:
                    load.failed[one.sop_instance_uid] = str(error)
            else:
                load.written[one.study_instance_uid] += 1
                load.sizes[one.study_instance_uid] += one.size
            tell(count, len(load.objects))
    if not load.written:
        why = next(iter(load.failed.values()), "all of it was delivered meanwhile")
        raise ScansideError(f"nothing could be written: {why}")


def _note(config: Config, journal: Journal, load: _Load, by: str, to: str) -> str:
    """Why the history does not say it; "": it does. The stick is good all the same."""
    if why_not := untrusted(config):
        return why_not
    carried = {uid: Carried(objects=count, size=load.sizes[uid]) for uid, count in load.written.items()}
    try:
        exports.note(journal, carried, by, to)
    except (StoreFailed, OutOfResources) as error:
        return str(error)
    return ""


def _tell(load: _Load, target: Path, not_noted: str, output: Output) -> None:
    count, studies = sum(load.written.values()), sorted(uid for uid in load.written if uid)
    output.document(
        {
            "to": str(target),
            "objects": count,
            "bytes": sum(load.sizes.values()),
            "studies": studies,
            "unlisted": load.unlisted,
            "made_up": load.made_up,
            "left_out": load.left_out,
            "delivered_meanwhile": load.delivered,
            "failed": [{"sop_instance_uid": uid, "why": why} for uid, why in load.failed.items()],
            "noted": not not_noted,
        }
    )
    size = size_of(sum(load.sizes.values()))
    output.line(f"{plural(count, 'object')} of {plural(len(studies), 'study', 'studies')}, {size}, in {target}")
    for line in _remarks(load):
        output.line(line)
    if not_noted:
        complain(f"the history does not say so: {not_noted}")
    complain(*_failures(load))
    if load.failed:
        raise typer.Exit(FAILED)


def _remarks(load: _Load) -> Sequence[str]:
    said = []
    if load.unlisted:
        said.append(
            f"{plural(load.unlisted, 'object')} in EXTRA, not named by DICOMDIR: older versions, or without Study or"
            " Series UID. Import that folder, too."
        )
    if load.made_up:
        said.append(
            f"{plural(load.made_up, 'object')} without a date, number or id that DICOMDIR must have: made up there"
        )
    if load.delivered:
        said.append(f"{plural(load.delivered, 'object')} delivered meanwhile")
    if load.left_out:
        said.append(_left_out(load.left_out))
    return said


def _left_out(count: int) -> str:
    return f"{plural(count, 'result')} left out, not meant for every destination: see --destination"


def _failures(load: _Load) -> Sequence[str]:
    told = [f"NOT written: {uid}: {why}" for uid, why in list(load.failed.items())[:NAMED]]
    rest = len(load.failed) - len(told)
    return [*told, f"and {rest} more"] if rest else told
