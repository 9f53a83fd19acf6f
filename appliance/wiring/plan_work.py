"""A plan in the making, in a thread of its own: the children of a build die with the thread that started them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from appliance.errors import ScansideError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A plan that a release should have."""

    release: str  #: ID@VERSION-SHA12
    precision: str
    key: str


class PlanWork:
    """Begins at once; `wake` is called when it has ended."""

    def __init__(self, wanted: Wanted, make: Callable[[], str], wake: Callable[[], None]) -> None:
        self.wanted = wanted
        self._make, self._wake = make, wake
        self._made: Future[str] = Future()
        threading.Thread(target=self._run, name="plan", daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._made.done()

    def result(self) -> str:
        """What it made. Raises what went wrong."""
        return self._made.result()

    def _run(self) -> None:
        try:
            self._made.set_result(self._make())
        except ScansideError as error:
            self._made.set_exception(error)
        except BaseException as error:  # a fault of ours is one of who asks for the result, too
            self._made.set_exception(error)
            raise
        finally:
            self._wake()
