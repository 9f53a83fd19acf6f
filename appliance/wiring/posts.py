"""Who should be on duty: what the store of engines says now, release by release, and what each answers for.

Whatever the store says, the duties stay (P6): a release that cannot serve keeps its studies, as far as its manifest can
still be read, and has its reason beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from appliance import engine_package
from appliance.config import EngineMode
from appliance.config.models import Engine
from appliance.engine_package import EnginePackage
from appliance.engine_store.book import BOOK, SHIPPED
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import CertificateUnusable, EngineRefused, PackageInvalid
from appliance.stages.desk import EngineOnDuty
from appliance.wiring.common import Log

Stamp = tuple[int, int, int] | None


class Roster(Sequence[EngineOnDuty]):
    """The engines on duty, for readers in other threads: exchanged as a whole, and never changed."""

    def __init__(self) -> None:
        self._now: tuple[EngineOnDuty, ...] = ()

    def exchange(self, engines: Sequence[EngineOnDuty]) -> None:
        self._now = tuple(engines)

    @overload
    def __getitem__(self, at: int) -> EngineOnDuty: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[EngineOnDuty]: ...
    def __getitem__(self, at: int | slice) -> EngineOnDuty | Sequence[EngineOnDuty]:
        return self._now[at]

    def __len__(self) -> int:
        return len(self._now)

    def __iter__(self) -> Iterator[EngineOnDuty]:
        return iter(self._now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A release on duty. `fault`: why it may not serve."""

    named: Named
    engine: EngineOnDuty
    shadow: bool = False  #: beside the one that counts
    fault: str = ""

    @property
    def child_key(self) -> tuple[str, str, str]:
        return self.named.engine_id, self.named.release, self.engine.package.package_sha256


class Posts:
    """Asks the store; used by one thread."""

    def __init__(self, store: EngineStore, log: Log) -> None:
        self._store, self._log = store, log
        self.unknown: dict[str, str] = {}  #: id -> why nobody knows its duties
        self.unreadable: list[tuple[Named, str]] = []  #: releases without a manifest, found by the last `gather`
        self._seen: dict[str, Stamp] = {}

    def has_changed(self, options: Engine) -> bool:
        """Whether something was decided on the engine since it was gathered."""
        return self._stamp(options.id) != self._seen.get(options.id)

    def look_again(self, options: Engine) -> None:
        """Let it count as changed."""
        self._seen.pop(options.id, None)

    def gather(self, options: Engine) -> list[Post]:
        """Its manifest is enough to be on duty: without one nobody knows which studies are its own."""
        self._seen[options.id] = self._stamp(options.id)
        self.unknown.pop(options.id, None)
        self.unreadable.clear()
        shipped = Named(engine_id=options.id, release=SHIPPED, folder=self._store.shipped / options.id, stage=None)
        try:
            duty = self._store.on_duty(options.id)
        except EngineRefused as error:
            return self._posted(options, shipped, str(error))
        if duty.active is not None:
            posts = self._posted(options, duty.active, "")
        else:
            posts = self._posted(options, duty.stopped or shipped, duty.alarm or "it was turned off")
        return posts + (self._posted(options, duty.shadow, "", shadow=True) if duty.shadow else [])

    def away(self, options: Engine) -> Iterator[EngineOnDuty]:
        """Releases that are not on duty: what they said is still to be told."""
        try:
            former = self._store.former(options.id)
        except EngineRefused:
            return
        for named, served in former:
            try:
                yield _on_duty(options, engine_package.load_manifest(named.folder), publish=served)
            except PackageInvalid:
                continue

    def _stamp(self, engine_id: str) -> Stamp:
        """Another one whenever the book was replaced."""
        try:
            found = (self._store.root / engine_id / BOOK).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _posted(self, options: Engine, named: Named, fault: str, *, shadow: bool = False) -> list[Post]:
        try:
            package = self._store.load(named)
        except (PackageInvalid, EngineRefused, CertificateUnusable) as error:
            self._log("package_invalid", engine=str(named), reason=str(error))
            fault = fault or str(error)
            try:
                package = engine_package.load_manifest(named.folder)
            except PackageInvalid:
                self.unreadable.append((named, str(error)))
                if not shadow:
                    self.unknown[options.id] = str(error)
                return []
        engine = _on_duty(options, package, publish=not shadow)
        return [Post(named=named, engine=engine, shadow=shadow, fault=fault)]


def _on_duty(options: Engine, package: EnginePackage, *, publish: bool) -> EngineOnDuty:
    return EngineOnDuty(
        package=package,
        publish=publish and options.mode is EngineMode.PUBLISH,
        deadline_ms=int(options.deadline_s * 1000),
    )
