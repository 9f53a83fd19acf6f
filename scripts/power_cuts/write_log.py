"""The log of dm-log-writes, and the crash points in it.

Format (kernel: Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c), little-endian: a
super block of u64 magic, u64 version, u64 entries, u32 sector size, in a sector of its own; then each entry a sector
that begins with u64 sector, u64 sectors, u64 flags, u64 bytes of text, followed by its data. Positions count 512 bytes.

A crash point lies after each entry. In order: all writes up to it are on the disk. Reordered: of the writes since the
last flush a random half is missing, as in a drive that had them in its cache; those with FUA are always there.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from power_cuts import RigError

MAGIC = 0x6A736677736872
VERSION = 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512
START, ACK = "start", "ack:"  # of marks, which hold no spaces
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Bytes of the log that were written to the disk at `offset`."""

    offset: int
    at: int  #: position of the bytes in the log
    size: int
    fua: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. A flush comes before the entry's own write; `mark` is the text of a mark, which writes nothing."""

    flush: bool = False
    write: Write | None = None
    mark: str = ""


def entries(log: BinaryIO) -> Iterator[Entry]:
    """All entries of a log. Raises RigError where it is none, or cut short."""
    magic, version, count, sector_size = _unpack(log, _SUPER, 0)
    if magic != MAGIC or version != VERSION or sector_size < _ENTRY.size:
        raise RigError(f"this is no log of dm-log-writes: magic {magic:#x}, version {version}")
    at = sector_size
    for _ in range(count):
        sector, sectors, flags, text_size = _unpack(log, _ENTRY, at)
        text = log.read(text_size) if flags & MARK else b""
        at += sector_size
        size = 0 if flags & (MARK | DISCARD) else sectors * SECTOR
        write = Write(offset=sector * SECTOR, at=at, size=size, fua=bool(flags & FUA)) if size else None
        yield Entry(flush=bool(flags & FLUSH), write=write, mark=text.split(b"\0")[0].decode("ascii", "replace"))
        at += -(-size // sector_size) * sector_size


def _unpack(log: BinaryIO, form: struct.Struct, at: int) -> tuple[int, ...]:
    log.seek(at)
    packed = log.read(form.size)
    if len(packed) < form.size:
        raise RigError(f"the log of dm-log-writes ends at byte {at}")
    return form.unpack(packed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    """A moment of the recording. `settled` is new on the disk for good since the point before this one."""

    number: int
    settled: tuple[Write, ...]
    in_flight: tuple[Write, ...]  #: written since the last flush, and on the disk at this crash
    acked: tuple[str, ...]  #: SOP Instance UIDs, in their order


def crash_points(log: BinaryIO, reordered_with: str = "") -> Iterator[CrashPoint]:
    """A crash after each entry from the start mark on; `reordered_with` is the seed of reordered ones."""
    settled: list[Write] = []
    pending: list[Write] = []
    acked: list[str] = []
    started = False
    number = 0
    for entry in entries(log):
        started = started or entry.mark == START
        if entry.mark.startswith(ACK):
            acked.append(entry.mark.removeprefix(ACK))
        if entry.flush:
            settled += pending
            pending = []
        if entry.write:
            pending.append(entry.write)
        if started:
            kept = _survivors(pending, f"{reordered_with}/{number}") if reordered_with else pending
            yield CrashPoint(number=number, settled=tuple(settled), in_flight=tuple(kept), acked=tuple(acked))
            settled = []
            number += 1


def _survivors(pending: list[Write], seed: str) -> list[Write]:
    rng = random.Random(seed)  # noqa: S311 - no secret
    return [write for write in pending if write.fua or rng.random() < 0.5]


def apply(writes: tuple[Write, ...], log: BinaryIO, image: Path) -> None:
    """Carry out writes on an image. Raises RigError where the log does not hold them whole."""
    with image.open("r+b") as disk:
        for write in writes:
            log.seek(write.at)
            data = log.read(write.size)
            if len(data) < write.size:
                raise RigError(f"the log of dm-log-writes ends within the write at byte {write.at}")
            disk.seek(write.offset)
            disk.write(data)
