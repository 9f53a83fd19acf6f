"""From the last image of a study to its report in PACS, stage by stage, by the kind of evidence that closed it.

The real daemon, DCMTK's storescu as the scanner and storescp as the PACS, which receives the images meanwhile. The time
inside the runtime's run call is the model's and on a line of its own; all the rest is ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from statistics import median

from appliance.journal import inbox
from appliance.journal.store import Journal
from benchmarks.machine import need_disk
from benchmarks.report import Report
from benchmarks.rig import (
    Appliance,
    Options,
    check_engines,
    idle,
    pacs,
    reported,
    scanner,
    scratch,
    storescp,
    wait_until,
)
from benchmarks.studies import Case, cr_case, ct_case, fresh_copy
from benchmarks.timeline import Followed, Timeline, follow

DISK = 4e9
ROUNDS, QUICK_ROUNDS = 5, 2
SILENCE_S = 5.0
REPORTED_S = 120.0
ENGINES = ("ct-lesion", "cxr-acquisition")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One line of the table: a study, and what closes it."""

    name: str
    case: Case
    stated_count: bool
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """What the rounds work with."""

    appliance: Appliance
    journal: Journal
    pacs: Path
    folder: Path


def run(options: Options) -> Report:
    need_disk(options.temp, DISK)
    report = Report()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with scratch(options) as folder:
        kinds = _kinds(options, folder)
        with _stand(folder) as stand:
            for kind in {kind.case.what: kind for kind in reversed(kinds)}.values():
                _round(stand, kind)  # the first study of an engine pays for what is loaded once
            found: dict[str, list[Followed]] = {kind.name: [] for kind in kinds}
            for _ in range(rounds):
                for kind in kinds:
                    found[kind.name].append(_round(stand, kind))
    _tell(report, kinds, found)
    if not options.data.is_dir():
        report.notes.append(f"no real cases at {options.data}: the phantom was sent instead")
    report.notes.append(f"medians of {rounds} rounds, kinds interleaved; the first study of each engine is not counted")
    return report


def _kinds(options: Options, folder: Path) -> list[Kind]:
    ct, cr = ct_case(options.data, folder / "ct"), cr_case(options.data, folder / "cr")
    return [
        Kind(name="CT, stated count", case=ct, stated_count=True, limit_s=1.0),
        Kind(name="CT, silence, early run", case=ct, stated_count=False, limit_s=1.0),
        Kind(name="CR, single image", case=cr, stated_count=False, limit_s=0.3),
    ]


@contextmanager
def _stand(folder: Path) -> Iterator[Stand]:
    with ExitStack() as stack:
        received = folder / "pacs"
        received.mkdir()
        port = stack.enter_context(storescp(received))
        appliance = stack.enter_context(
            Appliance(
                folder / "appliance",
                {
                    "engines": [{"id": engine, "mode": "publish"} for engine in ENGINES],
                    "series": {"silence_s": {"CT": SILENCE_S}},
                    "destinations": [pacs(port)],
                },
            )
        )
        check_engines(appliance)
        journal = stack.enter_context(closing(appliance.journal()))
        yield Stand(appliance=appliance, journal=journal, pacs=received, folder=folder)


def _round(stand: Stand, kind: Kind) -> Followed:
    """Send one fresh study and follow it; when this returns nothing is owed any more."""
    copy = stand.folder / "copy"
    study = fresh_copy(kind.case, copy, stated_count=kind.stated_count)
    try:
        scanner(stand.appliance.port, copy)
        wait_until(lambda: reported(stand.journal, study), REPORTED_S, "the study is reported")
        idle(stand.journal)
        silence_ms = max(SILENCE_S * 1000, inbox.learned_silence_ms(stand.journal, "BENCH"))
        return follow(stand.journal, study, stand.pacs, silence_ms)
    finally:
        for path in [*copy.iterdir(), *stand.pacs.iterdir()]:
            path.unlink()
        copy.rmdir()


def _tell(report: Report, kinds: Sequence[Kind], found: Mapping[str, Sequence[Followed]]) -> None:
    def middle(kind: Kind, of: Callable[[Timeline], float]) -> float:
        return round(median(of(one.timeline) for one in found[kind.name]), 1)

    for stage in fields(Timeline):
        figures = {kind.name: middle(kind, attrgetter(stage.name)) for kind in kinds}
        report.row("milliseconds of each stage, medians", stage.name.replace("_", " "), **figures)
    ours = {kind.name: middle(kind, attrgetter("ours")) for kind in kinds}
    report.row("milliseconds of each stage, medians", "evidence to PACS, without the run", **ours)
    for kind in kinds:
        report.goal(
            f"{kind.name}: evidence to PACS, without the run", kind.limit_s, round(ours[kind.name] / 1000, 4), "s"
        )
        report.notes.append(_note(kind, found[kind.name]))


def _note(kind: Kind, found: Sequence[Followed]) -> str:
    conclusions = ", ".join(sorted({one.conclusion for one in found}))
    early = sum(one.early for one in found)
    note = f"{kind.name}: {kind.case.what}; concluded: {conclusions}; {early} of {len(found)} from an early run"
    if straddled := sum(one.straddled for one in found):
        note += f", {straddled} of them still running when the evidence held"
    return note
