"""Recovery from a disk that is dying, too: one file that cannot be read must not cost all others."""

import hashlib
import os
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.digest import digest_of
from appliance.errors import ScansideError
from appliance.file_head import file_head, make_seal
from appliance.journal.store import Journal
from appliance.spool import Reserve, Spool
from appliance.stages.recover import Recovered, Recovery, recover
from appliance.wiring.recover import rebuild
from tests.journals import CT_IMAGE, EXPLICIT, SERIES, TO_PACS
from tests.missing import missing
from tests.scanner import data_set, part10

LIMITS = Reserve(free_bytes=0, free_inodes=0, journal_bytes=0)


@pytest.mark.promise("P12")
def test_what_the_disk_cannot_read_any_more_is_put_aside(tmp_path: Path) -> None:
    received, results = (Spool(tmp_path / "spool", area, LIMITS) for area in ("received", "results"))
    folder = tmp_path / "spool/received/000000"
    folder.mkdir()
    part10(folder, 1)
    (folder / "00002.dcm").mkdir()  # opens, and fails to be read
    journal = Journal(tmp_path / "j", "recover")
    done = recover(
        Recovery(
            journal=journal,
            received=received,
            results=results,
            routes=lambda _: (TO_PACS,),
            result_routes=lambda _: (),
            progress=lambda *_: None,
        )
    )
    journal.close()
    assert (done.instances, done.quarantined) == (1, ("received/000000/00002.dcm",))
    assert received.files() == ["received/000000/00001.dcm"]


def recovered(tmp_path: Path, *files: bytes, former: bool = False) -> tuple[Recovered, list[tuple[str, str]]]:
    """What is made of these data sets, each sealed in the spool; and the events of history with their UIDs."""
    received, results = (Spool(tmp_path / "spool", area, LIMITS) for area in ("received", "results"))
    for number, content in enumerate(files, 1):
        file = received.begin(file_head(CT_IMAGE, f"{SERIES}.{number}", EXPLICIT, "CT01"))
        file.write([memoryview(content)])
        file.seal(former_seal(content) if former else make_seal(file.size, file.digest))
        file.finish()
        path = received.path(file.name)
        if number == 2:
            os.truncate(path, path.stat().st_size - 1)
        if number == 3:
            with path.open("r+b") as torn:
                torn.seek(-4, os.SEEK_END)
                torn.write(bytes(4))
    journal = Journal(tmp_path / "j", "recover")
    done = recover(
        Recovery(
            journal=journal,
            received=received,
            results=results,
            routes=lambda _: (TO_PACS,),
            result_routes=lambda _: (),
            progress=lambda *_: None,
        )
    )
    told = [tuple(row) for row in journal.query("SELECT sop_instance_uid, event FROM history ORDER BY id")]
    journal.close()
    return done, told


def former_seal(content: bytes) -> bytes:
    """As the first versions wrote it."""
    return b"SCANSIDE" + len(content).to_bytes(8, "big") + hashlib.sha256(content).digest()


@pytest.mark.promise("P12")
@pytest.mark.promise("P4")
def test_what_a_former_version_kept_is_owed_again_and_known_by_the_new_digest(tmp_path: Path) -> None:
    done, told = recovered(tmp_path, data_set(1), data_set(2), data_set(3), former=True)
    assert (done.instances, len(done.quarantined)) == (1, 2)  # the second is cut short, the third altered
    assert (f"{SERIES}.1", "received") in told
    journal = Journal(tmp_path / "j", "test")
    (row,) = journal.query("SELECT digest FROM instance")
    journal.close()
    assert row["digest"] == digest_of(data_set(1))


@pytest.mark.promise("P12")
@pytest.mark.promise("P4")
def test_what_came_malformed_was_promised_all_the_same_and_what_is_torn_was_not(tmp_path: Path) -> None:
    malformed = b"\xff\x7f\x10\0OW\0\0\xf0\xff\xff\x7fno data set at all"
    done, told = recovered(tmp_path, malformed, data_set(2), data_set(3), data_set(4))
    assert told == [(f"{SERIES}.1", "received_unsorted"), (f"{SERIES}.4", "received")]
    assert done.instances == 2
    assert [Path(file).name for file in done.quarantined] == ["000000001.dcm", "000000002.dcm"]


def test_another_user_than_the_appliances_makes_no_journal(tmp_path: Path) -> None:
    """As with sudo: the appliance could not write it, and would not start any more."""
    if os.geteuid() != 0:
        missing("needs root")
    config = Config(state=tmp_path)
    config.spool_dir.mkdir()
    os.chown(config.spool_dir, 65_534, 65_534)
    with pytest.raises(ScansideError, match="sudo -u nobody"):
        rebuild(config, lambda *_: None)
    assert not config.journal_path.exists()
