"""Releases that nothing needs leave the store; what is needed or used stays, and a kill at any step leaves no half."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.config import load
from appliance.engine_store import leaving
from appliance.engine_store.book import SHIPPED
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import EngineRefused
from appliance.journal import jobs
from appliance.journal.store import Journal
from appliance.model import Conclusion, EngineIdentity, Job, Outcome
from appliance.states import EngineStage, Event, JobState
from appliance.wiring.releases import engine_store
from tests.journals import STUDY, open_journal
from tests.packages import Kind, Recipe, write_package

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
state: ./var
engines_dir: ./engines
engines: [{id: films}]
reserve: {free_mb: 1, free_inodes: 0, journal_mb: 1}
"""
VERSIONS = ("1.0.0", "2.0.0", "3.0.0", "4.0.0")


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    """Four releases, each with a plan and a report: 4 in shadow, 3 active, 2 the one before it, and 1 before that."""
    (tmp_path / "scanside.yaml").write_text(CONFIG)
    write_package(tmp_path / "engines" / "films", Recipe(version="0.9.0"))
    made = engine_store(load(tmp_path / "scanside.yaml"))
    for version in VERSIONS:
        named = proved(made, version)
        made.activate(named, "alice", shadow=version == VERSIONS[-1])
    return made


def proved(store: EngineStore, version: str) -> Named:
    named, _ = store.take(
        write_package(store.shipped.parent / "package", Recipe(version=version)), "alice", lambda _: None
    )
    store.step(named, Event.VALIDATE, "alice")
    store.step(named, Event.VERIFY, "alice")
    (store.plans(named) / "a.plan").write_bytes(b"compiled")
    store.write_report(named, b"{}")
    return store.find(str(named))


def nothing() -> str:
    return ""


def there(store: EngineStore, version: str) -> list[str]:
    """What lies in the store of a release."""
    return sorted(path.name for path in (store.root / "films").rglob(f"{version}-*"))


def releases(store: EngineStore) -> list[str]:
    return [name.partition("-")[0] for name in store.book("films").releases]


@pytest.mark.promise("P8")
def test_what_is_active_or_in_shadow_or_would_be_rolled_back_to_stays(store: EngineStore) -> None:
    before = store.book("films")
    for version, why in (("4.0.0", "runs in shadow"), ("3.0.0", "is active"), ("2.0.0", "rollback` goes back to it")):
        with pytest.raises(EngineRefused, match=f"films@{version}.* stays: it {why}|{why}"):
            leaving.remove(store, store.find(f"films@{version}"), "bob", nothing)
    with pytest.raises(EngineRefused, match="only what was imported"):
        leaving.remove(store, store.find("films@shipped"), "bob", nothing)
    assert store.book("films") == before
    assert [named.release.partition("-")[0] for named in leaving.old(store, "films")] == ["1.0.0"]


@pytest.mark.promise("P11")
def test_what_nothing_needs_leaves_with_its_plans_and_a_line_of_history(store: EngineStore) -> None:
    named = store.find("films@1.0.0")
    size = leaving.size(store, named)
    assert len(there(store, "1.0.0")) == 3
    assert leaving.remove(store, named, "bob", nothing) == size > 1000
    assert there(store, "1.0.0") == []
    assert releases(store) == ["2.0.0", "3.0.0", "4.0.0"]
    line = store.book("films").history[-1]
    assert (line.event, line.by, line.release, line.why) == ("remove", "bob", named.release, "it was retired")
    assert store.book("films").previous[-1].startswith("2.0.0")
    assert named.release not in store.book("films").previous
    with pytest.raises(EngineRefused, match="not in the store any more"):
        leaving.remove(store, named, "bob", nothing)
    assert store.roll_back("films", "bob").active.startswith("2.0.0")
    assert store.roll_back("films", "bob").active == SHIPPED
    again = proved(store, "1.0.0")
    assert (again.release, again.stage) == (named.release, EngineStage.VERIFIED)
    assert store.load(again).key == "films@1.0.0"


