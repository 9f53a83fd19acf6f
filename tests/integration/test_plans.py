"""Engines that run on their plans, on a simulated GPU: verified there, given up, built anew. Real children, real store.

The simulated GPU is ONNX Runtime, and a plan is an ONNX model: what is proved here is who is asked, and what is said.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.cli import main
from appliance.config import Config
from appliance.engine_package import load as load_package
from appliance.engine_store.store import Named
from appliance.errors import EngineRefused, RuntimeFailed
from appliance.runtimes.builder import BuildSettings, TensorRtBuilder
from appliance.runtimes.fallback import WithFallback
from appliance.runtimes.plan_store import RTX
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from appliance.states import EngineStage, Event
from appliance.wiring.compiler import Compiler, compiler
from appliance.wiring.engine_work import Workshop, workshop
from appliance.wiring.plans import GIVES_WAY, Plans
from appliance.wiring.remotes import Remotes
from appliance.wiring.team import HOUR_S, Surroundings, Team
from tests import fake_gpu
from tests.journals import open_journal
from tests.missing import missing
from tests.packages import Kind, Recipe, brightness, film_of, misbehaving, write_package
from tests.simulated_gpu import FAKING, MACHINE, SimulatedBuilder, simulated

ENGINE = "films@1.0.0"
BUILD_S = 60.0
ENDED_S = 120.0


def never() -> bool:
    return False


class Site:
    """A box with a simulated GPU and one engine, which was compiled, verified and activated."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] = {
            "state": str(folder / "var"),
            "engines_dir": str(folder / "engines"),
            "engines": [{"id": "films", "mode": "publish"}],
            "analyse": {"memory_mb": 600},
            "reserve": {"free_mb": 1, "free_inodes": 0, "journal_mb": 1},
        }
        self.config = Config.model_validate(self.settings)
        self.path = folder / "scanside.yaml"
        self.path.write_text(json.dumps(self.settings))  # which YAML takes
        (folder / "engines").mkdir()
        (folder / "var").mkdir()
        self.folder = folder
        self.journal = open_journal(folder / "var" / "journal.sqlite")
        self.builder = SimulatedBuilder()
        self.runtime: ChildRuntime | None = None  #: of plans; None: ONNX Runtime
        self.shop = self.shop_of("alice")
        self.wanted, self.ended, self.now_s = False, threading.Event(), 0.0
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.team: Team | None = None

    def ask_for(self, precision: str) -> None:
        """As the configuration says from now on."""
        self.settings["engines"][0]["precision"] = precision
        self.config = Config.model_validate(self.settings)
        self.shop = self.shop_of("alice")

    def shop_of(self, by: str) -> Workshop:
        made = simulated(self.builder)
        return replace(workshop(self.config, by), compiler=replace(made, runtime=self.runtime or made.runtime))

    @property
    def named(self) -> Named:
        return self.shop.store.find("films")

    def imported(self, recipe: Recipe = Recipe()) -> Named:  # noqa: B008 - frozen
        package = write_package(self.folder / "package", recipe)
        named, _ = self.shop.store.take(package, "alice", lambda _: None)
        self.shop.store.step(named, Event.VALIDATE, "alice")
        return self.named

    def compiled(self, plan: bytes = b"") -> Path:
        """Its plan."""
        self.builder.plan = plan
        return self.shop.build(self.named, lambda *_: None, BUILD_S).path

    def verified(self) -> Any:
        return self.shop.verify(self.named, lambda *_: None)[0]

    def activated(self, plan: bytes = b"") -> Path:
        self.imported()
        path = self.compiled(plan)
        self.verified()
        self.shop.store.activate(self.named, "alice")
        return path

    def start(self) -> WithFallback:
        """The appliance, anew; returns the engine that serves."""
        self.stop()
        plans = Plans(self.shop_of("analyse"), self.log, lambda: self.wanted, self.ended.set)
        self.team = Team(
            Surroundings(
                config=self.config,
                store=self.shop.store,
                runtime=self.shop.runtime,
                journal=self.journal,
                log=self.log,
                remotes=Remotes(self.config),
                plans=plans,
                monotonic=lambda: self.now_s,
            )
        )
        self.team.begin()
        serves = next(iter(self.team.loaded.values()))
        assert isinstance(serves, WithFallback)
        return serves

    def stop(self) -> None:
        if self.team is not None:
            self.team.close()
            self.team = None

    def log(self, event: str, **facts: Any) -> None:
        self.logged.append((event, facts))

    def rest(self) -> None:
        """Nothing is to be analysed: what is due begins, and ends."""
        assert self.team is not None
        self.ended.clear()
        self.team.tend(never)
        assert self.ended.wait(ENDED_S)
        self.team.look()

    @property
    def verified_plan(self) -> str:
        """Its sha256, as the last report says."""
        path = self.shop.store.root / "films" / f"{self.named.release}.verify.json"
        return str(json.loads(path.read_text())["plan_sha256"])

    def history(self, by: str) -> list[str]:
        return [line.event for line in self.shop.store.book("films").history if line.by == by]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.builder.may_end.set()
    made.stop()
    made.journal.close()


