"""What is known of an appliance at this moment, and what of it needs somebody. Read-only; works while it is down.

The journal says what is owed, files in the run folder say what the processes last told of themselves, and their bells
say whether they are there. Facts of a process that is not there are not shown: they are old.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from appliance.certificates import Validity
from appliance.cli.opening import open_journal
from appliance.cli.tables import plural, size_of, span_of
from appliance.cli.unproven import Proving, complaints
from appliance.config import Config, EngineMode
from appliance.errors import EngineRefused, OutOfResources, StoreFailed
from appliance.journal import intake
from appliance.journal.identity import AlarmEvent
from appliance.journal.intake import Intake
from appliance.journal.overview import Overview, Owed, overview
from appliance.journal.performed import Awaited
from appliance.latch import latched
from appliance.wakeup import is_listening
from appliance.wiring.common import HOUR_MS, MB, PROCESSES
from appliance.wiring.releases import engine_store

WAL_ALARM = 64 * MB
AWAITED_MS = 60_000
WITHOUT = {
    "receive": "nothing is taken from scanners",
    "analyse": "AI OFF: no engine reads anything; images are delivered all the same",
    "forward": "nothing is delivered; what arrives is kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Something a person should know; `do` says what they can do about it."""

    what: str
    do: str = ""


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


def attentions(config: Config, now: Situation) -> list[Attention]:
    """What is not as it should be, worst first."""
    return [
        *_store(now),
        *_outage(config, now),
        *_identities(now),
        *_processes(now),
        *_engines(config, now),
        *_engine_alarms_told(now),
        *_certificate(now, datetime.now(UTC)),
        *_lanes(config, now),
        *_held(now),
        *(Attention(what=what, do=do) for what, do in _unproven(config, now)),
        *_reports(config, now),
        *_awaited(now),
        *_oddities(now),
    ]


def _store(now: Situation) -> list[Attention]:
    found = []
    if now.journal_fault:
        found.append(
            Attention(
                what=now.journal_fault,
                do="Stop the appliance; `scanside recover` makes a new journal from the images.",
            )
        )
    if now.latched:
        found.append(
            Attention(
                what=f"REFUSING IMAGES: writing to the disk failed ({now.latched}), so scanners are told to wait",
                do="Look at the disk (dmesg, smartctl). When it is well, the appliance goes on by itself.",
            )
        )
    if now.disk.refusing:
        free, reserve = size_of(now.disk.free_bytes), size_of(now.disk.reserve_bytes)
        inodes = f" and {now.disk.free_inodes} inodes" if now.disk.free_inodes >= 0 else ""
        found.append(
            Attention(
                what=f"REFUSING IMAGES: {free}{inodes} free, the reserve is {reserve}: scanners are told to wait",
                do="Make room on the disk of the state folder, or let the destinations take what they are owed.",
            )
        )
    return found


def _outage(config: Config, now: Situation) -> list[Attention]:
    lasts_h = now.disk.lasts_h
    if lasts_h is None or lasts_h >= config.reserve.outage_h or now.disk.refusing:
        return []
    lasts, wanted = span_of(lasts_h * HOUR_MS), config.reserve.outage_h
    return [
        Attention(
            what=f"the disk would do for {lasts} without any PACS, {wanted:g} h are asked for (reserve.outage_h)",
            do="Give the state folder a larger disk, or let destinations keep_h be less.",
        )
    ]


def _processes(now: Situation) -> list[Attention]:
    if not now.running:
        return [
            Attention(
                what="NOT RUNNING: nothing is received, read or delivered",
                do="Start it: systemctl start scanside, or scanside run --config FILE.",
            )
        ]
    return [
        Attention(
            what=f"the {name} process is down: {WITHOUT[name]}",
            do="It is started anew by itself; if it stays down, its reason is in the log.",
        )
        for name, there in now.processes.items()
        if not there
    ]


def _certificate(now: Situation, clock: datetime) -> list[Attention]:
    tls = now.receive.get("tls")
    if not tls:
        return []
    validity = Validity(begins=datetime.fromisoformat(tls["begins"]), ends=datetime.fromisoformat(tls["ends"]))
    found = []
    if tls["fault"]:
        what = f"the renewed certificate of receive.tls is no use, the old one is still in use: {tls['fault']}"
        found.append(Attention(what=what, do="Put the right files there; they are used from the next association on."))
    if complaint := validity.complaint(clock):
        found.append(Attention(what=f"our certificate (receive.tls) {complaint}", do="Renew it; no restart is needed."))
    return found


def _identities(now: Situation) -> list[Attention]:
    said = {
        AlarmEvent.CHANGED: (
            "PATIENT IDENTITY CHANGED after a result was sent: study {study}",
            "The images name another patient than that result. Withdraw it in PACS; a new result will correct it.",
        ),
        AlarmEvent.MIXED: (
            "PATIENT IDENTITIES MIXED: study {study} is not analysed",
            "Its images name more than one patient: put that right at the scanner or in PACS, and send it again.",
        ),
    }
    found = now.journal.alarms if now.journal is not None else ()
    told = [(said[AlarmEvent(one.event)], one.study_instance_uid) for one in found]
    return [Attention(what=what.format(study=study), do=do) for (what, do), study in told]


