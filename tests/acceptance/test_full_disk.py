"""The whole appliance on disks that fill up: refused in time, nothing lost, on by itself when there is room (P5)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.header import part10 as read_part10
from appliance.dimse.small_pacs import SmallPacs
from appliance.journal.store import Journal
from tests.acceptance.rig import ROOT, Appliance, Scanner, free_port, hashes, node, settings
from tests.scanner import part10
from tests.small_disks import MB, ext4, free, memory, run
from tests.waiting import eventually

REFUSED = 0xA700
DISK_MIB, RESERVE_MB = 64, 16
IMAGES = 60
IMAGE = MB
FILLED_S, DRAINED_S, RESUMED_S = 60.0, 60.0, 60.0


@pytest.fixture
def small(work: Path) -> Iterator[Path]:
    """An appliance's folder whose state is a small disk."""
    folder = work / "appliance"
    with ext4(folder / "var", DISK_MIB):
        yield folder


def images(folder: Path, count: int, size: int = IMAGE) -> list[Path]:
    folder.mkdir(parents=True)
    return [part10(folder, number, os.urandom(size)) for number in range(count)]


def config(pacs_port: int, **changes: Any) -> dict[str, Any]:
    """What is delivered goes at once, and a series is complete after a second."""
    reserve = {"free_mb": RESERVE_MB, "free_inodes": 0, "journal_mb": 1}
    return (
        settings(node("pacs", pacs_port, keep_h=0), reserve=reserve, series={"silence_s": {"default": 1, "CT": 1}})
        | changes
    )


def fits(filler: Path) -> bool:
    """Whether another 64 KiB went in; the last time it takes what there is."""
    with filler.open("ab", buffering=0) as file:
        try:
            return file.write(bytes(1 << 16)) > 0
        except OSError:
            return False


def fill(scanner: Scanner, paths: Sequence[Path]) -> None:
    """Send one after another until one is refused."""
    items = [read_part10(path) for path in paths]
    association = scanner.associate(items)
    for item in items:
        scanner.store(association, item)
        if scanner.refused:
            break
    association.release()


def kept(appliance: Appliance) -> set[str]:
    """SOP Instance UIDs that have a row and a whole file."""
    rows = appliance.query(
        "SELECT i.sop_instance_uid AS uid, i.size, c.file FROM instance i JOIN copy c ON c.instance=i.id"
    )
    spool = appliance.state / "spool"
    return {row["uid"] for row in rows if (spool / row["file"]).stat().st_size > row["size"]}


def pids(appliance: Appliance) -> dict[str, int]:
    return {name: one.pid for name in ("receive", "analyse", "forward") if (one := appliance.process(name))}


