"""Plans that nothing needs any more go, once what takes their place runs.

Kept are, of what serves, the plan that runs it and the one that was built last; of what `engines rollback` goes back
to, what runs in shadow and what is on its way, the one that was built last; of other releases none: a plan can be built
anew. A folder that a build or a check uses is left alone. History is told first: whoever dies in between has it done
the next time.
"""

from collections.abc import Mapping

from appliance.disk import refusal
from appliance.engine_store import holds, leaving, removal
from appliance.engine_store.moves import OVER
from appliance.engine_store.store import EngineStore
from appliance.errors import EngineRefused
from appliance.runtimes import plan_store


def tidy_plans(store: EngineStore, engine_id: str, running: Mapping[str, str], by: str) -> list[str]:
    """`running`: releases that run on a plan, and its key. Returns the names of the files that are gone.

    Raises EngineRefused where the book cannot be read, or they are another user's; OutOfResources, StoreFailed.
    """
    gone = []
    for release in store.book(engine_id).releases:
        try:
            gone += _tidied(store, engine_id, release, running.get(release, ""), by)
        except PermissionError as error:
            raise EngineRefused(f"{error.filename} cannot be removed: {error.strerror}") from error
        except OSError as error:
            raise refusal(error, f"plans of {engine_id}@{release}") from error
    return gone


def _tidied(store: EngineStore, engine_id: str, release: str, runs: str, by: str) -> list[str]:
    """Raises OSError, too."""
    folder = removal.plans_of(store.root / engine_id, release)
    with holds.alone(folder) as is_free:
        if not is_free or not folder.is_dir():
            return []
        files = plan_store.others(folder, {_last_built(store, engine_id, release), runs})
        names = [file.name for file in files]
        if files:
            store.note(engine_id, release, by, "plans_removed", ", ".join(names))
            plan_store.remove(folder, files)
        return names


def _last_built(store: EngineStore, engine_id: str, release: str) -> str:
    """Its key, looked up when nobody builds; "" where the release needs none."""
    known = store.book(engine_id).releases.get(release)
    if known is None or (known.stage in OVER and release not in leaving.needed(store, engine_id)):
        return ""
    return known.plan_key