def study(engine: WithFallback, kind: Kind = Kind.BRIGHT, cancelled: Callable[[], bool] = never) -> float:
    """What it says of one; as long as an answer is waited for, `cancelled` is asked."""
    outputs = engine.infer({"film": film_of(kind)[None, None]}, 6.0, cancelled)
    return round(float(np.asarray(outputs["scores"]).item()), 2)


def check(engine: WithFallback, *, on_plan: str = "", degraded: str = "") -> None:
    """It answers rightly, and says what ran it."""
    assert study(engine) == 0.9
    assert (engine.runtime, engine.plan_sha256) == ("simulated" if on_plan else "onnx", on_plan)
    assert degraded in engine.degraded
    assert bool(engine.degraded) == bool(degraded)


@pytest.mark.promise("P8")
def test_what_is_compiled_and_verified_serves_from_its_plan_and_is_named(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    site.imported()
    plan = site.compiled()
    report = site.verified()
    release = site.shop.store.book("films").releases[site.named.release]
    assert (report.runtime, report.plan, report.not_its_plan) == ("simulated", plan.name, "")
    assert (report.plan_sha256, report.plan_key) == (release.plan_sha256, release.plan_key)
    stored = json.loads((site.shop.store.root / "films" / f"{site.named.release}.verify.json").read_text())
    assert stored == json.loads(json.dumps(asdict(report)))
    site.shop.store.activate(site.named, "alice")
    engine = site.start()
    assert (engine.runtime, engine.degraded) == ("simulated", "")  # before any study
    check(engine, on_plan=release.plan_sha256)
    assert site.builder.built == 1
    with pytest.raises(SystemExit):
        main(["engines", "list", "--config", str(site.path)])
    assert f"simulated {report.runtime_version}, plan {release.plan_sha256[:12]}" in capfd.readouterr().out


@pytest.mark.promise("P8")
def test_a_plan_that_is_not_verified_does_not_serve_until_it_is(site: Site) -> None:
    site.imported()
    site.verified()  # on the processor
    site.shop.store.activate(site.named, "alice")
    engine = site.start()
    check(engine)
    assert site.builder.probed == 0
    plan = site.compiled()
    assert site.team is not None
    site.team.look()
    check(engine, degraded=f"{plan.name} is not verified")
    site.verified()
    site.team.look()
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)


@pytest.mark.promise("P12")
def test_killed_between_a_build_and_its_proof_it_ends_in_the_same_place(site: Site) -> None:
    site.activated()
    site.builder.machine = replace(MACHINE, driver="550")
    plan = site.compiled()
    engine = site.start()
    check(engine, degraded=f"{plan.name} is not verified")
    site.wanted = True  # a proof takes the GPU, too, and gives way like a build
    for _ in range(GIVES_WAY):
        site.rest()
        assert site.history("analyse") == []
    site.rest()
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)
    assert (site.builder.built, site.history("analyse")) == (2, ["verify"])


@pytest.mark.promise("P5")
def test_room_that_images_need_is_not_taken_by_a_plan(site: Site) -> None:
    site.activated()
    site.builder.machine = replace(MACHINE, driver="550")

    def none_left(_: int) -> None:
        raise EngineRefused("make room first")

    with pytest.raises(EngineRefused, match="make room first"):
        replace(site.shop, check_room=none_left).build(site.named, lambda *_: None, BUILD_S)
    assert site.builder.built == 1


