"""The releases that serve: each in a runtime child of its own, proved there, with a plan or a server before it.

What is loaded holds its release in the store, so that nobody removes it. Used by one thread, because a runtime child
dies with the thread that started it.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass

from appliance.engine_package import EnginePackage
from appliance.engine_store.store import EngineStore
from appliance.errors import EngineRefused, RuntimeFailed
from appliance.imaging import golden
from appliance.model import Reason
from appliance.ports import LoadedEngine, Runtime
from appliance.wiring.plans import Plans
from appliance.wiring.posts import Post
from appliance.wiring.remotes import Remotes

CHANCES = 3  # of an engine whose child dies while it is loaded: memory may be short just now

Key = tuple[str, str, str]


@dataclass(slots=True, kw_only=True)
class _Member:
    child: LoadedEngine
    front: LoadedEngine  #: the same, or with a plan or a server before it
    end: ExitStack  #: of the child, and of what it is loaded from
    tested: float  #: when it proved itself last


class Crew:
    def __init__(
        self, store: EngineStore, runtime: Runtime, plans: Plans, remotes: Remotes, monotonic: Callable[[], float]
    ) -> None:
        self._store, self._runtime, self._plans, self._remotes = store, runtime, plans, remotes
        self._monotonic = monotonic
        self._members: dict[Key, _Member] = {}

    def has(self, post: Post) -> bool:
        return post.child_key in self._members

    def serving(self, post: Post) -> LoadedEngine:
        return self._members[post.child_key].front

    def tested(self, post: Post) -> float:
        """When it proved itself last."""
        return self._members[post.child_key].tested

    def load(self, post: Post) -> str:
        """Have it in a child of its own; returns why it may not serve, "" if it may."""
        package, fault = post.engine.package, ""
        for _ in range(CHANCES):
            with ExitStack() as undo:
                try:
                    undo.enter_context(self._store.using(post.named))
                    child = self._runtime.load(package.model_path, package.model_sha256)
                    undo.callback(child.close)
                    fault = golden.fault(package, child)
                except EngineRefused as error:  # it was removed meanwhile
                    return str(error)
                except RuntimeFailed as error:
                    fault = str(error)
                    if error.reason == Reason.DEADLINE:  # it hangs, and would again
                        break
                    continue
                if not fault:
                    front = self._front(post, child)
                    self._members[post.child_key] = _Member(
                        child=child, front=front, end=undo.pop_all(), tested=self._monotonic()
                    )
                break
        return fault

    def test(self, post: Post) -> str:
        """Let it prove itself again, and its plan; what is wrong with it, "" if nothing is."""
        member = self._members[post.child_key]
        fault = _fault(post.engine.package, member.child)
        self._plans.prove(post.named)
        member.tested = self._monotonic()
        return fault

    def keep(self, posts: Collection[Post]) -> None:
        """Children that none of these needs end."""
        for key in self._members.keys() - {post.child_key for post in posts}:
            self._end(key)

    def close(self) -> None:
        for key in list(self._members):
            self._end(key)

    def _end(self, key: Key) -> None:
        member = self._members.pop(key)
        member.front.close()
        member.end.close()

    def _front(self, post: Post, child: LoadedEngine) -> LoadedEngine:
        """What serves, with the child behind it."""
        local = self._plans.before(post.named, post.engine.package, child)
        return local if post.shadow else self._remotes.before(post.engine, local)


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
