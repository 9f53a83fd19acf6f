"""What a person or the analyse process may do with the releases of one engine, on its book; the store writes it.

Every step is one of states.ENGINE and leaves a line. What stands in `previous` may serve again at once: it was
verified, and nobody has refused it since.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import engine_package
from appliance.engine_store.book import MAX_PREVIOUS, OFF, SHIPPED, Book, Line, Release
from appliance.errors import EngineRefused, PackageInvalid
from appliance.states import ENGINE, EngineStage, Event

MAX_WHY = 500  # characters in a line of history
REMOVE = "remove"  #: in the history, of a release that left the store
OVER = frozenset({EngineStage.RETIRED, EngineStage.REFUSED})  #: nobody is about to let it serve


def check_ready(name: str, stage: EngineStage, event: Event) -> None:
    """Raises EngineRefused, with what to do first, where a release is not ready for a step."""
    if (stage, event) not in ENGINE.steps:
        todo = "check" if stage in (EngineStage.IMPORTED, EngineStage.REFUSED) else "verify"
        raise EngineRefused(f"{name} is {stage}: first `scanside engines {todo} {name}`")


class Moves:
    """A book that is being changed by somebody; nobody else sees it yet. `shipped`: the engine's in engines_dir."""

    def __init__(self, book: Book, shipped: Path, by: str, now: Callable[[], str]) -> None:
        self.book = book
        self._shipped, self._by, self._now = shipped, by, now

    def set(self, **fields: Any) -> None:
        self.book = self.book.model_copy(update=fields)

    def say(self, release: str, event: str, why: str = "", stage: str = "") -> None:
        line = Line(at=self._now(), by=self._by, event=event, release=release, stage=stage, why=why[:MAX_WHY])
        self.book = self.book.with_line(line)

    def put(self, name: str, release: Release, event: str, why: str = "") -> None:
        self.set(releases={**self.book.releases, name: release})
        self.say(name, event, why, release.stage)

    def step(self, name: str, event: Event, why: str = "", **also: Any) -> EngineStage:
        """Of an imported release. Raises EngineRefused where it is gone, IllegalTransition."""
        release = self.book.releases.get(name)
        if release is None:
            raise EngineRefused(f"the release {name} is not in the store any more")
        stage = ENGINE.step(release.stage, event)
        self.put(name, release.model_copy(update={"stage": stage, **also}), event, why)
        return stage

    def activate(self, release: str, name: str) -> None:
        """Raises EngineRefused, as `shadow`; `name` is what a person calls it."""
        before = self.book
        if before.active == release:
            raise EngineRefused(f"{name} is active already")
        self._check_ready(release, name, Event.ACTIVATE)
        previous = [one for one in before.previous if one != release]
        if before.active in before.releases or (before.active == SHIPPED and self._shipped.is_dir()):
            previous.append(before.active)
        self._relieve(before.active, f"{release} in its place")
        self._enter(release, Event.ACTIVATE, "", served=True)
        still = OFF if before.shadow == release else before.shadow
        kept = tuple(previous[-MAX_PREVIOUS:])
        self.set(active=release, previous=kept, shadow=still, stopped=OFF, alarm="")

    def shadow(self, release: str, name: str) -> None:
        before = self.book
        if before.shadow == release:
            raise EngineRefused(f"{name} is in shadow already")
        if release in (SHIPPED, before.active):
            raise EngineRefused(f"{name} cannot run in its own shadow: name an imported release that is not active")
        self._check_ready(release, name, Event.SHADOW)
        if self._version_of(before.active) == before.releases[release].version:
            raise EngineRefused(f"{name} has the same version as what is active: nobody could tell their results apart")
        self._relieve(before.shadow, f"{release} in its place")
        self._enter(release, Event.SHADOW, "", served=False)
        self.set(shadow=release, alarm="")

    def roll_back(self) -> bool:
        """False: there is nothing to go back to."""
        back, rest = self._before()
        if back == OFF:
            return False
        self._relieve(self.book.active, f"rolled back to {back}")
        self._enter(back, Event.ACTIVATE, "rolled back", served=True)
        self.set(active=back, previous=rest, stopped=OFF, alarm="", shadow=self._shadow_beside(back))
        return True

    def take_back(self, release: str, name: str, why: str, *, or_off: bool) -> bool:
        """See EngineStore.take_back. False: nothing was changed."""
        before, (back, rest) = self.book, self._before()
        if release not in (before.active, before.shadow) or (release == before.active and back == OFF and not or_off):
            return False
        if release in before.releases:
            self.step(release, Event.REFUSE, why)
        if release == before.shadow:
            self.set(shadow=OFF, alarm=f"{name} was taken out of shadow: {why}")
        elif back == OFF:
            self.say(release, "off", why)
            alarm = f"{name} was turned off: {why}; there is none to go back to"
            self.set(active=OFF, previous=(), stopped=release, alarm=alarm)
        else:
            self._enter(back, Event.ACTIVATE, f"{release} failed", served=True)
            alarm = f"{name} was rolled back to {back}: {why}"
            self.set(active=back, previous=rest, alarm=alarm, shadow=self._shadow_beside(back))
        return True

    def needed(self) -> dict[str, str]:
        """Releases that must stay, and what for."""
        back, _ = self._before()
        wanted = {
            back: "`engines rollback` goes back to it",
            self.book.stopped: "it was turned off, and its studies are still this engine's",
            self.book.shadow: "it runs in shadow",
            self.book.active: "it is active",
        }
        return {release: why for release, why in wanted.items() if release != OFF}

    def remove(self, release: str, name: str) -> None:
        """Raises EngineRefused where it is needed, or gone."""
        if why := self.needed().get(release):
            raise EngineRefused(f"{name} stays: {why}")
        releases = {one: known for one, known in self.book.releases.items() if one != release}
        if len(releases) == len(self.book.releases):
            raise EngineRefused(f"the release {release} is not in the store any more")
        self.say(release, REMOVE, f"it was {self.book.releases[release].stage}")
        self.set(releases=releases, previous=tuple(one for one in self.book.previous if one != release))

    def _check_ready(self, release: str, name: str, event: Event) -> None:
        if release == SHIPPED:
            return
        if (known := self.book.releases.get(release)) is None:
            raise EngineRefused(f"{name} is not in the store any more")
        check_ready(name, known.stage, event)

    def _relieve(self, release: str, why: str) -> None:
        known = self.book.releases.get(release)
        if known is not None and (known.stage, Event.RETIRE) in ENGINE.steps:
            self.step(release, Event.RETIRE, why)

    def _enter(self, release: str, event: Event, why: str, *, served: bool) -> None:
        if release == SHIPPED:
            self.say(release, event, why, SHIPPED)
        else:
            self.step(release, event, why, served=served)

    def _shadow_beside(self, active: str) -> str:
        return OFF if self.book.shadow == active else self.book.shadow

    def _before(self) -> tuple[str, tuple[str, ...]]:
        """The last that was active and may serve again, and those before it."""
        left = list(self.book.previous)
        while left:
            release = left.pop()
            if release != self.book.active and self._may_serve_again(release):
                return release, tuple(left)
        return OFF, ()

    def _may_serve_again(self, release: str) -> bool:
        if release == SHIPPED:
            return self._shipped.is_dir()
        known = self.book.releases.get(release)
        return known is not None and (known.stage, Event.ACTIVATE) in ENGINE.steps

    def _version_of(self, release: str) -> str:
        if release in self.book.releases:
            return self.book.releases[release].version
        try:
            return engine_package.load_manifest(self._shipped).manifest.version
        except PackageInvalid:
            return ""
