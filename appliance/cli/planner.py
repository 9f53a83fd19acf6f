"""The outage planner: what each destination is owed, since when, and how long it takes at the goodput measured."""

from dataclasses import dataclass

from appliance.cli.situation import Situation, owed
from appliance.config import Config
from appliance.journal.overview import Owed


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldUp:
    """What will not go by itself, for one reason."""

    reason: str
    objects: int
    bytes: int
    oldest_ms: int  #: since it became due


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Of one destination. Waiting times are milliseconds of appliance time, None where nothing waits."""

    destination: str
    objects: int
    bytes: int
    results: int
    results_bytes: int
    oldest_ms: int | None
    oldest_result_ms: int | None
    bytes_s: int | None  #: the goodput of its lane, None: not measured yet
    drains_s: float | None  #: seconds that all of it takes at that goodput; 0: nothing is owed, None: not known
    held: tuple[HeldUp, ...]


def plan(config: Config, now: Situation) -> list[Backlog]:
    """For each destination there is, and each that is gone and still owed something; nobody is destination ""."""
    queued = {one.destination: one for one in owed(now, "queued")}
    held = [one.destination for one in owed(now, "held")]
    names = dict.fromkeys([*(one.name for one in config.destinations), *queued, *held])
    return [_backlog(name, queued.get(name), now) for name in names]


def _backlog(name: str, queue: Owed | None, now: Situation) -> Backlog:
    tick = now.journal.tick if now.journal is not None else 0
    bytes_s = int(now.lanes.get(name, {}).get("bytes_s", 0)) or None
    waiting = queue.bytes if queue else 0
    first_result = queue.oldest_result_tick if queue else None
    return Backlog(
        destination=name,
        objects=queue.count if queue else 0,
        bytes=waiting,
        results=queue.results if queue else 0,
        results_bytes=queue.results_bytes if queue else 0,
        oldest_ms=tick - queue.oldest_tick if queue else None,
        oldest_result_ms=tick - first_result if first_result is not None else None,
        bytes_s=bytes_s,
        drains_s=_drains_s(waiting, bytes_s),
        held=tuple(
            HeldUp(reason=one.reason, objects=one.count, bytes=one.bytes, oldest_ms=tick - one.oldest_tick)
            for one in owed(now, "held")
            if one.destination == name
        ),
    )


def _drains_s(waiting: int, bytes_s: int | None) -> float | None:
    if not waiting:
        return 0.0
    return round(waiting / bytes_s, 1) if bytes_s else None
