"""From a file on a desk to an engine that serves: the commands, with real runtime children."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from onnx import TensorProto

from appliance.cli import main
from appliance.config import load
from appliance.errors import EngineRefused, PlanRefused
from appliance.ports import BuiltPlan, PlanBuilder
from appliance.states import EngineStage
from appliance.wiring.compiler import Compiler
from appliance.wiring.engine_work import Workshop, workshop
from tests.networks import write_segmenter
from tests.packages import Kind, Recipe, brightness, misbehaving, write_package

CONFIG = """\
state: ./var
engines_dir: ./engines
engines: [{id: films}]
analyse: {memory_mb: 600}
reserve: {free_mb: 1, free_inodes: 0, journal_mb: 1}
"""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Ran]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "scanside.yaml").write_text(CONFIG)
    (tmp_path / "engines").mkdir()
    yield tmp_path
    for file in tmp_path.rglob("*.onnx"):
        assert not file.stat().st_mode & 0o111


@pytest.fixture
def run(site: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--config", str(site / "scanside.yaml")])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


def packed(site: Path, recipe: Recipe = Recipe()) -> Path:  # noqa: B008 - frozen
    folder = write_package(site / "package", recipe)
    archive = site / f"{recipe.id}-{recipe.version}.zip"
    with ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def stage(run: Run, release: str) -> str:
    rows = run("engines", "list", "--json").document["engines"]
    return next(str(row["stage"]) for row in rows if row["release"] == release)


@pytest.mark.promise("P8")
def test_the_whole_way_of_a_release_and_back(site: Path, run: Run) -> None:
    write_package(site / "engines" / "films", Recipe(version="0.9.0"))
    half = brightness(dtype=TensorProto.FLOAT16)
    archive = packed(site, Recipe(variants={"fp16": half}))
    taken = run("engines", "import", archive, "--by", "alice", "--json").document
    release = taken["release"]
    assert taken == {"engine": "films", "release": release, "stage": "imported", "new": True}
    assert "was here already" in run("engines", "import", archive).out

    early = run("engines", "activate", "films")
    assert (early.code, "first `scanside engines check films@" in early.err) == (1, True)
    checked = run("engines", "check", "films", "--json").document["checked"]
    assert [(one["precision"], one["file"]) for one in checked] == [
        ("model", "model.onnx"),
        ("fp16", "model.fp16.onnx"),
    ]
    build = run("engines", "build", "films")
    assert (build.code, "cannot be compiled here" in build.err, "processor" in build.err) == (1, True, True)

    verified = run("engines", "verify", f"films@{release}", "--json").document
    path = Path(verified.pop("path"))
    assert json.loads(path.read_text()) == verified
    assert verified["golden_cases"] == 2
    assert verified["measured"]["runs"] == 20
    assert 0 < verified["measured"]["p50_ms"] <= verified["measured"]["p99_ms"]
    assert 20 < verified["measured"]["peak_memory_mb"] < 600
    assert verified["model_sha256"] == hashlib.sha256((site / "package" / "model.onnx").read_bytes()).hexdigest()

    active = run("engines", "activate", "films", "--by", "bob")
    assert (active.code, "takes it up when it starts" in active.out) == (0, True)
    assert run("engines", "activate", "films").code == 1
    listed = run("engines", "list")
    assert (listed.code, f"films  {release}" in listed.out) == (0, True)
    rows = run("engines", "list", "--json").document["engines"]
    assert [(one["version"], one["stage"], one["place"], one["valid"]) for one in rows] == [
        ("0.9.0", "", "", True),
        ("1.0.0", "active", "active", True),
    ]
    back = run("engines", "rollback", "films", "--json").document
    assert (back["release"], back["running"]) == ("shipped", False)
    assert stage(run, release) == "retired"
    nothing = run("engines", "rollback", "films")
    assert (nothing.code, "nothing was changed" in nothing.err) == (1, True)
    shadow = run("engines", "activate", "films", "--shadow", "--json").document
    assert shadow["place"] == "in shadow"

    lines = run("trace", "films", "--json").document["lines"]
    assert [(one["event"], one["by"]) for one in lines if one["by"] in ("alice", "bob")] == [
        ("import", "alice"),
        ("activate", "bob"),
    ]
    told = run("trace", "films").out
    assert all(event in told for event in ("import", "validate", "verify", "activate", "retire", "shadow"))
    assert run("trace", "other").code == 2


@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(golden={Kind.DARK: 0.3}), "dark.npz: output scores differs"),
        (Recipe(model=misbehaving(), golden={Kind.NAN: 0.25}), "it is not finite"),
        (Recipe(model=misbehaving(), golden={Kind.GREEDY: 0.5}), "out of memory"),
        (Recipe(variants={"int8": brightness(0.05)}), "model.int8.onnx: golden case"),
        (Recipe(changes={"outputs": [{"name": "scores", "dtype": "float32", "shape": [1, -1]}]}), "output scores is"),
        (Recipe(changes={"inputs": [{"name": "film", "dtype": "float16", "shape": [1, 1, 32, 32]}]}), "input film is"),
        (Recipe(model=b"no model"), "cannot be loaded"),
    ],
)
def test_a_release_that_is_not_right_is_refused_and_the_reason_is_kept(
    site: Path, run: Run, recipe: Recipe, words: str
) -> None:
    release = run("engines", "import", packed(site, recipe), "--json").document["release"]
    for _ in range(2):
        checked = run("engines", "check", "films")
        assert (checked.code, checked.out) == (1, "")
        assert words in checked.err
        assert stage(run, release) == EngineStage.REFUSED
    verified = run("engines", "verify", "films")
    assert (verified.code, "first `scanside engines check" in verified.err) == (1, True)
    assert words.partition(":")[2].strip()[:20] in run("trace", "films", "--json").out


def test_findings_are_decided_anew_and_a_small_difference_that_changes_them_is_seen(site: Path, run: Run) -> None:
    """0.8004 is right and a finding; 0.7996 is within the tolerance, and none."""
    write_package(site / "engines" / "films", Recipe(model=brightness(-0.1004), golden={Kind.BRIGHT: 0.8004}))
    checked = run("engines", "check", "films")
    assert (checked.code, "other findings: none instead of bright" in checked.err) == (1, True)


def test_the_author_of_an_engine_that_reads_patches_is_told_how_large_a_volume_may_be(site: Path, run: Run) -> None:
    write_segmenter(site / "engines" / "films", "films")
    told = run("engines", "check", "films", "--json")
    assert (told.code, told.document["limit"].startswith("The most that it reads is 33554432 voxels, such as")) == (
        0,
        True,
    )
    assert "a larger volume is not analysed" in " ".join(run("engines", "check", "films").out.split())
    write_package(site / "engines" / "films")
    assert run("engines", "check", "films", "--json").document["limit"] == ""


def test_a_shipped_engine_can_be_checked_and_verified_and_nothing_is_recorded(site: Path, run: Run) -> None:
    write_package(site / "engines" / "films")
    assert run("engines", "check", "films").code == 0
    assert run("engines", "verify", "films@shipped", "--json").document["path"] is None
    assert run("engines", "build", "films").code == 1
    assert not (site / "var" / "engines" / "films" / "releases.json").exists()


def test_room_that_images_need_is_not_taken(site: Path, run: Run) -> None:
    path = site / "scanside.yaml"
    path.write_text(path.read_text().replace("free_mb: 1,", "free_mb: 99999999,"))
    taken = run("engines", "import", packed(site))
    assert (taken.code, "reserve.free_mb" in taken.err) == (1, True)
    assert not list((site / "var" / "engines").glob("films*"))


def test_what_a_release_did_by_itself_is_told_by_status_until_a_person_decides(site: Path, run: Run) -> None:
    write_package(site / "engines" / "films")
    store = workshop(load(site / "scanside.yaml"), "test").store
    store.take_back(store.find("films"), "analyse", "it hung")
    listed, told = run("engines", "list"), run("status")
    alarm = "films@shipped was turned off: it hung; there is none to go back to"
    assert (listed.code, alarm in listed.out, f"ENGINE TAKEN BACK: {alarm}" in told.out) == (1, True, True)
    assert run("status", "--json").document["engine_alarms"] == {"films": alarm}
    run("engines", "activate", "films@shipped")
    assert run("engines", "list").code == 0
    assert alarm not in run("status").out


class Builder:
    """A builder that works like one: a file that appears whole."""

    def __init__(self, why_not: str = "", lie: bool = False) -> None:
        self.why_not, self.lie = why_not, lie

    def probe(self) -> str:
        return self.why_not

    def find(self, model: Path, sha256: str, folder: Path) -> BuiltPlan:  # noqa: ARG002 - the port's signature
        raise PlanRefused("no plan was built yet")

    def build(
        self, model: Path, sha256: str, folder: Path, progress: Callable[[str, int, int], None], deadline_s: float
    ) -> BuiltPlan:
        assert hashlib.sha256(model.read_bytes()).hexdigest() == sha256
        assert deadline_s == 60
        progress("tactics", 1, 1)
        plan = folder / "a.plan"
        plan.write_bytes(b"compiled " + sha256.encode())
        digest = "0" * 64 if self.lie else hashlib.sha256(plan.read_bytes()).hexdigest()
        return BuiltPlan(path=plan, sha256=digest, key="key")


def test_a_plan_is_built_beside_what_serves_and_must_be_verified_anew(site: Path, run: Run) -> None:
    run("engines", "import", packed(site))
    shop: Workshop = workshop(load(site / "scanside.yaml"), "test")
    told: list[tuple[str, int, int]] = []

    def build(builder: PlanBuilder) -> BuiltPlan:
        compiling = replace(shop, compiler=Compiler(builder=builder, runtime=shop.runtime))
        return compiling.build(shop.store.find("films"), lambda *one: told.append(one), 60)

    with pytest.raises(EngineRefused, match="first `scanside engines check"):
        build(Builder())
    run("engines", "check", "films")
    with pytest.raises(EngineRefused, match=r"no driver\. It goes on being served by the processor"):
        build(Builder("no driver"))
    with pytest.raises(EngineRefused, match="does not hold"):
        build(Builder(lie=True))
    plan = build(Builder())
    (release,) = shop.store.book("films").releases.values()
    assert (release.stage, release.plan, release.plan_key) == (EngineStage.BUILT, "a.plan", "key")
    assert plan.path.parent == shop.store.plans(shop.store.find("films"))
    assert told[-1] == ("tactics", 1, 1)
    assert run("engines", "activate", "films").code == 1
    assert run("engines", "verify", "films").code == 0
    assert run("engines", "activate", "films").code == 0
    build(Builder())
    assert shop.store.find("films").stage is EngineStage.ACTIVE


@pytest.mark.parametrize("command", ["import", "check", "build", "verify", "activate", "rollback", "remove", "list"])
def test_each_command_teaches(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["engines", command, "--help"])
    said = capfd.readouterr().out
    assert "Examples:" in said
    assert "Exit codes: 0 ok; 1 " in said
    assert f"scanside engines {command}" in said
