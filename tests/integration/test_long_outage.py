"""P3 and P7 of a lane through what cannot be waited for: 72 hours without the PACS, and clocks that jump.

The real lane and journal against a destination of the test's. The 72 hours are simulated: the time between tries, which
the lane asks its back-off for, is not waited for but added to an injected boot-time clock; the lane asks for it as
often as it would in the field.
"""

import ast
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zoneinfo import ZoneInfo

import pytest

from appliance.errors import DestinationRefused, TransientDeliveryError
from appliance.journal.store import Journal
from appliance.model import Owed, Urgency
from appliance.ports import Outgoing
from appliance.stages.forward import Lane, Outbox
from appliance.stages.forward.context import BACKOFF, LAST_RETRY_S
from tests.journals import Hands, arrival, count, open_journal, receive

ROOT = Path(__file__).resolve().parents[2]
HOUR_MS = 3_600_000
OUTAGE_H = 72
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SUMMER_ENDS = datetime(2026, 10, 25, 0, 59, 59, tzinfo=UTC)  # a second later Berlin has 2 o'clock for the second time
ORDER = (Urgency.IMAGE, Urgency.URGENT_IMAGE, Urgency.RESULT, Urgency.URGENT_SR, Urgency.IMAGE, Urgency.RESULT)


@dataclass
class Line:
    """A journal and a lane to a PACS that is away until a given hour of the injected clock."""

    folder: Path
    away_until_h: float = 0.0
    refuses: bool = False  #: it is there, and wants nothing from us
    hands: Hands = field(default_factory=Hands)
    got: list[str] = field(default_factory=list)
    tries: int = 0
    waits: list[float] = field(default_factory=list)
    bytes_s: float = 0.0
    round_trip_s: float = 0.0
    held_back: bool = False
    alive: bool = True

    def __post_init__(self) -> None:
        random.seed(1)  # of the back-off's jitter, so that two runs can be compared
        self.journal = open_journal(self.folder / "journal", "forward", self.hands)
        box = Outbox(
            journal=self.journal,
            path=lambda file: self.folder / file,
            log=lambda *_, **__: None,
            changed=lambda: None,
            backoff=self._backoff,
        )
        self.lane = Lane("pacs", self, box)

    def _backoff(self, failures: int) -> float:
        seconds = BACKOFF(failures)
        self.waits.append(seconds)
        self.hands.ms += int(seconds * 1000)
        return 0.0

    def open(self, items: Sequence[Outgoing]) -> Self:  # noqa: ARG002 - a ports.Destination
        self.tries += 1
        self._answer()
        return self

    def probe(self) -> None:
        self.tries += 1
        self._answer()

    def _answer(self) -> None:
        if self.hands.ms < self.away_until_h * HOUR_MS:
            raise DestinationRefused("who are you?") if self.refuses else TransientDeliveryError("nobody there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send(self, item: Outgoing, path: Path, turn: object = None) -> str:  # noqa: ARG002 - a ports.Session
        self.got.append(item.sop_instance_uid.rpartition(".")[2])
        return ""

    def owe(self, *urgencies: Urgency) -> None:
        for number, urgency in enumerate(urgencies, 1):
            one = arrival(number)
            file = self.folder / one.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(one.sop_instance_uid.encode())
            receive(self.journal, one, owed=(Owed(destination="pacs", urgency=urgency),))

    def drain(self, most: int = 100_000) -> None:
        for _ in range(most):
            if self.lane.step() > 0:
                break
        else:
            raise AssertionError("never at rest")
        self.lane.close()

    def deliveries(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.journal.query("SELECT state, reason, attempts FROM delivery ORDER BY id")]


def is_by_urgency(got: Sequence[str], urgencies: Sequence[Urgency]) -> bool:
    """Whether each went once, most urgent first; but one, whose turn it was as the oldest, so that nothing starves."""
    wanted = [str(number) for number, _ in sorted(enumerate(urgencies, 1), key=lambda one: (one[1], one[0]))]
    return sorted(got) == sorted(wanted) and any(
        [one for one in got if one != oldest] == [one for one in wanted if one != oldest] for oldest in wanted
    )


@pytest.mark.promise("P3")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("refuses", [False, True], ids=["away", "refuses"])
def test_after_72_simulated_hours_everything_goes_at_once_and_most_urgent_first(
    tmp_path: Path, *, refuses: bool
) -> None:
    line = Line(tmp_path, away_until_h=OUTAGE_H, refuses=refuses)
    with closing(line.journal):
        line.owe(*ORDER)
        before = count(line.journal, "history")
        line.drain()
        assert line.hands.ms >= OUTAGE_H * HOUR_MS
        assert line.hands.ms - OUTAGE_H * HOUR_MS <= LAST_RETRY_S * 1000, "it is noticed within the longest wait"
        assert max(line.waits) <= LAST_RETRY_S
        assert line.tries <= 3 * OUTAGE_H * 3600 / LAST_RETRY_S, "and tried no more often than it must be"
        assert is_by_urgency(line.got, ORDER)
        assert line.deliveries() == [("delivered", "", 1)] * len(ORDER), "no try that met nobody counts"
        assert count(line.journal, "history") - before == len(ORDER), "an outage writes nothing"


class Wall:
    """A wall clock that goes wrong: each look at it is the next of these, then the last for ever."""

    def __init__(self, *times: datetime) -> None:
        self._times = list(times)

    def __call__(self) -> datetime:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


WALLS = {
    "1970": [datetime(1970, 1, 1, tzinfo=UTC)],
    "1970, then now": [datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, 0, 1, tzinfo=UTC), NOW],
    "3 h back": [NOW, NOW, NOW - timedelta(hours=3)],
    "400 days ahead": [NOW, NOW, NOW + timedelta(days=400)],
    "the hour that comes twice": [
        (SUMMER_ENDS + timedelta(seconds=second)).astimezone(ZoneInfo("Europe/Berlin")) for second in range(40)
    ],
}


