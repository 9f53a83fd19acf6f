"""A folder as a destination: for an import share, an archive disk, or a test.

The name is a hash of SOP Instance UID, transfer syntax and data set: no path is made of what a data set says, and
sending again changes nothing.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from appliance.dimse.header import part10
from appliance.dimse.pieces import unreadable
from appliance.disk import sync_folder
from appliance.errors import DestinationRefused, TransientDeliveryError
from appliance.ports import Outgoing, Turn, at_once

_CHUNK = 1 << 20
_NOT_FOR_US = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


class Folder:
    """A ports.Destination: files appear whole and durable, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, items: Sequence[Outgoing]) -> "FolderSession":  # noqa: ARG002 - a folder takes everything
        self.probe()
        return FolderSession(self._path)

    def probe(self) -> None:
        """Whether the folder is there and may be written to. It is never made: a share may just not be mounted."""
        if not self._path.is_dir():
            raise DestinationRefused("not a folder")
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise DestinationRefused("folder may not be written to")


class FolderSession:
    """A ports.Session; holds nothing open."""

    alive = True
    bytes_s = round_trip_s = 0.0
    held_back = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        """Copy the Part 10 file, unchanged. Always returns ""."""
        try:
            offset = part10(path).data_set_offset
            source = path.open("rb")
        except (OSError, ValueError) as error:
            raise unreadable(error) from error
        # Named after the stored file, which is written once: a copy cut short is written over by its next try.
        part = self._path / f".{hashlib.sha256(path.name.encode()).hexdigest()[:32]}.part"
        try:
            with source:
                digest = hashlib.sha256(f"{item.sop_instance_uid}\0{item.transfer_syntax_uid}\0".encode())
                pieces = iter(lambda: _read(source, turn(_CHUNK)), b"")
                _copy(pieces, part, lambda at, piece: digest.update(piece[max(0, offset - at) :]))
            part.rename(self._path / f"{digest.hexdigest()[:40]}.dcm")
            sync_folder(self._path)
        except OSError as error:
            kind = DestinationRefused if error.errno in _NOT_FOR_US else TransientDeliveryError
            raise kind(f"cannot write: {error.strerror}") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return ""


def _copy(pieces: Iterator[bytes], part: Path, seen: Callable[[int, bytes], None]) -> None:
    at = 0
    with part.open("wb") as target:
        for piece in pieces:
            seen(at, piece)
            target.write(piece)
            at += len(piece)
        target.flush()
        os.fsync(target.fileno())


def _read(source: BinaryIO, most: int) -> bytes:
    try:
        return source.read(most)
    except OSError as error:
        raise unreadable(error) from error
