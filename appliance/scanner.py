"""A scanner's stand-in: finds DICOM in a file, a folder or a tar, and sends it over real associations.

For `scanside send` and the rehearsal. Nothing is decoded; what is sent is the stored data set, byte for byte.
"""

import random
import shutil
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.dimse.association import MAX_CONTEXTS
from appliance.dimse.header import Part10, part10
from appliance.dimse.requestor import Pair, RequestedAssociation, connect
from appliance.dimse.wire import Target
from appliance.errors import DestinationRefused, ObjectRefused, ScansideError, TransientDeliveryError

MAX_FILES = 100_000
MAX_UNPACKED = 32 << 30  # bytes
LEAVE_FREE = 1 << 30  # bytes of disk that unpacking does not touch
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_COPY = 1 << 20


class NothingToSend(ScansideError):
    """There is no DICOM at the path, or it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One object to send, and what its file is called where it came from."""

    stored: Part10
    name: str

    @property
    def pair(self) -> Pair:
        """Its presentation context: SOP class and transfer syntax."""
        return self.stored.sop_class_uid, self.stored.transfer_syntax_uid


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...]

    @property
    def size(self) -> int:
        return sum(item.stored.size for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one object. `status` None: no answer came, and `error` says why."""

    item: Item
    status: int | None
    error: str = ""
    ms: float = 0.0

    @property
    def stored(self) -> bool:
        """Success, or a warning, which is stored too (PS3.4 Table B.2-1)."""
        return self.status is not None and (self.status in (0, 1, 0x107, 0x116) or 0xB000 <= self.status <= 0xBFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to send."""

    associations: int = 1  #: at a time
    shuffle: bool = False  #: not in the order of names


# Finding.


def find(path: Path, workdir: Path) -> Found:
    """All DICOM at `path`: a file, a folder and all below it, or a tar, which is unpacked into `workdir`.

    Raises NothingToSend where there is none, or where it is more than the bounds allow.
    """
    try:
        return _sorted_out(_named_files(path, workdir), path)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise NothingToSend(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _named_files(path: Path, workdir: Path) -> Iterable[tuple[str, Path]]:
    if path.is_dir():
        return _below(path)
    if not _is_part10(path) and tarfile.is_tarfile(path):
        return _unpacked(path, workdir)
    return [(path.name, path)]


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Plain files below the folder, in the order of their names; links are not followed."""
    for count, path in enumerate(sorted(folder.rglob("*"))):
        if count >= MAX_FILES:
            raise NothingToSend(f"{folder}: more than {MAX_FILES} files")
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path


def _unpacked(archive: Path, workdir: Path) -> Iterator[tuple[str, Path]]:
    """The plain files of a tar, written under numbers of ours: no path of the archive is ever used for writing."""
    room = min(MAX_UNPACKED, shutil.disk_usage(workdir).free - LEAVE_FREE)
    with tarfile.open(archive, "r|*") as tar:
        for count, member in enumerate(tar):
            if count >= MAX_FILES:
                raise NothingToSend(f"{archive}: more than {MAX_FILES} entries")
            if not member.isreg():
                continue
            room -= member.size
            source = tar.extractfile(member)
            if room < 0 or source is None:
                raise NothingToSend(f"{archive}: unpacked, it is larger than the room there is in {workdir}")
            target = workdir / f"{count:06d}"
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _COPY)
            yield member.name, target


def _sorted_out(files: Iterable[tuple[str, Path]], origin: Path) -> Found:
    items: list[Item] = []
    skipped: list[Skipped] = []
    for name, path in files:
        try:
            stored = part10(path)
        except (OSError, ValueError) as error:
            skipped.append(Skipped(name=name, why=getattr(error, "strerror", None) or str(error)))
            continue
        if stored.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
            skipped.append(Skipped(name=name, why="a DICOMDIR: an index, not an image"))
        else:
            items.append(Item(stored=stored, name=name))
    if not items:
        why = f": {skipped[0].name}: {skipped[0].why}" if skipped else ": it is empty"
        raise NothingToSend(f"{origin}: nothing in it is a DICOM file{why}")
    return Found(items=tuple(items), skipped=tuple(skipped))


def _is_part10(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


# Sending.


def send(
    target: Target, items: Sequence[Item], manner: Manner, tell: Callable[[Sent], None] = lambda _: None
) -> list[Sent]:
    """Send each item once, and say what became of it, in the order of `items`; `tell` hears of each as it happens.

    An association that breaks costs the object it carried; the next goes over a new one. When none can be opened,
    what is left fails with that reason.
    """
    order = list(items)
    if manner.shuffle:
        random.shuffle(order)
    queue = _Queue(target=target, waiting=deque(order), tell=tell)
    others = max(0, min(manner.associations, len(order)) - 1)
    # Daemon threads, and one association in the caller's: an interrupt ends it all at once.
    helpers = [threading.Thread(target=queue.work, name="association", daemon=True) for _ in range(others)]
    try:
        for helper in helpers:
            helper.start()
        queue.work()
        for helper in helpers:
            helper.join()
    finally:
        queue.stop()
    results = {id(sent.item): sent for sent in queue.done}
    return [results[id(item)] for item in items if id(item) in results]


@dataclass(slots=True)
class _Queue:
    """What is still to be sent, shared by the associations."""

    target: Target
    waiting: deque[Item]
    tell: Callable[[Sent], None]
    done: list[Sent] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        """Over one association after the other, until nothing is left."""
        while pairs := self._pairs():
            try:
                association = connect(self.target, pairs)
            except (TransientDeliveryError, DestinationRefused) as error:
                self._give_up(str(error))
                return
            try:
                self._send_over(association, frozenset(pairs))
            finally:
                association.release()

    def stop(self) -> None:
        with self._lock:
            self.waiting.clear()

    def _send_over(self, association: RequestedAssociation, proposed: frozenset[Pair]) -> None:
        while association.alive and (item := self._next(proposed)) is not None:
            begun = time.monotonic()
            status, error = None, ""
            try:
                status = association.store(item.stored).status
            except (TransientDeliveryError, ObjectRefused) as failure:
                error = str(failure)
            self._note(Sent(item=item, status=status, error=error, ms=(time.monotonic() - begun) * 1000))

    def _next(self, proposed: frozenset[Pair]) -> Item | None:
        """The next item that an association with these presentation contexts can carry."""
        with self._lock:
            found = next((item for item in self.waiting if item.pair in proposed), None)
            if found is not None:
                self.waiting.remove(found)
            return found

    def _pairs(self) -> list[Pair]:
        """Presentation contexts for what is left, as many as one association may have."""
        with self._lock:
            return list(dict.fromkeys(item.pair for item in self.waiting))[:MAX_CONTEXTS]

    def _give_up(self, why: str) -> None:
        with self._lock:
            left = list(self.waiting)
            self.waiting.clear()
        for item in left:
            self._note(Sent(item=item, status=None, error=why))

    def _note(self, sent: Sent) -> None:
        with self._lock:
            self.done.append(sent)
        self.tell(sent)
