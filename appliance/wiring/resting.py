"""The analyse process of a box where nothing is read: no engine, and no job of a former one that is not ended.

What reads, and what writes results, takes seconds to load and a hundred megabytes; here nothing of it is there.
"""

import shutil
from contextlib import ExitStack, closing
from functools import partial

from appliance.config import Config, EngineMode
from appliance.engine_store import leaving
from appliance.errors import OutOfResources
from appliance.journal import copies, inbox, jobs
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Spool
from appliance.wakeup import SLOW_POLL_S, Bell
from appliance.wiring.common import EX_LATCHED, Log, Worker, join, latching, open_journal, publish_facts
from appliance.wiring.releases import engine_store

LOOK_AT = 500  # instances at a time
LOOK_EVERY_S = 1.0
SHORTAGE_PAUSE_S = 2.0  # of the journal
RESULTS_AT_A_TIME = 16  # of one job: what a crash may leave without a row


def opened(config: Config, spool: Spool, log: Log) -> Journal:
    """The journal of the analyse process, which knows all that is in its area of the spool. Raises StoreFailed."""
    with latching(spool), ExitStack() as undo:
        journal = undo.enter_context(closing(open_journal(config, "analyse", spool.free_reserve)))
        join(spool, journal)
        _sweep(journal, spool, log)
        leaving.sweep(engine_store(config))
        undo.pop_all()
    return journal


def _sweep(journal: Journal, spool: Spool, log: Log) -> None:
    """Remove results that were stored and not reported: they are built again. Raises StoreFailed."""
    unknown = [name for files in spool.walk() for name in inbox.unknown_files(journal, files)]
    copies.check_explained(journal, unknown, RESULTS_AT_A_TIME)
    for name in unknown:
        spool.remove(name)
    if unknown:
        log("swept", files=len(unknown))


def is_idle(config: Config, journal: Journal) -> bool:
    """Whether there is nothing to read now, nor will be before this process is started anew."""
    engines = any(one.mode is not EngineMode.OFF for one in config.engines)
    return not engines and not jobs.unfinished(journal, *jobs.UNFINISHED)


def run(config: Config, journal: Journal, spool: Spool, life: Life, log: Log) -> int:
    """Pass over what arrives, so that an engine that is configured one day is not given the past to read."""
    shutil.rmtree(config.state_dir / "work", ignore_errors=True)  # volumes of runs that were cut short
    bell = Bell(config.run_dir, "analyse")
    publish_facts(config, "engines", {})
    worker = Worker("assemble", partial(_pass_over, journal, bell, life, log), life, log, spool.latch)
    life.ready()
    log("analysing")
    while not life.stopping.wait(LOOK_EVERY_S) and not spool.latched():
        pass
    life.stopping.set()
    bell.ring("analyse")
    worker.join(1.0)
    bell.close()
    return EX_LATCHED if spool.latched() else worker.status


def _pass_over(journal: Journal, bell: Bell, life: Life, log: Log) -> None:
    while not life.stopping.is_set():
        life.beat()
        try:
            arrived = jobs.arrived(journal, LOOK_AT)
            if arrived:
                jobs.take_on(journal, [], arrived[-1].id)
        except OutOfResources as error:
            log("journal_full", reason=str(error))
            life.stopping.wait(SHORTAGE_PAUSE_S)
            continue
        if len(arrived) < LOOK_AT:
            bell.wait(SLOW_POLL_S)
