"""Which engines are on duty in the analyse process: loaded, proved, and exchanged between two jobs.

Only verified engines run (P8): whatever the store says serves must be, byte for byte, what was imported, and right on
its golden cases in a child of this process, before it takes its place; until then the one before it goes on. One that
does not prove itself, that fails on many studies in a row, or that fails a self-test gives way to what was active
before it, by itself and loudly; where there is none it is off. Its duties stay: its studies are concluded as "not
analysed" (P6). Used by one thread, because a runtime child dies with the thread that started it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import overload

from appliance import engine_package
from appliance.config import Config, EngineMode
from appliance.config.models import Engine
from appliance.engine_package import EnginePackage
from appliance.engine_store.book import BOOK, MAX_PREVIOUS, SHIPPED
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import CertificateUnusable, EngineRefused, PackageInvalid, RuntimeFailed
from appliance.imaging import golden
from appliance.journal.jobs import subject_of
from appliance.journal.store import NOTHING, Journal, Subject
from appliance.model import Reason
from appliance.ports import LoadedEngine, Runtime
from appliance.stages.desk import EngineOnDuty
from appliance.stages.infer import Fault
from appliance.wiring.common import Log
from appliance.wiring.plans import Plans
from appliance.wiring.remotes import Remotes

CHANCES = 3  # of an engine whose child dies while it is loaded: memory may be short just now
WE = "analyse"
HOUR_S = 3600.0

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a team works with."""

    config: Config
    store: EngineStore
    runtime: Runtime
    journal: Journal
    log: Log
    remotes: Remotes
    plans: Plans
    monotonic: Callable[[], float] = time.monotonic


