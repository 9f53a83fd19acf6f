"""The files of a release that leaves the store: what lies where, and what an interrupted removal left.

The book goes first: one rename takes the release out of it and says so in its history, and from then on nobody can name
it, however far its files are. They go after that; whoever dies in between leaves files that the history says were
removed, and only such are swept up by the next one. The other way round a book could name a release that is half there.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from appliance.disk import sync_folder
from appliance.engine_store import holds
from appliance.engine_store.book import Book
from appliance.engine_store.moves import REMOVE
from appliance.errors import EngineRefused, StoreFailed

PLANS = "plans"


def plans_of(home: Path, release: str) -> Path:
    return home / PLANS / release


def report_of(home: Path, release: str) -> Path:
    return home / f"{release}.verify.json"


@contextmanager
def alone(home: Path, release: str) -> Iterator[bool]:
    """Whether nobody uses the release or its plans, and nobody will while this lasts."""
    with ExitStack() as both:
        folders = (home / release, plans_of(home, release))
        yield all(both.enter_context(holds.alone(folder)) for folder in folders)


def clear(home: Path, release: str) -> int:
    """Remove the files of a release that is not in the book any more; how many bytes they had. May be repeated.

    Raises EngineRefused where they cannot be removed, StoreFailed.
    """
    size = size_of(home, release)
    try:
        for folder in (plans_of(home, release), home / release):
            if folder.exists():
                shutil.rmtree(folder)
        report_of(home, release).unlink(missing_ok=True)
    except OSError as error:
        raise EngineRefused(
            f"{error.filename or release} cannot be removed: {error.strerror}. {release} serves no more, but takes room"
        ) from error
    try:
        sync_folder(home)
    except OSError as error:
        raise StoreFailed(f"{home}: {error.strerror}") from error
    return size


def left_over(home: Path, book: Book) -> list[str]:
    """Releases that the history says were removed, and files of which are still there."""
    removed = {line.release for line in book.history if line.event == REMOVE} - book.releases.keys()
    return sorted(name for name in removed if any(path.exists() for path in _places(home, name)))


def sweep(home: Path, book: Book) -> None:
    """Remove what is left over and used by nobody. Whoever calls it is alone with the folder. Raises StoreFailed."""
    for release in left_over(home, book):
        with alone(home, release) as is_free, suppress(EngineRefused):
            if is_free:
                clear(home, release)


def size_of(home: Path, release: str) -> int:
    """Bytes of all its files; what goes meanwhile counts as nothing."""
    return sum(_bytes(path) for path in _places(home, release))


def _places(home: Path, release: str) -> tuple[Path, ...]:
    return home / release, plans_of(home, release), report_of(home, release)


def _bytes(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(_bytes(one) for one in path.iterdir())
        return path.lstat().st_size
    except OSError:
        return 0
