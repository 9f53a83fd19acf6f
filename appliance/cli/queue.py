"""deliveries, requeue, abandon: what is owed, and what people decide about what is held."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from appliance import routing
from appliance.cli.opening import (
    FAILED,
    ByOption,
    ConfigOption,
    JsonOption,
    load_config,
    open_journal,
    person,
    ring_forward,
    teaching,
    untrusted,
    writable_journal,
)
from appliance.cli.tables import Column, Output, complain, plural, size_of, span_of
from appliance.config import Config
from appliance.dimse.header import part10, read_header
from appliance.errors import ScansideError
from appliance.journal import lookup, outbox
from appliance.journal.overview import overview
from appliance.journal.store import Journal
from appliance.model import Delivery, Instance, Owed, Priority
from appliance.states import DeliveryState

PAGE = 200  # a transaction of so many holds the appliance up for some milliseconds

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside deliveries",
        "scanside deliveries --state held --json",
        failed="there is no journal to read",
    )
)
def deliveries(
    config: ConfigOption = None,
    state: Annotated[
        DeliveryState | None,
        typer.Option("--state", show_default=False, help="Only this state. [default: held and queued]"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many of each state.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List what is owed to destinations.

    A delivery is one object owed to one destination. `held` ones will not succeed by themselves: requeue them when
    their reason is gone, or abandon them.
    """
    states = [state] if state else [DeliveryState.HELD, DeliveryState.QUEUED]
    with open_journal(load_config(config)) as journal:
        found = [one for each in states for one in outbox.list_deliveries(journal, each, limit)]
        now = journal.clock.tick()
    output = Output(as_json=as_json)
    output.document({"deliveries": [asdict(one) | {"urgency": one.urgency.name.lower()} for one in found]})
    if not found:
        output.line(f"Nothing is {' or '.join(states)}.")
    output.table(
        [
            Column("id", right=True),
            Column("destination"),
            Column("state"),
            Column("SOP Instance UID"),
            Column("size", right=True),
            Column("waits", right=True),
            Column("attempts", right=True),
            Column("reason"),
        ],
        [_row(one, now) for one in found],
    )
    for each in states:
        if sum(one.state == each for one in found) == limit:
            output.line(f"Only the first {limit} {each} ones: there may be more (--limit).", style="dim")


def _row(one: Delivery, now: int) -> tuple[object, ...]:
    unsettled = one.state in (DeliveryState.QUEUED, DeliveryState.HELD)
    waits = span_of(now - one.created_tick) if unsettled else ""
    destination = one.destination or "(nobody)"
    return one.id, destination, one.state, one.sop_instance_uid, size_of(one.size), waits, one.attempts, one.reason


@dataclass(slots=True)
class _Requeued:
    """What became of the held deliveries that were asked for."""

    queued: list[int] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)  #: id -> why
    stopped: str = ""  #: why the rest was not looked at

    def note(self, delivery_id: int, why_not: str) -> None:
        if why_not:
            self.left[delivery_id] = why_not
        else:
            self.queued.append(delivery_id)


