"""What is altered for a negative control, which must lose what was acknowledged, or the rig proves nothing.

The product has no switch for any of this. The guest's program hands its receive process an altered part before it
starts: a Journal, an Incoming, os.fsync; or, for no fsync at all, the unaltered process runs with libeatmydata, in
which every sync is a no-op, SQLite's too.

About the missing directory sync. A file of the spool has its final name before its first byte, and on ext4 the
fdatasync of a new file commits the file-system journal, the new directory entry included. So there, leaving out the
directory sync loses nothing (FINAL_NAMES_NO_FOLDER_SYNC is run to find out, and nothing is expected of it); no standard
promises it, so the product syncs the directory. The control is the layout in which it matters on ext4 as well: write
under a temporary name, sync, rename, and acknowledge without syncing the directory (RENAME_NO_FOLDER_SYNC); what is
then lost is found missing or empty. Its twin that does sync it (RENAME_AND_FOLDER_SYNC) must lose nothing: the one step
makes the difference.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from appliance import spool
from appliance.config import Config
from appliance.disk import make_folder, sync_folder
from appliance.journal.store import Journal, Transaction
from appliance.spool import Incoming
from appliance.wiring import receive
from power_cuts import RigError


class Alteration(StrEnum):
    """What the receive process under test is made of."""

    NONE = "product"
    NO_FSYNC = "no fsync"
    RENAME_NO_FOLDER_SYNC = "rename, no directory fsync"
    JOURNAL_NORMAL = "journal synchronous=NORMAL"
    RENAME_AND_FOLDER_SYNC = "rename and directory fsync"
    FINAL_NAMES_NO_FOLDER_SYNC = "final names, no directory fsync"


#: Must lose something.
CONTROLS = (Alteration.NO_FSYNC, Alteration.RENAME_NO_FOLDER_SYNC, Alteration.JOURNAL_NORMAL)


class LateName(Incoming):
    """Written and synced under a temporary name, then renamed; the directory is not synced after that."""

    def __init__(self, folder: Path, name: str, head: bytes) -> None:
        part = f"{name}.part"
        (folder / part).touch()
        super().__init__(folder, part, head)
        self.name = name
        self._part = folder / part
        self._final = folder / name

    def finish(self) -> None:
        super().finish()
        self._part.rename(self._final)


class LateNameSynced(LateName):
    def finish(self) -> None:
        super().finish()
        sync_folder(self._final.parent)


class ForgetfulJournal(Journal):
    """Commits with synchronous=NORMAL whatever was promised."""

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Transaction]:  # noqa: ARG002 - that is the point
        with super().write(durable=False) as tx:
            yield tx


def alter(alteration: Alteration) -> None:
    """Alter this process before its receive part starts."""
    if alteration is Alteration.JOURNAL_NORMAL:
        vars(receive)["open_journal"] = _open_forgetful_journal
    elif alteration is Alteration.RENAME_NO_FOLDER_SYNC:
        vars(spool)["Incoming"] = LateName
    elif alteration is Alteration.RENAME_AND_FOLDER_SYNC:
        vars(spool)["Incoming"] = LateNameSynced
    elif alteration is Alteration.FINAL_NAMES_NO_FOLDER_SYNC:
        vars(os)["fsync"] = _without_folders(os.fsync)


def preload(alteration: Alteration) -> str:
    """The library that the guest's Python starts with, or ""."""
    if alteration is not Alteration.NO_FSYNC:
        return ""
    found = next((path for lib in ("/usr/lib", "/lib") for path in Path(lib).glob("*/libeatmydata.so")), None)
    if found is None:
        raise RigError("libeatmydata.so is not installed: apt-get install eatmydata")
    return str(found)


def _open_forgetful_journal(config: Config, process: str, on_full: Callable[[], bool] = lambda: False) -> Journal:
    make_folder(config.state_dir)
    return ForgetfulJournal(config.journal_path, process, on_full=on_full)


def _without_folders(fsync: Callable[[int], None]) -> Callable[[int], None]:
    def altered(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            fsync(fd)

    return altered
