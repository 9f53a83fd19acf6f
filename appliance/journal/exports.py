"""What a person may carry away on a stick, and the line of history that says so. No delivery changes by it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.journal.rows import INSTANCE_SELECT, instance_of
from appliance.journal.store import Journal, Subject
from appliance.model import Instance, Origin, Urgency

PAGE = 500
STUDIES_AT_ONCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for."""

    study_instance_uid: str = ""  #: "": all that is owed
    destination: str = ""  #: only what is for this one; "": any
    guarded: frozenset[str] = frozenset()  #: destinations of results that may go to no others


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What was written of one study."""

    objects: int
    size: int


def wanted_ids(journal: Journal, wanted: Wanted) -> list[int]:
    """Ids of instances, oldest first; of what is owed, queued and held."""
    if wanted.study_instance_uid:
        rows = journal.query("SELECT id FROM instance WHERE study_instance_uid=?", wanted.study_instance_uid)
        return sorted(row["id"] for row in rows)
    found = {instance for page in _owed(journal, wanted.destination) for instance in page}
    return sorted(found)


def _owed(journal: Journal, destination: str) -> Iterator[list[int]]:
    """By pages along the indexes: no long read beside the appliance."""
    for state, classes in (("queued", tuple(Urgency)), ("held", (None,))):
        rows = journal.query(
            f"SELECT DISTINCT destination FROM delivery INDEXED BY delivery_{state} WHERE state='{state}'"
        )
        for name in (row["destination"] for row in rows):
            if destination in ("", name):
                for urgency in classes:
                    yield from _pages(journal, state, name, urgency)


def _pages(journal: Journal, state: str, destination: str, urgency: Urgency | None) -> Iterator[list[int]]:
    narrowed = "" if urgency is None else f" AND urgency={int(urgency)}"
    after = 0
    while rows := journal.query(
        f"SELECT id, instance FROM delivery INDEXED BY delivery_{state}"
        f" WHERE state='{state}' AND destination=?{narrowed} AND id>? ORDER BY id LIMIT {PAGE * 10}",
        destination,
        after,
    ):
        after = rows[-1]["id"]
        yield [row["instance"] for row in rows]


def instances(journal: Journal, ids: Sequence[int], wanted: Wanted) -> Iterator[tuple[Instance, bool]]:
    """Each instance, and whether it may be carried away: results go only where the configuration lets them go."""
    for at in range(0, len(ids), PAGE):
        some = ids[at : at + PAGE]
        marks = ",".join("?" * len(some))
        rows = journal.query(f"{INSTANCE_SELECT} WHERE i.id IN ({marks}) ORDER BY i.id", *some)
        going = _destinations(journal, some)
        for one in map(instance_of, rows):
            yield one, _may_go(one, going.get(one.id, ()), wanted)


def is_owed(journal: Journal, instance_id: int) -> bool:
    """Whether it still is: what is delivered meanwhile may lose its local copy."""
    row = journal.one("SELECT 1 FROM delivery WHERE instance=? AND state IN ('queued', 'held') LIMIT 1", instance_id)
    return row is not None


def _destinations(journal: Journal, ids: Sequence[int]) -> Mapping[int, set[str]]:
    marks = ",".join("?" * len(ids))
    going: dict[int, set[str]] = {}
    for row in journal.query(f"SELECT instance, destination FROM delivery WHERE instance IN ({marks})", *ids):
        going.setdefault(row["instance"], set()).add(row["destination"])
    return going


def _may_go(one: Instance, destinations: Collection[str], wanted: Wanted) -> bool:
    if one.origin is Origin.RECEIVED:
        return True
    if wanted.destination:
        return wanted.destination in destinations
    return any(name and name not in wanted.guarded for name in destinations)


def note(journal: Journal, carried: Mapping[str, Carried], by: str, to: str) -> None:
    """A line for each study, by its UID; "" stands for what has none."""
    studies = list(carried.items())
    for at in range(0, len(studies), STUDIES_AT_ONCE):
        with journal.write(durable=True) as tx:
            for uid, one in studies[at : at + STUDIES_AT_ONCE]:
                tx.history(
                    "exported", Subject(study_instance_uid=uid), by=by, to=to, objects=one.objects, bytes=one.size
                )