@app.command(
    epilog=teaching(
        "scanside requeue 4711",
        "scanside requeue --all",
        failed="some of what was asked for is still held (each is named), or was not; or writing to the disk fails",
    )
)
def requeue(
    delivery_id: Annotated[
        int | None, typer.Argument(metavar="ID", show_default=False, help="As `scanside deliveries` shows it.")
    ] = None,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are held.")] = False,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send held deliveries after all.

    Do this when the reason is gone: the PACS was mended, the configuration has the destination again. What no
    destination took goes to those that take it by the present configuration.
    """
    if everything == (delivery_id is not None):
        raise typer.BadParameter("give one ID, or --all")
    loaded, output = load_config(config), Output(as_json=as_json)
    with writable_journal(loaded) as journal:
        wanted = _wanted(journal, delivery_id)
        total = _held_count(journal) if delivery_id is None else 1
        done = _requeue(_Desk(loaded, journal, person(by)), wanted, total, output)
    if done.queued:
        ring_forward(loaded)
    left = [{"id": key, "why": why} for key, why in done.left.items()]
    output.document({"queued": done.queued, "left": left, "stopped": done.stopped})
    output.line(f"{plural(len(done.queued), 'delivery', 'deliveries')} queued again")
    if done.left or done.stopped:
        complain(*(f"{key}: {why}" for key, why in done.left.items()))
        if done.stopped:
            complain(f"the rest is still held: {done.stopped}")
        raise typer.Exit(FAILED)


@dataclass(frozen=True, slots=True)
class _Desk:
    config: Config
    journal: Journal
    by: str


def _wanted(journal: Journal, delivery_id: int | None) -> Iterator[Sequence[Delivery]]:
    """The one, or all that are held, a page at a time: each page is asked for after the one before was dealt with."""
    if delivery_id is not None:
        yield [_known(journal, delivery_id)]
        return
    after = 0
    while page := outbox.list_deliveries(journal, DeliveryState.HELD, PAGE, after):
        yield page
        after = page[-1].id


def _held_count(journal: Journal) -> int:
    return sum(one.count for one in overview(journal).owed if one.state == DeliveryState.HELD)


def _requeue(desk: _Desk, wanted: Iterator[Sequence[Delivery]], total: int, output: Output) -> _Requeued:
    """Each page in a transaction of its own: the appliance writes between them."""
    done, count = _Requeued(), 0
    with output.progress("queueing again") as tell:
        for page in wanted:
            done.stopped = untrusted(desk.config)
            if done.stopped:
                break
            owed = {one.id: _owed_again(desk.config, desk.journal, one) for one in page}
            may = {key: found for key, found in owed.items() if not isinstance(found, str)}
            queued = outbox.requeue(desk.journal, may, desk.by) if may else set()
            for key, found in owed.items():
                why_not = found if isinstance(found, str) else "is not held any more"
                done.note(key, "" if key in queued else why_not)
            count += len(page)
            tell(count, total)
    return done


def _owed_again(config: Config, journal: Journal, one: Delivery) -> Sequence[Owed] | str:
    """Where what was unrouted is owed now, nothing for others; or why it cannot be queued again, in words."""
    if one.state != DeliveryState.HELD:
        return f"is {one.state}, not held"
    if one.destination != outbox.UNROUTED:
        known = config.destination(one.destination) is not None
        return () if known else f"the configuration has no destination {one.destination}: put it back, or abandon this"
    instance = lookup.instance(journal, one.instance_id)
    if instance is None:
        return "its instance is unknown"
    owed = [each for each in _owed_now(config, instance) if not each.held]
    return owed or "still no destination takes it: see destinations in the configuration"


def _owed_now(config: Config, instance: Instance) -> Sequence[Owed]:
    return routing.deliveries_for_received(
        config,
        routing.Routed(
            kind=instance.kind,
            calling_ae=instance.calling_ae,
            modality=instance.modality,
            sop_class_uid=instance.sop_class_uid,
            priority=_stated_priority(config, instance),
        ),
    )


def _stated_priority(config: Config, instance: Instance) -> Priority:
    """What its header says; routine where the local copy cannot be read: then it will be held again, and say so."""
    try:
        stored = part10(config.spool_dir / instance.file)
        return routing.stated_priority(read_header(stored.path, stored.data_set_offset, stored.transfer_syntax_uid))
    except (OSError, ValueError):
        return Priority.ROUTINE


@app.command(
    epilog=teaching(
        'scanside abandon 4711 --reason "test image, not wanted in PACS"',
        'scanside abandon 4711 --reason "duplicate" --by "R. Okafor"',
        failed="it is not held; or writing to the disk fails",
    )
)
def abandon(
    delivery_id: Annotated[int, typer.Argument(metavar="ID", help="As `scanside deliveries` shows it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept for good. No patient's name.")],
    config: ConfigOption = None,
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a held delivery up, by name and with a reason.

    The object will never be sent to that destination, and its local copy may then go. There is no way back but to
    send it again from the scanner.
    """
    if not reason.strip():
        raise typer.BadParameter("say why: it stays in the history", param_hint="--reason")
    who = person(by)
    with writable_journal(load_config(config)) as journal:
        one = _known(journal, delivery_id)
        if not outbox.abandon(journal, delivery_id, who, reason.strip()):
            raise ScansideError(f"delivery {delivery_id} is {one.state}: only what is held can be abandoned")
    output = Output(as_json=as_json)
    output.document({"abandoned": delivery_id, "by": who, "reason": reason.strip()})
    output.line(f"{one.sop_instance_uid} will not be sent to {one.destination or 'anybody'} ({who}: {reason.strip()})")


def _known(journal: Journal, delivery_id: int) -> Delivery:
    found = lookup.delivery(journal, delivery_id)
    if found is None:
        raise ScansideError(f"there is no delivery {delivery_id}: `scanside deliveries` lists them")
    return found
