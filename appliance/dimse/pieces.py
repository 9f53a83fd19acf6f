"""A stored data set as P-DATA PDUs, some at a time, read when they are wanted. Never decodes, and holds one chunk."""

import os
from collections.abc import Callable, Iterator

from appliance.dimse.header import Part10
from appliance.dimse.pdu import p_data_header
from appliance.dimse.sop_classes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from appliance.dimse.wire import IOV
from appliance.disk import SHORTAGE
from appliance.errors import DeliveryError, ObjectRefused, TransientDeliveryError

CHUNK = 1 << 20
LEAST = 512  # bytes; fewer would be all headers


class Pieces:
    """Cuts the data sets of one association. Used by one thread."""

    def __init__(self, longest: int) -> None:
        """`longest`: bytes of data in a PDU, even."""
        self._longest = longest
        self._buffer = memoryview(b"")

    def of(
        self, fd: int, item: Part10, context_id: int, allowed: Callable[[int], int]
    ) -> Iterator[list[bytes | memoryview]]:
        """PDUs of as many bytes of data per list as `allowed` says, asked with what is left; the views die at the next.

        A deflated stream of odd length gets the NUL that PS3.5 A.5 has follow it; else nothing is added.
        """
        pad = bytes(item.size % 2 if item.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else 0)
        done = 0
        while True:
            left = item.size - done
            chunk = self._room(left, allowed(left))
            _fill(chunk, fd, item.data_set_offset + done)
            done += len(chunk)
            parts: list[bytes | memoryview] = []
            for at in range(0, len(chunk) or 1, self._longest):
                piece = chunk[at : at + self._longest]
                end = pad if (is_last := done == item.size and at + len(piece) == len(chunk)) else b""
                length = len(piece) + len(end)
                parts += [p_data_header(context_id, is_command=False, is_last=is_last, size=length), piece, end]
            yield parts
            if done == item.size:
                return

    def _room(self, left: int, allowed: int) -> memoryview:
        """For so many bytes; even, as fragments of a data set are, but for the last."""
        most = min(CHUNK, self._longest * (IOV // 3 - 1))
        size = min(left, max(LEAST, min(allowed, most)) & ~1)
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]


def _fill(chunk: memoryview, fd: int, offset: int) -> None:
    while chunk:
        try:
            count = os.preadv(fd, [chunk], offset)
        except OSError as error:
            raise unreadable(error) from error
        if not count:
            raise ObjectRefused("stored file is shorter than it was")
        chunk, offset = chunk[count:], offset + count


def unreadable(error: OSError | ValueError) -> DeliveryError:
    """What a stored file that cannot be read means for its delivery: a shortage of ours is not the object's fault."""
    passes = isinstance(error, OSError) and error.errno in SHORTAGE
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (TransientDeliveryError if passes else ObjectRefused)(f"stored file cannot be read: {words}")