@pytest.mark.promise("P8")
def test_another_driver_and_the_processor_serves_until_the_plan_is_built_anew(site: Site) -> None:
    old = site.activated()
    site.builder.machine = replace(MACHINE, driver="550")
    engine = site.start()
    check(engine, degraded="the plan that is there is stale: driver was '540', is '550'; it is built anew while")
    site.builder.may_end.clear()
    assert site.team is not None
    site.team.tend(never)
    check(engine, degraded="stale: driver was '540', is '550'")
    site.builder.may_end.set()
    assert site.ended.wait(ENDED_S)
    site.team.look()
    assert site.team.loaded[ENGINE] is engine
    release = site.shop.store.book("films").releases[site.named.release]
    check(engine, on_plan=release.plan_sha256)
    assert (release.plan == old.name, release.stage) == (False, EngineStage.ACTIVE)
    assert site.history("analyse") == ["build", "verify"]
    check(site.start(), on_plan=release.plan_sha256)
    assert site.builder.built == 2


@pytest.mark.promise("P8")
def test_a_budget_of_the_gpu_s_memory_that_is_lowered_has_a_plan_built_anew_one_that_is_raised_has_not(
    site: Site,
) -> None:
    site.activated()
    site.builder.machine = replace(MACHINE, workspace_mb=300)
    engine = site.start()
    check(engine, degraded="stale: workspace_mb was 1024, is 300 (analyse.gpu_memory_mb allows no more); it is built")
    site.rest()
    plan = site.verified_plan
    check(engine, on_plan=plan)
    site.builder.machine = replace(MACHINE, workspace_mb=512)
    check(site.start(), on_plan=plan)
    assert site.team is not None
    site.team.tend(never)
    assert (site.builder.built, site.history("analyse")) == (2, ["build", "verify", "plans_removed"])
    assert site.verified().plan_sha256 == plan


@pytest.mark.promise("P7")
def test_a_build_gives_way_to_studies_but_not_for_ever(site: Site) -> None:
    site.activated()
    site.builder.machine = replace(MACHINE, driver="550")
    engine = site.start()
    assert site.team is not None
    site.team.tend(lambda: True)
    assert site.builder.built == 1  # when it was activated: none began
    site.wanted = True
    for again in range(GIVES_WAY):
        site.rest()
        assert site.builder.built == 2 + again
        check(engine, degraded="it is built anew")
    site.rest()
    assert site.builder.built == 2 + GIVES_WAY
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)


@pytest.mark.promise("P8")
def test_an_altered_plan_is_refused_and_built_anew(site: Site) -> None:
    plan = site.activated()
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(content)
    report = site.verified()
    assert (report.runtime, report.plan) == ("onnx", "")
    assert f"{plan.name} was altered" in report.not_its_plan
    engine = site.start()
    check(engine, degraded=f"{plan.name} was altered: its sha256 is another; it is built anew")
    site.rest()
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)


@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
def test_a_plan_s_child_that_dies_in_the_middle_of_a_study(site: Site) -> None:
    site.activated(misbehaving())  # as the plan of a model that is right
    engine = site.start()
    check(engine, on_plan=engine.plan_sha256)
    killed: list[int] = []

    def kill() -> bool:
        child = engine._preferred
        if not killed and child is not None and child.pid is not None:
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        return False

    assert study(engine, Kind.HANGING, kill) == 0.75
    assert killed
    assert (engine.runtime, engine.plan_sha256) == ("onnx", "")
    assert "was not used, the processor ran it instead: the child was killed by SIGKILL" in engine.degraded
    check(engine, degraded="SIGKILL")  # it is left alone for a while


@pytest.mark.promise("P6")
def test_a_plan_that_hangs_has_its_share_of_the_time_and_the_processor_the_rest(site: Site) -> None:
    site.activated(misbehaving())
    engine = site.start()
    assert study(engine, Kind.HANGING) == 0.75
    assert (engine.runtime, "passed its deadline of" in engine.degraded) == ("onnx", True)


@pytest.mark.promise("P8")
def test_an_answer_of_a_plan_that_is_not_finite_is_not_believed(site: Site) -> None:
    site.activated(misbehaving())
    engine = site.start()
    assert study(engine, Kind.NAN) == 0.25
    assert (engine.runtime, "nonsense: scores is not finite" in engine.degraded) == ("onnx", True)


