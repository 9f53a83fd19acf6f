"""The acceptance run: every drill through the real appliance, and a verdict on each."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance import phantom, scanner
from appliance.dimse.wire import Target
from appliance.journal.clock import boot_time_ms
from appliance.journal.overview import overview
from appliance.journal.store import Journal
from appliance.rehearsal.box import Box
from appliance.rehearsal.drills import TIMEOUT_S, Drill, MoodyPacs, Place
from appliance.rehearsal.line import LOOPBACK, Line
from appliance.rehearsal.material import Material
from appliance.rehearsal.patience import RehearsalFailed
from appliance.rehearsal.stage import APPLIANCE_AE, SCANNER_AE, Cast, Tell, held, is_settled, options, owed
from appliance.scanner import Manner

ENGINE = "cxr-acquisition"
SLICES = 8
FIRST_SEED = 7_000
SEEN_S, DRAIN_S = 30.0, 60.0
RESULTS = ("sr", "sc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one drill."""

    drill: str
    what: str
    happened: int  #: times that the fault was seen
    objects: int  #: images and results that the PACS must have
    images: int
    results: int
    resent: int  #: C-STOREs beyond one for each object
    drained_s: float  #: until the last object was there, from the end of the fault or of scanning
    faults: tuple[str, ...]  #: what did not hold; none: it passed

    @property
    def passed(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all drills use."""

    box: Box
    journal: Journal
    place: Place
    folder: Path
    tell: Tell


def run(folder: Path, cast: Cast, drills: Sequence[Drill], tell: Tell) -> Iterator[Verdict]:
    """Hold the drills in `folder`, which is empty, one after another. Raises RehearsalFailed where it cannot start."""
    stuck = ""
    with _ground(folder, cast, tell) as ground:
        for number, drill in enumerate(drills):
            if stuck:  # what is still owed from then would be counted here
                yield _failed(drill, f"not held, because '{stuck}' did not end")
                continue
            tell(f"{drill.name}: {drill.what}")
            try:
                yield _hold(ground, drill, _material(folder / f"scanner-{number}", FIRST_SEED + number))
            except RehearsalFailed as error:
                stuck = drill.name
                yield _failed(drill, str(error))


@contextmanager
def _ground(folder: Path, cast: Cast, tell: Tell) -> Iterator[Ground]:
    stirred = threading.Event()
    with ExitStack() as stack:
        pacs = stack.enter_context(MoodyPacs(folder / "pacs", stirred.set))
        line = stack.enter_context(Line(pacs.port))
        box = stack.enter_context(Box(folder / "appliance", _options(cast, line.port), stirred))
        tell("starting the appliance, and verifying its engine")
        box.start()
        box.engines()
        journal = box.journal()
        stack.callback(journal.close)
        yield Ground(box=box, journal=journal, place=Place(pacs=pacs, line=line), folder=folder, tell=tell)


def _options(cast: Cast, port: int) -> dict[str, object]:
    given = options(Cast(engines_dir=cast.engines_dir, engines=(ENGINE,)), port)
    (pacs,) = given["destinations"]
    return given | {"destinations": [pacs | {"timeout_s": TIMEOUT_S}]}


def _material(folder: Path, seed: int) -> Material:
    """A film that an engine reads at once, and a short CT that nobody reads."""
    phantom.write_cr(folder / "a-film", seed=seed)
    phantom.write_ct(folder / "b-ct", seed=seed, slices=SLICES, nodules=())
    return Material(title="a film and a short CT", found=scanner.find(folder, folder), synthetic=True)


def _hold(ground: Ground, drill: Drill, material: Material) -> Verdict:
    """Raises RehearsalFailed where the fault is never seen, or what was sent never arrives."""
    place, journal = ground.place, ground.journal
    held_before = _held(journal)
    drill.begin(place)
    before = place.happened()
    target = Target(host=LOOPBACK, port=ground.box.port, calling_ae=SCANNER_AE, called_ae=APPLIANCE_AE)
    sent = scanner.send(target, material.found.items, Manner())
    if drill.held_back:
        _wait(ground, lambda: owed(overview(journal), "queued") > 0, "something is owed", SEEN_S)
    enough = before + drill.must_happen
    _wait(ground, lambda: place.happened() >= enough, f"the fault of '{drill.name}' is seen", SEEN_S)
    healed_ms = boot_time_ms()
    if not drill.stays:
        drill.end(place)
    _wait(ground, lambda: is_settled(journal), f"everything is delivered after '{drill.name}'", DRAIN_S)
    if drill.stays:
        drill.end(place)
    happened = place.happened() - before
    place.heal()
    refused = sum(not one.stored for one in sent)
    faults = [f"{refused} images were not acknowledged to the scanner"] if refused else []
    if _held(journal) != held_before:
        faults += held(overview(journal))
    return _judge(ground, drill, material, _Course(happened=happened, healed_ms=healed_ms, faults=tuple(faults)))


def _failed(drill: Drill, why: str) -> Verdict:
    nothing = {"happened": 0, "objects": 0, "images": 0, "results": 0, "resent": 0}
    return Verdict(drill=drill.name, what=drill.what, drained_s=0.0, faults=(why,), **nothing)


def _held(journal: Journal) -> int:
    return owed(overview(journal), "held")


def _wait(ground: Ground, holds: Callable[[], bool], what: str, seconds: float) -> None:
    ground.box.patience.wait(holds, what, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    happened: int
    healed_ms: int  #: when the fault was put right, or the scanner had its last acknowledgement
    faults: tuple[str, ...]


def _judge(ground: Ground, drill: Drill, material: Material, course: _Course) -> Verdict:
    received = {one.sop_instance_uid: one for one in ground.place.pacs.received()}
    results = _results(ground.journal, material)
    images = [uid for uid in material.digests if uid in received]
    missing = len(material.digests) - len(images) + sum(uid not in received for uid in results)
    altered = sum(received[uid].sha256 not in material.digests[uid] for uid in images)
    altered += sum(received[uid].digest != digest for uid, digest in results.items() if uid in received)
    mine = [received[uid] for uid in (*material.digests, *results) if uid in received]
    last_ms = max((ground.place.pacs.arrived_ms[one.sop_instance_uid] for one in mine), default=course.healed_ms)
    faults = list(course.faults)
    if missing:
        faults.append(f"{missing} objects are not in the PACS")
    if altered:
        faults.append(f"{altered} objects are not what was sent")
    if not results:
        faults.append("no result was made")
    elif drill.results_first and not missing and not _passed(ground.place.pacs, material, results):
        faults.append("no result arrived before the last image")
    return Verdict(
        drill=drill.name,
        what=drill.what,
        happened=course.happened,
        objects=len(material.digests) + len(results),
        images=len(images),
        results=len(results),
        resent=sum(one.times - 1 for one in mine),
        drained_s=round(max(0, last_ms - course.healed_ms) / 1000, 1),
        faults=tuple(faults),
    )


def _results(journal: Journal, material: Material) -> dict[str, str]:
    """SOP Instance UID -> digest of the data set as it was built, in hex."""
    return {
        row["sop_instance_uid"]: row["digest"].hex()
        for study in material.studies
        for row in journal.query(
            "SELECT sop_instance_uid, digest FROM instance WHERE origin='result' AND study_instance_uid=?", study
        )
    }


def _passed(pacs: MoodyPacs, material: Material, results: dict[str, str]) -> bool:
    arrived = pacs.arrived_ms
    return min(arrived[uid] for uid in results) < max(arrived[uid] for uid in material.digests)
