"""A file-set on a stick: whole and durable, or taken away again.

The folder must be empty. While it is written, UNDONE.TXT stands in it: what a pulled stick or a power cut leaves behind
says so, and is not written over. DICOMDIR comes last. Whatever else ends an export empties the folder again.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.destinations.file_set import WANTED, Directory, Member
from appliance.digest import DataSetDigest
from appliance.dimse.header import Part10, part10, read_values
from appliance.disk import sync_folder, write_all
from appliance.errors import ScansideError
from appliance.file_head import clean_head
from appliance.model import Instance

UNDONE = "UNDONE.TXT"
UNDONE_WORDS = b"An export to this folder was begun and not finished. Empty the folder, and export again.\r\n"
LISTED, UNLISTED = "DICOM", "EXTRA"  # folders: what DICOMDIR names, and what it cannot
NOT_OURS = frozenset(("lost+found", "System Volume Information"))  # what empty sticks may have
PER_OBJECT = 8192  # bytes beside the data set: head, directory record, what the file system rounds up
_CHUNK = 1 << 20
_LONGEST_HEAD = 1 << 16


class Unusable(ScansideError):
    """A stored file that cannot be carried away as it is known; the others can."""


@contextmanager
def stick(folder: Path, size: int, objects: int) -> Iterator["Stick"]:
    """Raises ScansideError where it is not empty, has too little room, or cannot be written to."""
    made = _usable(folder)
    writer = Stick(folder)
    try:
        _check_room(folder, size, objects)
        writer.begin()
        yield writer
        writer.finish()
    except BaseException as error:
        writer.take_away()
        if made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ScansideError(f"{folder}: {error.strerror}; what was written there is removed again") from error
        raise


def _usable(folder: Path) -> bool:
    """Whether it was made now."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        folder.mkdir()
        return True
    except NotADirectoryError:
        raise ScansideError(f"{folder} is not a folder") from None
    if UNDONE in names:
        raise ScansideError(f"{folder} holds an export that was not finished ({UNDONE}): empty it, and export again")
    if left := names - NOT_OURS:
        raise ScansideError(
            f"{folder} is not empty ({min(left)!r}): name an empty folder, or one that is not there yet"
        )
    return False


def _check_room(folder: Path, size: int, objects: int) -> None:
    room = os.statvfs(folder)
    free, needed = room.f_bavail * room.f_frsize, size + objects * PER_OBJECT + _CHUNK
    if needed > free:
        raise ScansideError(
            f"{folder} has {free >> 20} MB free, {(needed >> 20) + 1} MB are needed: nothing was written"
        )


class Stick:
    """The folder while it is written. Raises OSError where it cannot be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._directory = Directory()
        self._numbers: dict[tuple[str, ...], dict[str, int]] = {}
        self._begun = False
        self.unlisted = 0

    @property
    def made_up(self) -> int:
        """Objects for which the directory says something that they do not."""
        return self._directory.made_up

    def begin(self) -> None:
        self._begun = True
        _write(self._folder / UNDONE, UNDONE_WORDS)
        _sync(self._folder)

    def add(self, one: Instance, source: Path, *, listed: bool) -> None:
        """Raises Unusable where the stored file cannot be read, or is not what the journal knows."""
        stored = _stored(one, source)
        file_id = self._place(one) if listed else (UNLISTED, self._next((UNLISTED,), one.file, "EX"))
        target = self._folder.joinpath(*file_id)
        self._make_folder(target.parent)
        _copy(one, stored, target)
        if not listed:
            self.unlisted += 1
            return
        try:
            values = read_values(source, stored.data_set_offset, stored.transfer_syntax_uid, WANTED)
        except OSError as error:
            target.unlink()
            raise Unusable(f"cannot be read: {error.strerror}") from error
        self._directory.add(
            Member(
                file_id=file_id,
                sop_class_uid=stored.sop_class_uid,
                sop_instance_uid=stored.sop_instance_uid,
                transfer_syntax_uid=stored.transfer_syntax_uid,
                study_instance_uid=one.study_instance_uid,
                series_instance_uid=one.series_instance_uid,
                values=values,
            )
        )

    def _place(self, one: Instance) -> tuple[str, ...]:
        """Names of at most eight capitals and digits, which any medium takes (PS3.10 8.2)."""
        study = (LISTED, self._next((LISTED,), one.study_instance_uid, "ST"))
        series = (*study, self._next(study, one.series_instance_uid, "SE"))
        return (*series, self._next(series, one.file, "IM"))

    def _next(self, above: tuple[str, ...], key: str, letters: str) -> str:
        numbers = self._numbers.setdefault(above, {})
        return f"{letters}{numbers.setdefault(key, len(numbers) + 1):06d}"

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir()
            _sync(folder.parent)

    def finish(self) -> None:
        """All names durable, then the directory, then it counts."""
        for above in self._numbers:
            _sync(self._folder.joinpath(*above))
        unfinished = self._folder / "DICOMDIR.NEW"
        _write(unfinished, *self._directory.encoded(f"2.25.{secrets.randbits(128)}", "SCANSIDE"))
        unfinished.rename(self._folder / "DICOMDIR")
        _sync(self._folder)
        (self._folder / UNDONE).unlink()
        _sync(self._folder)

    def take_away(self) -> None:
        """What was written. Never raises: what stays is marked as undone."""
        if not self._begun:
            return
        for name in (LISTED, UNLISTED):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for name in ("DICOMDIR.NEW", "DICOMDIR", UNDONE):
            if name != UNDONE or not any((self._folder / one).exists() for one in (LISTED, UNLISTED)):
                with suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)


def _stored(one: Instance, source: Path) -> Part10:
    try:
        stored = part10(source)
    except FileNotFoundError:
        raise Unusable("its local copy is gone") from None
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(str(error)) from error
    if stored.sop_instance_uid != one.sop_instance_uid or stored.data_set_offset > _LONGEST_HEAD:
        raise Unusable("the stored file holds another object")
    return stored


def _copy(one: Instance, stored: Part10, target: Path) -> None:
    """The data set byte for byte, after a head without what is only for us. Its digest must be the journal's."""
    try:
        source = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _pour(one, stored, source, fd)
            os.fsync(fd)
        except Unusable:
            target.unlink()
            raise
        finally:
            os.close(fd)
    finally:
        os.close(source)


def _pour(one: Instance, stored: Part10, source: int, fd: int) -> None:
    digest, at = DataSetDigest(), stored.data_set_offset
    try:
        head = clean_head(os.pread(source, at, 0))
    except ValueError as error:
        raise Unusable(str(error)) from error
    write_all(fd, [memoryview(head)])
    while piece := _read(source, at):
        write_all(fd, [memoryview(piece)])
        digest.update(piece)
        at += len(piece)
    if digest.digest() != one.digest:
        raise Unusable("the stored file has changed since it was received: look at the disk")


def _read(source: int, at: int) -> bytes:
    try:
        return os.pread(source, _CHUNK, at)
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error


def _write(path: Path, *pieces: bytes) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Some network shares know no sync of folders; the files are synced there all the same."""
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
