"""The lanes of the forward process: what can send to each destination, and when."""

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from appliance.config import Config, DimseDestination, FolderDestination, StowDestination
from appliance.config import Destination as DestinationOptions
from appliance.config.values import DayHours
from appliance.destinations.dimse import DimseNode
from appliance.destinations.folder import Folder
from appliance.destinations.reencoding import Reencoder, Workshop
from appliance.destinations.reencoding_rules import Rules
from appliance.journal.clock import Clock
from appliance.ports import Destination
from appliance.runtimes.recoder import LOSSLESS_SYNTAXES, ChildRecoder, RecoderSettings
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.timetable import Hours, LocalMinute, Paced, Timetable
from appliance.wiring.common import publish_facts
from appliance.wiring.outbound import target

AUTO, PREFERRED = "auto", "bbr"  # at 2 % loss ten times as quick as cubic, and it leaves the line's queues short
BYTES_PER_KBIT = 125
SCRATCH = "recoded"  # folder of the state, for objects that are sent in another transfer syntax


def lanes(config: Config, box: Outbox, check_scratch: Callable[[int], None]) -> list[Lane]:
    """One for each destination. `check_scratch`: as that of the spool."""
    minute = _local_minute(box.journal.clock)
    shutil.rmtree(config.state_dir / SCRATCH, ignore_errors=True)  # of what was being sent when we ended
    return [_lane(config, options, box, minute, check_scratch) for options in config.destinations]


def _lane(
    config: Config,
    options: DestinationOptions,
    box: Outbox,
    minute: LocalMinute,
    check_scratch: Callable[[int], None],
) -> Lane:
    destination = adapter(config, options, check_scratch)
    if isinstance(options, FolderDestination):
        return Lane(options.name, destination, box)
    return Lane(options.name, destination, box, options.associations, _timetable(options, minute))


def adapter(config: Config, options: DestinationOptions, check_scratch: Callable[[int], None]) -> Destination:
    """What can send to a configured destination."""
    if isinstance(options, FolderDestination):
        return Folder(options.path)
    congestion = PREFERRED if options.congestion == AUTO else options.congestion
    if isinstance(options, StowDestination):
        from appliance.wiring.web import stow_node  # noqa: PLC0415 - httpx is large, and most sites have no DICOMweb

        return stow_node(options, congestion)
    node = replace(target(config, options), congestion=congestion)
    return DimseNode(node, _reencoder(config, options, check_scratch))


def _reencoder(config: Config, options: DimseDestination, check_scratch: Callable[[int], None]) -> Reencoder | None:
    """Its child is not there before something must be re-encoded."""
    if options.compress is None and not options.reencode:
        return None
    folder = config.state_dir / SCRATCH / options.name
    recoder = ChildRecoder(RecoderSettings(memory_mb=config.analyse.read_memory_mb))
    return Reencoder(
        Rules(
            compress=LOSSLESS_SYNTAXES if options.compress is not None else (),
            decode=options.reencode,
            decode_lossy=options.decode_lossy,
        ),
        Workshop(recoder=recoder, folder=folder, check_scratch=check_scratch),
    )


def _timetable(options: DimseDestination | StowDestination, minute: LocalMinute) -> Timetable:
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
