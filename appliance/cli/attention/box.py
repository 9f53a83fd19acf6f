"""Of the box itself: its disk, its processes, its certificate, its clock."""

from datetime import datetime

from appliance.certificates import Validity
from appliance.cli.attention.told import Attention
from appliance.cli.situation import Situation
from appliance.cli.tables import plural, size_of, span_of
from appliance.config import Config
from appliance.wiring.common import HOUR_MS, MB

WAL_ALARM = 64 * MB
WITHOUT = {
    "receive": "nothing is taken from scanners",
    "analyse": "AI OFF: no engine reads anything; images are delivered all the same",
    "forward": "nothing is delivered; what arrives is kept",
}


def store(now: Situation) -> list[Attention]:
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


def outage(config: Config, now: Situation) -> list[Attention]:
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


def processes(now: Situation) -> list[Attention]:
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


def certificate(now: Situation, clock: datetime) -> list[Attention]:
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


def oddities(now: Situation) -> list[Attention]:
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