@pytest.mark.promise("P8")
def test_a_plan_that_fails_its_golden_cases_is_refused_and_the_release_is_not(site: Site) -> None:
    site.imported()
    plan = site.compiled(brightness(0.5))
    with pytest.raises(EngineRefused, match=rf"{plan.name}, the plan of films@.* is refused: golden case golden/dark"):
        site.verified()
    assert not list(plan.parent.iterdir())
    assert site.named.stage is EngineStage.BUILT
    line = site.shop.store.book("films").history[-1]
    assert (line.event, plan.name in line.why, "output scores differs" in line.why) == ("plan_refused", True, True)
    report = site.verified()
    assert (report.runtime, site.named.stage) == ("onnx", EngineStage.VERIFIED)


@pytest.mark.promise("P8")
def test_a_small_difference_that_changes_the_findings_is_seen_on_a_plan_too(site: Site) -> None:
    """0.8004 is right and a finding; 0.7996 is within the tolerance, and none."""
    recipe = Recipe(model=brightness(-0.0996), golden={Kind.BRIGHT: 0.8004})
    named, _ = site.shop.store.take(write_package(site.folder / "package", recipe), "alice", lambda _: None)
    site.shop.store.step(named, Event.VALIDATE, "alice")
    site.compiled(brightness(-0.1004))
    with pytest.raises(EngineRefused, match="other findings: none instead of bright"):
        site.verified()


@pytest.mark.promise("P8")
def test_a_rebuilt_plan_that_is_wrong_is_told_and_tried_again_only_after_the_next_start(site: Site) -> None:
    site.activated()
    site.builder.machine, site.builder.plan = replace(MACHINE, driver="550"), brightness(0.5)
    engine = site.start()
    site.rest()
    assert site.team is not None
    for _ in range(2):
        site.team.tend(never)
        site.team.look()
        check(engine, degraded="building it anew failed, and is tried again at the next start")
    assert "is not right and is refused: golden case" in engine.degraded
    assert site.builder.built == 2
    assert site.history("analyse") == ["build", "plan_refused", "plan_failed"]
    site.builder.plan = b""
    engine = site.start()
    site.rest()
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)


def verified_and_wrong(site: Site) -> Path:
    """A plan as where the GPU is broken: the file is the one that was verified."""
    plan = site.compiled(brightness(0.5))
    release = site.shop.store.book("films").releases[site.named.release]
    package = load_package(site.named.folder)
    forged = {
        "package_sha256": package.package_sha256,
        "plan_sha256": release.plan_sha256,
        "plan_key": release.plan_key,
    }
    site.shop.store.write_report(site.named, json.dumps(forged).encode())
    return plan


@pytest.mark.promise("P8")
def test_a_plan_that_was_verified_and_is_wrong_when_it_is_loaded_is_refused(site: Site) -> None:
    site.activated()
    plan = verified_and_wrong(site)
    engine = site.start()
    check(engine, degraded="the processor ran it instead: it is not verified: golden case")
    assert site.team is not None
    site.team.look()
    site.team.tend(never)
    check(engine, degraded=f"{plan.name} was found wrong: it is not verified: golden case")
    assert not plan.exists()
    assert (site.builder.built, site.history("analyse")) == (2, ["plan_refused"])
    assert site.shop.store.serves(site.named)


@pytest.mark.promise("P1")
def test_a_plan_that_is_wrong_and_cannot_be_removed_is_told_once_and_latches_nothing(site: Site) -> None:
    """What lies in its way is a folder of that name, which root cannot unlink either."""
    site.activated()
    plan = verified_and_wrong(site)
    described = plan.with_suffix(".json")
    engine = site.start()
    content = described.read_bytes()
    described.unlink()
    described.mkdir()
    assert site.team is not None
    site.team.look()
    check(engine, degraded="was found wrong: it is not verified: golden case")
    assert f"{described} cannot be removed: Is a directory" in engine.degraded
    described.rmdir()
    described.write_bytes(content)  # as where a file can be read, and not be removed: it is found again
    for _ in range(3):
        site.shop.store.note("films", site.named.release, "alice", "seen", "")
        site.team.look()
        site.team.tend(never)
    check(engine, degraded=f"{plan.name} is refused; {plan.name} was found wrong: it is not verified: golden case")
    assert (plan.exists(), site.builder.built, site.history("analyse")) == (True, 2, ["plan_refused"])
    told = [facts["reason"] for event, facts in site.logged if event == "plan_refused"]
    assert ["cannot be removed: Is a directory" in why for why in told] == [True]


