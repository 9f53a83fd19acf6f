"""How quickly a lane sends, over good lines and bad, beside what else there is; and what waits while it sends.

The near side of a line (wan) holds the senders: the whole daemon with a full queue that is let go at once, DCMTK's
storescu, pynetdicom, Orthanc's job. The far side holds DCMTK's storescp. In a round each sends the same objects to an
empty PACS, each round beginning with another; a ratio is one of two rates in the same round, and the median of the
rounds counts. Rates are compared within the same congestion control: the one that ours chose.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import forward_lanes, forward_urgent
from benchmarks.forward_orthanc import Orthanc
from benchmarks.forward_place import ALL_SYNTAXES, TUNED, Cargo, Pacs, algorithms, storescp
from benchmarks.forward_queue import Queue
from benchmarks.forward_senders import BBR, CUBIC, OWN, UNASKED, Place, Sender, destination, has_option, peers, send
from benchmarks.ingest_images import Images
from benchmarks.machine import need_disk
from benchmarks.report import BenchError, Report
from benchmarks.rig import Appliance, Options, scratch
from benchmarks.studies import ct_case
from benchmarks.wan import FAR, NEAR, Shape, Wan, unavailable

DISK, QUICK_DISK = 4e9, 1e9
OURS, OURS_4, OURS_LOSSLESS, STREAM = "ours", "ours-x4", "ours-lossless", "plain TCP"
FIRST, FIRST_4, PYNETDICOM = "storescu-nd", "storescu-nd-x4", "pynetdicom-best"
LONG = Shape(delay_ms=50, rate=100e6, queue=1 << 20)
LOSSY = Shape(delay_ms=50, rate=20e6, loss=0.02)
THIN = Shape(delay_ms=50, rate=2e6, loss=0.02)
NAN = float("nan")

NOTES = """\
ours: the whole daemon with its journal, from the commit that lets the queue go to the one that knows all delivered; \
storescu: from the start of the process to its end; pynetdicom: without the seconds Python takes to load it; Orthanc: \
one job, waited for
pynetdicom-best: data sets in pieces as they lie in the file, no logging, no Nagle; pynetdicom-stock: as most scripts
the line is a Python program between two network namespaces: believe no figure above 200 Mbit/s on it; loss is \
independent from packet to packet, which flatters bbr
ours choose their congestion control themselves, in a namespace whose default is {unasked}; the peers cannot, and get \
cubic and bbr from outside, on the route
plain TCP: as many bytes over one connection with the congestion control ours had, and one answer at the end
n: how many rounds; a row measured in fewer rounds than ours is compared in those""".splitlines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`ours` (of that name) at least so many times as quick as another; 1 / that: at most so much of its seconds."""

    mine: str
    other: str
    ratio: float
    seconds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One line to one PACS, what goes over it, and who is measured."""

    key: str
    name: str
    shape: Shape
    pacs: str  #: of Stand.pacs
    objects: int
    senders: Sequence[Sender]
    rounds: int
    goals: Sequence[Goal] = ()

    @property
    def ours(self) -> list[Sender]:
        return [sender for sender in self.senders if sender.name.startswith("ours")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """What all cells share."""

    wan: Wan
    pacs: Mapping[str, Pacs]
    cargo: Cargo
    queue: Queue
    orthanc: Orthanc
    names: Mapping[Path, str]


Found = Mapping[Sender, Sequence[float]]  # seconds, one per round


def run(options: Options) -> Report:
    need_disk(options.temp, QUICK_DISK if options.quick else DISK)
    if why := unavailable():
        raise BenchError(f"no line can be laid here: {why}")
    report = Report()
    with scratch(options) as folder, ExitStack() as stack:
        case = ct_case(options.data, folder / "ct")
        cargo = Cargo(what=case.what, images=Images(modality="CT", files=case.files), folder=folder)
        wan = stack.enter_context(Wan())
        cells = list(_quick_cells() if options.quick else _cells(BBR if BBR in algorithms(wan) else CUBIC))
        _throughput(report, cells, wan, cargo)
        sizes = forward_urgent.QUICK if options.quick else forward_urgent.FULL
        forward_urgent.measure(report, sizes, wan, cargo)
        forward_lanes.measure(report, forward_lanes.QUICK if options.quick else forward_lanes.FULL, wan, folder)
    report.notes += [note.format(unasked=UNASKED) for note in NOTES] + [f"sent: {case.what}"]
    if options.quick:
        report.notes.append("--quick: few objects, few rounds, few peers; the goals are meant for the full run")
    return report


def _quick_cells() -> Iterator[Cell]:
    ours = Sender(name=OURS, congestion=OWN)
    near = [Sender(name=OURS), Sender(name=FIRST), Sender(name=PYNETDICOM)]
    four = [Sender(name=OURS_4), Sender(name=FIRST_4, associations=4)]
    bbr, bbr_4, *_ = peers((BBR,), BBR)
    yield _loopback("tuned", 12, near + four, 1, GOALS_NEAR)
    yield Cell(
        key="long", name=LONG.words, shape=LONG, pacs="far", objects=5, senders=[ours, bbr, bbr_4],
        rounds=1, goals=GOALS_LONG,
    )  # fmt: skip
    yield Cell(
        key="thin", name=THIN.words, shape=THIN, pacs="far", objects=1,
        senders=[ours, Sender(name=STREAM), *_lossless()], rounds=1, goals=GOALS_THIN,
    )  # fmt: skip


def _cells(compared: str) -> Iterator[Cell]:
    """`compared`: the congestion control that ours is expected to choose."""
    ours, stream = Sender(name=OURS, congestion=OWN), Sender(name=STREAM)
    all_peers = peers((CUBIC, BBR), compared)
    near = [Sender(name=OURS), *peers(("",)), Sender(name="pynetdicom-stock")]
    near = [sender for sender in near if sender.associations == 1]
    four = [Sender(name=OURS_4), *(sender for sender in peers(("",)) if sender.associations == 4)]
    yield _loopback("nd", 99, near, 7, GOALS_NEAR[:1])
    yield _loopback("tuned", 99, near + four, 7, GOALS_NEAR)
    yield Cell(
        key="long", name=LONG.words, shape=LONG, pacs="far", objects=99, senders=[ours, stream, *all_peers], rounds=5,
        goals=GOALS_LONG,
    )  # fmt: skip
    yield Cell(
        key="lossy", name=LOSSY.words, shape=LOSSY, pacs="far", objects=19, senders=[ours, stream, *all_peers], rounds=3
    )
    yield Cell(
        key="thin", name=THIN.words, shape=THIN, pacs="far", objects=10,
        senders=[ours, stream, *_lossless(), *all_peers], rounds=3, goals=GOALS_THIN,
    )  # fmt: skip


GOALS_NEAR = (
    Goal(mine=OURS, other=FIRST, ratio=1.0),
    Goal(mine=OURS, other=PYNETDICOM, ratio=5.0),
    Goal(mine=OURS_4, other=FIRST_4, ratio=1.0),
)
GOALS_LONG = (Goal(mine=OURS, other=FIRST, ratio=2.4), Goal(mine=OURS, other=FIRST_4, ratio=1.0))
GOALS_THIN = (
    Goal(mine=OURS, other=STREAM, ratio=0.97),
    Goal(mine=OURS_LOSSLESS, other=STREAM, ratio=0.6, seconds=True),
)


def _lossless() -> list[Sender]:
    return [Sender(name=OURS_LOSSLESS, congestion=OWN, as_stored=False)] if has_option("compress") else []


def _loopback(pacs: str, objects: int, senders: Sequence[Sender], rounds: int, goals: Sequence[Goal]) -> Cell:
    name = f"loopback to storescp-{pacs}"
    return Cell(
        key=f"near-{pacs}", name=name, shape=Shape(), pacs=pacs, objects=objects, senders=senders, rounds=rounds,
        goals=goals,
    )  # fmt: skip


def _throughput(report: Report, cells: Sequence[Cell], wan: Wan, cargo: Cargo) -> None:
    with ExitStack() as stack:
        pacs = {
            "nd": stack.enter_context(storescp(wan, NEAR, (), cargo.folder / "pacs-nd")),
            "tuned": stack.enter_context(storescp(wan, NEAR, TUNED, cargo.folder / "pacs-tuned")),
            "far": stack.enter_context(storescp(wan, FAR, (*TUNED, *ALL_SYNTAXES), cargo.folder / "pacs-far")),
        }
        stack.enter_context(wan.inside(NEAR))
        destinations = [_destination(cell, sender, pacs[cell.pacs]) for cell in cells for sender in cell.ours]
        appliance = stack.enter_context(Appliance(cargo.folder / "appliance", {"destinations": destinations}))
        queue = stack.enter_context(Queue(appliance))
        orthanc = stack.enter_context(Orthanc(cargo.folder / "orthanc"))
        most = cargo.files[: max(cell.objects for cell in cells)]
        names = dict(zip(most, orthanc.load(most), strict=True))
        stand = Stand(wan=wan, pacs=pacs, cargo=cargo, queue=queue, orthanc=orthanc, names=names)
        for cell in cells:
            _tell(report, cell, *_measure(cell, stand))


def _destination(cell: Cell, sender: Sender, pacs: Pacs) -> dict[str, object]:
    """Ours as it comes over a line; over so many associations at most where it is compared with so many."""
    options: dict[str, object] = {}
    if cell.shape == Shape():
        options["associations"] = 4 if sender.name == OURS_4 else 1
    if sender.name == OURS_LOSSLESS:
        options["compress"] = "lossless"
    return destination(f"{cell.key}-{sender.name}", pacs, **options)


def _measure(cell: Cell, stand: Stand) -> tuple[Place, Found]:
    place = Place(
        wan=stand.wan,
        cargo=stand.cargo.first(cell.objects),
        pacs=stand.pacs[cell.pacs],
        queue=stand.queue,
        watched=cell.shape != Shape(),
        destinations={sender.name: f"{cell.key}-{sender.name}" for sender in cell.ours},
        orthanc=stand.orthanc,
        names=stand.names,
    )
    stand.wan.reshape(cell.shape)
    stand.queue.hold(place.cargo.files, dict.fromkeys(place.destinations.values(), cell.rounds))
    found: dict[Sender, list[float]] = defaultdict(list)
    for number in range(cell.rounds):
        for sender in _order(cell.senders, number):
            if number == 0 or not sender.once:
                found[sender].append(send(sender, place))
    stand.wan.reshape(Shape())
    return place, {sender: found[sender] for sender in cell.senders}


def _order(senders: Sequence[Sender], number: int) -> list[Sender]:
    """Each round begins with another; the plain stream right after ours, whose congestion control it takes."""
    streams = [sender for sender in senders if sender.name == STREAM]
    others = [sender for sender in senders if sender.name != STREAM]
    first = number % len(others)
    order = [*others[first:], *others[:first]]
    after = next(at for at, sender in enumerate(order) if sender.name == OURS or not streams) + 1
    return [*order[:after], *streams, *order[after:]]


def _tell(report: Report, cell: Cell, place: Place, found: Found) -> None:
    size = place.cargo.bytes
    table = f"{cell.name}: {cell.objects} CT, {size / 1e6:.1f} MB"
    chosen = _chosen(place)
    for sender, seconds in found.items():
        mine = _of(found, OURS, chosen)
        low, middle, high = _ratio(mine, seconds)
        report.row(
            table,
            sender.title,
            n=len(seconds),
            s=round(median(seconds), 2),
            min_s=round(min(seconds), 2),
            max_s=round(max(seconds), 2),
            mbit_s=round(size * 8 / median(seconds) / 1e6, 2),
            ours_to_it=round(middle, 2),
            range=f"{low:.2f}-{high:.2f}",
        )
    if cell.shape != Shape():
        words = f"{place.chosen or 'unknown'}, {place.connections} connections at most"
        report.notes.append(f"{cell.name}: ours had {words}; compared with the peers' {chosen}")
    for goal in cell.goals:
        _tell_goal(report, cell, goal, chosen, found)


def _tell_goal(report: Report, cell: Cell, goal: Goal, chosen: str, found: Found) -> None:
    mine, other = _of(found, goal.mine, chosen), _of(found, goal.other, chosen)
    middle = _ratio(mine, other)[1] if mine and other else NAN
    peer = f"{goal.other}, {chosen}" if cell.shape != Shape() and goal.other != STREAM else goal.other
    count = f"n={min(len(mine), len(other))}"
    if goal.seconds:
        report.goal(f"{cell.name}: seconds, {goal.mine} to {peer} ({count})", goal.ratio, round(1 / middle, 3))
    else:
        report.goal_at_least(f"{cell.name}: rate, {goal.mine} to {peer} ({count})", goal.ratio, round(middle, 3))


def _chosen(place: Place) -> str:
    """Which of the peers' congestion controls is the one that ours had; reno counts as cubic, its like."""
    return BBR if place.chosen == BBR else CUBIC


def _of(found: Found, name: str, congestion: str) -> Sequence[float]:
    for sender, seconds in found.items():
        if sender.name == name and sender.congestion in ("", OWN, congestion):
            return seconds
    return ()


def _ratio(mine: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Least, median and most of how many times as quick mine was, round by round."""
    ratios = [theirs / ours for ours, theirs in zip(mine, other, strict=False)]
    return (min(ratios), median(ratios), max(ratios)) if ratios else (NAN, NAN, NAN)
