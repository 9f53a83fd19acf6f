"""P2: images never wait for AI, whatever state it is in.

A paced stream of images that no engine reads goes through while the AI is off, busy, hung or dying of too little
memory. The time of each image is from the scanner's first byte to the moment the PACS has the last. The first images
of a stream are not counted: they wait for the PACS, which is pynetdicom's, to grant the association, 0.1 s and more.
The states take turns, so that a busy machine is busy for all of them, and of each state's rounds the best counts: what
the machine's neighbours do comes and goes, what the AI does is there in each round. Results go to another destination:
to the same one they would go first, as P7 wants it, and an image would wait for their bytes.

The goal is a ratio of 1.2 of the p99s. On two cores shared with the scanner, the PACS and whatever else runs there, the
p99 of eighty images is one image, and even with the AI hung, which takes no time at all, the ratio came out between
0.7 and 2. So it is printed, and asserted is what noise does not reach: no image waits for as long as the AI takes.
"""

import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.dimse.header import Part10, part10
from appliance.dimse.small_pacs import Answer, SmallPacs
from tests.acceptance.rig import (
    FULL,
    Appliance,
    Original,
    Scanner,
    engines,
    folder_destination,
    node,
    relabelled,
    settings,
    small_series,
)
from tests.waiting import eventually

ROUNDS = 10 if FULL else 2
LEAD = 20  # images of a stream that are not counted
EVERY_S = 0.025  # between the beginnings of two images: 40 a second, 21 MB a second
FILMS = 12  # enough work for the AI to last for a round
GOAL, COMMIT_GOAL = 1.2, 1.5
MIDDLE_BOUND = 3.0  # of the ratio of medians
HIGH_BOUND_S = 0.4  # by which a p99 may be above the one it is compared with: less than the AI takes for a film
COMMITS = 150
TOO_LITTLE_MB = 128  # the engines load and pass their golden cases with it, and die of a real study
VERIFIED_S = 90.0
ARRIVED_S = 60.0


class TimedPacs(SmallPacs):
    """Notes when it had each object."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.arrived: dict[str, float] = {}

    def answer(self, sop_instance_uid: str) -> Answer:
        self.arrived.setdefault(sop_instance_uid, time.monotonic())
        return super().answer(sop_instance_uid)


@dataclass(frozen=True, slots=True)
class Site:
    """Three appliances that differ in their AI alone, and one PACS."""

    off: Appliance
    on: Appliance
    starved: Appliance
    pacs: TimedPacs
    work: Path
    lung_ct: Original
    films: list[Path]


@pytest.fixture(scope="module")
def site(module_work: Path, lung_ct: Original, real_data: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        pacs = stack.enter_context(TimedPacs(module_work / "pacs"))
        images = node("pacs", pacs.port, takes=["image"], keep_h=0)
        results = folder_destination("review", module_work / "review", takes=["sr", "sc"], accept_reference=True)
        states = {
            "off": settings(images, results),
            "on": settings(images, results, engines=engines("publish"), series={"silence_s": {"CT": 1}}),
            "starved": settings(
                images,
                results,
                engines=engines("publish"),
                series={"silence_s": {"CT": 1}},
                analyse={"memory_mb": TOO_LITTLE_MB, "failures": 0},  # it dies again and again, and goes on
            ),
        }
        appliances = {name: Appliance(module_work / name, config) for name, config in states.items()}
        for appliance in appliances.values():
            stack.enter_context(appliance)
        for name in ("on", "starved"):
            eventually(appliances[name].engines_serve, VERIFIED_S, "the engines are verified")
        films = copies_of(real_data / "conformance" / "RG1_J2KI.dcm", module_work / "films", FILMS * ROUNDS * 3)
        yield Site(**appliances, pacs=pacs, work=module_work, lung_ct=lung_ct, films=films)


def copies_of(path: Path, folder: Path, count: int) -> list[Path]:
    """The same film under so many identities."""
    folder.mkdir()
    content, uid = path.read_bytes(), part10(path).sop_instance_uid
    for number in range(count):
        copy = content.replace(uid.encode(), relabelled(uid, str(number)).encode())
        (folder / f"{number:04d}.dcm").write_bytes(copy)
    return sorted(folder.iterdir())


def unread_by_engines(paths: Sequence[Path]) -> list[Part10]:
    """CT slices as MR: of the same size, and no engine's business."""
    for path in paths:
        content = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0")
        path.write_bytes(content.replace(b"\x08\x00\x60\x00CS\x02\x00CT", b"\x08\x00\x60\x00CS\x02\x00MR"))
    return [part10(path) for path in paths]


def measure(site: Site, appliance: Appliance, salt: str) -> list[float]:
    """Seconds from scanner to PACS of each image of a paced stream."""
    folder = site.work / "stream"
    items = unread_by_engines(site.lung_ct.copy(folder, salt).paths)
    scanner, begun = Scanner(appliance), dict[str, float]()
    association = scanner.associate(items)
    first = time.monotonic()
    for number, item in enumerate(items):
        time.sleep(max(0.0, first + number * EVERY_S - time.monotonic()))
        begun[item.sop_instance_uid] = time.monotonic()
        scanner.store(association, item)
    association.release()
    assert not scanner.refused
    eventually(lambda: begun.keys() <= site.pacs.arrived.keys(), ARRIVED_S, "the stream is at the PACS")
    shutil.rmtree(folder)
    return [site.pacs.arrived[uid] - at for uid, at in begun.items()][LEAD:]


def unfinished(appliance: Appliance) -> int:
    return appliance.number("SELECT count(*) FROM job WHERE state NOT IN ('reported', 'superseded')")