@pytest.mark.parametrize("shadow", [False, True])
def test_what_was_removed_while_a_person_decided_can_neither_serve_nor_run_in_shadow(
    store: EngineStore, *, shadow: bool
) -> None:
    named = store.find("films@1.0.0")
    leaving.remove(store, named, "bob", nothing)
    before = store.book("films")
    with pytest.raises(EngineRefused, match=r"films@1\.0\.0.* is not in the store any more"):
        store.activate(named, "alice", shadow=shadow)
    assert store.book("films") == before


def test_what_was_turned_off_keeps_its_duties_and_its_release(store: EngineStore) -> None:
    shipped = store.find("films@shipped")
    for version in ("3.0.0", "2.0.0", "1.0.0"):
        store.take_back(store.find(f"films@{version}"), "analyse", "it hung")
    assert store.take_back(shipped, "analyse", "it hung") is not None
    proved(store, "5.0.0")
    store.activate(store.find("films@5.0.0"), "alice")
    store.take_back(store.find("films@5.0.0"), "analyse", "it hung")
    with pytest.raises(EngineRefused, match="it was turned off, and its studies"):
        leaving.remove(store, store.find("films@5.0.0"), "bob", nothing)
    assert [one.release.partition("-")[0] for one in leaving.old(store, "films")] == ["1.0.0", "2.0.0", "3.0.0"]


HOLD = """
import sys
from pathlib import Path
from appliance.engine_store.store import EngineStore
store = EngineStore(root=Path(sys.argv[1]), shipped=Path(sys.argv[2]))
with store.using(store.find(sys.argv[3]), plans=sys.argv[4] == "plans"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def user(store: EngineStore, named: Named, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses it."""
    command = [sys.executable, "-c", HOLD, str(store.root), str(store.shipped), str(named), what]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("what", ["package", "plans"])
def test_what_a_process_uses_stays_until_it_has_ended_however_it_ends(store: EngineStore, what: str) -> None:
    named = store.find("films@1.0.0")
    with user(store, named, what) as process:
        with pytest.raises(EngineRefused, match="a process uses it just now"):
            leaving.remove(store, named, "bob", nothing)
        assert len(there(store, "1.0.0")) == 3
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        leaving.remove(store, named, "bob", nothing)
    assert there(store, "1.0.0") == []
    with pytest.raises(EngineRefused, match="not in the store any more"), store.using(named):
        pytest.fail("it is used though it is gone")


KILL = """
import os, signal, sys
from pathlib import Path
from appliance.engine_store import leaving
from appliance.engine_store.store import EngineStore

root, package = Path(sys.argv[1]), Path(sys.argv[2])
store = EngineStore(root=root, shipped=Path(sys.argv[3]))

def die_at(step):
    left = [step]
    def hook(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir", "open") and left[0] >= 0:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def there():
    return len(list((root / "films").rglob("1.0.0-*")))

for step in range(80):
    named = store.find("films@1.0.0")
    if not (child := os.fork()):
        die_at(step)
        leaving.remove(store, named, "bob", lambda: "")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept = named.release in store.book("films").releases
    print(code, kept, there() > 0)
    store.load(store.find("films@3.0.0"))
    if kept:
        store.load(named)
        assert there() == 3
        continue
    if step % 2:
        leaving.sweep(store)
    else:
        store.take(package.with_name("another"), "bob", lambda _: None)
    assert there() == 0
    if not code:
        break
    named, _ = store.take(package, "bob", lambda _: None)
    (store.plans(named) / "a.plan").write_bytes(b"compiled")
    store.write_report(named, b"{}")
"""


