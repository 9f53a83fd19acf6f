"""What the analyse process consists of: assemble and report in one thread, infer in another; engines in runtime
children, and images in a reader child.
"""

import resource
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

from appliance import routing
from appliance.config import Config
from appliance.errors import OutOfResources, RuntimeFailed
from appliance.journal import jobs
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.model import Instance, Kind, Owed, Priority
from appliance.runtimes.child import give_memory_back
from appliance.runtimes.reader import ChildReader, ReaderSettings
from appliance.spool import Spool
from appliance.stages.assemble import Assembler
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.stages.infer import Inferrer
from appliance.stages.report.context import Built
from appliance.stages.report.stage import Press, Reporter
from appliance.stages.report.warm import warm_up
from appliance.wakeup import SLOW_POLL_S, Bell
from appliance.wiring.common import EX_LATCHED, EX_OK, Log, Worker, publish_facts
from appliance.wiring.engine_work import child_runtime, workshop
from appliance.wiring.engines import EngineFacts
from appliance.wiring.plans import Plans
from appliance.wiring.releases import engine_store
from appliance.wiring.remotes import Remotes
from appliance.wiring.team import WE, Surroundings, Team

SHORTAGE_PAUSE_S = 2.0  # of the journal, or of somebody to read images
LOOK_EVERY_S = 1.0
STEP_CPU_S = 600  #: of processor time from the last beginning of a step; what spins in C ends by a signal
HUNG_AFTER_S = 120.0  # beyond what deadlines allow


class Analysis:
    """Two threads over one journal: what is quick (assemble, report), and what is not (infer)."""

    def __init__(self, config: Config, journal: Journal, spool: Spool, life: Life, log: Log) -> None:
        self._config, self._life, self._log = config, life, log
        self._bell = Bell(config.run_dir, "analyse")
        self._go = threading.Event()
        self._runtime = child_runtime(config)
        self._team = Team(
            Surroundings(
                config=config,
                store=engine_store(config),
                runtime=self._runtime,
                journal=journal,
                log=log,
                remotes=Remotes(config),
                plans=Plans(workshop(config, WE), log, partial(jobs.is_any_due, journal), self._go.set),
            )
        )
        self._reader = ChildReader(ReaderSettings(memory_mb=config.analyse.read_memory_mb))
        desk = Desk(
            journal=journal,
            path=spool.path,
            engines=self._team.engines,
            former=self._team.former,
            log=log,
            reader=self._reader.session,
            check_scratch=spool.check_scratch,
        )
        self._assembler = Assembler(desk)
        self._reporter = Reporter(desk, _press(config, self._bell, spool))
        workdir = config.state_dir / "work"
        shutil.rmtree(workdir, ignore_errors=True)  # volumes of runs that were cut short
        workdir.mkdir(parents=True)
        self._inferrer = Inferrer(desk, self._team.loaded, self._team.unfit, workdir, life.stopping.is_set)
        self._facts = EngineFacts(
            engines=self._team.engines,
            loaded=self._team.loaded,
            unfit=self._team.unfit,
            publish=partial(publish_facts, config, "engines"),
            utc=journal.clock.utc,
            log=log,
        )
        self._longest_step_s = HUNG_AFTER_S + 2 * max((one.deadline_s for one in config.engines), default=0)
        self._step_began: dict[str, float] = {}  # thread -> monotonic seconds

    @property
    def hangs(self) -> bool:
        """Whether a step has taken so long that something in this process must hang: children have deadlines."""
        now = time.monotonic()
        return any(now - began > self._longest_step_s for began in self._step_began.copy().values())

    @contextmanager
    def _timed(self, thread: str) -> Iterator[None]:
        self._step_began[thread] = time.monotonic()
        _limit_cpu(STEP_CPU_S)
        try:
            yield
        finally:
            del self._step_began[thread]

    def assemble_and_report(self) -> None:
        warm_up()
        while not self._life.stopping.is_set():
            try:
                with self._timed("assemble"):
                    busy = self._assemble_and_report()
            except (OutOfResources, RuntimeFailed) as error:
                self._pause(error)
                continue
            if not busy:
                self._bell.wait(min(SLOW_POLL_S, self._assembler.next_due_s()))

    def _assemble_and_report(self) -> bool:
        """One step of each; infer hears of what assemble made ready though there be nobody to report with."""
        try:
            return self._assembler.step() | self._reporter.step()
        finally:
            self._go.set()

    def infer(self) -> None:
        self._freshen_reader()
        self._begin()
        worked = True
        while not self._life.stopping.is_set():
            self._facts.tell(self._inferrer.failing, self._runtime.abandoned + self._reader.abandoned)
            self._go.clear()
            try:
                self._look_after_engines()
                with self._timed("infer"):
                    busy = self._inferrer.step(lambda: self._assembler.early)
                busy = busy or self._team.test_one()  # it has deadlines of its own
            except OutOfResources as error:
                self._pause(error)
                continue
            if busy:
                self._bell.ring("analyse")
            else:
                self._rest(worked)
            worked = busy

    def _begin(self) -> None:
        while not self._life.stopping.is_set():
            try:
                self._team.begin()
            except OutOfResources as error:
                self._pause(error)
            else:
                break

    def _look_after_engines(self) -> None:
        """Between two jobs, so that none is lost by it."""
        for key in self._team.mind(self._inferrer.faults):
            self._inferrer.forget(key)
        if self._team.look():
            self._bell.ring("analyse")

    def wake(self) -> None:
        """Let both threads look whether they should stop."""
        self._go.set()
        self._bell.ring("analyse")

    def close(self) -> None:
        self._team.close()
        self._reader.close()

    def _rest(self, worked: bool) -> None:
        self._freshen_reader()
        self._team.tend(lambda: self._life.stopping.is_set() or self._inferrer.is_wanted)
        if worked:
            give_memory_back()
        self._go.wait(SLOW_POLL_S)

    def _freshen_reader(self) -> None:
        """Before there is anything to read: a start takes as long as reading a film."""
        try:
            self._reader.freshen()
        except RuntimeFailed as error:  # who wants to read is told the same
            self._log("reader_does_not_start", reason=str(error))

    def _pause(self, error: OutOfResources | RuntimeFailed) -> None:
        self._log("reader_unavailable" if isinstance(error, RuntimeFailed) else "journal_full", reason=str(error))
        self._life.stopping.wait(SHORTAGE_PAUSE_S)


