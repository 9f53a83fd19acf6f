"""Releases that are no longer needed: which these are, and how one leaves the store for good."""

from collections.abc import Callable
from contextlib import suppress

from appliance.engine_store import book as books
from appliance.engine_store import removal
from appliance.engine_store.moves import OVER, Moves
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused


def needed(store: EngineStore, engine_id: str) -> dict[str, str]:
    """Releases that must stay, and what for. Raises EngineRefused where the book cannot be read."""
    return _moves(store, engine_id, "").needed()


def old(store: EngineStore, engine_id: str) -> list[Named]:
    """Releases that served or were refused, and that nothing needs any more. Raises EngineRefused."""
    stay = needed(store, engine_id)
    away = (named for named, _ in store.former(engine_id))
    return [named for named in away if named.stage in OVER and named.release not in stay]


def size(store: EngineStore, named: Named) -> int:
    """Bytes of an imported release and its plans."""
    return removal.size_of(store.root / named.engine_id, named.release)


def remove(store: EngineStore, named: Named, by: str, owed: Callable[[], str]) -> int:
    """Remove a release and its plans; how many bytes they had. `owed`: why it must stay yet, "" if it need not.

    Raises EngineRefused where it is needed, or used by a process: nothing was changed then; or where its files cannot
    be removed: it is out of the book then. OutOfResources, StoreFailed.
    """
    if named.stage is None:
        raise EngineRefused(f"{named} lies in {store.shipped}: only what was imported can be removed")
    home = store.root / named.engine_id
    with books.locked(home), removal.alone(home, named.release) as is_free:
        moves = _moves(store, named.engine_id, by)
        moves.remove(named.release, str(named))
        if not is_free:
            raise EngineRefused(f"{named} stays: a process uses it just now (the appliance, a build or a check)")
        if why := owed():
            raise EngineRefused(f"{named} stays: {why}")
        books.write(home, moves.book)
        return removal.clear(home, named.release)


def sweep(store: EngineStore) -> None:
    """Remove what interrupted removals left behind. Raises StoreFailed."""
    for engine_id in store.ids():
        home = store.root / engine_id
        # A book that cannot be read says nothing, and what is another user's is not ours to remove.
        with suppress(EngineRefused, PermissionError), books.locked(home):
            removal.sweep(home, store.book(engine_id))


def _moves(store: EngineStore, engine_id: str, by: str) -> Moves:
    return Moves(store.book(engine_id), store.shipped / engine_id, by, store.now)
