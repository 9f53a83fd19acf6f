"""Who serves in the analyse process: exchanged between two jobs, given up by itself; real store, real journal."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.config import Config
from appliance.engine_store import leaving
from appliance.engine_store.book import BOOK, OFF, SHIPPED
from appliance.engine_store.store import Named
from appliance.errors import EngineRefused, OutOfResources, RuntimeFailed
from appliance.model import Job, Reason
from appliance.ports import Array
from appliance.stages.infer import Fault
from appliance.states import EngineStage, Event, JobState
from appliance.wiring.engine_work import workshop
from appliance.wiring.plans import Plans
from appliance.wiring.releases import engine_store
from appliance.wiring.remotes import Remotes
from appliance.wiring.team import HOUR_S, Surroundings, Team
from tests.journals import STUDY, open_journal
from tests.packages import Recipe, write_package

ONE, TWO = "films@1.0.0", "films@2.0.0"


@dataclass
class Loaded:
    """An engine that says how bright a film is, until it is told to say something else."""

    bias: float = 0.0
    why_not: str = ""
    closed: bool = False
    runtime: str = "fake"
    runtime_version: str = "1"
    device: str = "none"
    degraded: str = ""
    variant_sha256: str = ""
    plan_sha256: str = ""
    last_run_ms: float = 1.0

    def infer(
        self,
        inputs: Mapping[str, Array],
        deadline_s: float,  # noqa: ARG002 - the port's signature
        cancelled: Callable[[], bool] = lambda: False,  # noqa: ARG002 - the port's signature
    ) -> dict[str, Array]:
        if self.why_not:
            raise RuntimeFailed(Reason.ENGINE_FAILED, self.why_not)
        return {"scores": np.array([[inputs["film"].mean() + self.bias]], np.float32)}

    def doubt(self, why: str) -> None:
        """There is no other to ask."""

    def close(self) -> None:
        self.closed = True


@dataclass
class Loads:
    """A runtime that has no child."""

    why_not: str = ""
    is_short: bool = False  #: of what a child needs
    bias: dict[str, float] = field(default_factory=dict)  #: version -> of what is loaded next
    made: list[tuple[str, Loaded]] = field(default_factory=list)
    name: str = "fake"

    def probe(self) -> str:
        return self.why_not

    def load(self, model: Path, sha256: str) -> Loaded:  # noqa: ARG002 - the port's signature
        if self.is_short:
            raise OutOfResources("no room")
        if self.why_not:
            raise RuntimeFailed(Reason.NO_ENGINE, self.why_not)
        version = model.parent.name.partition("-")[0]
        self.made.append((version, Loaded(self.bias.get(version, 0.0))))
        return self.made[-1][1]


class Site:
    """A team with its store; time is moved by hand."""

    def __init__(self, folder: Path, **analyse: Any) -> None:
        (folder / "engines").mkdir()
        write_package(folder / "engines" / "films", Recipe(version="0.9.0"))
        self.config = Config.model_validate(
            {
                "state": str(folder / "var"),
                "engines_dir": str(folder / "engines"),
                "engines": [{"id": "films", "mode": "publish"}],
                "analyse": analyse,
            }
        )
        self.folder, self.now_s = folder, 0.0
        self.runtime, self.store = Loads(), engine_store(self.config)
        (folder / "var").mkdir()
        self.journal = open_journal(folder / "var" / "journal.sqlite")
        self.logged: list[str] = []
        self.team: Team

    def log(self, event: str, **_: Any) -> None:
        self.logged.append(event)

    def start(self) -> Team:
        self.team = Team(
            Surroundings(
                config=self.config,
                store=self.store,
                runtime=self.runtime,
                journal=self.journal,
                log=self.log,
                remotes=Remotes(self.config),
                plans=Plans(replace(workshop(self.config, "analyse"), compiler=None), self.log, lambda: False),
                monotonic=lambda: self.now_s,
            )
        )
        self.team.begin()
        return self.team

    def verified(self, version: str) -> Named:
        package = write_package(self.folder / "package", Recipe(version=version))
        named, _ = self.store.take(package, "alice", lambda _: None)
        self.store.step(named, Event.VALIDATE, "alice")
        self.store.step(named, Event.VERIFY, "alice")
        return self.store.find(str(named))

    def activate(self, version: str, *, shadow: bool = False) -> Named:
        named = self.verified(version)
        self.store.activate(named, "alice", shadow=shadow)
        return named

    def on_duty(self) -> list[str]:
        return [engine.key for engine in self.team.engines]

    def said(self) -> list[tuple[str, dict[str, Any]]]:
        rows = self.journal.query("SELECT study_instance_uid, detail FROM history WHERE event='engine_gave_way'")
        return [(row[0], json.loads(row[1])) for row in rows]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.journal.close()


def fault(count: int, key: str = ONE) -> dict[str, Fault]:
    job = Job(
        id=1,
        engine=key,
        scope="instance",
        study_instance_uid=STUDY,
        series_instance_uid="1.2.3.4",
        sop_instance_uid="1.2.3.4.1",
        subject="1.2.3.4.1",
        revision=1,
        state=JobState.RUNNING,
        input_digest="",
        last_instance_id=1,
        attempts=1,
        deadline_tick=0,
        evidence="",
        predecessor="",
        provisional_digest="",
        outcome=None,
        concluded_at="",
        implausible_clock=False,
    )
    return {key: Fault(count=count, job=job, why="it answered nonsense")}


def test_without_a_store_the_shipped_engine_serves(site: Site) -> None:
    team = site.start()
    assert site.on_duty() == list(team.loaded) == ["films@0.9.0"]
    assert team.engines[0].publish
    assert team.look() == []


@pytest.mark.promise("P8")
def test_what_a_person_activates_is_taken_up_once_it_has_proved_itself(site: Site) -> None:
    team = site.start()
    before = site.runtime.made[0][1]
    site.activate("1.0.0")
    assert site.on_duty() == ["films@0.9.0"]
    assert team.look() == ["films"]
    assert site.on_duty() == list(team.loaded) == [ONE]
    assert before.closed
    assert [(one.key, one.publish) for one in team.former()] == [("films@0.9.0", True)]
    assert team.look() == []
    site.store.roll_back("films", "alice")
    team.look()
    assert site.on_duty() == list(team.loaded) == ["films@0.9.0"]


def test_what_there_was_no_room_to_take_up_is_looked_at_again(site: Site) -> None:
    team = site.start()
    site.activate("1.0.0")
    site.runtime.is_short = True
    for _ in range(2):
        with pytest.raises(OutOfResources):
            team.look()
        assert list(team.loaded) == ["films@0.9.0"]
    site.runtime.is_short = False
    assert team.look() == ["films"]
    assert list(team.loaded) == [ONE]


def test_what_still_serves_here_cannot_be_removed_whatever_the_book_says(site: Site) -> None:
    one = site.activate("1.0.0")
    team = site.start()
    for version in ("2.0.0", "3.0.0"):
        site.activate(version)
    with pytest.raises(EngineRefused, match="a process uses it just now"):
        leaving.remove(site.store, one, "bob", str)
    team.look()
    leaving.remove(site.store, one, "bob", str)
    team.look()
    assert site.on_duty() == list(team.loaded) == ["films@3.0.0"]
    three = site.store.find("films@3.0.0")
    site.store.take_back(three, "alice", "no more")
    site.store.roll_back("films", "alice")
    with pytest.raises(EngineRefused, match="a process uses it just now"):
        leaving.remove(site.store, three, "bob", str)
    team.close()
    leaving.remove(site.store, three, "bob", str)


@pytest.mark.promise("P8")
def test_what_does_not_prove_itself_never_serves_and_the_one_before_goes_on(site: Site) -> None:
    team = site.start()
    serving = team.loaded["films@0.9.0"]
    site.runtime.bias["1.0.0"] = 0.5
    named = site.activate("1.0.0")
    team.look()
    assert team.loaded == {"films@0.9.0": serving}
    assert team.unfit == {}
    book = site.store.book("films")
    assert (book.active, book.releases[named.release].stage) == (SHIPPED, EngineStage.REFUSED)
    assert "was rolled back to shipped: golden case golden/dark.npz: output scores differs" in book.alarm
    ((study, detail),) = site.said()
    assert (study, detail["engine"]) == ("", "films")
    assert [loaded.closed for version, loaded in site.runtime.made if version == "1.0.0"] == [True]


@pytest.mark.promise("P8")
def test_one_flipped_byte_is_found_when_it_is_taken_up_and_at_the_next_start(site: Site) -> None:
    team = site.start()
    named = site.activate("1.0.0")
    model = named.folder / "model.onnx"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.write_bytes(raw)
    team.look()
    assert site.on_duty() == list(team.loaded) == ["films@0.9.0"]
    assert "files.model.onnx: altered" in site.store.book("films").alarm

    two = site.activate("2.0.0")
    team.look()
    assert list(team.loaded) == [TWO]
    (two.folder / "engine.yaml").write_bytes(b"\0" + (two.folder / "engine.yaml").read_bytes())
    assert list(site.start().loaded) == ["films@0.9.0"]
    assert "engine.yaml" in site.store.book("films").alarm


@pytest.mark.promise("P6")
def test_where_nothing_was_before_it_the_engine_is_off_and_keeps_its_duties(site: Site) -> None:
    (site.folder / "engines" / "films" / "model.onnx").write_bytes(b"altered")
    team = site.start()
    assert (site.on_duty(), team.loaded) == (["films@0.9.0"], {})
    assert "altered" in team.unfit["films@0.9.0"]
    assert site.store.book("films").active == SHIPPED  # the next start looks anew


def test_a_runtime_that_cannot_start_is_no_fault_of_an_engine(site: Site) -> None:
    team = site.start()
    site.runtime.why_not = "no numpy"
    named = site.activate("1.0.0")
    for _ in range(2):
        team.look()
        assert list(team.loaded) == ["films@0.9.0"]
        assert site.store.book("films").active == named.release
    assert site.logged.count("engines_not_exchanged") == 2
    site.runtime.why_not = ""
    team.look()
    assert list(team.loaded) == [ONE]


@pytest.mark.promise("P6")
def test_a_runtime_that_is_not_there_at_the_start_leaves_the_engine_off(site: Site) -> None:
    site.runtime.why_not = "no numpy"
    team = site.start()
    assert team.unfit == {"films@0.9.0": "no numpy"}
    assert site.store.book("films").active == SHIPPED


@pytest.mark.promise("P8")
def test_an_engine_that_fails_on_study_after_study_gives_way_to_the_one_before(site: Site) -> None:
    named = site.activate("1.0.0")
    team = site.start()
    assert team.mind(fault(4)) == []
    assert list(team.loaded) == [ONE]
    assert team.mind(fault(5)) == [ONE]
    assert list(team.loaded) == ["films@0.9.0"]
    alarm = site.store.book("films").alarm
    assert alarm == (
        f"{named} was rolled back to shipped: it failed on 5 studies in a row, the last time: it answered nonsense"
    )
    assert site.said() == [(STUDY, {"engine": "films", "release": named.release, "why": alarm})]

    assert team.mind(fault(5, "films@0.9.0")) == ["films@0.9.0"]
    assert (site.on_duty(), team.loaded) == (["films@0.9.0"], {})
    assert "none to go back to" in team.unfit["films@0.9.0"]
    assert site.store.book("films").active == OFF
    assert site.start().unfit == team.unfit  # also after the next start
    site.store.activate(site.store.find("films@shipped"), "alice")
    site.team.look()
    assert list(site.team.loaded) == ["films@0.9.0"]


def test_how_often_it_may_fail_is_the_site_s_word(tmp_path: Path) -> None:
    site = Site(tmp_path, failures=0)
    site.activate("1.0.0")
    assert site.start().mind(fault(1000)) == []
    site.journal.close()


@pytest.mark.promise("P8")
def test_a_self_test_that_fails_takes_the_engine_back(site: Site) -> None:
    named = site.activate("1.0.0")
    team = site.start()
    assert not team.test_one()
    site.now_s += 24 * HOUR_S
    assert team.test_one()
    assert not team.test_one()
    serving = team.loaded[ONE]
    assert isinstance(serving, Loaded)
    serving.bias = 0.01
    site.now_s += 24 * HOUR_S - 1
    assert not team.test_one()
    site.now_s += 1
    assert team.test_one()
    assert list(team.loaded) == ["films@0.9.0"]
    assert serving.closed
    assert f"{named} was rolled back to shipped: it failed its self-test: golden case" in site.store.book("films").alarm
    assert [study for study, _ in site.said()] == [""]


def test_a_self_test_has_more_chances_where_the_child_dies_and_none_where_the_site_wants_none(tmp_path: Path) -> None:
    site = Site(tmp_path, self_test_h=1)
    team = site.start()
    serving = team.loaded["films@0.9.0"]
    assert isinstance(serving, Loaded)
    serving.why_not = "the child was killed by SIGKILL"
    site.now_s += HOUR_S
    assert team.test_one()
    assert team.loaded == {}
    assert "SIGKILL" in team.unfit["films@0.9.0"]
    site.journal.close()
    (tmp_path / "other").mkdir()
    never = Site(tmp_path / "other", self_test_h=0)
    never.start()
    never.now_s += 1e9
    assert not never.team.test_one()
    never.journal.close()


def test_a_shadow_runs_beside_it_and_says_nothing_outside(site: Site) -> None:
    site.activate("1.0.0")
    two = site.activate("2.0.0", shadow=True)
    team = site.start()
    assert [(engine.key, engine.publish) for engine in team.engines] == [(ONE, True), (TWO, False)]
    assert set(team.loaded) == {ONE, TWO}
    assert team.mind(fault(5, TWO)) == [TWO]
    assert site.on_duty() == [ONE]
    assert site.store.book("films").releases[two.release].stage is EngineStage.REFUSED
    assert [(one.key, one.publish) for one in team.former()] == [(TWO, False), ("films@0.9.0", True)]


@pytest.mark.promise("P6")
def test_a_damaged_book_leaves_the_engine_off_with_its_duties_and_ends_nothing(site: Site) -> None:
    site.activate("1.0.0")
    team = site.start()
    (site.store.root / "films" / BOOK).write_bytes(b"{")
    team.look()
    assert (site.on_duty(), team.loaded) == (["films@0.9.0"], {})
    assert "which release serves is not known" in team.unfit["films@0.9.0"]