def _limit_cpu(seconds: int) -> None:
    """From now on. The job at work then counts as broken off, and is given up the third time."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    ours = int(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (ours if most == resource.RLIM_INFINITY else min(ours, most), most))


def run(config: Config, journal: Journal, spool: Spool, life: Life, log: Log) -> int:
    analysis = Analysis(config, journal, spool, life, log)
    workers = [
        Worker("assemble", analysis.assemble_and_report, life, log, spool.latch),
        Worker("infer", analysis.infer, life, log, spool.latch),
    ]
    life.ready()
    log("analysing")
    while not life.stopping.wait(LOOK_EVERY_S) and not spool.latched():
        if all(worker.alive for worker in workers) and not analysis.hangs:
            life.beat()
    life.stopping.set()
    analysis.wake()
    for worker in workers:
        worker.join(1.0)
    if not any(worker.alive for worker in workers):  # else it would close what they use; their children end with us
        analysis.close()
    return EX_LATCHED if spool.latched() else max((worker.status for worker in workers), default=EX_OK)


def _press(config: Config, bell: Bell, spool: Spool) -> Press:
    def facts(engine: EngineOnDuty, source: Instance, priority: Priority, kind: Kind) -> routing.Routed:
        return routing.Routed(
            kind=kind,
            calling_ae=source.calling_ae,
            modality=source.modality,
            sop_class_uid=source.sop_class_uid,
            engine=engine.key,
            engine_status=engine.package.manifest.status,
            priority=priority,
        )

    def routes(built: Built, engine: EngineOnDuty, source: Instance, priority: Priority) -> Sequence[Owed]:
        return routing.deliveries_for_result(config, facts(engine, source, priority, built.kind))

    def takers(engine: EngineOnDuty, source: Instance, priority: Priority) -> bool:
        return any(
            routing.deliveries_for_result(config, facts(engine, source, priority, kind)) for kind in (Kind.SR, Kind.SC)
        )

    return Press(
        node=config.node,
        spool=spool,
        rules=config.priorities,
        routes=routes,
        takers=takers,
        ring=bell.ring,
        utc_offset=_utc_offset,
    )


def _utc_offset(at: datetime) -> timedelta:
    """Of the box at that moment: not now, which may be on the other side of a change to summer time."""
    return at.astimezone().utcoffset() or timedelta(0)
