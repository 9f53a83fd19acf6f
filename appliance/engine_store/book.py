"""What is known of the releases of one engine: a small JSON file, replaced whole.

Why a file and not a table of the journal: which release serves must be known before there is a journal, while it is
latched, and after it was lost and rebuilt from the spool, which says nothing of engines; and both a person's command
and the analyse process change it, while tables have one owner. What serves, how far each release has come, and the
lines of history that tell why are one file, so that they cannot disagree: a transition and its history appear together
(P11), by one rename, or not at all.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.disk import refusal, sync_folder, write_all
from appliance.errors import EngineRefused, StoreFailed
from appliance.states import EngineStage

BOOK = "releases.json"
MAX_BYTES = 4 << 20
MAX_LINES = 1000  # of history; the oldest go
MAX_PREVIOUS = 16
SHIPPED = "shipped"  #: the release that came with the program, or was put into engines_dir: not ours to keep
OFF = ""  #: no release serves

ReleaseName = Annotated[str, Field(pattern=r"^([0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]*-[0-9a-f]{12}|shipped|)$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Part):
    """Something that happened."""

    at: str  #: UTC, for people: the order is that of the lines
    by: str  #: a person, or a process
    event: str  #: a states.Event, or what else happened
    release: ReleaseName
    stage: str  #: after it
    why: str = ""


class Release(_Part):
    """A release that was imported. Its folder has its name."""

    version: str
    package_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    stage: EngineStage
    signed_by: str = ""  #: SHA-256 of the public key file whose owner signed it, or ""
    served: bool = False  #: whether its results counted when it ran last
    plan: str = ""  #: the plan that was built last: its path below plans/VERSION-SHA12, or ""
    plan_sha256: str = ""
    plan_key: str = ""


class Book(_Part):
    """All of one engine."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    active: ReleaseName = SHIPPED
    previous: tuple[ReleaseName, ...] = ()  #: what was active before, the last last
    shadow: ReleaseName = OFF
    stopped: ReleaseName = OFF  #: what was turned off, while nothing serves: its duties are still this engine's (P6)
    alarm: str = ""  #: what happened by itself and needs a person, until one decides
    releases: dict[ReleaseName, Release] = {}
    history: tuple[Line, ...] = ()

    def with_line(self, line: Line) -> "Book":
        return self.model_copy(update={"history": (*self.history, line)[-MAX_LINES:]})


def read(folder: Path) -> Book:
    """The book in this folder, an empty one where there is none. Raises EngineRefused where it cannot be read."""
    path = folder / BOOK
    try:
        with path.open("rb") as file:
            return Book.model_validate_json(file.read(MAX_BYTES))
    except FileNotFoundError:
        return Book()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no such record, or cut short"
        raise EngineRefused(f"{path}: which release serves is not known: {reason}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with what is in this folder. Who dies here lets go."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write(folder: Path, book: Book) -> None:
    """Replace the book, durably. Raises OutOfResources (nothing was changed), StoreFailed."""
    replace_file(folder / BOOK, book.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def replace_file(path: Path, content: bytes) -> None:
    """Whole or not at all, whatever happens meanwhile; on the disk when this returns. Raises as `write`."""
    temporary = ""
    try:
        fd, temporary = mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            write_all(fd, [memoryview(content)])
            os.fchmod(fd, 0o644)
            _sync(fd, path)
        finally:
            os.close(fd)
        Path(temporary).replace(path)
    except OSError as error:
        with suppress(OSError):
            Path(temporary).unlink()
        raise refusal(error, path.name) from error
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise StoreFailed(f"{path.parent}: {error.strerror}") from error


def _sync(fd: int, path: Path) -> None:
    """A failed sync is final, whatever its number says (P1)."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise StoreFailed(f"{path.name}: {error.strerror}") from error
