"""A DICOMweb server as a destination: STOW-RS (PS3.18 10.5), one instance a request.

The stored file goes as it is, piece by piece and undecoded, but for what is ours in its head.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.destinations.acquaintance import Acquaintance
from appliance.destinations.stow_answers import Answer, judged, look, rest_s
from appliance.destinations.stow_wire import WebTarget, WebWire
from appliance.dimse.header import Part10, part10
from appliance.dimse.pieces import unreadable
from appliance.dimse.throughput import Meter
from appliance.errors import AnswerLate, DeliveryError, ObjectRefused, TransientDeliveryError
from appliance.file_head import clean_head
from appliance.ports import Outgoing, Turn, at_once

LONGEST_HEAD = 1 << 16
NOBODYS_STUDY = "2.25.0"
#: Asks for a study that nobody has: the answer names no patient.
PROBE = f"/studies?StudyInstanceUID={NOBODYS_STUDY}&limit=1"


class StowNode:
    """A ports.Destination: an origin server that takes STOW-RS."""

    def __init__(self, target: WebTarget) -> None:
        self._target = target
        self.known = Acquaintance(target.timeout_s)
        self._rest_until = 0.0

    def open(self, items: Sequence[Outgoing]) -> "StowSession":  # noqa: ARG002 - HTTP proposes nothing beforehand
        """Connect and ask, so that what is wrong with the server shows before an object is sent."""
        self.check_rest()
        wire = WebWire(replace(self._target, answer_s=self.known.answer_s, bytes_s=self.known.bytes_s))
        try:
            answer = wire.query(PROBE)
            self.heard(answer)
            look(answer)
        except BaseException:
            wire.close()
            raise
        return StowSession(self, wire)

    def probe(self) -> None:
        """A query (QIDO-RS). A server that knows none, but lets us in, counts as well."""
        self.open([]).close()

    def check_rest(self) -> None:
        """Raises TransientDeliveryError while the server wants to be left alone."""
        left = self._rest_until - time.monotonic()
        if left > 0:
            raise TransientDeliveryError(f"the server asked us to wait, {left:.0f} s more (Retry-After)")

    def heard(self, answer: Answer) -> None:
        self._rest_until = time.monotonic() + rest_s(answer)


class StowSession:
    """A ports.Session: one HTTP connection."""

    def __init__(self, node: StowNode, wire: WebWire) -> None:
        self._node, self._wire = node, wire
        self.alive = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.alive = False
        self._wire.close()

    @property
    def bytes_s(self) -> float:
        return self._wire.bytes_s

    @property
    def round_trip_s(self) -> float:
        return self._wire.round_trip_s

    @property
    def held_back(self) -> bool | None:
        return self._wire.held_back

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        """See ports.Session."""
        if not self.alive:
            raise TransientDeliveryError("the connection is closed")
        self._node.check_rest()
        try:
            stored = part10(path)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise unreadable(error) from error
        try:
            identity = (item.sop_class_uid, item.sop_instance_uid, item.transfer_syntax_uid)
            if identity != (stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid):
                raise ObjectRefused("stored file holds another object")
            answer = self._post(_Body.of(stored, fd), turn)
        finally:
            os.close(fd)
        self._node.heard(answer)
        return judged(answer, stored.sop_instance_uid)

    def _post(self, body: "_Body", turn: Turn) -> Answer:
        try:
            answer = self._wire.post("/studies", body.headers(), lambda meter: body.pieces(meter, turn))
        except (DeliveryError, OSError) as error:
            self.close()
            if isinstance(error, AnswerLate):
                self._node.known.answered(self.bytes_s, late=True)
            raise
        self._node.known.answered(self.bytes_s, late=False)
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    """One instance as multipart/related (RFC 2387)."""

    stored: Part10
    fd: int
    boundary: str
    head: bytes
    tail: bytes

    @staticmethod
    def of(stored: Part10, fd: int) -> "_Body":
        """Raises ObjectRefused, TransientDeliveryError."""
        if stored.data_set_offset > LONGEST_HEAD:
            raise ObjectRefused("stored file cannot be read: its File Meta Information is too long")
        try:
            meta = clean_head(os.pread(fd, stored.data_set_offset, 0))
        except (OSError, ValueError) as error:
            raise unreadable(error) from error
        boundary = secrets.token_hex(16)
        begin = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        return _Body(
            stored=stored, fd=fd, boundary=boundary, head=begin + meta, tail=f"\r\n--{boundary}--\r\n".encode()
        )

    def headers(self) -> dict[str, str]:
        kind = f'multipart/related; type="application/dicom"; boundary={self.boundary}'
        return {
            "Content-Type": kind,
            "Content-Length": str(len(self.head) + self.stored.size + len(self.tail)),
        }

    def pieces(self, meter: Meter, turn: Callable[[int], int]) -> Iterator[bytes]:
        """Raises ObjectRefused where the file is shorter than it was."""
        yield self.head
        done, size = 0, self.stored.size
        while done < size:
            allowed = max(1, min(meter.piece_of(turn, size - done), size - done))
            try:
                piece = os.pread(self.fd, allowed, self.stored.data_set_offset + done)
            except OSError as error:
                raise unreadable(error) from error
            if not piece:
                raise ObjectRefused("stored file is shorter than it was")
            yield piece
            done += len(piece)
        yield self.tail
