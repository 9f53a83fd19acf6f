"""A journal of years: made by SQL in the schema, then started on, read from and asked as the appliance does it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from appliance.journal import copies, history, inbox, jobs, outbox, overview
from appliance.journal.copies import Keep, Rules
from appliance.journal.store import Journal
from appliance.spool import FILES_PER_FOLDER, Reserve, Spool
from appliance.states import DeliveryState
from benchmarks.report import BenchError, Report, quantile
from benchmarks.rig import ROOT, Appliance, free_port, pacs

SQL = Path(__file__).with_suffix(".sql")
CHUNK = 50_000
PER_STUDY = 300  # as in the SQL
TOLD = 300_000  # newest instances that still have lines of their own: the others' were pruned after a week
KEEP = Keep(commitment=False, keep_ms=86_400_000)
RULES = Rules(keeps={"pacs": KEEP}, unowed_keep_ms=86_400_000, gone=KEEP)

START_S, PICK_MS, STATUS_MS, READ_MS = 5.0, 5.0, 300.0, 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    instances: int
    owed: int  #: the newest ones, whose copies are still held


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something the appliance asks of its journal again and again."""

    name: str
    ask: Callable[[], object]
    times: int
    limit_ms: float


def measure(report: Report, sizes: Sizes, folder: Path) -> None:
    options = {"destinations": [pacs(free_port())]}  # nobody listens there: what is owed stays owed
    appliance = Appliance(folder / "box", options)
    begun = time.monotonic()
    build(appliance.state, sizes)
    built_s = time.monotonic() - begun
    with appliance:
        with closing(appliance.journal()) as journal:
            for question in questions(journal, sizes):
                ask(report, question)
        command_s = median(_status_command_s(appliance.config) for _ in range(3))
        peak = appliance.peak_mb("receive")
    table = f"a journal of {sizes.instances:,} instances, {sizes.owed:,} owed"
    size = (appliance.state / "journal.sqlite").stat().st_size
    report.row(table, "made in s, without the appliance", figure=round(built_s, 1))
    report.row(table, "MB of the journal", figure=round(size / 1e6))
    report.row(table, "start until all processes are ready, s", figure=round(appliance.ready_s, 2))
    report.row(table, "receive's most memory, MB", figure=round(peak, 1))
    report.row(table, "the status command, its own start included, s", figure=round(command_s, 2))
    report.goal(f"{table}: start of the processes", START_S, round(appliance.ready_s, 2), "s")


def questions(journal: Journal, sizes: Sizes) -> list[Question]:
    newest = set(range(sizes.instances - sizes.owed, sizes.instances - sizes.owed + 64))
    study = _study(sizes.instances)
    return [
        Question(
            name="next pick of a lane",
            ask=lambda: outbox.next_queued(journal, "pacs", 1),
            times=1000,
            limit_ms=PICK_MS,
        ),
        Question(
            name="next pick of a lane, 64 in flight",
            ask=lambda: outbox.next_queued(journal, "pacs", 1, skip=newest),
            times=300,
            limit_ms=PICK_MS,
        ),
        Question(
            name="pick of what waits longest",
            ask=lambda: outbox.oldest_queued(journal, "pacs"),
            times=300,
            limit_ms=PICK_MS,
        ),
        Question(name="status", ask=lambda: overview.overview(journal), times=40, limit_ms=STATUS_MS),
        Question(
            name="held deliveries",
            ask=lambda: outbox.list_deliveries(journal, DeliveryState.HELD, 100),
            times=20,
            limit_ms=READ_MS,
        ),
        Question(name="trace of a study", ask=lambda: history.trace(journal, study), times=20, limit_ms=READ_MS),
        Question(name="what arrived", ask=lambda: jobs.arrived(journal, 500), times=200, limit_ms=READ_MS),
        Question(name="open series", ask=lambda: inbox.open_series(journal), times=200, limit_ms=READ_MS),
        Question(
            name="copies that may go, a chunk",
            ask=lambda: copies.releasable(journal, RULES, ""),
            times=20,
            limit_ms=READ_MS,
        ),
        Question(name="old history, a chunk", ask=lambda: history.prune(journal, 0), times=20, limit_ms=READ_MS),
    ]


def ask(report: Report, question: Question) -> None:
    question.ask()
    times = []
    for _ in range(question.times):
        begun = time.perf_counter()
        question.ask()
        times.append((time.perf_counter() - begun) * 1000)
    p99 = round(quantile(times, 0.99), 2)
    report.row(
        "questions to that journal, ms",
        question.name,
        p50=round(quantile(times, 0.5), 2),
        p99=p99,
        asked=question.times,
    )
    report.goal(f"{question.name}: p99", question.limit_ms, p99, "ms")


def _status_command_s(config: Path) -> float:
    begun = time.monotonic()
    command = [sys.executable, "-m", "appliance", "status", "--config", str(config), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise BenchError(f"the status command ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.monotonic() - begun


# The journal. Ids run from 1, and an id tells the study, series and file of an instance: see big_journal.sql.


def build(state: Path, sizes: Sizes) -> None:
    state.mkdir(parents=True)
    with closing(Journal(state / "journal.sqlite", "bench")) as journal:
        for first in range(1, sizes.instances + 1, CHUNK):
            _write_chunk(journal, sizes, first, min(first + CHUNK - 1, sizes.instances))
            journal.checkpoint(truncate=True)
        spool = Spool(state / "spool", "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
        spool.own(journal.identity)
    _touch_files(state / "spool", sizes)
    os.sync()


def _write_chunk(journal: Journal, sizes: Sizes, first: int, last: int) -> None:
    first_owed, first_told = sizes.instances - sizes.owed + 1, sizes.instances - TOLD + 1
    *prepare, fill = SQL.read_text().split("-- Filled.")
    with journal.write(durable=False) as tx:
        for statement in "".join(prepare).split(";")[:-1]:
            tx.sql(statement)
        tx.sql("INSERT INTO given VALUES (?,?,?,?,?)", (first, last, first_owed, first_told, journal.clock.tick()))
        for statement in fill.split(";")[:-1]:
            tx.sql(statement)


def _touch_files(spool: Path, sizes: Sizes) -> None:
    """Empty files under the names of the copies: a start looks at names, and nobody takes them over the wire."""
    for number in range(sizes.instances - sizes.owed + 1, sizes.instances + 1):
        file = spool / f"received/{number // FILES_PER_FOLDER:06d}/{number:09d}.dcm"
        if number % FILES_PER_FOLDER == 0 or not file.parent.exists():
            file.parent.mkdir(exist_ok=True)
        file.touch()


def _study(instance: int) -> str:
    """The study of an instance, as the SQL names it."""
    return f"1.2.826.0.1.3680043.2.1125.1.1.{(instance - 1) // PER_STUDY:024d}"