def status(appliance: Appliance) -> dict[str, Any]:
    command = [sys.executable, "-m", "appliance", "status", "--config", str(appliance.config_path), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.promise("P5")
@pytest.mark.promise("P1")
def test_a_full_disk_refuses_in_time_and_goes_on_by_itself_when_the_pacs_is_back(small: Path, work: Path) -> None:
    """The scanner never stops trying: it must not be what keeps the disk full."""
    paths = images(work / "scans", IMAGES)
    pacs = SmallPacs(work / "pacs", port=free_port())
    with Appliance(small, config(pacs.port)) as appliance:
        scanner, started = Scanner(appliance), pids(appliance)
        fill(scanner, paths)
        assert set(scanner.refused.values()) == {REFUSED}
        assert scanner.acknowledged == kept(appliance)
        assert len(scanner.acknowledged) > (DISK_MIB - RESERVE_MB) // 2
        assert free(appliance.state)[0] > RESERVE_MB * MB - 2 * IMAGE, "refused before the reserve was eaten"
        assert free(appliance.state)[0] < RESERVE_MB * MB + IMAGE, "but not earlier than need be"
        told = status(appliance)
        assert told["disk"]["refusing"]
        assert told["disk"]["held_bytes"] > len(scanner.acknowledged) * IMAGE
        assert not told["latched"]
        with pacs:
            scanner.insist(paths, DRAINED_S, patience_s=0.2)
            eventually(lambda: not appliance.owed(), DRAINED_S, "everything is delivered")
            assert {one.sop_instance_uid: one.sha256 for one in pacs.received()} == hashes(paths)
        assert pids(appliance) == started, "no process had to be started anew"
        eventually(lambda: not status(appliance)["disk"]["refusing"], DRAINED_S, "copies have been let go")


@pytest.mark.promise("P5")
def test_what_fills_the_disk_to_the_last_byte_stops_no_delivery_and_loses_nothing(small: Path, work: Path) -> None:
    """Somebody else's file: the journal writes its transitions from what was set aside for it."""
    paths = images(work / "scans", 10)
    pacs = SmallPacs(work / "pacs", port=free_port())
    filler = small / "var" / "filler"
    with Appliance(small, config(pacs.port, reserve={"free_mb": 1, "free_inodes": 0, "journal_mb": 4})) as appliance:
        scanner = Scanner(appliance)
        scanner.send(paths)
        assert len(scanner.acknowledged) == len(paths)
        eventually((appliance.state / "spool" / "reserve").exists, what="a reserve is held")
        while fits(filler):
            pass
        scanner.send(images(work / "more", 1))
        assert set(scanner.refused.values()) == {REFUSED}
        with pacs:
            eventually(lambda: not appliance.owed(), DRAINED_S, "everything is delivered on a full disk")
            assert {one.sop_instance_uid: one.sha256 for one in pacs.received()} == hashes(paths)
            filler.unlink()
            scanner.insist(sorted((work / "more").iterdir()), RESUMED_S)
        assert not status(appliance)["latched"]


@pytest.mark.promise("P5")
def test_inodes_run_out_as_bytes_do(work: Path) -> None:
    folder = work / "appliance"
    paths = images(work / "scans", 150, size=2000)
    pacs = SmallPacs(work / "pacs", port=free_port())
    with memory(folder / "var", 64, 120):
        reserve = {"free_mb": 1, "free_inodes": 30, "journal_mb": 1}
        with Appliance(folder, config(pacs.port, reserve=reserve)) as appliance:
            scanner = Scanner(appliance)
            fill(scanner, paths)
            assert set(scanner.refused.values()) == {REFUSED}
            assert scanner.acknowledged == kept(appliance)
            assert free(appliance.state)[1] > 10, "refused before the last inode was taken"
            with pacs:
                scanner.insist(paths, DRAINED_S, patience_s=0.2)
                eventually(lambda: not appliance.owed(), DRAINED_S, "everything is delivered")
            assert not status(appliance)["latched"]


@pytest.mark.promise("P1")
@pytest.mark.promise("P12")
def test_a_disk_that_turns_read_only_takes_nothing_more_and_what_was_acknowledged_is_there_afterwards(
    small: Path, work: Path
) -> None:
    """As ext4 does to itself on an error. The scanner is told to wait, or not answered; then the disk is repaired."""
    paths = images(work / "scans", 10, size=1000)
    with Appliance(small, config(free_port())) as appliance:
        scanner = Scanner(appliance)
        scanner.send(paths[:5])
        assert len(scanner.acknowledged) == 5
        run("mount", "-o", "remount,abort", appliance.state)
        with pytest.raises(AssertionError, match="not acknowledged"):
            scanner.insist(paths[5:], 3, patience_s=0.2)
        assert set(scanner.refused.values()) <= {REFUSED}
        assert len(scanner.acknowledged) == 5
        assert appliance.running, "the supervisor goes on trying"
        appliance.stop()
    loop = run("findmnt", "--noheadings", "--output", "SOURCE", small / "var")
    run("umount", small / "var")
    subprocess.run(["fsck.ext4", "-y", "-f", loop], capture_output=True, check=False)
    run("mount", "-t", "ext4", loop, small / "var")
    with Appliance(small, config(free_port())) as appliance:
        again = Scanner(appliance)
        again.insist(paths[5:], RESUMED_S)
        assert kept(appliance) == scanner.acknowledged | again.acknowledged
    journal = Journal(small / "var" / "journal.sqlite", "test")
    assert [row[0] for row in journal.query("PRAGMA integrity_check")] == ["ok"]
    journal.close()
