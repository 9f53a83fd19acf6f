"""Who uses a folder of the store holds it, and what is held is not removed. The kernel lets go for whoever dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.disk import FOLDER
from appliance.errors import EngineRefused


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody removes what is in it meanwhile; others may hold it, too. Raises EngineRefused where it is gone."""
    gone = EngineRefused(f"{folder.name} is not in the store any more")
    try:
        fd = os.open(folder, FOLDER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone from error
    except OSError as error:
        raise EngineRefused(f"{folder.name} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # who removes something has it for a moment
        if not _is_there(fd, folder):
            raise gone
        yield
    finally:
        os.close(fd)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody holds the folder, and then nobody will while this lasts. One that is not there is held by none."""
    try:
        fd = os.open(folder, FOLDER)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _is_there(fd: int, folder: Path) -> bool:
    """Whether the folder of this name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(fd), folder.stat())
    except OSError:
        return False
