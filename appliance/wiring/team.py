"""Which engines are on duty in the analyse process: loaded, proved, and exchanged between two jobs.

Only verified engines run (P8): whatever the store says serves must be, byte for byte, what was imported, and right on
its golden cases in a child of this process, before it takes its place; until then the one before it goes on. One that
does not prove itself, that fails on many studies in a row, or that fails a self-test gives way to what was active
before it, by itself and loudly; where there is none it is off. Its duties stay: its studies are concluded as "not
analysed" (P6). Who should be on duty is found out by `posts`, who serves is in `crew`; here is decided. Used by one
thread.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.config import Config, EngineMode
from appliance.config.models import Engine
from appliance.engine_store.book import MAX_PREVIOUS
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused, OutOfResources
from appliance.journal.jobs import subject_of
from appliance.journal.store import NOTHING, Journal, Subject
from appliance.ports import LoadedEngine, Runtime
from appliance.stages.desk import EngineOnDuty
from appliance.stages.infer import Fault
from appliance.wiring.common import Log
from appliance.wiring.crew import Crew
from appliance.wiring.plans import Plans
from appliance.wiring.posts import Post, Posts, Roster
from appliance.wiring.remotes import Remotes

WE = "analyse"
HOUR_S = 3600.0


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
        self._rules = Posts(around.store, around.log)
        self._crew = Crew(around.store, around.runtime, around.plans, around.remotes, around.monotonic)
        self._posts = {options.id: self._rules.gather(options) for options in self._options}
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
        changed = [one for one in self._options if self._rules.has_changed(one)]
        for options in changed:
            self._taken_up(options)
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
        found = [post for post in self._serving() if every_s and self._crew.tested(post) <= due]
        if not found:
            return False
        post = min(found, key=self._crew.tested)
        fault = self._crew.test(post)
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
        self._crew.close()

    def _serving(self) -> list[Post]:
        return [post for posts in self._posts.values() for post in posts if self._crew.has(post)]

    def _show(self) -> None:
        """To everybody, all at once; children that nobody needs any more end."""
        posts = [post for each in self._posts.values() for post in each]
        serving = [post for post in posts if not post.fault and self._crew.has(post)]
        self.loaded.clear()
        self.loaded.update({post.engine.key: self._crew.serving(post) for post in serving})
        self.unfit.clear()
        self.unfit.update(self._rules.unknown | {post.engine.key: post.fault for post in posts if post.fault})
        self._former.exchange([one for options in self._options for one in self._rules.away(options)])
        self.engines.exchange([post.engine for post in posts])
        self._crew.keep(serving)

    def _taken_up(self, options: Engine) -> None:
        """Looked at again where there was no room to. Raises OutOfResources."""
        try:
            self._change(options)
        except OutOfResources:
            self._rules.look_again(options)
            raise

    def _change(self, options: Engine, why_not: str = "", *, first: bool = False) -> str:
        """Take up what the store says; what does not prove itself gives way first. Raises OutOfResources.

        The first time, why there is no runtime is told of the engines, and returned; later who serves goes on.
        """
        for _ in range(MAX_PREVIOUS + 2):
            posts = [self._proved(post, why_not) for post in self._rules.gather(options)]
            faulty = [(post.named, post.fault) for post in posts if post.fault] + self._rules.unreadable
            if why_not or not faulty:
                break
            if reason := self._no_runtime():
                if first:
                    why_not = reason
                    continue
                self._log("engines_not_exchanged", engine=options.id, reason=reason)
                self._rules.look_again(options)
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
        if self._crew.has(post):
            self._around.plans.look(post.named)
            return post
        return replace(post, fault=why_not or self._crew.load(post))

    def _all_stay(self, faulty: Sequence[tuple[Named, str]]) -> bool:
        """False: another release may try now. None is turned off: the next start lets it try again."""
        gone = [self._take_back(named, why.partition("\n")[0], NOTHING, or_off=False) for named, why in faulty]
        return not any(gone)

    def _give_way(self, key: str, why: str, subject: Subject) -> None:
        post = next((post for post in self._serving() if post.engine.key == key), None)
        if post is None:
            return
        self._take_back(post.named, why, subject, or_off=True)
        self._taken_up(next(one for one in self._options if one.id == post.named.engine_id))

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