@pytest.mark.promise("P1")
def test_a_plan_that_fails_its_proof_and_cannot_be_removed_is_refused_all_the_same(site: Site) -> None:
    site.imported()
    plan = site.compiled(brightness(0.5))
    ran = site.shop.compiler
    assert ran is not None
    described = plan.with_suffix(".json")

    class InTheWay(ChildRuntime):
        """By the time that the plan is loaded."""

        def load(self, model: Path, sha256: str) -> ChildEngine:
            described.unlink()
            described.mkdir()
            return super().load(model, sha256)

    shop = replace(site.shop, compiler=replace(ran, runtime=InTheWay(ran.runtime._settings)))
    with pytest.raises(EngineRefused, match=rf"is refused: golden case.*; {described} cannot be removed: Is a dir"):
        shop.verify(site.named, lambda *_: None)
    assert [line.event for line in shop.store.book("films").history].count("plan_refused") == 1


@pytest.mark.promise("P6")
def test_a_plan_that_needs_more_of_the_gpu_s_memory_than_it_may_have_does_not_serve_and_the_processor_does(
    site: Site,
) -> None:
    """By the real runtime of TensorRT in a real child, which finds a simulated GPU: the plan needs 301 MB there."""
    site.activated()
    site.compiled(fake_gpu.PLAN)
    release = site.shop.store.book("films").releases[site.named.release]
    proof = {
        "package_sha256": load_package(site.named.folder).package_sha256,
        "plan_sha256": release.plan_sha256,
        "plan_key": release.plan_key,
    }
    site.shop.store.write_report(site.named, json.dumps(proof).encode())
    interpreter = site.folder / "python"
    interpreter.write_text(FAKING)
    interpreter.chmod(0o755)
    budget = {"gpu_memory_mb": 300}
    settings = ChildSettings(interpreter=interpreter, runtime="tensorrt", memory_mb=600, runtime_settings=budget)
    site.runtime = ChildRuntime(settings)
    engine = site.start()
    check(
        engine, degraded="the processor ran it instead: cannot be loaded: it needs 301 MB of the GPU's memory (200 for"
    )
    assert "and may have 300 (analyse.gpu_memory_mb)" in engine.degraded


@pytest.mark.promise("P8")
def test_a_plan_proves_itself_again_with_its_engine(site: Site) -> None:
    site.activated()
    engine = site.start()
    child = engine._preferred
    assert child is not None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    assert site.team is not None
    assert not site.team.test_one()
    site.now_s += 24 * HOUR_S
    assert site.team.test_one()
    assert "the processor ran it instead" in engine.degraded
    check(engine, degraded="the processor ran it instead")


NEARLY = Recipe(variants={"fp16": brightness(0.01)})  # 0.01 off: more than the model may be, less than the variant


@pytest.mark.promise("P8")
def test_a_plan_of_the_precision_that_is_asked_for_is_judged_by_the_variant_s_tolerances_and_named(site: Site) -> None:
    """Asked for while the one of the model itself serves: that goes on, and says so, until the other is verified."""
    site.imported(NEARLY)
    site.compiled()
    site.verified()
    site.shop.store.activate(site.named, "alice")
    site.ask_for("fp16")
    engine = site.start()
    check(engine, on_plan=site.verified_plan, degraded="as fp16: the plan that is there is stale: onnx_sha256 was ")
    assert "it is built anew while nothing is to be analysed" in engine.degraded
    site.rest()
    assert site.builder.built == 2
    assert study(engine) == 0.91
    assert (engine.plan_sha256, engine.degraded) == (site.verified_plan, "")
    assert (engine.runtime, engine.runtime_version.endswith(" fp16")) == ("simulated", True)
    assert engine.variant_sha256 == load_package(site.named.folder).manifest.files["model.fp16.onnx"]
    report = site.shop.verify(site.named, lambda *_: None)[0]
    assert (report.precision, report.plan_sha256) == ("fp16", site.verified_plan)
    assert report.model_sha256 == load_package(site.named.folder).manifest.files["model.fp16.onnx"]


