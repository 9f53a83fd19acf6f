"""Recover: rebuild a lost journal from the spool, and owe everything again (P12).

The spool's files say what was received and what was built; which of it had been delivered is lost, so all of it is owed
once more: at least once, never lost. Results are not made again: their files tell which job they came from. A file
whose end is missing was never acknowledged: it is put aside and told, for a person to judge. One that is whole by its
seal was promised to somebody, however malformed: it is kept and delivered, as at reception.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from appliance.digest import digest_of_rest, former_digest_of_rest
from appliance.dimse.header import Part10, part10, read_header, walk_to_end
from appliance.disk import SHORTAGE, forget_pages
from appliance.errors import StoreFailed
from appliance.file_head import read_file_head, read_seal
from appliance.journal import inbox, intake, results
from appliance.journal.inbox import Routes
from appliance.journal.results import Restored
from appliance.journal.store import Journal
from appliance.model import Arrival, Kind, Owed, Result
from appliance.spool import Spool

BATCH = 64

#: what a result's file tells of it -> where it is owed
RestoredRoutes = Callable[[dict[str, Any]], Sequence[Owed]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What recover works with. The journal is new and empty; nothing else of the appliance runs."""

    journal: Journal
    received: Spool
    results: Spool
    routes: Routes
    result_routes: RestoredRoutes
    progress: Callable[[int, int], None]  #: files done, files in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    instances: int
    results: int
    repeats: int  #: files whose equal was recovered already; removed
    quarantined: tuple[str, ...]  #: files that are not whole


def set_aside(journal_path: Path) -> list[Path]:
    """Move a journal that cannot be used out of the way; returns where its files went."""
    number = 1
    while journal_path.with_name(f"{journal_path.name}.aside-{number}").exists():
        number += 1
    moved = []
    for suffix in ("", "-wal", "-shm"):
        part = journal_path.with_name(journal_path.name + suffix)
        if part.exists():
            moved.append(part.rename(journal_path.with_name(f"{journal_path.name}.aside-{number}{suffix}")))
    return moved


def recover(recovery: Recovery) -> Recovered:
    """Raises StoreFailed when the journal is not empty."""
    if inbox.count_instances(recovery.journal):
        raise StoreFailed("the journal is not empty: recover only rebuilds one that is lost")
    files, built = recovery.received.files(), recovery.results.files()
    total, done = len(files) + len(built), 0
    quarantined: list[str] = []
    repeats = 0
    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        arrivals = _whole(recovery, chunk, quarantined)
        recorded = inbox.record(recovery.journal, arrivals, recovery.routes)
        for arrival, fate in zip(arrivals, recorded, strict=True):
            if fate.redundant:
                recovery.received.remove(arrival.file)
                repeats += 1
        done += len(chunk)
        recovery.progress(done, total)
    restored = 0
    for file in built:
        found = _restored(recovery, file, quarantined)
        if found is not None and results.restore(recovery.journal, found):
            restored += 1
        elif found is not None:
            recovery.results.remove(file)
            repeats += 1
        done += 1
        recovery.progress(done, total)
    intake.forget(recovery.journal)
    recovery.received.own(recovery.journal.identity)  # last: a recovery that broke off must be begun anew
    return Recovered(
        instances=inbox.count_instances(recovery.journal) - restored,
        results=restored,
        repeats=repeats,
        quarantined=tuple(quarantined),
    )


def _whole(recovery: Recovery, files: Sequence[str], quarantined: list[str]) -> list[Arrival]:
    arrivals, spool = [], recovery.received
    for file in files:
        try:
            if not spool.path(file).stat().st_size:
                continue  # made ahead, and not begun: receive's next start sweeps it
            forget_pages(spool.path(file))
            arrivals.append(_arrival(spool, file))
        except (ValueError, OSError) as error:
            _put_aside(spool, file, error, quarantined)
    return arrivals


def _put_aside(spool: Spool, file: str, error: Exception, quarantined: list[str]) -> None:
    """One file that is not whole, or that the disk cannot read any more, must not cost all others."""
    if isinstance(error, OSError) and error.errno in SHORTAGE:
        raise error
    spool.quarantine(file)
    quarantined.append(file)


def _arrival(spool: Spool, file: str) -> Arrival:
    """Raises ValueError for a file that is not whole."""
    path = spool.path(file)
    stored, digest = _checked(path)
    return Arrival(
        sop_class_uid=stored.sop_class_uid,
        sop_instance_uid=stored.sop_instance_uid,
        transfer_syntax_uid=stored.transfer_syntax_uid,
        digest=digest,
        size=stored.size,
        file=file,
        calling_ae=read_file_head(path).calling_ae,
        called_ae="",
        peer="recovered",
        association=0,
        header=read_header(path, stored.data_set_offset, stored.transfer_syntax_uid),
    )


def _checked(path: Path) -> tuple[Part10, bytes]:
    """Where its data set is, and the digest of it. Raises ValueError for a file that is not whole.

    Without a seal (a file that somebody put back by hand, say) it must at least have the structure of a data set.
    """
    stored, sealed = part10(path), read_seal(path)
    if sealed is None and not walk_to_end(path, stored.data_set_offset, stored.transfer_syntax_uid):
        raise ValueError("the data set does not end where the file ends")
    if sealed is not None and sealed.size != stored.size:
        raise ValueError("the data set is cut short")
    digest = _digest(stored)
    written = _digest(stored, former_digest_of_rest) if sealed is not None and sealed.former else digest
    if sealed is not None and sealed.digest != written:
        raise ValueError("the data set is not what was written")
    return stored, digest


def _digest(stored: Part10, take: Callable[[BinaryIO], bytes] = digest_of_rest) -> bytes:
    with stored.path.open("rb") as file:
        file.seek(stored.data_set_offset)
        return take(file)


def _restored(recovery: Recovery, file: str, quarantined: list[str]) -> Restored | None:
    """What a result's file tells; None: it is not whole, and was put aside."""
    path = recovery.results.path(file)
    try:
        forget_pages(path)
        stored, digest = _checked(path)
        story = json.loads(read_file_head(path).private)
        result = Result(
            kind=Kind(story["kind"]),
            sop_class_uid=stored.sop_class_uid,
            sop_instance_uid=stored.sop_instance_uid,
            series_instance_uid=story["result_series_instance_uid"],
            transfer_syntax_uid=stored.transfer_syntax_uid,
            digest=digest,
            size=stored.size,
            file=file,
        )
    except (ValueError, KeyError, OSError) as error:
        _put_aside(recovery.results, file, error, quarantined)
        return None
    return Restored(result=result, story=story, owed=recovery.result_routes(story))
