"""What is known of an appliance at this moment. Read-only; works while it is down. What needs somebody: `attention`.

The journal says what is owed, files in the run folder say what the processes last told of themselves, and their bells
say whether they are there. Facts of a process that is not there are not shown: they are old.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.cli.opening import open_journal
from appliance.config import Config
from appliance.errors import EngineRefused, OutOfResources, StoreFailed
from appliance.journal import intake
from appliance.journal.intake import Intake
from appliance.journal.overview import Overview, Owed, overview
from appliance.latch import latched
from appliance.wakeup import is_listening
from appliance.wiring.common import MB, PROCESSES
from appliance.wiring.releases import engine_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    free_bytes: int
    reserve_bytes: int
    free_inodes: int  #: -1: the file system has none
    reserve_inodes: int
    held_bytes: int  #: of images and results
    lasts_h: float | None  #: hours for which it would do if nothing went out any more; None: not known yet

    @property
    def refusing(self) -> bool:
        return self.free_bytes < self.reserve_bytes or 0 <= self.free_inodes < self.reserve_inodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    processes: Mapping[str, bool]
    receive: Mapping[str, Any]  #: {port, tls, unencrypted_port, unencrypted_reason, rejections}, see wiring.receive
    lanes: Mapping[str, Any]  #: destination -> {state, reason}
    reports: Mapping[str, Any]  #: AE title that asked for storage commitment -> {state, reason}
    proofs: Mapping[str, Any]  #: destination that must answer for what it got -> {state, reason}
    engines: Mapping[str, Any]  #: id@version -> {serves, publish, reason}
    engine_alarms: Mapping[str, str]  #: id -> what was taken back or turned off by itself, until a person decides
    engines_told: bool  #: whether the analyse process has verified its engines yet
    latched: str  #: why nothing may be stored any more, or ""
    disk: Disk
    journal: Overview | None  #: None: it has never run, or `journal_fault`
    journal_fault: str  #: why the journal cannot be read, or ""
    wal_bytes: int
    clock_implausible: bool

    @property
    def port(self) -> int:
        """Of the listener; 0: not listening."""
        return int(self.receive.get("port", 0))

    @property
    def running(self) -> bool:
        return any(self.processes.values())


def look(config: Config) -> Situation:
    """Raises ScansideError where something cannot be read at all."""
    processes = {name: is_listening(config.run_dir, name) for name in PROCESSES}
    engines = _facts(config, "engines") if processes["analyse"] else None
    book = _journal(config)
    return Situation(
        processes=processes,
        receive=(_facts(config, "receive") or {}) if processes["receive"] else {},
        lanes=(_facts(config, "lanes") or {}) if processes["forward"] else {},
        reports=(_facts(config, "reports") or {}) if processes["forward"] else {},
        proofs=(_facts(config, "proofs") or {}) if processes["forward"] else {},
        engines=engines or {},
        engine_alarms=_engine_alarms(config),
        engines_told=engines is not None,
        latched=latched(config.spool_dir),
        disk=_disk(config, book.intake),
        journal=book.overview,
        journal_fault=book.fault,
        wal_bytes=book.wal_bytes,
        clock_implausible=book.clock_implausible,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """What the journal says."""

    overview: Overview | None = None
    intake: Intake | None = None
    fault: str = ""
    wal_bytes: int = 0
    clock_implausible: bool = False


def _journal(config: Config) -> _Book:
    if not config.journal_path.exists():
        return _Book()
    try:
        with open_journal(config) as journal:
            return _Book(
                overview=overview(journal),
                intake=intake.look(journal),
                wal_bytes=journal.wal_bytes(),
                clock_implausible=journal.clock.implausible(),
            )
    except (StoreFailed, OutOfResources) as error:
        return _Book(fault=str(error))


def _facts(config: Config, name: str) -> dict[str, Any] | None:
    """What a process last told; None: nothing, or it is being replaced just now."""
    try:
        told = json.loads((config.run_dir / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _engine_alarms(config: Config) -> dict[str, str]:
    store, found = engine_store(config), {}
    for engine in config.engines:
        try:
            found[engine.id] = store.book(engine.id).alarm
        except EngineRefused as error:
            found[engine.id] = str(error)
    return {engine_id: alarm for engine_id, alarm in found.items() if alarm}


def _disk(config: Config, came: Intake | None) -> Disk:
    folder = config.state_dir
    while not folder.exists():
        folder = folder.parent
    room = os.statvfs(folder)
    free, reserve = room.f_bavail * room.f_frsize, config.reserve.free_mb * MB
    inodes = room.f_favail - config.reserve.free_inodes if room.f_files else None
    return Disk(
        free_bytes=free,
        reserve_bytes=reserve,
        free_inodes=room.f_favail if room.f_files else -1,
        reserve_inodes=config.reserve.free_inodes,
        held_bytes=came.held_bytes if came else 0,
        lasts_h=came.lasts_h(free - reserve, inodes) if came else None,
    )


def owed(now: Situation, state: str) -> list[Owed]:
    return [one for one in now.journal.owed if one.state == state] if now.journal is not None else []
