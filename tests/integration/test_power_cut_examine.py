"""The eye of the power-cut rig: stores that are whole, and stores with one thing wrong, against a ledger."""

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from power_cuts.examine import examine
from power_cuts.inside import configuration
from power_cuts.ledger import Ledger

from appliance.config import Config
from appliance.file_head import file_head
from appliance.journal.store import Journal
from tests.journals import CT_IMAGE, EXPLICIT, arrival, receive

COUNT = 4


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration(tmp_path / "state", port=0)


@pytest.fixture
def ledger(config: Config) -> Ledger:
    """A whole store of four images, all acknowledged."""
    arrivals = [arrival(number) for number in range(COUNT)]
    config.spool_dir.mkdir(parents=True)
    for number, item in enumerate(arrivals):
        path = config.spool_dir / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_head(CT_IMAGE, item.sop_instance_uid, EXPLICIT, "CT01") + b"data of %d" % number)
    journal = Journal(config.journal_path, "test")
    receive(journal, *arrivals)
    journal.close()
    return {item.sop_instance_uid: sent(number) for number, item in enumerate(arrivals)}


def sent(number: int) -> str:
    return hashlib.sha256(b"data of %d" % number).hexdigest()


def file_of(config: Config, number: int) -> Path:
    return config.spool_dir / arrival(number).file


def uid(number: int) -> str:
    return arrival(number).sop_instance_uid


def test_a_whole_store(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    verdict = examine(config, ledger, tmp_path, swept=True)
    assert verdict.sound
    assert not verdict.lost | verdict.torn | verdict.half_visible


def test_a_row_in_the_wal_counts_and_the_journal_is_not_touched(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    journal = Journal(config.journal_path, "test")
    receive(journal, arrival(COUNT))
    path = file_of(config, COUNT)
    path.write_bytes(file_head(CT_IMAGE, uid(COUNT), EXPLICIT, "CT01") + b"data of %d" % COUNT)
    before = {path: path.read_bytes() for path in (config.journal_path, Path(f"{config.journal_path}-wal"))}
    assert not examine(config, ledger | {uid(COUNT): sent(COUNT)}, tmp_path).lost
    assert {path: path.read_bytes() for path in before} == before
    journal.close()


def test_a_missing_file_is_lost(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    file_of(config, 1).unlink()
    assert examine(config, ledger, tmp_path).lost == {uid(1)}


def test_a_missing_row_is_lost(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    with closing(sqlite3.connect(config.journal_path)) as db, db:
        db.execute("DELETE FROM instance WHERE sop_instance_uid=?", (uid(2),))
    assert examine(config, ledger, tmp_path).lost == {uid(2)}


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_file_cut_short_is_torn(config: Config, ledger: Ledger, tmp_path: Path, keep: int) -> None:
    path = file_of(config, 0)
    path.write_bytes(path.read_bytes()[:keep])
    assert examine(config, ledger, tmp_path).torn == {uid(0)}


def test_other_bytes_are_torn(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    path = file_of(config, 3)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert examine(config, ledger, tmp_path).torn == {uid(3)}


def test_a_row_that_nobody_was_told_of_needs_its_file_too(config: Config, ledger: Ledger, tmp_path: Path) -> None:
    del ledger[uid(0)]
    file_of(config, 0).unlink()
    assert examine(config, ledger, tmp_path).half_visible == {arrival(0).file}


def test_a_file_without_a_row_is_half_visible_only_after_the_sweep(
    config: Config, ledger: Ledger, tmp_path: Path
) -> None:
    stray = file_of(config, 0).with_name("000000099.dcm")
    shutil.copyfile(file_of(config, 0), stray)
    assert not examine(config, ledger, tmp_path).half_visible
    assert examine(config, ledger, tmp_path, swept=True).half_visible == {"received/000000/000000099.dcm"}


def test_a_damaged_journal_is_not_sound_and_what_it_knew_is_lost(
    config: Config, ledger: Ledger, tmp_path: Path
) -> None:
    content = bytearray(config.journal_path.read_bytes())
    content[100:8192] = bytes(8092)
    config.journal_path.write_bytes(content)
    verdict = examine(config, ledger, tmp_path)
    assert not verdict.sound
    assert verdict.lost == set(ledger)


def test_no_journal_at_all(config: Config, tmp_path: Path) -> None:
    assert examine(config, {"1.2": "a" * 64}, tmp_path).lost == {"1.2"}
    assert not examine(config, {}, tmp_path).lost
