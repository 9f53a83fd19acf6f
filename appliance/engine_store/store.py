"""The store of engines, `state/engines`: packages that were imported, and what became of them.

    ID/releases.json            which release serves, how far each has come, and its history (book.py)
    ID/VERSION-SHA12/           a package as it was imported; SHA12 begins the SHA-256 of its manifest
    ID/plans/VERSION-SHA12/     what was compiled from it for this device
    ID/VERSION-SHA12.verify.json    how it did when it was verified last

What leaves, and in which order, is told in removal.py and leaving.py; what is used is held (holds.py), and stays.

Promises: a release is here whole or not at all, and on the disk before its name is known; nothing in it is ever
executed. One small file says what serves, and is replaced by one rename: whoever dies in between leaves the old or the
new. Several processes may use it at once. Every transition is in states.ENGINE and leaves a line of history.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from appliance import engine_package, engine_signature
from appliance.disk import make_folder, refusal, sync_folder
from appliance.engine_package import EnginePackage
from appliance.engine_store import book as books
from appliance.engine_store import holds, removal
from appliance.engine_store.book import SHIPPED, Book, Release
from appliance.engine_store.moves import Moves, check_ready
from appliance.engine_store.unpack import CheckRoom, unpack
from appliance.errors import CertificateUnusable, EngineRefused, PackageInvalid, StoreFailed
from appliance.states import ENGINE, EngineStage, Event

INCOMING = ".incoming-"


def utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A release of an engine, and where it lies."""

    engine_id: str
    release: str  #: VERSION-SHA12, or SHIPPED
    folder: Path
    stage: EngineStage | None  #: None: shipped, and so no matter of the store

    def __str__(self) -> str:
        return f"{self.engine_id}@{self.release}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDuty:
    """The releases of one engine that have something to do."""

    active: Named | None  #: None: nothing serves
    shadow: Named | None
    stopped: Named | None  #: what was turned off, where nothing serves
    alarm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStore:
    root: Path
    shipped: Path  #: folder of the engines that were not imported: engines_dir
    public_key: Path | None = None  #: whose owner must have signed what serves; None: nobody
    now: Callable[[], str] = utc

    def ids(self) -> list[str]:
        """Engines that something was imported of, or decided on."""
        if not self.root.is_dir():
            return []
        return sorted(path.parent.name for path in self.root.glob(f"*/{books.BOOK}"))

    def book(self, engine_id: str) -> Book:
        """Raises EngineRefused where it cannot be read."""
        return books.read(self.root / engine_id)

    # Getting in.

    def take(self, source: Path, by: str, check_room: CheckRoom) -> tuple[Named, bool]:
        """Import a package, a folder or a zip; whether it is new. May be repeated.

        Raises PackageInvalid, OutOfResources, StoreFailed; then nothing is left of it.
        """
        _make(self.root)
        with books.locked(self.root):
            for left in self.root.glob(f"{INCOMING}*"):  # of an import that was cut short
                shutil.rmtree(left, ignore_errors=True)
            incoming = Path(mkdtemp(prefix=INCOMING, dir=self.root))
            try:
                unpack(source, incoming, check_room)
                incoming.chmod(0o755)
                package = engine_package.load(incoming)
                return self._keep(package, self._signer(incoming), by)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def _signer(self, folder: Path) -> str:
        """Of what is imported now. Raises PackageInvalid where somebody must have signed it and has not."""
        if self.public_key is None:
            return ""
        engine_signature.check(folder, self.public_key)
        return self._key_digest()

    def _key_digest(self) -> str:
        if self.public_key is None:
            return ""
        try:
            return hashlib.sha256(self.public_key.read_bytes()).hexdigest()
        except OSError as error:
            text = f"{self.public_key} (engines_key) cannot be read: {error.strerror}"
            raise CertificateUnusable("key", text) from error

    def _keep(self, package: EnginePackage, signer: str, by: str) -> tuple[Named, bool]:
        manifest = package.manifest
        release = f"{manifest.version}-{package.package_sha256[:12]}"
        home = self.root / manifest.id
        _make(home)
        with self._moving(manifest.id, by) as moves:
            removal.sweep(home, moves.book)
            known = moves.book.releases.get(release)
            if known is not None and known.package_sha256 != package.package_sha256:  # names are cut, and can be made
                raise PackageInvalid(f"another package has the name {release} already: its version must be another")
            if known is None or not _is_whole(home / release):  # a repeated import mends it
                self._settle(package.folder, home / release)
            if known is None:
                fresh = Release(
                    version=manifest.version,
                    package_sha256=package.package_sha256,
                    stage=ENGINE.initial,
                    signed_by=signer,
                )
                moves.put(release, fresh, "import")
            elif signer and known.signed_by != signer:
                moves.put(release, known.model_copy(update={"signed_by": signer}), "signed")
        return self._named(manifest.id, release, self.book(manifest.id)), known is None

    def _settle(self, incoming: Path, target: Path) -> None:
        """A folder of this name that is in no book is of an import that was cut short after its rename."""
        try:
            if target.exists():
                shutil.rmtree(target)
            incoming.rename(target)
        except OSError as error:
            raise refusal(error, target.name) from error
        try:
            sync_folder(target.parent)
        except OSError as error:
            raise StoreFailed(f"{target.parent}: {error.strerror}") from error

    # Finding.

    def find(self, wanted: str) -> Named:
        """The release that a person means by ID, ID@VERSION, ID@VERSION-SHA12 or ID@shipped.

        Without a version it is the one that was imported last, else the shipped one. Raises EngineRefused.
        """
        engine_id, _, version = wanted.partition("@")
        book = self._checked_book(engine_id)
        if version == SHIPPED or (not version and not book.releases):
            return self._shipped(engine_id, book)
        fitting = [name for name, one in book.releases.items() if version in ("", name, one.version)]
        if version and len(fitting) > 1:
            raise EngineRefused(f"{wanted} may be {' or '.join(fitting)}: name one in full")
        if fitting:
            return self._named(engine_id, fitting[-1], book)
        known = ", ".join(book.releases) or "none"
        raise EngineRefused(
            f"no release {version} of {engine_id} was imported (there: {known}): `scanside engines list`"
        )

    def _checked_book(self, engine_id: str) -> Book:
        if not engine_id or "/" in engine_id or engine_id.startswith("."):
            raise EngineRefused(f"{engine_id!r} is no engine's id")
        return self.book(engine_id)

    def _shipped(self, engine_id: str, book: Book) -> Named:
        if not (self.shipped / engine_id).is_dir():
            there = f"{engine_id} is neither imported nor in {self.shipped}"
            raise EngineRefused(f"{there}: `scanside engines list` shows what is there")
        return self._named(engine_id, SHIPPED, book)

    def _named(self, engine_id: str, release: str, book: Book) -> Named:
        if release == SHIPPED:
            return Named(engine_id=engine_id, release=SHIPPED, folder=self.shipped / engine_id, stage=None)
        folder = self.root / engine_id / release
        return Named(engine_id=engine_id, release=release, folder=folder, stage=book.releases[release].stage)

    def on_duty(self, engine_id: str) -> "OnDuty":
        """Raises EngineRefused where the book cannot be read."""
        book = self.book(engine_id)
        active, shadow, stopped = (
            self._named(engine_id, name, book) if name == SHIPPED or name in book.releases else None
            for name in (book.active, book.shadow, book.stopped)
        )
        return OnDuty(active=active, shadow=shadow, stopped=stopped, alarm=book.alarm)

    def former(self, engine_id: str) -> list[tuple[Named, bool]]:
        """Releases that are not on duty, and whether results they left behind are to be sent."""
        book = self.book(engine_id)
        away = [(self._named(engine_id, name, book), one.served) for name, one in book.releases.items()]
        if (self.shipped / engine_id).is_dir():
            away.append((self._named(engine_id, SHIPPED, book), True))
        return [(named, served) for named, served in away if named.release not in (book.active, book.shadow)]

    def serves(self, named: Named) -> bool:
        """Whether it is active or in shadow now."""
        book = self.book(named.engine_id)
        return named.release in (book.active, book.shadow)

    def load(self, named: Named) -> EnginePackage:
        """Every byte of it, checked. Raises PackageInvalid, also where it is not what was imported or not signed.

        Raises CertificateUnusable where the key that must have signed it cannot be read, EngineRefused.
        """
        package = engine_package.load(named.folder)
        if package.manifest.id != named.engine_id:
            raise PackageInvalid(f"{named.folder.name}: is the engine {package.manifest.id}, not {named.engine_id}")
        release = self.book(named.engine_id).releases.get(named.release)
        if release is not None and release.package_sha256 != package.package_sha256:
            raise PackageInvalid(f"{engine_package.MANIFEST}: altered since it was imported")
        if self.public_key is not None and (release is None or release.signed_by != self._key_digest()):
            raise PackageInvalid(
                f"{named} was not signed by {self.public_key.name}, which the configuration asks for (engines_key):"
                " import it with its signature"
            )
        return package

    # Moving on.

    def check_ready(self, named: Named, event: Event) -> None:
        """Raises EngineRefused, with what to do first, where a release is not ready for a step."""
        if named.stage is not None:
            check_ready(str(named), named.stage, event)

    def step(self, named: Named, event: Event, by: str, why: str = "", **also: Any) -> EngineStage | None:
        """One transition that leaves what serves as it is; `also` are fields of the release. None: shipped.

        Raises EngineRefused where the release is gone, IllegalTransition.
        """
        if named.stage is None:
            return None
        with self._moving(named.engine_id, by) as moves:
            return moves.step(named.release, event, why, **also)

    def activate(self, named: Named, by: str, *, shadow: bool = False) -> Book:
        """Let it serve, or run in the shadow of what serves. The one before it is kept, for `roll_back`.

        Raises EngineRefused where it is so already, or may not: only what was verified serves.
        """
        with self._moving(named.engine_id, by) as moves:
            (moves.shadow if shadow else moves.activate)(named.release, str(named))
            return moves.book

    def roll_back(self, engine_id: str, by: str) -> Book:
        """A person goes back to what was active before. Raises EngineRefused where there is nothing to go back to."""
        nothing = f"there is no release of {engine_id} to go back to: nothing was changed"
        if not self._checked_book(engine_id).previous:
            raise EngineRefused(nothing)
        with self._moving(engine_id, by) as moves:
            if not moves.roll_back():
                raise EngineRefused(nothing)
            return moves.book

    def take_back(self, named: Named, by: str, why: str, *, or_off: bool = True) -> Book | None:
        """A release failed by itself: what was active before takes its place, else nothing does, and an alarm is set.

        None: nothing was changed, because it is not on duty any more (a person was quicker), or because nothing was
        active before and it shall not be turned off. Raises EngineRefused.
        """
        with self._moving(named.engine_id, by) as moves:
            return moves.book if moves.take_back(named.release, str(named), why, or_off=or_off) else None

    def note(self, engine_id: str, release: str, by: str, event: str, why: str) -> None:
        """A line of history that is no transition."""
        with self._moving(engine_id, by) as moves:
            moves.say(release, event, why)

    def write_report(self, named: Named, content: bytes) -> Path:
        """What `verify` found, beside the release; durable. Raises OutOfResources, StoreFailed."""
        home = self.root / named.engine_id
        _make(home)
        path = removal.report_of(home, named.release)
        books.replace_file(path, content)
        return path

    def plans(self, named: Named) -> Path:
        """Where plans of this release lie; made."""
        folder = removal.plans_of(self.root / named.engine_id, named.release)
        _make(folder)
        return folder

    @contextmanager
    def using(self, named: Named, *, plans: bool = False) -> Iterator[None]:
        """It is not removed meanwhile, nor, with `plans`, any plan of it. Raises EngineRefused where it is gone."""
        if named.stage is None:
            yield
            return
        with holds.held(named.folder):
            if not plans:
                yield
                return
            with holds.held(self.plans(named)):
                yield

    @contextmanager
    def _moving(self, engine_id: str, by: str) -> Iterator[Moves]:
        """Read, change and replace a book, alone with it. Where something raises inside, nothing is changed."""
        home = self.root / engine_id
        _make(home)
        with books.locked(home):
            before = self.book(engine_id)
            moves = Moves(before, self.shipped / engine_id, by, self.now)
            yield moves
            if moves.book != before:
                books.write(home, moves.book)


def _is_whole(folder: Path) -> bool:
    try:
        engine_package.load(folder)
    except PackageInvalid:
        return False
    return True


def _make(folder: Path) -> None:
    """Raises OutOfResources, StoreFailed."""
    try:
        make_folder(folder)
    except OSError as error:
        raise refusal(error, str(folder)) from error
