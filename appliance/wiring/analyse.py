"""The analyse process: assemble and report in one thread, infer in another, engines in runtime children."""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from appliance import engine_package, routing
from appliance.config import Config, EngineMode
from appliance.errors import OutOfResources, PackageInvalid, RuntimeFailed
from appliance.journal import inbox
from appliance.life import Life
from appliance.logs import configure
from appliance.model import Instance, Kind, Owed, Priority
from appliance.ports import LoadedEngine, Runtime
from appliance.runtimes.process import ChildRuntime
from appliance.runtimes.spawn import ChildSettings
from appliance.spool import Spool
from appliance.stages.assemble import Assembler
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.stages.infer import Inferrer, golden_fault
from appliance.stages.report.context import Built
from appliance.stages.report.stage import Press, Reporter
from appliance.stages.report.warm import warm_up
from appliance.wakeup import SLOW_POLL_S, Bell
from appliance.wiring.common import EX_OK, Log, Worker, join, open_journal, open_spool, publish_facts

JOURNAL_FULL_PAUSE_S = 2.0
HUNG_AFTER_S = 120.0  # beyond what deadlines allow
NICE = 10  # decoding and building may take seconds; what receive and forward do takes milliseconds, and goes first
CHANCES = 3  # of an engine whose child dies while it is loaded: memory may be short just now


