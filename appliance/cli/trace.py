"""trace: the history of one UID (P11)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.opening import USUAL_CONFIG, ConfigOption, JsonOption, load_config, open_journal, teaching
from appliance.cli.tables import Column, Output, plural
from appliance.config.values import uid as checked_uid
from appliance.errors import ScansideError
from appliance.journal import history
from appliance.model import HistoryLine
from appliance.wiring.releases import engine_store

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside trace 1.2.826.0.1.3680043.8.498.1",
        "scanside trace 1.2.826.0.1.3680043.8.498.1 --full",
        "scanside trace ct-lesion",
        failed="nothing is known of it",
    )
)
def trace(
    uid: Annotated[str, typer.Argument(metavar="UID", help="A Study, Series or SOP Instance UID, or an engine's id.")],
    config: ConfigOption = None,
    full: Annotated[bool, typer.Option("--full", help="Each line by itself, none summed up.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Everything that happened to a study, series or instance.

    Times are UTC; milliseconds count from the first line. Of a study or series, what happened alike to many instances
    is summed up in one line. Names no patients. Of an engine, by its id: what became of its releases.
    """
    try:
        uid = checked_uid(uid.strip())
    except ValueError as error:
        if not _traced_engine(config, uid.partition("@")[0], Output(as_json=as_json)):
            raise typer.BadParameter(str(error), param_hint="UID") from None
        return
    with open_journal(load_config(config)) as journal:
        lines = history.trace(journal, uid)
    if not lines:
        raise ScansideError(f"nothing is known of {uid}: it never arrived here, or its history has been pruned")
    output = Output(as_json=as_json)
    output.document({"uid": uid, "lines": [asdict(line) for line in lines]})
    about_one = all(line.sop_instance_uid in ("", uid) for line in lines)
    rows = _rows(lines) if full or about_one else _summed_up(lines)
    output.table(
        [Column("UTC"), Column("ms", right=True), Column("process"), Column("event", style="bold"), Column("detail")],
        rows,
    )
    output.line(f"{plural(len(lines), 'line')} of history", style="dim")


def _traced_engine(given: Path | None, engine_id: str, output: Output) -> bool:
    """Of each release: who did what, and why. False: no release of such an engine was imported."""
    if given is None and not USUAL_CONFIG.exists():
        return False
    store = engine_store(load_config(given))
    if engine_id not in store.ids():
        return False
    book = store.book(engine_id)
    lines = [line.model_dump() for line in book.history]
    output.document({"engine": engine_id, "active": book.active, "shadow": book.shadow, "lines": lines})
    output.table(
        [Column("UTC"), Column("release"), Column("event", style="bold"), Column("stage"), Column("by"), Column("why")],
        [(one.at[:23], one.release, one.event, one.stage, one.by, one.why) for one in book.history],
    )
    output.line(f"{plural(len(lines), 'line')} of history", style="dim")
    return True


Row = tuple[str, int, str, str, str]


def _rows(lines: Sequence[HistoryLine]) -> list[Row]:
    start = lines[0].tick
    return [
        (line.at[:23], line.tick - start, line.process, line.event, _words(line.event, line.detail)) for line in lines
    ]


def _summed_up(lines: Sequence[HistoryLine]) -> list[Row]:
    """What happened alike to several instances of a series, in one row where it first happened."""
    start, rows = lines[0].tick, dict[object, list[HistoryLine]]()
    for line in lines:
        told = line.detail.get("destination"), line.detail.get("calling_ae")
        alike = (line.process, line.event, line.series_instance_uid, *told)
        rows.setdefault(alike if line.sop_instance_uid else id(line), []).append(line)
    return [
        (first.at[:23], first.tick - start, first.process, first.event, _sum(group))
        for group in rows.values()
        for first in group[:1]
    ]


def _sum(group: Sequence[HistoryLine]) -> str:
    first, last = group[0], group[-1]
    if len(group) == 1:
        return _words(first.event, first.detail)
    alike = {key: value for key, value in first.detail.items() if all(one.detail.get(key) == value for one in group)}
    size = sum(one.detail.get("bytes", 0) for one in group)
    more = {"bytes": size} if size else {}
    return f"{len(group)} instances within {last.tick - first.tick} ms; {_words(first.event, alike | more)}"


def _words(event: str, detail: dict[str, Any]) -> str:
    """Details as people read them: what is empty says nothing, digests are cut."""
    meaning = f"{detail.get('destination')} answers for it: " if event == "committed" else ""
    return meaning + " ".join(
        f"{key}={value[:12] + '...' if key == 'digest' else value}"
        for key, value in detail.items()
        if value not in ("", None, [], {})
    )
