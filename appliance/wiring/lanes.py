"""The lanes of the forward process: what can send to each destination, and when."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from appliance.config import Config, DimseDestination
from appliance.config import Destination as DestinationOptions
from appliance.config.values import DayHours
from appliance.destinations.dimse import DimseNode
from appliance.destinations.folder import Folder
from appliance.journal.clock import Clock
from appliance.ports import Destination
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.timetable import Hours, LocalMinute, Paced, Timetable
from appliance.wiring.common import publish_facts
from appliance.wiring.outbound import target

AUTO, PREFERRED = "auto", "bbr"  # at 2 % loss ten times as quick as cubic, and it leaves the line's queues short
BYTES_PER_KBIT = 125


def lanes(config: Config, box: Outbox) -> list[Lane]:
    """One for each destination."""
    minute = _local_minute(box.journal.clock)
    return [_lane(config, options, box, minute) for options in config.destinations]


def _lane(config: Config, options: DestinationOptions, box: Outbox, minute: LocalMinute) -> Lane:
    destination = adapter(config, options)
    if not isinstance(options, DimseDestination):
        return Lane(options.name, destination, box)
    return Lane(options.name, destination, box, options.associations, _timetable(options, minute))


def adapter(config: Config, options: DestinationOptions) -> Destination:
    """What can send to a configured destination."""
    if not isinstance(options, DimseDestination):
        return Folder(options.path)
    congestion = PREFERRED if options.congestion == AUTO else options.congestion
    return DimseNode(replace(target(config, options), congestion=congestion))


def _timetable(options: DimseDestination, minute: LocalMinute) -> Timetable:
    return Timetable(
        minute=minute,
        paced=[Paced(hours=_hours(pace.hours), bytes_s=pace.kbit_s * BYTES_PER_KBIT) for pace in options.pace],
        images=_hours(options.images) if options.images is not None else None,
    )


def _hours(configured: DayHours) -> Hours:
    return Hours(first=configured.first, end=configured.end)


def _local_minute(clock: Clock) -> LocalMinute:
    def minute() -> int | None:
        if clock.implausible():
            return None
        local = clock.wall_clock().astimezone()
        return local.hour * 60 + local.minute

    return minute


def lanes_publisher(config: Config, all_: Sequence[Lane]) -> Callable[[], None]:
    """Tells `status` of the lanes, where they are other than was told."""
    told: list[dict[str, object]] = []
    one_at_a_time = threading.Lock()

    def tell() -> None:
        with one_at_a_time:
            facts: dict[str, object] = {lane.name: dict(lane.facts) for lane in all_}
            if told != [facts]:
                told[:] = [facts]
                publish_facts(config, "lanes", facts)

    return tell
