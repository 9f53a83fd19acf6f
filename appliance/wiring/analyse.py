"""The analyse process: assemble and report in one thread, infer in another, engines in runtime children."""

import shutil
import sys
import threading
from collections.abc import Sequence
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
        self._inferrer = Inferrer(desk, self._loaded, self._unfit, workdir)

    def assemble_and_report(self) -> None:
        self._inferrer.recover()
        warm_up()
        while not self._life.stopping.is_set():
            try:
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
                busy = self._inferrer.step(lambda: self._assembler.early)
            except OutOfResources as error:
                self._pause(error)
                continue
            if busy:
                self._bell.ring("analyse")
            else:
                self._go.wait(SLOW_POLL_S)

    def end(self) -> None:
        self._go.set()
        self._bell.ring("analyse")
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
            if fault := why_not or self._verify(runtime, engine):
                self._unfit[engine.key] = fault
            self._log("engine", engine=engine.key, serves=engine.key in self._loaded, reason=fault)
        publish_facts(self._config, "engines", _facts(self._engines, self._loaded, self._unfit))

    def _verify(self, runtime: Runtime, engine: EngineOnDuty) -> str:
        """Let it serve from now on; returns why it may not, "" if it may."""
        fault = ""
        for _ in range(CHANCES):
            try:
                candidate = runtime.load(engine.package.model_path, engine.package.model_sha256)
                fault = golden_fault(engine, candidate)
            except RuntimeFailed as error:
                fault = str(error)
                continue
            if fault:
                candidate.close()
            else:
                self._loaded[engine.key] = candidate
            break
        return fault


def run(config: Config, life: Life) -> int:
    log = configure("analyse").info
    analysis = Analysis(config, life, log)
    workers = [
        Worker("assemble", analysis.assemble_and_report, life, log, analysis.latch),
        Worker("infer", analysis.infer, life, log, analysis.latch),
    ]
    life.ready()
    log("analysing")
    while not life.stopping.wait(SLOW_POLL_S):
        if all(worker.alive for worker in workers):
            life.beat()
    analysis.end()
    for worker in workers:
        worker.join(1.0)
    return max((worker.status for worker in workers), default=EX_OK)


def _packages(config: Config, log: Log) -> tuple[list[EngineOnDuty], dict[str, str]]:
    """The engines of the config whose package is what its manifest says; and why the others are not."""
    engines: list[EngineOnDuty] = []
    unfit: dict[str, str] = {}
    for options in config.engines:
        if options.mode is EngineMode.OFF:
            continue
        try:
            package = engine_package.load(config.engines_dir / options.id)
        except PackageInvalid as error:
            unfit[options.id] = str(error)
            log("package_invalid", engine=options.id, reason=str(error))
            continue
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
    serving = {
        engine.key: {"serves": engine.key in loaded, "publish": engine.publish, "reason": unfit.get(engine.key, "")}
        for engine in engines
    }
    broken = {key: {"serves": False, "publish": False, "reason": why} for key, why in unfit.items()}
    return {**broken, **serving}


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
        box_utc_offset=datetime.now().astimezone().utcoffset() or timedelta(0),
    )
