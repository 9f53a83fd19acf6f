"""Waiting with a limit: looks again whenever something stirs, and a few times a second."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ScansideError

LOOK_EVERY_S = 0.1


class RehearsalFailed(ScansideError):
    """The rehearsal could not be carried through; the message says where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How waiting is done here."""

    stirred: threading.Event  #: set by anybody when something has happened: whoever waits looks again at once
    fault: Callable[[], str]  #: why waiting any longer is in vain; "" while it is not
    log: Path  #: where the appliance tells more

    def wait(self, holds: Callable[[], bool], what: str, seconds: float) -> None:
        """Until it holds. Raises RehearsalFailed after so many seconds, or as soon as there is a fault."""
        until = time.monotonic() + seconds
        while not holds():
            if fault := self.fault():
                raise RehearsalFailed(f"{fault}. The appliance's log: {self.log}")
            left = until - time.monotonic()
            if left <= 0:
                raise RehearsalFailed(f"not within {seconds:.0f} s: {what}. The appliance's log: {self.log}")
            self.stirred.wait(min(left, LOOK_EVERY_S))
            self.stirred.clear()
