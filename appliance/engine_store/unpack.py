"""A package from outside, a folder or a zip, copied into a folder of ours: plain files, and what bounds they keep.

Nothing is trusted: no name leads out of the target, links and special files are refused, and so is whatever has too
many files or too many bytes, before they are read or while they are. What is copied is on the disk when `unpack`
returns. Whether it is a package at all is found out afterwards, on the copy.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from appliance.disk import refusal, sync_folder
from appliance.engine_manifest import MAX_FILES
from appliance.engine_package import MANIFEST, MAX_PACKAGE_BYTES, SIGNATURE, open_plain, survey
from appliance.errors import PackageInvalid, StoreFailed

MAX_ENTRIES = 2 * MAX_FILES  # folders count too
MAX_DIRECTORY_BYTES = 1 << 20  # of a zip: names are short, and few
MAX_NAME = 200
CHUNK = 1 << 20
_END, _END_MARK, _ZIP64_MARK = struct.Struct("<4s4H2LH"), b"PK\x05\x06", b"PK\x06\x07"
_ZIP64_LOCATOR, _LONGEST_COMMENT = 20, 1 << 16
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENCRYPTED = 1

CheckRoom = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """One file to be copied."""

    name: str  #: relative, checked
    size: int  #: bytes, as stated: no more are taken
    open: Callable[[], IO[bytes]]


def unpack(source: Path, target: Path, check_room: CheckRoom) -> None:
    """Copy `source` into the empty folder `target`, and have it on the disk.

    `check_room` hears of the bytes before one is written, and may raise. Raises PackageInvalid, OutOfResources where
    the disk is full, StoreFailed where it failed.
    """
    try:
        if source.is_dir():
            _copy(_in_folder(source), target, check_room)
        else:
            with os.fdopen(open_plain(source), "rb") as file:
                _check_end(file)
                with ZipFile(file) as archive:
                    _copy(_in_zip(archive), target, check_room)
    except (BadZipFile, EOFError, NotImplementedError, zlib.error, RuntimeError, ValueError, UnicodeError) as error:
        raise PackageInvalid(f"{source.name}: no zip that can be read: {error}") from error
    except OSError as error:
        raise PackageInvalid(f"{error.filename or source}: {error.strerror or error}") from error


def _in_folder(folder: Path) -> list[_Item]:
    """Hidden files stay behind: they count for nothing in a package."""
    found, errors = survey(folder)
    if errors:
        raise PackageInvalid("\n".join(errors))
    for name in (MANIFEST, SIGNATURE):
        if (folder / name).is_file():
            found[name] = (folder / name).stat().st_size
    return [_item(folder, _checked(name), size) for name, size in found.items()]


def _item(folder: Path, name: str, size: int) -> _Item:
    return _Item(name=name, size=size, open=lambda: os.fdopen(open_plain(folder / name), "rb"))


def _check_end(file: IO[bytes]) -> None:
    """The list of a zip's entries is read whole by whoever opens it: so it must be short. Raises PackageInvalid."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_PACKAGE_BYTES:
        raise PackageInvalid(f"the zip is over {MAX_PACKAGE_BYTES} bytes")
    tail_size = min(size, _LONGEST_COMMENT + _END.size + _ZIP64_LOCATOR)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(_END_MARK)
    if at < 0 or len(tail) - at < _END.size:
        raise PackageInvalid("neither a folder nor a zip")
    if tail[max(0, at - _ZIP64_LOCATOR) : at].startswith(_ZIP64_MARK):
        raise PackageInvalid("a zip in the ZIP64 form: pack it without, it need not be that large")
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise PackageInvalid(f"more than {MAX_FILES} files")
    file.seek(0)


def _in_zip(archive: ZipFile) -> list[_Item]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise PackageInvalid(f"more than {MAX_FILES} files")
    plain = [(entry, parts) for entry in entries if (parts := _parts(entry))]
    top = _top_folder([parts for _, parts in plain])
    return [_zipped(archive, entry, _checked("/".join(parts[top:]))) for entry, parts in plain]


def _parts(entry: ZipInfo) -> list[str]:
    """The parts of an entry's name; none of a folder or a hidden file. Raises PackageInvalid for what is no file."""
    parts = entry.filename.rstrip("/").split("/")
    if entry.filename.startswith("/") or "\\" in entry.orig_filename or ".." in parts or "\0" in entry.orig_filename:
        raise PackageInvalid(f"{entry.filename}: leads out of the package")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageInvalid(f"{entry.filename}: links and special files are refused")
    if entry.flag_bits & _ENCRYPTED:
        raise PackageInvalid(f"{entry.filename}: encrypted")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise PackageInvalid(f"{entry.filename}: packed in an unusual way; only deflate is read")
    if entry.is_dir() or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return []
    return parts


def _top_folder(names: list[list[str]]) -> int:
    """1 where all lies in one folder, as when a folder was zipped, else 0."""
    return int(all(len(parts) > 1 for parts in names) and len({parts[0] for parts in names}) == 1)


def _checked(name: str) -> str:
    if len(name) > MAX_NAME or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise PackageInvalid(f"{name}: no name of a package's file: letters, digits, '.', '_' and '-'")
    return name


def _zipped(archive: ZipFile, entry: ZipInfo, name: str) -> _Item:
    return _Item(name=name, size=entry.file_size, open=lambda: archive.open(entry))


def _copy(items: list[_Item], target: Path, check_room: CheckRoom) -> None:
    """Raises what `unpack` does; errors of reading as they are."""
    total = sum(item.size for item in items)
    if len(items) > MAX_FILES + 2:  # manifest and signature are not listed
        raise PackageInvalid(f"more than {MAX_FILES} files")
    if total > MAX_PACKAGE_BYTES:
        raise PackageInvalid(f"the files are over {MAX_PACKAGE_BYTES} bytes together")
    if len({item.name.casefold() for item in items}) != len(items):
        raise PackageInvalid("two files of one name")
    check_room(total)
    for item in items:
        path = target / item.name
        with _writing(item.name):
            path.parent.mkdir(parents=True, exist_ok=True)
        with item.open() as source:
            _write(path, _pieces(source, item))
    with _writing(target.name):
        for folder, _, _ in os.walk(target, topdown=False):
            sync_folder(Path(folder))


def _pieces(source: IO[bytes], item: _Item) -> Iterator[bytes]:
    """No more than was stated: a file may grow, and a zip may lie."""
    left = item.size
    while piece := source.read(min(CHUNK, left + 1)):
        left -= len(piece)
        if left < 0:
            raise PackageInvalid(f"{item.name}: longer than it says")
        yield piece


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    """Read first, then write: an error of reading must not pass for one of the disk."""
    with _writing(path.name):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for piece in pieces:
            with _writing(path.name):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(fd, rest) :]
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreFailed(f"{path.name}: {error.strerror}") from error
    finally:
        os.close(fd)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(error, what) from error
