"""An engine that is wrong, or goes wrong, is refused or contained and named, and images keep flowing.

One real appliance with real runtime children. The engine does as the film tells it to: it answers NaN, asks for 8 GB,
never ends, or its child reads from where no memory is. Or what a person activated is not right: a flipped byte, a
wrong golden answer. Each time, images that came with the film are at the PACS while that goes on.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

from appliance.cli import main
from appliance.dimse.header import part10
from appliance.dimse.small_pacs import SmallPacs
from appliance.engine_store.store import EngineStore
from appliance.states import EngineStage, Event
from tests.acceptance.rig import Appliance, Scanner, node, settings, small_series
from tests.packages import Kind, Recipe, brightness, film_of, misbehaving, write_package
from tests.slices import film, save
from tests.waiting import eventually

DX = str(DigitalXRayImageStorageForPresentation)
READY_S, FLOWED_S, CONCLUDED_S = 90.0, 40.0, 100.0
SHORT_S = 6.0  # the deadline of the engine that is let hang
OTHERS = 4  # images that no engine reads
MEMORY_MB = 600
#: The interpreter that the configuration names: it runs the child's own program, but for one kind of film.
CRASHING = f"""\
#!{sys.executable} -I
import ctypes, importlib.util, sys

sys.argv = sys.argv[2:]  # what follows -I
spec = importlib.util.spec_from_file_location("child", sys.argv[0])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
run = child.Worker._run

def crashing(self, places, deadline_s):
    film = next(iter(places.inputs.values()))
    if abs(film.mean() - {float(Kind.CRASHING)}) < 0.02:
        ctypes.string_at(0)
    return run(self, places, deadline_s)

child.Worker._run = crashing
sys.exit(child.main())
"""

Say = Callable[..., str]


class Box:
    """The appliance, its scanner and its PACS."""

    def __init__(self, folder: Path, appliance: Appliance, pacs: SmallPacs) -> None:
        self.folder, self.appliance, self._pacs = folder, appliance, pacs
        self._sent = 0

    def send(self, kind: Kind, **elements: Any) -> str:
        """A film and images beside it, which all arrive whatever the engine does; returns the film's study."""
        self._sent += 1
        pixels = (film_of(kind, 64) * 4095).astype(np.uint16)
        study = generate_uid()
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": generate_uid(), "SOPInstanceUID": generate_uid()}
        path = save(self.folder / f"film-{self._sent}.dcm", film(pixels, PatientID="1", **uids, **elements))
        paths = [path, *small_series(self.folder / f"others-{self._sent}", OTHERS)]
        Scanner(self.appliance).send(paths)
        uids_sent = {part10(one).sop_instance_uid for one in paths}
        eventually(lambda: uids_sent <= {one.sop_instance_uid for one in self._pacs.received()}, FLOWED_S, "all flows")
        return str(study)

    def state(self, study: str) -> str:
        rows = self.appliance.query("SELECT state FROM job WHERE study_instance_uid=? ORDER BY id DESC", study)
        return str(rows[0][0]) if rows else ""

    def outcome(self, study: str) -> dict[str, Any]:
        """Of the one job that was not handed over to another release."""
        eventually(lambda: self.state(study) == "reported", CONCLUDED_S, "the job is over")
        (row,) = self.appliance.query("SELECT outcome FROM job WHERE study_instance_uid=? AND state='reported'", study)
        found: dict[str, Any] = json.loads(row[0])
        return found

    def serving(self) -> dict[str, bool]:
        facts = json.loads((self.appliance.state / "run" / "engines.json").read_text())
        return {key: fact["serves"] for key, fact in facts.items()}

    def children(self) -> list[psutil.Process]:
        found = []
        for process in self.appliance.family():
            with suppress(psutil.Error):
                if any(word.endswith("/child.py") for word in process.cmdline()):
                    found.append(process)
        return found

    @property
    def store(self) -> EngineStore:
        return EngineStore(root=self.appliance.state / "engines", shipped=self.folder / "engines")


@pytest.fixture(scope="module")
def box(module_work: Path) -> Iterator[Box]:
    write_package(module_work / "engines" / "films", Recipe(model=misbehaving()))
    only_dx = {"accepts": {"modality": ["DX"], "sop_class": [DX]}}
    write_package(module_work / "engines" / "hanging", Recipe(id="hanging", model=misbehaving(), changes=only_dx))
    interpreter = module_work / "python"
    interpreter.write_text(CRASHING)
    interpreter.chmod(0o755)
    with SmallPacs(module_work / "pacs") as pacs:
        config = settings(
            node("pacs", pacs.port, takes=["image"]),
            engines_dir=str(module_work / "engines"),
            engines=[{"id": "films"}, {"id": "hanging", "deadline_s": SHORT_S}],
            analyse={"memory_mb": MEMORY_MB, "failures": 0, "python": str(interpreter)},
        )
        with Appliance(module_work / "box", config) as appliance:
            eventually(appliance.engines_serve, READY_S, "the engines are verified")
            yield Box(module_work, appliance, pacs)


@pytest.fixture
def say(box: Box, capfd: pytest.CaptureFixture[str]) -> Say:
    """What a command says."""

    def say(*arguments: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit):
            main([*arguments, "--config", str(box.appliance.config_path)])
        return capfd.readouterr().out

    return say


