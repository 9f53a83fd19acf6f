"""Which engines run as plans on the GPU, in the analyse process; and plans that must be built anew.

A release whose plan was built for this machine as it is now, and proved, runs on it; the processor is its fallback. A
release that was compiled once and has no such plan runs on the processor and is degraded, loudly; its plan is built
anew in the background, proved, and taken up between two jobs. What fails is told, and tried again only after the next
start or where the machine has changed. Where no release was ever compiled nothing here costs anything.

A build is never on a study's way: it has a thread of its own (its children die with that one), low priority and a
deadline, there is one at a time, it begins while nothing is to be analysed, and gives way to studies, as the runs that
prove it do. After a few times it does not, or a busy site would never have its plan.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from appliance.engine_package import EnginePackage
from appliance.engine_store.store import Named
from appliance.errors import (
    CertificateUnusable,
    EngineRefused,
    IllegalTransition,
    OutOfResources,
    PackageInvalid,
    PlanRefused,
    RuntimeCancelled,
    RuntimeFailed,
)
from appliance.imaging import golden
from appliance.model import Reason
from appliance.ports import BuiltPlan, LoadedEngine
from appliance.runtimes.fallback import Preferred, WithFallback
from appliance.wiring.common import Log
from appliance.wiring.compiler import Compiler, is_proved
from appliance.wiring.engine_work import Workshop
from appliance.wiring.model_files import MODEL, ModelFile, model_file
from appliance.wiring.plan_work import PlanWork, Wanted
from appliance.wiring.releases import report_of
from appliance.wiring.remotes import tensor_specs
from appliance.wiring.upkeep import tidy_plans

BUILD_S = 3600.0
TEND_S = 60.0  # for loading a plan and its golden cases; it gives way to a study
SHARE = 0.5  # of a study's time, after which the processor takes over
GIVES_WAY = 3  # times, of a build to studies
ON_PROCESSOR = "it was not run on its plan but on the processor"
ON_OTHER = "it was not run in the precision that is asked for, but as the model itself is"

Cancelled = Callable[[], bool]


def _nothing() -> None:
    pass


@dataclass(slots=True, kw_only=True)
class _Served:
    """A release that runs here. `plan`: the one that is preferred, None while it is the processor."""

    named: Named
    package: EnginePackage
    front: WithFallback
    plan: BuiltPlan | None = None
    precision: str = ""  #: of that
    why_not_best: str = ""  #: the site asks for another precision
    is_tidy: bool = False  #: plans that it does not need any more are gone


class Plans:
    """Used by the thread that runs engines; `shop` also by that of a build."""

    def __init__(self, shop: Workshop, log: Log, is_wanted: Cancelled, wake: Callable[[], None] = _nothing) -> None:
        """`is_wanted`: whether there is something to be analysed; `wake` is called when a build has ended."""
        self._shop, self._log, self._is_wanted, self._wake = shop, log, is_wanted, wake
        self._served: dict[str, _Served] = {}
        self._why_none: str | None = None  # nothing here runs plans; None: not asked yet
        self._todo: list[Wanted] = []
        self._work: PlanWork | None = None
        self._gave_way: dict[Wanted, int] = {}
        self._done: dict[Wanted, str] = {}  # what became of a build, until the next start
        self._refused: set[str] = set()  # sha256 of plans that are wrong, and that cannot be removed, as long
        self._closing = threading.Event()

    def before(self, named: Named, package: EnginePackage, local: LoadedEngine) -> LoadedEngine:
        """What serves: its plan and then `local`, which is verified; only that where it is not ours to compile."""
        if named.stage is None or (compiler := self._shop.compiler) is None:
            return local
        front = WithFallback(compiler.runtime, local)
        self._served[str(named)] = served = _Served(named=named, package=package, front=front)
        self._arrange(served, compiler)
        return front

    def look(self, named: Named) -> None:
        """Something was decided on its engine, or happened to it: does it have another plan now?"""
        served, compiler = self._served.get(str(named)), self._shop.compiler
        if served is not None and compiler is not None and not served.front.closed:
            self._arrange(served, compiler)

    def prove(self, named: Named) -> None:
        """Let its plan run the golden cases once more."""
        if served := self._served.get(str(named)):
            served.front.prove()

    def settle(self) -> None:
        """Take up what builds came to, and refuse plans that were found wrong. Raises OutOfResources, StoreFailed."""
        self._served = {name: served for name, served in self._served.items() if not served.front.closed}
        for served in self._served.values():
            if served.plan is not None and served.front.wrong:
                self._refuse(served, served.plan, served.front.wrong)
        if self._work is not None and self._work.ended:
            work, self._work = self._work, None
            self._conclude(work)

    def tend(self, cancelled: Cancelled) -> None:
        """When there is time: look whether plans that failed run again, remove what none needs, begin a build.

        Raises StoreFailed.
        """
        for served in self._served.values():
            served.front.tend(cancelled)
            self._tidy(served)
        if self._work is None and self._todo and not cancelled():
            wanted = self._todo.pop(0)
            if served_now := self._served.get(wanted.release):
                self._log("plan_begun", release=wanted.release, precision=wanted.precision)
                self._work = PlanWork(wanted, partial(self._make, served_now.named, wanted), self._wake)

    def close(self) -> None:
        """A build that goes on withdraws, and its children end with this process at the latest."""
        self._closing.set()

    def _arrange(self, served: _Served, compiler: Compiler) -> None:
        """On the plan of the precision that the site asks for, else on one of the model itself, else the processor."""
        named = served.named
        try:
            release = self._shop.store.book(named.engine_id).releases.get(named.release)
            if release is None or not release.plan_key:
                self._rely(served, "")
            elif why := self._none_here(compiler):
                self._rely(served, f"{ON_PROCESSOR}: {why}")
            else:
                self._choose(served, compiler)
        except (EngineRefused, RuntimeFailed) as error:
            self._rely(served, f"{ON_PROCESSOR}: {error}")

    def _choose(self, served: _Served, compiler: Compiler) -> None:
        """What is not the first choice is built only where the first has failed. Raises RuntimeFailed."""
        whys: list[str] = []
        may_build = True
        choices = self._shop.precisions(served.named.engine_id)
        for precision in choices:
            as_what = f"as {precision}: " if len(choices) > 1 else ""
            try:
                model = model_file(served.package, precision)
            except EngineRefused as error:
                whys.append(f"{as_what}{error}")
                continue
            plan, key, why = self._find(served, model, compiler)
            if plan is not None:
                self._prefer(served, plan, model, f"{ON_OTHER}: {'; '.join(whys)}" if whys else "")
                return
            wanted = Wanted(release=str(served.named), precision=model.precision, key=key)
            whys.append(f"{as_what}{why}; {self._want(wanted, why, may_build=may_build)}")
            may_build = may_build and wanted in self._done
        self._rely(served, f"{ON_PROCESSOR}: {'; '.join(whys)}")

    def _find(self, served: _Served, model: ModelFile, compiler: Compiler) -> tuple[BuiltPlan | None, str, str]:
        """The plan of that model if it was verified, else the key of the one that is wanted and why it does not serve.

        Raises RuntimeFailed.
        """
        store, named = self._shop.store, served.named
        try:
            plan = compiler.builder.find(model.path, model.sha256, store.plans(named))
        except PlanRefused as error:
            return None, error.key, str(error)
        if plan.sha256 in self._refused:
            return None, plan.key, f"{plan.path.name} is refused"
        if is_proved(report_of(store, named), served.package, plan):
            return plan, plan.key, ""
        return None, plan.key, f"{plan.path.name} is not verified"

    def _none_here(self, compiler: Compiler) -> str:
        """Asked once: a driver comes and goes with a restart."""
        if self._why_none is None:
            self._why_none = compiler.builder.probe()
        return self._why_none

    def _prefer(self, served: _Served, plan: BuiltPlan, model: ModelFile, why_not_best: str) -> None:
        if (served.plan, served.why_not_best) == (plan, why_not_best) and not served.front.wrong:
            return
        served.plan, served.precision, served.why_not_best = plan, model.precision, why_not_best
        served.is_tidy = False
        served.front.prefer(_preferred(served.package, model, plan, why_not_best))
        served.front.tend(self._is_wanted)
        self._log("plan_preferred", release=str(served.named), plan=plan.path.name, degraded=served.front.degraded)

    def _tidy(self, served: _Served) -> None:
        """Once its plan runs. What cannot be done now is left to the next start. Raises StoreFailed."""
        if served.is_tidy or served.plan is None or served.front.plan_sha256 != served.plan.sha256:
            return
        served.is_tidy = True
        engine_id = served.named.engine_id
        same = [one for one in self._served.values() if one.named.engine_id == engine_id]
        running = {one.named.release: one.plan.key for one in same if one.plan is not None}
        try:
            gone = tidy_plans(self._shop.store, engine_id, running, self._shop.by)
        except (EngineRefused, OutOfResources) as error:
            self._log("plans_not_tidied", release=str(served.named), reason=str(error))
        else:
            if gone:
                self._log("plans_removed", release=str(served.named), files=gone)

    def _want(self, wanted: Wanted, why: str, *, may_build: bool) -> str:
        """What becomes of it, in words."""
        if wanted in self._done:
            return self._done[wanted]
        is_under_way = self._work is not None and self._work.wanted == wanted
        if wanted not in self._todo and not is_under_way:
            if not may_build:
                return "it is built if the other fails"
            self._todo.append(wanted)
            self._log("plan_wanted", release=wanted.release, precision=wanted.precision, reason=why)
        return "it is built anew while nothing is to be analysed"

    def _rely(self, served: _Served, why: str) -> None:
        served.plan = None
        served.front.rely_on_local(why)

    def _refuse(self, served: _Served, plan: BuiltPlan, why: str) -> None:
        """The plan, not the release. It is not built anew before the next start: it was right when it was proved."""
        if stays := self._shop.refuse_plan(served.named, plan, why):
            self._refused.add(plan.sha256)
            why = f"{why}; {stays}"
        self._log("plan_refused", release=str(served.named), plan=plan.path.name, reason=why)
        wanted = Wanted(release=str(served.named), precision=served.precision, key=plan.key)
        self._done[wanted] = f"{plan.path.name} was found wrong: {why}"
        served.plan = None
        self.look(served.named)

    def _conclude(self, work: PlanWork) -> None:
        """Whatever else it raised is raised: of a disk that failed, or a fault of ours."""
        release = work.wanted.release
        try:
            plan = work.result()
        except RuntimeCancelled:
            self._gave_way[work.wanted] = self._gave_way.get(work.wanted, 0) + 1
            self._todo.insert(0, work.wanted)
            return
        except (
            CertificateUnusable,
            EngineRefused,
            IllegalTransition,  # the release was refused while its plan was built
            OutOfResources,
            PackageInvalid,
            PlanRefused,
            RuntimeFailed,
        ) as error:
            why = str(error).partition("\n")[0]
            self._done[work.wanted] = f"building it anew failed, and is tried again at the next start: {why}"
            self._log("plan_failed", release=release, reason=why)
            served = self._served.get(release)
            if served is not None:
                self._shop.store.note(served.named.engine_id, served.named.release, self._shop.by, "plan_failed", why)
                self.look(served.named)
            return
        self._done[work.wanted] = "it was built anew, and is another by now: it is looked at again at the next start"
        self._log("plan_built", release=release, plan=plan)
        if served := self._served.get(release):
            self.look(served.named)

    # In the thread of a build.

    def _make(self, named: Named, wanted: Wanted) -> str:
        """Build the plan, where it is only not verified not even that, and prove it. Returns its file's name."""
        package = self._shop.store.load(named)
        plan, _ = self._shop.plan(named, package, wanted.precision)
        if plan is None:
            self._shop.build(named, partial(self._give_way, wanted), BUILD_S, wanted.precision)
        report, _ = self._shop.verify(named, partial(self._give_way, wanted, "verify"), wanted.precision)
        if not report.plan:
            raise EngineRefused(f"it was built, and is not there: {report.not_its_plan}")
        return report.plan

    def _give_way(self, wanted: Wanted, _phase: str, _done: int, _total: int) -> None:
        """Raises RuntimeCancelled."""
        patient = self._gave_way.get(wanted, 0) < GIVES_WAY
        if self._closing.is_set() or (patient and self._is_wanted()):
            raise RuntimeCancelled(Reason.ENGINE_FAILED, "the build gave way to a study")


def _preferred(package: EnginePackage, model: ModelFile, plan: BuiltPlan, why_not_best: str) -> Preferred:
    return Preferred(
        name=f"its plan {plan.path.name}",
        kind="the plan",
        instead="the processor",
        model=plan.path,
        sha256=plan.sha256,
        inputs=tensor_specs(package.manifest.inputs),
        outputs=tensor_specs(package.manifest.outputs),
        verify=partial(golden.fault, package, tolerance=model.tolerance),
        share=SHARE,
        tend_s=TEND_S,
        precision="" if model.precision == MODEL else model.precision,
        variant_sha256="" if model.precision == MODEL else model.sha256,
        degraded=why_not_best,
        plan_sha256=plan.sha256,
        is_final=True,
    )