def running(appliance: Appliance) -> int:
    return appliance.number("SELECT count(*) FROM job WHERE state IN ('ready', 'running')")


@contextmanager
def off(site: Site, _turn: int) -> Iterator[Appliance]:
    yield site.off


@contextmanager
def busy(site: Site, turn: int) -> Iterator[Appliance]:
    """Films enough for longer than the stream takes."""
    Scanner(site.on).send(site.films[turn * FILMS : (turn + 1) * FILMS])
    eventually(lambda: running(site.on), 10, "the AI is at work")
    yield site.on
    eventually(lambda: not unfinished(site.on), ARRIVED_S)


@contextmanager
def hung(site: Site, turn: int) -> Iterator[Appliance]:
    """The runtime children are stopped, and one is asked something."""
    children = [process for process in site.on.family() if any(word.endswith("child.py") for word in process.cmdline())]
    assert len(children) == 2
    for child in children:
        child.send_signal(signal.SIGSTOP)
    try:
        film = len(site.films) - 1 - turn
        Scanner(site.on).send(site.films[film : film + 1])
        eventually(lambda: running(site.on), 10, "the AI is asked")
        yield site.on
        assert running(site.on), "it hung all the time"
    finally:
        for child in children:
            child.send_signal(signal.SIGCONT)
    eventually(lambda: not unfinished(site.on), ARRIVED_S)


@contextmanager
def dying(site: Site, turn: int) -> Iterator[Appliance]:
    """A study that is too large for the memory the engine may use: the child dies of it, three times."""
    study = site.lung_ct.copy(site.work / "scans", f"dying {turn}")
    Scanner(site.starved).send(study.paths)
    shutil.rmtree(site.work / "scans")
    eventually(lambda: running(site.starved), 10, "the AI is at work")
    yield site.starved
    eventually(lambda: not unfinished(site.starved), ARRIVED_S)
    row = site.starved.query("SELECT outcome FROM job WHERE study_instance_uid=?", study.study_instance_uid)[0]
    assert '"engine_failed"' in row["outcome"]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def told(seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, tuple[float, float]]:
    """State -> the best, of its rounds, of p50 and p99."""
    return {state: (min(map(statistics.median, rounds)), min(map(p99, rounds))) for state, rounds in seconds.items()}


@pytest.mark.promise("P2")
@pytest.mark.timeout(1800 if FULL else 300)
def test_images_are_as_fast_with_the_ai_busy_hung_or_dying_as_with_it_off(
    site: Site, figure: Callable[[str], None]
) -> None:
    states = {"off": off, "busy": busy, "hung": hung, "dying": dying}
    measure(site, site.off, "warm")
    seconds: dict[str, list[list[float]]] = {state: [] for state in states}
    for turn in range(ROUNDS):
        for state, enter in states.items():
            with enter(site, turn) as appliance:
                seconds[state].append(measure(site, appliance, f"stream {state} {turn}"))
    best = told(seconds)
    for state, (middle, high) in best.items():
        figure(
            f"isolation: receive to PACS with the AI {state}: p50 {middle * 1000:.0f} ms, p99 {high * 1000:.0f} ms,"
            f" ratio to off {middle / best['off'][0]:.2f} and {high / best['off'][1]:.2f} (goal: p99 {GOAL})"
        )
    for state in states:
        assert_not_held_up(best[state], best["off"], state)


def assert_not_held_up(seen: tuple[float, float], alone: tuple[float, float], state: str) -> None:
    assert seen[0] <= MIDDLE_BOUND * alone[0], state
    assert seen[1] <= alone[1] + HIGH_BOUND_S, state


def commits(site: Site, appliance: Appliance, name: str) -> list[float]:
    """Seconds from the first byte of a small image to its Success, one after the other."""
    folder = site.work / "small"
    scanner = Scanner(appliance)
    scanner.send(small_series(folder, COMMITS))
    shutil.rmtree(folder)
    assert len(scanner.seconds) == COMMITS, name
    return scanner.seconds


@pytest.mark.promise("P2")
@pytest.mark.timeout(1800 if FULL else 240)
def test_a_scanner_gets_its_success_as_fast_beside_all_other_processes_at_work(
    site: Site, figure: Callable[[str], None]
) -> None:
    """Alone: nothing else to do. Beside: the AI reads films, and a backlog of a study goes to the PACS."""
    seconds: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    for turn in range(ROUNDS):
        seconds["alone"].append(commits(site, site.on, "alone"))
        eventually(lambda: not unfinished(site.on) and not site.on.owed(), ARRIVED_S)
        site.pacs.stop()
        study = site.lung_ct.copy(site.work / "scans", f"backlog {turn}")
        Scanner(site.on).send(study.paths)
        shutil.rmtree(site.work / "scans")
        Scanner(site.on).send(site.films[(ROUNDS + turn) * FILMS : (ROUNDS + turn + 1) * FILMS])
        site.pacs.start()
        held_up = site.on.owed()
        seconds["beside"].append(commits(site, site.on, "beside"))
        assert running(site.on), "the AI was at work all the time"
        assert held_up > len(study.paths) // 2
        eventually(lambda: not unfinished(site.on) and not site.on.owed(), ARRIVED_S)
    best = told(seconds)
    for state, (middle, high) in best.items():
        figure(
            f"isolation: C-STORE of 39 kB to Success, {state}: p50 {middle * 1000:.1f} ms, p99 {high * 1000:.1f} ms,"
            f" p99 ratio {high / best['alone'][1]:.2f} (goal: {COMMIT_GOAL})"
        )
    assert_not_held_up(best["beside"], best["alone"], "beside")
