"""Recovery from a disk that is dying, too: one file that cannot be read must not cost all others."""

import os
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.errors import ScansideError
from appliance.journal.store import Journal
from appliance.spool import Reserve, Spool
from appliance.stages.recover import Recovery, recover
from appliance.wiring.recover import rebuild
from tests.journals import TO_PACS
from tests.scanner import part10

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


def test_another_user_than_the_appliances_makes_no_journal(tmp_path: Path) -> None:
    """As with sudo: the appliance could not write it, and would not start any more."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    config = Config(state=tmp_path)
    config.spool_dir.mkdir()
    os.chown(config.spool_dir, 65_534, 65_534)
    with pytest.raises(ScansideError, match="sudo -u nobody"):
        rebuild(config, lambda *_: None)
    assert not config.journal_path.exists()
