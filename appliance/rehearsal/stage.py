"""The stage of a rehearsal: scanner, appliance and PACS, and the acts that are played on it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import scanner
from appliance.dimse.wire import Target
from appliance.journal import jobs
from appliance.journal.overview import Overview, overview
from appliance.journal.store import Journal
from appliance.rehearsal.box import Box
from appliance.rehearsal.material import Material
from appliance.rehearsal.pacs import AE_TITLE as PACS_AE
from appliance.rehearsal.pacs import TimedPacs
from appliance.scanner import Manner, Sent

LOOPBACK = "127.0.0.1"
SCANNER_AE, APPLIANCE_AE = "SCANNER", "SCANSIDE"
ENGINES = ("ct-lesion", "cxr-acquisition")
SETTLE_S = 240.0
SLOWEST = 1e6  # bytes per second of a machine that we still wait for

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Which engines play, and where their packages are."""

    engines_dir: Path
    engines: tuple[str, ...] = ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    box: Box
    pacs: TimedPacs
    material: Material
    cast: Cast
    tell: Tell

    def scan(self) -> list[Sent]:
        """The scanner sends everything over one association, and waits for every answer."""
        target = Target(host=LOOPBACK, port=self.box.port, calling_ae=SCANNER_AE, called_ae=APPLIANCE_AE)
        return scanner.send(target, self.material.found.items, Manner())

    def settle(self, journal: Journal) -> None:
        """Wait until everything was read, and nothing is owed but what is held. Raises RehearsalFailed."""
        seconds = SETTLE_S + self.material.found.size / SLOWEST
        self.box.patience.wait(lambda: is_settled(journal), "everything is read and delivered", seconds)


@contextmanager
def set_up(folder: Path, cast: Cast, material: Material, tell: Tell) -> Iterator[Stage]:
    """PACS and appliance on loopback in folders of their own, the appliance not started yet. All ends with the with."""
    stirred = threading.Event()
    with (
        TimedPacs(folder / "pacs", stirred.set) as pacs,
        Box(folder / "appliance", options(cast, pacs.port), stirred) as box,
    ):
        yield Stage(box=box, pacs=pacs, material=material, cast=cast, tell=tell)


def is_settled(journal: Journal) -> bool:
    """Asked in the order in which things come about: what was seen to be done cannot become undone by what follows."""
    if jobs.arrived(journal, 1):
        return False
    now = overview(journal)
    return not now.jobs and not now.open_series and not owed(now, "queued")


def owed(now: Overview, state: str) -> int:
    return sum(one.count for one in now.owed if one.state == state)


def held(now: Overview) -> Sequence[str]:
    return [
        f"{one.count} held for {one.destination or 'nobody'}: {one.reason}" for one in now.owed if one.state == "held"
    ]


def options(cast: Cast, pacs_port: int) -> dict[str, Any]:
    """As a site would write it, but on loopback, impatient, and trusting reference engines."""
    return {
        "node": "rehearsal",
        "ae_title": APPLIANCE_AE,
        "receive": {
            "bind": LOOPBACK,
            "port": 0,
            "peers": [{"ae_title": SCANNER_AE, "address": LOOPBACK, "slots": 4}],
        },
        "reserve": {"free_mb": 64, "free_inodes": 0, "journal_mb": 1},
        "series": {"silence_s": {"default": 3, "CT": 3, "CR": 1, "DX": 1}},
        "engines_dir": str(cast.engines_dir),
        "engines": [{"id": engine, "mode": "publish", "deadline_s": 180} for engine in cast.engines],
        "destinations": [
            {
                "name": "pacs",
                "kind": "dimse",
                "host": LOOPBACK,
                "port": pacs_port,
                "called_ae": PACS_AE,
                "takes": ["image", "sr", "sc"],
                "accept_reference": True,
            }
        ],
    }
