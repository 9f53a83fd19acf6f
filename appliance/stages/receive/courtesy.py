"""A very large data set lets what others are about to have acknowledged pass.

On one disk and a few processor cores, a gigabyte on its way in would stand before every sync and every commit of other
associations. So it pauses, between two windows of its own, while others commit; never for long, so that it gets on
even beside a scanner that never rests.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: No image of one frame is so long: CT, CR, DX and mammography never wait for each other.
BULK_FROM = 64 << 20
WINDOW = 1 << 20
#: The longest pause after a window: at the worst, 1 MB each 20 ms and the time to write it.
LONGEST_PAUSE_S = 0.02


class Courtesy:
    """Used by all associations' threads."""

    def __init__(self) -> None:
        self._nobody = threading.Condition()
        self._committing = 0

    @contextmanager
    def committing(self) -> Iterator[None]:
        """From a data set's last byte to its row in the journal."""
        with self._nobody:
            self._committing += 1
        try:
            yield
        finally:
            with self._nobody:
                self._committing -= 1
                if not self._committing:
                    self._nobody.notify_all()

    def let_pass(self) -> None:
        """Of a bulk data set, after each window: wait until nobody commits, at most LONGEST_PAUSE_S."""
        with self._nobody:
            self._nobody.wait_for(lambda: not self._committing, LONGEST_PAUSE_S)