@pytest.mark.promise("P8")
def test_half_precision_that_decides_otherwise_never_serves_the_model_s_own_plan_does_and_says_why(site: Site) -> None:
    """0.8004 is a finding; 0.795 is none, though as near as the variant may be."""
    recipe = Recipe(model=brightness(-0.0996), golden={Kind.BRIGHT: 0.8004}, variants={"fp16": brightness(-0.0997)})
    site.imported(recipe)
    site.ask_for("fp16")
    site.builder.plans["model.fp16.onnx"] = brightness(-0.105)
    plan = site.compiled()
    with pytest.raises(EngineRefused, match=f"{plan.name}.* is refused: .*other findings: none instead of bright"):
        site.verified()
    assert not plan.exists()
    assert (site.verified().runtime, site.named.stage) == ("onnx", EngineStage.VERIFIED)
    site.shop.store.activate(site.named, "alice")
    engine = site.start()
    assert "it was not run on its plan but on the processor: as fp16: no plan was built yet" in engine.degraded
    site.rest()  # fp16, once more: it fails
    assert "other findings: none instead of bright" in engine.degraded
    assert engine.runtime == "onnx"
    site.rest()  # then the model itself
    assert study(engine) == 0.8
    assert (engine.runtime, engine.plan_sha256) == ("simulated", site.verified_plan)
    assert not engine.variant_sha256
    assert "not run in the precision that is asked for, but as the model itself is: as fp16: " in engine.degraded
    assert "other findings: none instead of bright" in engine.degraded
    assert site.history("analyse") == ["build", "plan_refused", "plan_failed", "build", "verify"]


def test_a_precision_that_a_package_does_not_have_is_told(site: Site) -> None:
    site.activated()
    site.ask_for("fp16")
    with pytest.raises(EngineRefused, match=r"films@1\.0\.0 has no variant fp16 \(it has: none\)"):
        site.compiled()
    engine = site.start()
    check(engine, on_plan=site.verified_plan, degraded="as fp16: films@1.0.0 has no variant fp16 (it has: none)")
    assert site.builder.built == 1


def test_a_budget_of_the_gpu_s_memory_reaches_who_builds_and_who_runs_a_plan() -> None:
    given = Config.model_validate({"analyse": {"gpu_memory_mb": 300}})
    within, free = compiler(given), compiler(Config())
    assert within.runtime._settings.runtime_settings == {"gpu_memory_mb": 300}
    assert free.runtime._settings.runtime_settings == {"gpu_memory_mb": 0}
    assert isinstance(within.builder, TensorRtBuilder)
    assert isinstance(free.builder, TensorRtBuilder)
    assert (within.builder._settings.workspace_mb, free.builder._settings.workspace_mb) == (300, 1024)
    assert within.runtime.probe() == free.runtime.probe()  # the child takes it, wherever it can run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.promise("P11")
def test_once_a_plan_runs_those_that_fit_no_more_are_gone_and_history_names_them(site: Site) -> None:
    old = site.activated()
    (old.parent / f".{old.name}.new").write_bytes(b"cut short")
    site.builder.machine = replace(MACHINE, driver="550")
    engine = site.start()
    site.rest()
    check(engine, on_plan=site.shop.store.book("films").releases[site.named.release].plan_sha256)
    assert old.exists()
    assert site.team is not None
    site.team.tend(never)
    release = site.shop.store.book("films").releases[site.named.release]
    assert names(old.parent) == sorted([release.plan, release.plan.replace(".plan", ".json")])
    line = site.shop.store.book("films").history[-1]
    assert (line.event, line.by) == ("plans_removed", "analyse")
    assert line.why == f"{old.stem}.json, .{old.name}.new, {old.name}"
    site.team.tend(never)
    check(site.start(), on_plan=release.plan_sha256)
    assert site.team is not None
    site.team.tend(never)
    assert site.history("analyse") == ["build", "verify", "plans_removed"]