@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("kind", "words"), [(Kind.NAN, "scores is not finite"), (Kind.GREEDY, "out of memory")], ids=["nan", "8 GB"]
)
def test_nonsense_and_greed_are_an_engine_failure(box: Box, say: Say, kind: Kind, words: str) -> None:
    studies = [box.send(kind) for _ in range(2)]
    for study in studies:
        outcome = box.outcome(study)
        assert (outcome["conclusion"], outcome["reason"]) == ("not_analysed", "engine_failed")
        assert words in outcome["detail"]
        assert words in say("trace", study)
    eventually(lambda: not box.serving()["films@1.0.0"], 10, "status is told")
    told = say("status")
    assert "AI OFF for films@1.0.0" in told
    assert words in told
    assert box.outcome(box.send(Kind.DARK))["conclusion"] == "no_finding"


@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
def test_a_hang_ends_at_its_deadline(box: Box, say: Say) -> None:
    elements = {"Modality": "DX", "SOPClassUID": DX}
    for _ in range(2):
        study = box.send(Kind.HANGING, **elements)
        outcome = box.outcome(study)
        assert (outcome["conclusion"], outcome["reason"]) == ("not_analysed", "deadline")
        assert "reason=deadline" in say("trace", study)
    eventually(lambda: not box.serving()["hanging@1.0.0"], 10, "status is told")
    assert "AI OFF for hanging@1.0.0: inference passed its deadline" in say("status")


@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
def test_a_segmentation_fault_costs_a_child_and_nothing_else(box: Box, say: Say) -> None:
    children = {child.pid for child in box.children()}
    for _ in range(2):
        study = box.send(Kind.CRASHING)
        outcome = box.outcome(study)
        assert (outcome["conclusion"], outcome["reason"]) == ("not_analysed", "engine_failed")
        assert outcome["detail"] == "the child was killed by SIGSEGV"
        assert "killed by SIGSEGV" in say("trace", study)
    assert len(children & {child.pid for child in box.children()}) == len(children) - 1
    eventually(lambda: not box.serving()["films@1.0.0"], 10, "status is told")
    assert "AI OFF for films@1.0.0: the child was killed by SIGSEGV" in say("status")
    assert box.outcome(box.send(Kind.BRIGHT))["conclusion"] == "finding"


def flip_a_byte(folder: Path) -> None:
    model = folder / "model.onnx"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.write_bytes(raw)


@pytest.mark.promise("P2")
@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    ("recipe", "spoil", "words"),
    [
        (Recipe(version="2.0.0", model=brightness()), flip_a_byte, "files.model.onnx: altered"),
        (Recipe(version="3.0.0", golden={Kind.DARK: 0.3}), lambda _: None, "golden case golden/dark.npz: output"),
    ],
    ids=["a flipped byte", "a wrong golden answer"],
)
def test_what_is_not_right_is_refused_by_the_running_appliance_and_the_one_before_goes_on(
    box: Box, say: Say, recipe: Recipe, spoil: Callable[[Path], None], words: str
) -> None:
    store = box.store
    named, _ = store.take(write_package(box.folder / "package", recipe), "alice", lambda _: None)
    for event in (Event.VALIDATE, Event.VERIFY):  # as if it had been right then
        store.step(named, event, "alice")
    spoil(named.folder)
    store.activate(store.find(str(named)), "alice")
    eventually(lambda: store.find(str(named)).stage is EngineStage.REFUSED, 30, "it is refused")
    assert words in say("trace", "films")
    told = say("status")
    assert f"ENGINE TAKEN BACK: {named} was rolled back to shipped" in told
    assert words in told
    study = box.send(Kind.BRIGHT)
    outcome = box.outcome(study)
    assert (outcome["conclusion"], outcome["engine"]["version"]) == ("finding", "1.0.0")
    history = box.appliance.query("SELECT detail FROM history WHERE event='engine_gave_way' ORDER BY id DESC")
    assert words in history[0]["detail"]


@pytest.mark.promise("P12")
def test_a_release_takes_over_between_two_studies_and_none_is_lost(box: Box, say: Say) -> None:
    """Films come all the while; every one is read, by the old release or the new."""
    store = box.store
    named, _ = store.take(write_package(box.folder / "package", Recipe(version="4.0.0")), "alice", lambda _: None)
    for event in (Event.VALIDATE, Event.VERIFY):
        store.step(named, event, "alice")
    studies = [box.send(Kind.BRIGHT)]
    say("engines", "activate", "films@4.0.0")
    while not box.serving().get("films@4.0.0"):
        studies.append(box.send(Kind.BRIGHT))
        assert len(studies) < 60, "it is taken up"
    studies.append(box.send(Kind.BRIGHT))
    outcomes = [box.outcome(study) for study in studies]
    assert [one["conclusion"] for one in outcomes] == ["finding"] * len(studies)
    assert outcomes[0]["engine"]["version"] in ("1.0.0", "4.0.0")
    assert outcomes[-1]["engine"]["version"] == "4.0.0"
    say("engines", "rollback", "films")
    eventually(lambda: box.serving().get("films@1.0.0"), 30, "it is back")
