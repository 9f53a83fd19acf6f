"""Of studies: whose images name several patients, or have not all come."""

from appliance.cli.attention.told import Attention
from appliance.cli.situation import Situation
from appliance.cli.tables import plural, span_of
from appliance.journal.identity import AlarmEvent
from appliance.journal.performed import Awaited

AWAITED_MS = 60_000


def identities(now: Situation) -> list[Attention]:
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


def awaited(now: Situation) -> list[Attention]:
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