@pytest.mark.promise("P1")
def test_what_lies_in_the_way_of_housekeeping_stops_nothing_and_is_told_once(site: Site) -> None:
    """Somebody's folder and file stay. A folder that nothing can be removed from is no failed disk."""
    old = site.activated()
    (old.parent / "folder.plan").mkdir()
    (old.parent / "README").write_text("mine")
    site.builder.machine = replace(MACHINE, driver="550")
    site.compiled()
    site.verified()
    old.parent.chmod(0o550)
    can_write = os.access(old.parent, os.W_OK)  # as root
    for _ in range(3):
        site.start()
        assert site.team is not None
        for _ in range(2):
            site.team.tend(never)
    assert site.history("analyse") == ["plans_removed"]
    told = [facts["reason"] for event, facts in site.logged if event == "plans_not_tidied"]
    assert can_write or ["cannot be removed: Permission denied" in why for why in told] == [True] * 3
    old.parent.chmod(0o750)
    site.start()
    assert site.team is not None
    site.team.tend(never)
    assert not old.exists()
    assert {"folder.plan", "README"} < set(names(old.parent))


def test_plans_that_a_build_or_a_check_uses_are_left_alone(site: Site) -> None:
    old = site.activated()
    site.builder.machine = replace(MACHINE, driver="550")
    site.compiled()
    site.verified()
    site.start()
    assert site.team is not None
    with site.shop.store.using(site.named, plans=True):
        site.team.tend(never)
        assert old.exists()
    site.start()
    site.team.tend(never)
    assert not old.exists()


def test_of_releases_that_nothing_needs_no_plan_is_kept_of_what_is_rolled_back_to_what_was_proved_and_the_last(
    site: Site,
) -> None:
    plans: dict[str, list[Path]] = {}
    for version in ("1.0.0", "2.0.0", "3.0.0", "4.0.0"):
        package = write_package(site.folder / "package", Recipe(version=version))
        named, _ = site.shop.store.take(package, "alice", lambda _: None)
        site.shop.store.step(named, Event.VALIDATE, "alice")
        plans[version] = []
        for driver in (MACHINE.driver, "545", "550"):
            site.builder.machine = replace(MACHINE, driver=driver)
            plans[version].append(site.compiled())
        site.builder.machine = MACHINE
        site.verified()
        site.shop.store.activate(site.named, "alice", shadow=version == "4.0.0")
    site.start()
    assert site.team is not None
    site.team.tend(never)
    assert {version: [path.exists() for path in both] for version, both in plans.items()} == {
        "1.0.0": [False, False, False],
        "2.0.0": [True, False, True],  # the one that was proved, the one that was built last
        "3.0.0": [True, False, True],  # the one that runs is the one that was proved
        "4.0.0": [True, False, True],  # as in shadow
    }


def test_a_gpu_that_is_gone_is_told_and_looked_for_once(site: Site) -> None:
    site.activated()
    site.builder.probed, site.builder.why_not = 0, "no NVIDIA driver"
    engine = site.start()
    check(engine, degraded="it was not run on its plan but on the processor: no NVIDIA driver")
    assert site.team is not None
    site.shop.store.note("films", site.named.release, "alice", "seen", "")
    site.team.look()
    site.team.tend(never)
    assert (site.builder.probed, site.builder.built) == (1, 1)


def test_what_was_never_compiled_costs_no_look_at_a_gpu(site: Site) -> None:
    site.imported()
    site.verified()
    site.shop.store.activate(site.named, "alice")
    check(site.start())
    assert (site.builder.probed, site.builder.built) == (0, 0)


def test_a_plan_of_the_real_compiler_that_cannot_run_here_is_kept_and_not_verified(site: Site) -> None:
    """TensorRT-RTX builds it without a GPU; nothing here runs it."""
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=("SM89",)))
    try:
        library = builder.library()
    except RuntimeFailed as error:
        missing(f"no TensorRT-RTX: {error}")
    if not library.endswith(RTX):
        missing(f"TensorRT {library} needs a GPU to build; TensorRT-RTX is what builds without one")
    site.imported()
    runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable), runtime="tensorrt"))
    if not (reason := runtime.probe()):
        pytest.skip("here a GPU runs it: scripts/device_check proves that")
    shop = replace(site.shop, compiler=Compiler(builder=builder, runtime=runtime))
    plan = shop.build(site.named, lambda *_: None, BUILD_S)
    with pytest.raises(EngineRefused, match=f"{plan.path.name}, the plan of films@.*, does not run: ") as told:
        shop.verify(site.named, lambda *_: None)
    assert reason in str(told.value)
    assert plan.path.exists()
    assert site.named.stage is EngineStage.BUILT
