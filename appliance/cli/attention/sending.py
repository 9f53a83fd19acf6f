"""Of what is owed: lanes that are suspended, deliveries that are held, proofs and reports that do not come through."""

from appliance.cli.attention.told import Attention
from appliance.cli.situation import Situation, owed
from appliance.cli.tables import plural
from appliance.cli.unproven import Proving, complaints
from appliance.config import Config


def lanes(config: Config, now: Situation) -> list[Attention]:
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


def held_back(now: Situation) -> list[Attention]:
    return [
        Attention(
            what=f"{held.count} held{' for ' + held.destination if held.destination else ''}: {held.reason}",
            do="See `scanside deliveries --state held`; then requeue, or abandon.",
        )
        for held in owed(now, "held")
    ]


def unproven(config: Config, now: Situation) -> list[Attention]:
    known = Proving(provers=now.proofs, lanes=now.lanes, journal=now.journal, port=now.port)
    return [Attention(what=what, do=do) for what, do in complaints(config, known)]


def reports(config: Config, now: Situation) -> list[Attention]:
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
