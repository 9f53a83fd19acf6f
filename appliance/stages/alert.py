"""Alert: somebody outside is told, over a webhook, of what needs them. No patient data: counts and classes of reasons.

Nothing waits for it and nothing is queued: what is to be told is what the journal and the lanes say now, against what
the last message that arrived said. So a server that is away for days costs nothing, and hears all of it in one message.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from appliance.backoff import backoff_s
from appliance.errors import OutOfResources, TransientDeliveryError
from appliance.journal import alerts
from appliance.journal.alerts import Held, Told
from appliance.journal.store import Journal

BACKOFF = partial(backoff_s, first_s=2.0, last_s=300.0)
Post = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFacts:
    destination: str
    state: str
    reason: str
    is_owed: bool  #: something waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Horn:
    """What an alerter works with."""

    journal: Journal
    lanes: Callable[[], Sequence[LaneFacts]]
    post: Post  #: raises TransientDeliveryError
    log: Callable[..., None]
    stopping: threading.Event
    node: str
    every_s: float
    backoff: Callable[[int], float] = BACKOFF


class Alerter:
    """`run` in a thread of its own."""

    def __init__(self, horn: Horn) -> None:
        self._horn = horn
        self._failures = 0

    def run(self) -> None:
        """Until told to stop. Raises StoreFailed."""
        while not self._horn.stopping.is_set():
            self._horn.stopping.wait(self.step())

    def step(self) -> float:
        """Tell what is to be told; returns how long to wait then."""
        horn, before = self._horn, alerts.told(self._horn.journal)
        held, lanes = alerts.held(horn.journal), horn.lanes()
        now = _told(before, held, lanes)
        news = _news(before, now, held)
        try:
            if news or set(now.suspended) != set(before.suspended):
                horn.post(self._message(before, now, held, lanes))
                horn.log("alert_told", number=now.number)
            if now != before:
                alerts.note(horn.journal, now)
        except TransientDeliveryError as error:
            self._failures += 1
            horn.log("alert_not_told", reason=str(error))
            return max(horn.every_s, horn.backoff(self._failures)) if self._failures > 1 else horn.backoff(1)
        except OutOfResources as error:
            horn.log("journal_full", reason=str(error))
        self._failures = 0
        return horn.every_s

    def _message(self, before: Told, now: Told, held: Sequence[Held], lanes: Sequence[LaneFacts]) -> dict[str, Any]:
        clock = self._horn.journal.clock
        why = {lane.destination: lane.reason for lane in lanes}
        return {
            "node": self._horn.node,
            "id": f"{self._horn.journal.identity}-{now.number}",
            "at": clock.utc(),
            "clock_implausible": clock.implausible(),
            "latched": False,
            "held": [_held(one, clock.tick(), before) for one in held],
            "suspended": [
                {"destination": name, "reason": alerts.reason_class(why.get(name, ""))} for name in now.suspended
            ],
            "resumed": [name for name in before.suspended if name not in now.suspended],
        }


def latch_message(node: str, at: str) -> dict[str, Any]:
    """The store is latched: scanners are told to wait, and the journal is not to be trusted, so it is not asked."""
    return {"node": node, "at": at, "latched": True, "held": [], "suspended": [], "resumed": []}


def _held(one: Held, tick: int, before: Told) -> dict[str, Any]:
    return {
        "destination": one.destination,
        "reason": one.reason,
        "count": one.count,
        "bytes": one.bytes,
        "oldest_s": (tick - one.oldest_tick) // 1000,
        "new": _is_news(one, before),
    }


def _told(before: Told, held: Sequence[Held], lanes: Sequence[LaneFacts]) -> Told:
    counts = {_key(one): (one.count, one.newest) for one in held}
    suspended = [lane.destination for lane in lanes if _is_suspended(lane, before)]
    same = counts == dict(before.held) and set(suspended) == set(before.suspended)
    return before if same else Told(held=counts, suspended=suspended, number=before.number + 1)


def _is_suspended(lane: LaneFacts, before: Told) -> bool:
    """After a restart a lane knows nothing until it has sent something: then what was told of it still stands."""
    if lane.state == "suspended":
        return True
    return lane.destination in before.suspended and lane.is_owed and lane.state != "sending"


def _news(before: Told, now: Told, held: Sequence[Held]) -> bool:
    return now is not before and any(_is_news(one, before) for one in held)


def _is_news(one: Held, before: Told) -> bool:
    count, newest = before.held.get(_key(one), (0, 0))
    return one.count > count or one.newest > newest


def _key(one: Held) -> str:
    return f"{one.destination}\n{one.reason}"
