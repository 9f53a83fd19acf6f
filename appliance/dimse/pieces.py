"""A stored data set as P-DATA PDUs, some at a time, read when they are wanted. Never decodes, and holds one chunk."""

import os
from collections.abc import Callable, Iterator

from appliance.dimse.header import Part10
from appliance.dimse.pdu import P_DATA_HEADER_SIZE, p_data_header
from appliance.dimse.sop_classes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from appliance.disk import SHORTAGE
from appliance.errors import DeliveryError, ObjectRefused, TransientDeliveryError

CHUNK = 1 << 18
MOST_PDUS = 512  # read at once; IOV_MAX is 1024
LEAST = 512  # bytes; fewer would be all headers


class Pieces:
    """Cuts the data sets of one association. Used by one thread.

    The file is read to where the PDUs' headers leave room for it, so that each chunk goes out in one piece.
    """

    def __init__(self, longest: int) -> None:
        """`longest`: bytes of data in a PDU, even."""
        self._longest = longest
        self._most = min(CHUNK, longest * MOST_PDUS)
        self._buffer = memoryview(b"")
        self._rooms: list[memoryview] = []  # for the data of each PDU in the buffer

    def of(self, fd: int, item: Part10, context_id: int, allowed: Callable[[int], int]) -> Iterator[memoryview]:
        """PDUs with as many bytes of data at a time as `allowed` says, asked with what is left; each dies at the next.

        A deflated stream of odd length gets the NUL that PS3.5 A.5 has follow it; else nothing is added.
        """
        pad = item.size % 2 if item.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else 0
        done = 0
        while True:
            left = item.size - done
            size = min(left, max(LEAST, min(allowed(left), self._most)) & ~1)  # even, but for the last
            self._make_room(size)
            self._read(fd, item.data_set_offset + done, size)
            done += size
            is_last = done == item.size
            yield self._framed(context_id, size, pad if is_last else 0, is_last=is_last)
            if is_last:
                return

    def _make_room(self, size: int) -> None:
        count, one = -(-size // self._longest) or 1, P_DATA_HEADER_SIZE + self._longest
        if len(self._rooms) < count:
            self._buffer = memoryview(bytearray(count * one))
            self._rooms = [self._buffer[at + P_DATA_HEADER_SIZE : at + one] for at in range(0, count * one, one)]

    def _read(self, fd: int, offset: int, size: int) -> None:
        full, rest = divmod(size, self._longest)
        rooms = self._rooms[:full]
        if rest:
            rooms.append(self._rooms[full][:rest])
        while rooms:
            try:
                count = os.preadv(fd, rooms, offset)
            except OSError as error:
                raise unreadable(error) from error
            if not count:
                raise ObjectRefused("stored file is shorter than it was")
            offset += count
            while rooms and count >= len(rooms[0]):
                count -= len(rooms.pop(0))
            if rooms:
                rooms[0] = rooms[0][count:]

    def _framed(self, context_id: int, size: int, pad: int, *, is_last: bool) -> memoryview:
        """What was read, with the headers; the last PDU may be shorter."""
        at, one = 0, P_DATA_HEADER_SIZE + self._longest
        header = p_data_header(context_id, is_command=False, is_last=False, size=self._longest)
        while size > self._longest:
            self._buffer[at : at + P_DATA_HEADER_SIZE] = header
            at, size = at + one, size - self._longest
        end = at + P_DATA_HEADER_SIZE + size
        if pad:
            self._buffer[end] = 0
        last = p_data_header(context_id, is_command=False, is_last=is_last, size=size + pad)
        self._buffer[at : at + P_DATA_HEADER_SIZE] = last
        return self._buffer[: end + pad]


def unreadable(error: OSError | ValueError) -> DeliveryError:
    """What a stored file that cannot be read means for its delivery: a shortage of ours is not the object's fault."""
    passes = isinstance(error, OSError) and error.errno in SHORTAGE
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return (TransientDeliveryError if passes else ObjectRefused)(f"stored file cannot be read: {words}")