def _engines(config: Config, now: Situation) -> list[Attention]:
    if not now.processes["analyse"] or not any(one.mode is not EngineMode.OFF for one in config.engines):
        return []
    if not now.engines_told:
        return [Attention(what="AI not ready yet: the engines are being loaded and verified")]
    degraded = [
        Attention(what=f"DEGRADED: {key}: {why}", do="It serves all the same, and its results say so.")
        for key, fact in now.engines.items()
        if fact["serves"] and (why := fact.get("degraded", ""))
    ]
    return degraded + [
        Attention(
            what=f"AI OFF for {key}: {fact['reason']}" + (f", since {when}" if (when := fact.get("since", "")) else ""),
            do="Its studies are concluded as 'not analysed'."
            if fact.get("on_duty", True)
            else "NOBODY IS TOLD which studies it does not read: mend the package, then restart the appliance.",
        )
        for key, fact in now.engines.items()
        if not fact["serves"]
    ]


def _engine_alarms_told(now: Situation) -> list[Attention]:
    return [
        Attention(
            what=f"ENGINE TAKEN BACK: {alarm}",
            do=f"`scanside trace {engine_id}` tells its history. Decide: `scanside engines activate` or `rollback`.",
        )
        for engine_id, alarm in now.engine_alarms.items()
    ]


def _lanes(config: Config, now: Situation) -> list[Attention]:
    todo = {
        "suspended": "It wants nothing from us: check AE titles and port on both sides. We ask again by ourselves.",
        "backing off": "We try again by ourselves; nothing is lost.",
    }
    found = [
        Attention(what=f"{name} {fact['state']}: {fact['reason']}", do=todo[fact["state"]])
        for name, fact in now.lanes.items()
        if fact["state"] in todo
    ]
    unknown = [one.name for one in config.destinations if now.lanes and one.name not in now.lanes]
    if unknown:
        what = f"the running appliance does not know {', '.join(unknown)}: the configuration has changed since"
        found.append(Attention(what=what, do="Restart it."))
    return found


def _held(now: Situation) -> list[Attention]:
    return [
        Attention(
            what=f"{held.count} held{' for ' + held.destination if held.destination else ''}: {held.reason}",
            do="See `scanside deliveries --state held`; then requeue, or abandon.",
        )
        for held in owed(now, "held")
    ]


def _unproven(config: Config, now: Situation) -> list[tuple[str, str]]:
    known = Proving(provers=now.proofs, lanes=now.lanes, journal=now.journal, port=now.port)
    return complaints(config, known)


def _reports(config: Config, now: Situation) -> list[Attention]:
    """Of peers that asked for storage commitment; a request that waits for its deliveries needs nobody."""
    asking = {peer.ae_title for peer in config.receive.peers if peer.commitment}
    found = [
        Attention(
            what=f"{name} does not take our storage commitment report: {fact['reason']}",
            do="Check 'reports_tls', and the certificates on both sides. We try again by ourselves."
            if fact["reason"].startswith("TLS")
            else "Check 'reports_to', and AE title and port on its side. We try again by ourselves.",
        )
        for name, fact in now.reports.items()
        if fact["state"] == "backing off"
    ]
    gone = [one for one in (now.journal.commitments if now.journal is not None else ()) if one.calling_ae not in asking]
    return found + [
        Attention(
            what=f"{one.calling_ae} waits for {plural(one.count, 'storage commitment report')} that we cannot send",
            do="It asked when it had 'commitment' under receive.peers: give it that again, with 'reports_to'.",
        )
        for one in gone
    ]


def _awaited(now: Situation) -> list[Attention]:
    """A scanner says that it is done a little before its last images have come: that needs nobody."""
    if now.journal is None:
        return []
    return [
        Attention(
            what=f"{awaited_words(one, now.journal.tick)}: no engine reads a part of it",
            do="Send them again from the scanner. Without them the series counts as closed after two days of silence.",
        )
        for one in now.journal.awaited
        if now.journal.tick - one.since_tick >= AWAITED_MS
    ]


def awaited_words(one: Awaited, tick: int) -> str:
    return (
        f"{one.calling_ae} named {plural(one.named, 'image')} of series {one.series_instance_uid}, of which"
        f" {one.missing} {'has' if one.missing == 1 else 'have'} not come: waiting for {span_of(tick - one.since_tick)}"
    )


def _oddities(now: Situation) -> list[Attention]:
    found = []
    if now.journal is not None and now.journal.unsorted:
        what = plural(now.journal.unsorted, "object")
        found.append(Attention(what=f"{what} without a readable Study or Series UID: delivered, read by no engine"))
    if now.clock_implausible:
        found.append(
            Attention(what="the clock is wrong: results say so", do="Set the time; check the network's time server.")
        )
    if now.wal_bytes > WAL_ALARM:
        found.append(
            Attention(what=f"the journal's log has grown to {size_of(now.wal_bytes)}", do="Restart the appliance.")
        )
    return found


def owed(now: Situation, state: str) -> list[Owed]:
    return [one for one in now.journal.owed if one.state == state] if now.journal is not None else []