class Team:
    """`engines`, `loaded` and `unfit` are the same objects for ever; what is in them changes."""

    def __init__(self, around: Surroundings) -> None:
        """Find out who is on duty; nobody is loaded yet."""
        self._around, self._store, self._log = around, around.store, around.log
        self._options = [one for one in around.config.engines if one.mode is not EngineMode.OFF]
        self.engines, self._former = Roster(), Roster()
        self.loaded: dict[str, LoadedEngine] = {}
        self.unfit: dict[str, str] = {}
        self._unknown: dict[str, str] = {}  # id -> why nobody knows its duties
        self._unreadable: list[tuple[Named, str]] = []  # releases without a manifest, found by the last look
        self._children: dict[tuple[str, str, str], LoadedEngine] = {}
        self._fronts: dict[tuple[str, str, str], LoadedEngine] = {}  # the same, or with a server before it
        self._tested: dict[tuple[str, str, str], float] = {}
        self._seen: dict[str, Stamp] = {}
        self._posts = {options.id: self._gathered(options) for options in self._options}
        self._show()

    def former(self) -> Sequence[EngineOnDuty]:
        """Releases that served: what they said is still to be told."""
        return self._former

    def begin(self) -> None:
        """Load everybody, and let each prove itself. Where there is no runtime, no engine is at fault."""
        why_not = ""
        for options in self._options:
            why_not = self._change(options, why_not, first=True)

    def look(self) -> list[str]:
        """Take up what a person has activated meanwhile, or a build made; returns the ids that changed.

        Raises OutOfResources.
        """
        self._around.plans.settle()
        changed = [one for one in self._options if self._stamp(one.id) != self._seen.get(one.id)]
        for options in changed:
            self._change(options)
        return [one.id for one in changed]

    def mind(self, faults: Mapping[str, Fault]) -> list[str]:
        """Take back whoever failed too often; returns the keys of engines to begin anew with. Raises OutOfResources."""
        limit = self._around.config.analyse.failures
        gone = [key for key, fault in faults.items() if 0 < limit <= fault.count and key in self.loaded]
        for key in gone:
            why = f"it failed on {faults[key].count} studies in a row, the last time: {faults[key].why}"
            self._give_way(key, why, subject_of(faults[key].job))
        return gone

    def test_one(self) -> bool:
        """Let the engine whose self-test is due longest prove itself again; whether there was one.

        For when there is nothing else to do. Raises OutOfResources.
        """
        every_s = self._around.config.analyse.self_test_h * HOUR_S
        due = self._around.monotonic() - every_s
        found = [post for post in self._serving() if every_s and self._tested[post.child_key] <= due]
        if not found:
            return False
        post = min(found, key=lambda one: self._tested[one.child_key])
        child = self._children[post.child_key]
        fault = _fault(post.engine.package, child)
        self._around.plans.prove(post.named)
        self._tested[post.child_key] = self._around.monotonic()
        self._log("self_test", engine=post.engine.key, fault=fault)
        if fault:
            self._give_way(post.engine.key, f"it failed its self-test: {fault}", NOTHING)
        return True

    def tend(self, cancelled: Callable[[], bool]) -> None:
        """When there is nothing else to do: look whether what failed is back, and build what is due."""
        self._around.remotes.tend(cancelled)
        self._around.plans.tend(cancelled)

    def close(self) -> None:
        self._around.plans.close()
        for front in list(self._fronts.values()):
            front.close()

    def _serving(self) -> list[Post]:
        return [post for posts in self._posts.values() for post in posts if post.child_key in self._children]

    # Who is on duty.

    def _stamp(self, engine_id: str) -> Stamp:
        """Another one whenever the book was replaced."""
        try:
            found = (self._store.root / engine_id / BOOK).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _gathered(self, options: Engine) -> list[Post]:
        """Its manifest is enough to be on duty: without one nobody knows which studies are its own."""
        self._seen[options.id] = self._stamp(options.id)
        self._unknown.pop(options.id, None)
        self._unreadable.clear()
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

    def _posted(self, options: Engine, named: Named, fault: str, *, shadow: bool = False) -> list[Post]:
        try:
            package = self._store.load(named)
        except (PackageInvalid, EngineRefused, CertificateUnusable) as error:
            self._log("package_invalid", engine=str(named), reason=str(error))
            fault = fault or str(error)
            try:
                package = engine_package.load_manifest(named.folder)
            except PackageInvalid:
                self._unreadable.append((named, str(error)))
                if not shadow:
                    self._unknown[options.id] = str(error)
                return []
        engine = _on_duty(options, package, publish=not shadow)
        return [Post(named=named, engine=engine, shadow=shadow, fault=fault)]

    def _show(self) -> None:
        """To everybody, all at once; children that nobody needs any more end."""
        posts = [post for each in self._posts.values() for post in each]
        serving = [post for post in posts if not post.fault and post.child_key in self._children]
        self.loaded.clear()
        self.loaded.update({post.engine.key: self._fronts[post.child_key] for post in serving})
        self.unfit.clear()
        self.unfit.update(self._unknown | {post.engine.key: post.fault for post in posts if post.fault})
        self._former.exchange([one for options in self._options for one in self._away(options)])
        self.engines.exchange([post.engine for post in posts])
        for key in self._children.keys() - {post.child_key for post in serving}:
            del self._children[key]
            self._fronts.pop(key).close()
            self._tested.pop(key, None)

    def _away(self, options: Engine) -> Iterator[EngineOnDuty]:
        try:
            former = self._store.former(options.id)
        except EngineRefused:
            return
        for named, served in former:
            try:
                yield _on_duty(options, engine_package.load_manifest(named.folder), publish=served)
            except PackageInvalid:
                continue

    # Changing it.

    def _change(self, options: Engine, why_not: str = "", *, first: bool = False) -> str:
        """Take up what the store says; what does not prove itself gives way first. Raises OutOfResources.

        The first time, why there is no runtime is told of the engines, and returned; later who serves goes on.
        """
        for _ in range(MAX_PREVIOUS + 2):
            posts = [self._proved(post, why_not) for post in self._gathered(options)]
            faulty = [(post.named, post.fault) for post in posts if post.fault] + self._unreadable
            if why_not or not faulty:
                break
            if reason := self._no_runtime():
                if first:
                    why_not = reason
                    continue
                self._log("engines_not_exchanged", engine=options.id, reason=reason)
                self._seen.pop(options.id)
                return reason
            if self._all_stay(faulty):
                break
        self._posts[options.id] = posts
        self._show()
        self._log("engines_on_duty", engine=options.id, releases=[post.named.release for post in posts])
        return why_not

    def _no_runtime(self) -> str:
        """Asked of after a failure only, for the answer costs a child; twice, since memory may be short just now."""
        return self._around.runtime.probe() and self._around.runtime.probe()

    def _proved(self, post: Post, why_not: str) -> Post:
        if post.fault:
            return post
        if post.child_key in self._children:
            self._around.plans.look(post.named)
            return post
        fault = why_not or self._load(post)
        return replace(post, fault=fault)

    def _load(self, post: Post) -> str:
        """Have it in a child of its own; returns why it may not serve, "" if it may."""
        package, fault = post.engine.package, ""
        for _ in range(CHANCES):
            with ExitStack() as undo:
                try:
                    child = self._around.runtime.load(package.model_path, package.model_sha256)
                    undo.callback(child.close)
                    fault = golden.fault(package, child)
                except RuntimeFailed as error:
                    fault = str(error)
                    if error.reason == Reason.DEADLINE:  # it hangs, and would again
                        break
                    continue
                if not fault:
                    self._fronts[post.child_key] = self._front(post, child)
                    self._children[post.child_key] = child
                    self._tested[post.child_key] = self._around.monotonic()
                    undo.pop_all()
                break
        return fault

    def _front(self, post: Post, child: LoadedEngine) -> LoadedEngine:
        """What serves, with the child behind it."""
        local = self._around.plans.before(post.named, post.engine.package, child)
        return local if post.shadow else self._around.remotes.before(post.engine, local)

    def _all_stay(self, faulty: Sequence[tuple[Named, str]]) -> bool:
        """False: another release may try now. None is turned off: the next start lets it try again."""
        gone = [self._take_back(named, why.partition("\n")[0], NOTHING, or_off=False) for named, why in faulty]
        return not any(gone)

    def _give_way(self, key: str, why: str, subject: Subject) -> None:
        post = next((post for post in self._serving() if post.engine.key == key), None)
        if post is None:
            return
        self._take_back(post.named, why, subject, or_off=True)
        self._change(next(one for one in self._options if one.id == post.named.engine_id))

    def _take_back(self, named: Named, why: str, subject: Subject, *, or_off: bool) -> bool:
        """Whether anything changed; told in the log, and in the history of what it happened with (P11)."""
        try:
            book = self._store.take_back(named, WE, why, or_off=or_off)
        except EngineRefused:  # the book is damaged: then nobody of it serves anyway
            return False
        if book is None:
            return False
        self._log("engine_gave_way", engine=named.engine_id, release=named.release, reason=book.alarm)
        with self._around.journal.write(durable=True) as tx:
            tx.history("engine_gave_way", subject, engine=named.engine_id, release=named.release, why=book.alarm)
        return True


def _fault(package: EnginePackage, child: LoadedEngine) -> str:
    """As its golden cases say; a child that dies has more chances, since memory may be short just now."""
    fault = ""
    for _ in range(CHANCES):
        try:
            return golden.fault(package, child)
        except RuntimeFailed as error:
            fault = str(error)
            if error.reason == Reason.DEADLINE:
                break
    return fault


def _on_duty(options: Engine, package: EnginePackage, *, publish: bool) -> EngineOnDuty:
    return EngineOnDuty(
        package=package,
        publish=publish and options.mode is EngineMode.PUBLISH,
        deadline_ms=int(options.deadline_s * 1000),
    )
