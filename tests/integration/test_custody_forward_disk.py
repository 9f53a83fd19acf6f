"""Forward as a process, on a disk that takes no notes any more."""

import sys
from pathlib import Path

import pytest
import yaml

from appliance.journal.store import Journal
from appliance.spool import Reserve, Spool
from tests.journals import TO_PACS, arrival, receive
from tests.scanner import part10
from tests.tracing import traced


@pytest.mark.promise("P3")
def test_what_cannot_be_noted_is_not_sent_again_by_each_start(tmp_path: Path) -> None:
    state, pacs = tmp_path / "var", tmp_path / "pacs"
    config = tmp_path / "scanside.yaml"
    destination = {"name": "pacs", "kind": "folder", "path": str(pacs), "takes": ["image"]}
    config.write_text(
        yaml.safe_dump({"state": str(state), "engines_dir": str(tmp_path), "destinations": [destination]})
    )
    pacs.mkdir()
    spool = Spool(state / "spool", "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
    folder = spool.path("received/000000")
    folder.mkdir()
    file = part10(folder, 1)
    journal = Journal(state / "journal.sqlite", "test")
    spool.own(journal.identity)
    receive(journal, arrival(1, file=f"received/000000/{file.name}"), owed=(TO_PACS,))
    (state / "run").mkdir()

    command = [sys.executable, "-m", "appliance.daemon", "forward", "--config", str(config)]
    wal = str(state / "journal.sqlite-wal")
    run = traced(tmp_path, command, inject="fdatasync:error=EIO", path=wal)
    journal.close()
    assert run.status not in (0, -15)
    assert list(pacs.iterdir()) == []
