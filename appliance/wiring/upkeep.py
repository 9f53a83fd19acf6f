"""Plans that nothing needs any more go, once what takes their place runs.

Kept are, of what serves, the plan that runs it, the one that was proved last and the one that was built last; of what
`engines rollback` goes back to, what runs in shadow and what is on its way, those proved and built last; of other
releases none: a plan can be built anew. A folder that a build or a check uses is left alone. History is told first:
whoever dies in between has it done the next time.
"""

import errno
from collections.abc import Mapping

from appliance.engine_store import holds, leaving, removal
from appliance.engine_store.moves import MAX_WHY, OVER
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused, StoreFailed
from appliance.runtimes import plan_store
from appliance.wiring.releases import report_of

REMOVED = "plans_removed"  #: in the history


def tidy_plans(store: EngineStore, engine_id: str, running: Mapping[str, str], by: str) -> list[str]:
    """`running`: releases that run on a plan, and its key. Returns the names of the files that are gone.

    Raises EngineRefused where the book cannot be read, or they cannot be removed: housekeeping stops nothing else.
    OutOfResources; StoreFailed where the disk failed.
    """
    gone = []
    for release in store.book(engine_id).releases:
        try:
            gone += _tidied(store, engine_id, release, running.get(release, ""), by)
        except OSError as error:
            what = error.filename or f"plans of {engine_id}@{release}"
            kind = StoreFailed if error.errno == errno.EIO else EngineRefused
            raise kind(f"{what} cannot be removed: {error.strerror}") from error
    return gone


def _tidied(store: EngineStore, engine_id: str, release: str, runs: str, by: str) -> list[str]:
    """Raises OSError, too."""
    folder = removal.plans_of(store.root / engine_id, release)
    with holds.alone(folder) as is_free:
        if not is_free or not folder.is_dir():
            return []
        files = plan_store.others(folder, {*_last(store, engine_id, release), runs})
        names = [file.name for file in files]
        if files:
            _tell(store, engine_id, release, by, ", ".join(names))
            plan_store.remove(folder, files)
        return names


def _tell(store: EngineStore, engine_id: str, release: str, by: str, names: str) -> None:
    """Once, however often it is tried in vain."""
    told = [line for line in store.book(engine_id).history if line.release == release]
    if not told or (told[-1].event, told[-1].why) != (REMOVED, names[:MAX_WHY]):
        store.note(engine_id, release, by, REMOVED, names)


def _last(store: EngineStore, engine_id: str, release: str) -> list[str]:
    """Keys of what was built and what was proved last, which may be two; looked up when nobody builds.

    None where the release needs none.
    """
    known = store.book(engine_id).releases.get(release)
    if known is None or (known.stage in OVER and release not in leaving.needed(store, engine_id)):
        return []
    named = Named(engine_id=engine_id, release=release, folder=store.root / engine_id / release, stage=known.stage)
    report = report_of(store, named) or {}
    return [known.plan_key, str(report.get("plan_key", ""))]