@pytest.mark.promise("P12")
def test_killed_at_any_step_of_a_removal_it_is_whole_or_gone_and_what_is_left_is_swept_up(store: EngineStore) -> None:
    """By the next start, or by the next import, in turn. A real kill, at one step after another, until none is left."""
    package = write_package(store.shipped.parent / "package", Recipe(version="1.0.0"))
    write_package(package.with_name("another"), Recipe(version="5.0.0"))
    command = [sys.executable, "-c", KILL, str(store.root), str(package), str(store.shipped)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("-9 True True", "0 False False")
    assert set(lines[:-1]) == {"-9 True True", "-9 False True", "-9 False False"}  # the last: at the sync of the folder
    assert lines.count("-9 False True") > 5


def test_a_book_that_was_lost_lets_nothing_be_swept_away(store: EngineStore) -> None:
    (store.root / "films" / "releases.json").unlink()
    leaving.sweep(store)
    assert len(there(store, "3.0.0")) == 3


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--config", str(tmp_path / "scanside.yaml")])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_command_and_what_the_list_says(store: EngineStore, run: Run) -> None:
    code, out, _ = run("engines", "list")
    assert (code, "Nothing needs 1 old release of films" in out, "engines remove films --old" in out) == (0, True, True)
    rows = json.loads(run("engines", "list", "--json")[1])["engines"]
    assert [(row["version"], row["place"], bool(row["needed"])) for row in rows] == [
        ("0.9.0", "", False),
        ("1.0.0", "", False),
        ("2.0.0", "", True),
        ("3.0.0", "active", True),
        ("4.0.0", "shadow", True),
    ]
    for wrong in (("films",), ("films@1.0.0", "--old")):
        assert run("engines", "remove", *wrong)[0] == 2
    code, _, err = run("engines", "remove", "films@3.0.0")
    assert (code, "stays: it is active" in err) == (1, True)
    with user(store, store.find("films@1.0.0"), "package"):
        code, out, _ = run("engines", "remove", "films", "--old")
        assert (code, "a process uses it" in out) == (1, True)
    document = json.loads(run("engines", "remove", "films", "--old", "--by", "bob", "--json")[1])
    assert [one["release"].partition("-")[0] for one in document["removed"]] == ["films@1.0.0"]
    assert "Nothing of films is old" in run("engines", "remove", "films", "--old")[1]
    assert "remove" in run("trace", "films")[1]
    assert releases(store) == ["2.0.0", "3.0.0", "4.0.0"]


@contextmanager
def job_of_films(store: EngineStore) -> Iterator[tuple[Journal, Job]]:
    """The duty of films@1.0.0 to one image."""
    duty = jobs.Duty(
        engine="films@1.0.0",
        scope="instance",
        study_instance_uid=STUDY,
        series_instance_uid=f"{STUDY}.1",
        sop_instance_uid=f"{STUDY}.1.1",
        subject=f"{STUDY}.1.1",
        instance_id=1,
        deadline_ms=1000,
    )
    with closing(open_journal(store.root.parent / "journal.sqlite")) as journal:
        jobs.take_on(journal, [duty], 1)
        (job,) = jobs.unfinished(journal, JobState.WAITING)
        yield journal, job


@pytest.mark.promise("P6")
def test_a_release_whose_results_are_still_to_be_reported_stays(store: EngineStore, run: Run) -> None:
    """Without its manifest they could not be built."""
    with job_of_films(store):
        pass
    code, _, err = run("engines", "remove", "films@1.0.0")
    assert (code, "results of it are still to be reported" in err) == (1, True)
    assert len(there(store, "1.0.0")) == 3


def said_by(package_sha256: str) -> Outcome:
    engine = EngineIdentity(
        id="films", version="1.0.0", status="reference", package_sha256=package_sha256, model_sha256="b"
    )
    return Outcome(conclusion=Conclusion.NO_FINDING, engine=engine)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("author", ["the one that goes", "another", "nobody yet"])
def test_of_two_packages_with_one_version_the_one_that_said_it_stays(store: EngineStore, run: Run, author: str) -> None:
    """The other one, which is on duty, reads what nobody has read yet."""
    first = store.find("films@1.0.0")
    again = Recipe(version="1.0.0", golden={Kind.DARK: 0.1})
    second, is_new = store.take(write_package(store.shipped.parent / "package", again), "alice", lambda _: None)
    assert is_new
    store.step(second, Event.VALIDATE, "alice")
    store.step(second, Event.VERIFY, "alice")
    store.activate(second, "alice")
    hashes = [store.book("films").releases[one.release].package_sha256 for one in (first, second)]
    assert hashes[0] != hashes[1]
    with job_of_films(store) as (journal, job):
        if author != "nobody yet":
            said = said_by(hashes[author == "another"])
            assert jobs.conclude(journal, job, Event.CONCLUDE, said)
    code, _, err = run("engines", "remove", str(first))
    stays = author == "the one that goes"
    assert (code, "results of it are still to be reported" in err) == (int(stays), stays)
    assert (first.release in store.book("films").releases) is stays