def history(journal: Journal) -> list[tuple[Any, ...]]:
    """All but the labels."""
    return [tuple(row) for row in journal.query("SELECT event, sop_instance_uid FROM history ORDER BY id")]


def told(folder: Path, wall: Wall | None) -> Iterator[object]:
    """What became of some deliveries over a line that is away for an hour, by this wall clock."""
    folder.mkdir()
    line = Line(folder, away_until_h=1)
    with closing(line.journal):
        if wall is not None:
            line.journal.clock = replace(line.journal.clock, wall_clock=wall)
        line.owe(*ORDER)
        line.drain()
        yield line.got
        yield line.deliveries()
        yield history(line.journal)


@pytest.mark.promise("P3")
@pytest.mark.parametrize("name", WALLS)
def test_a_wrong_wall_clock_changes_labels_only(tmp_path: Path, name: str) -> None:
    assert list(told(tmp_path / "wrong", Wall(*WALLS[name]))) == list(told(tmp_path / "right", None))


#: What may look at the wall clock, and for what: labels, certificates, signatures, and hours of the site's day.
LOOKS_AT_THE_WALL = {
    "journal/clock.py": "the label of each line of history",
    "logs.py": "the label of each line",
    "config/examination.py": "certificates run out by it",
    "engine_store/store.py": "the label of each step of a release",
    "cli/attention/__init__.py": "certificates run out by it",
    "cli/rehearse.py": "the date on a report",
    "wiring/lanes.py": "hours of pace and of images are the site's",
    "wiring/alert.py": "the label of a message",
    "destinations/webhook.py": "a signature has a time",
}
WALL_CALLS = ("now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime", "wall_clock")


def looks(source: str) -> bool:
    """Whether it asks what time it is; `time.monotonic` and the like are no wall clocks."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords):
            continue
        owner = ast.unparse(node.func.value).rpartition(".")[2]
        if node.func.attr == "wall_clock" or (node.func.attr in WALL_CALLS and owner in ("time", "datetime", "date")):
            return True
    return False


def test_no_decision_reads_the_wall_clock() -> None:
    package = ROOT / "appliance"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if looks(path.read_text())}
    assert found <= LOOKS_AT_THE_WALL.keys(), "say for what, or use the journal's ticks"
    assert not {name for name in found if name.startswith(("stages/", "journal/"))} - {"journal/clock.py"}


@pytest.mark.parametrize(
    ("source", "does"),
    [
        ("import time\ntime.time()", True),
        ("from datetime import datetime, UTC\ndatetime.now(UTC)", True),
        ("import datetime\ndatetime.date.today()", True),
        ("clock.wall_clock()", True),
        ("import time\ntime.monotonic()", False),
        ("import time\ntime.clock_gettime_ns(time.CLOCK_BOOTTIME)", False),
        ("response.time()", False),
    ],
)
def test_looks_are_seen(source: str, *, does: bool) -> None:
    assert looks(source) is does