class Analysis:
    """Two threads over one journal: what is quick (assemble, report), and what is not (infer)."""

    def __init__(self, config: Config, life: Life, log: Log) -> None:
        self._config, self._life, self._log = config, life, log
        spool = open_spool(config, "results")
        journal = open_journal(config, "analyse", spool.free_reserve)
        join(spool, journal)
        self.latch = spool.latch
        for name in inbox.unknown_files(journal, spool.files()):
            spool.remove(name)
        self._bell = Bell(config.run_dir, "analyse")
        self._go = threading.Event()
        self._engines, self._unfit = _packages(config, log)
        self._loaded: dict[str, LoadedEngine] = {}
        desk = Desk(journal=journal, path=spool.path, engines=self._engines, log=log)
        self._assembler = Assembler(desk)
        self._reporter = Reporter(desk, _press(config, self._bell, spool))
        workdir = config.state_dir / "work"
        shutil.rmtree(workdir, ignore_errors=True)  # volumes of runs that were cut short
        workdir.mkdir(parents=True)
        self._inferrer = Inferrer(desk, self._loaded, self._unfit, workdir, life.stopping.is_set)
        self._longest_step_s = HUNG_AFTER_S + 2 * max((one.deadline_ms / 1000 for one in self._engines), default=0)
        self._step_began: dict[str, float] = {}  # thread -> monotonic seconds

    @property
    def hangs(self) -> bool:
        """Whether a step has taken so long that something in this process must hang: a decoder, say, that has no
        deadline of its own.
        """
        now = time.monotonic()
        return any(now - began > self._longest_step_s for began in self._step_began.copy().values())

    @contextmanager
    def _timed(self, thread: str) -> Iterator[None]:
        self._step_began[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._step_began[thread]

    def assemble_and_report(self) -> None:
        warm_up()
        while not self._life.stopping.is_set():
            try:
                with self._timed("assemble"):
                    busy = self._assembler.step() | self._reporter.step()
            except OutOfResources as error:
                self._pause(error)
                continue
            self._go.set()
            if not busy:
                self._bell.wait(min(SLOW_POLL_S, self._assembler.next_due_s()))

    def infer(self) -> None:
        self._load()
        while not self._life.stopping.is_set():
            self._go.clear()
            try:
                with self._timed("infer"):
                    busy = self._inferrer.step(lambda: self._assembler.early)
            except OutOfResources as error:
                self._pause(error)
                continue
            if busy:
                self._bell.ring("analyse")
            else:
                self._go.wait(SLOW_POLL_S)

    def wake(self) -> None:
        """Let both threads look whether they should stop."""
        self._go.set()
        self._bell.ring("analyse")

    def close(self) -> None:
        for engine in self._loaded.values():
            engine.close()

    def _pause(self, error: OutOfResources) -> None:
        self._log("journal_full", reason=str(error))
        self._life.stopping.wait(JOURNAL_FULL_PAUSE_S)

    def _load(self) -> None:
        """Load each engine and let it prove itself on its golden cases: only verified engines serve (P8)."""
        runtime: Runtime = ChildRuntime(
            ChildSettings(
                interpreter=Path(self._config.analyse.python or sys.executable),
                threads=self._config.analyse.threads,
                memory_mb=self._config.analyse.memory_mb,
            )
        )
        why_not = runtime.probe() and runtime.probe()
        for engine in self._engines:
            if fault := self._unfit.get(engine.key) or why_not or self._verify(runtime, engine):
                self._unfit[engine.key] = fault
            self._log("engine", engine=engine.key, serves=engine.key in self._loaded, reason=fault)
        publish_facts(self._config, "engines", _facts(self._engines, self._loaded, self._unfit))

    def _verify(self, runtime: Runtime, engine: EngineOnDuty) -> str:
        """Let it serve from now on; returns why it may not, "" if it may."""
        fault = ""
        for _ in range(CHANCES):
            with ExitStack() as undo:
                try:
                    candidate = runtime.load(engine.package.model_path, engine.package.model_sha256)
                    undo.callback(candidate.close)
                    fault = golden_fault(engine, candidate)
                except RuntimeFailed as error:
                    fault = str(error)
                    continue
                if not fault:
                    self._loaded[engine.key] = candidate
                    undo.pop_all()
                break
        return fault


def run(config: Config, life: Life) -> int:
    os.nice(NICE)
    log = configure("analyse").info
    analysis = Analysis(config, life, log)
    workers = [
        Worker("assemble", analysis.assemble_and_report, life, log, analysis.latch),
        Worker("infer", analysis.infer, life, log, analysis.latch),
    ]
    life.ready()
    log("analysing")
    while not life.stopping.wait(SLOW_POLL_S):
        if all(worker.alive for worker in workers) and not analysis.hangs:
            life.beat()
    analysis.wake()
    for worker in workers:
        worker.join(1.0)
    analysis.close()
    return max((worker.status for worker in workers), default=EX_OK)


def _packages(config: Config, log: Log) -> tuple[list[EngineOnDuty], dict[str, str]]:
    """The engines of the config, and why some may not serve.

    One whose manifest can be read is on duty all the same: its studies are concluded as "not analysed" (P6).
    """
    engines: list[EngineOnDuty] = []
    unfit: dict[str, str] = {}
    for options in config.engines:
        if options.mode is EngineMode.OFF:
            continue
        folder = config.engines_dir / options.id
        try:
            package = engine_package.load(folder)
        except PackageInvalid as error:
            log("package_invalid", engine=options.id, reason=str(error))
            try:
                package = engine_package.load_manifest(folder)
            except PackageInvalid:
                unfit[options.id] = str(error)
                continue
            unfit[package.key] = str(error)
        engines.append(
            EngineOnDuty(
                package=package,
                publish=options.mode is EngineMode.PUBLISH,
                deadline_ms=int(options.deadline_s * 1000),
            )
        )
    return engines, unfit


def _facts(
    engines: Sequence[EngineOnDuty], loaded: dict[str, LoadedEngine], unfit: dict[str, str]
) -> dict[str, object]:
    """What `status` shows. Without a readable manifest nobody knows which studies are an engine's: not on duty."""
    on_duty = {
        engine.key: {
            "serves": engine.key in loaded,
            "on_duty": True,
            "publish": engine.publish,
            "reason": unfit.get(engine.key, ""),
        }
        for engine in engines
    }
    unknown = {key: {"serves": False, "on_duty": False, "publish": False, "reason": why} for key, why in unfit.items()}
    return {**unknown, **on_duty}


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
