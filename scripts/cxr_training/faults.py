"""What can go wrong when a film is taken, drawn at random, and what the network must then say.

A `Case` is one film: which part of a picture it shows, how it is turned, its polarity and exposure, and for each label
1 (must be said), 0 (must not be said) or NaN (either may be said: counts for nothing).
"""

from dataclasses import dataclass, field
from math import nan

import numpy as np
from numpy.typing import NDArray
from reference_engines.cxr_acquisition import LABELS

from cxr_training.bank import VIEWS, Bank
from cxr_training.picture import View

SIDES = ("lung_clipped_right", "lung_clipped_top", "lung_clipped_left", "lung_clipped_bottom")  # as in Picture.lungs
LEAST_CUT = 0.08  #: of the width of both lungs together, or of their height
UPRIGHT_DEGREES, TURNED_DEGREES = 9.0, 22.0
SATURATED, SOUND = 0.6, 0.25  #: share of the lungs' box without detail


@dataclass(slots=True, kw_only=True)
class Case:
    picture: int
    edges: list[float]  #: left, top, right, bottom of the film in fractions of the picture
    centre: tuple[float, float] = (0.5, 0.5)  #: about which the patient leans
    tilt: float = 0.0  #: degrees
    quarter_turns: int = 0
    mirrored: bool = False  #: more kinds of chest; nothing is said of it
    negative: bool = False
    grey: tuple[float, float] = (0.0, 1.0)  #: what of the picture's range the exposure holds
    frame: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  #: collimator or border beyond the edges
    frame_grey: float = 0.0
    truth: dict[str, float] = field(default_factory=dict)


def draw(rng: np.random.Generator, bank: Bank, picture: int) -> Case:
    view = VIEWS[bank.view[picture]]
    case = Case(picture=picture, edges=[0.0, 0.0, 1.0, 1.0], truth=dict.fromkeys(LABELS, nan))
    case.truth |= {"lateral": 0.0, "not_chest": 0.0, "empty": 0.0}
    case.negative = bool(rng.random() < 0.4)
    if rng.random() < 0.2:
        left, top, right, bottom = np.maximum(0, rng.uniform(-0.06, 0.12, 4))
        case.frame, case.frame_grey = (left, top, right, bottom), float(rng.choice((0.0, 1.0, rng.random())))
    if view is View.FRONTAL:
        _frontal(rng, bank, case)
    else:
        {View.LATERAL: _lateral, View.OTHER: _other, View.EMPTY: _empty}[view](rng, case)
    if case.mirrored:  # sides are named as the film lies
        case.truth["lung_clipped_right"], case.truth["lung_clipped_left"] = (
            case.truth["lung_clipped_left"],
            case.truth["lung_clipped_right"],
        )
    return case


def _frontal(rng: np.random.Generator, bank: Bank, case: Case) -> None:
    box = bank.lungs[case.picture]
    case.centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    case.truth |= {"inverted": float(case.negative), "over_exposed": 0.0}
    turned = _turn(rng, case)
    cut = _edges(rng, case, box, whole=bool(bank.whole[case.picture]), upright=not turned)
    burnt = _expose(rng, bank, case)
    if turned or burnt:
        case.truth |= dict.fromkeys(SIDES, nan)
    elif not cut:
        case.mirrored = bool(rng.random() < 0.4)


def _turn(rng: np.random.Generator, case: Case) -> bool:
    """Whether the film is, or may be, turned."""
    case.tilt = float(np.clip(rng.normal(0, 3.5), -UPRIGHT_DEGREES, UPRIGHT_DEGREES))
    case.truth["rotated"] = 0.0
    chance = rng.random()
    if chance < 0.2:
        case.quarter_turns, case.truth["rotated"] = int(rng.integers(1, 4)), 1.0
        case.mirrored = bool(rng.random() < 0.3)
    elif chance < 0.26:
        case.tilt, case.truth["rotated"] = float(rng.choice((-1, 1)) * rng.uniform(TURNED_DEGREES, 50)), 1.0
    elif chance < 0.3:
        case.tilt = float(rng.choice((-1, 1)) * rng.uniform(UPRIGHT_DEGREES, TURNED_DEGREES))
        case.truth["rotated"] = nan
    return chance < 0.3


def _edges(rng: np.random.Generator, case: Case, box: NDArray[np.float64], *, whole: bool, upright: bool) -> bool:
    """Place the film's edges beside the lungs or within them. Whether any lung is cut."""
    chance = rng.random()
    sides: list[int] = []
    if chance > 0.5 or not upright:
        sides = [int(side) for side in rng.choice(4, size=1 if chance < 0.75 else 2, replace=False)]
    if not upright and rng.random() < 0.7:
        sides = []
    sizes = (box[2] - box[0], box[3] - box[1])
    most = (0.3, 0.3, 0.3, 0.6)
    for side, name in enumerate(SIDES):
        outward = -1 if side < 2 else 1
        case.truth[name] = 0.0
        margin = rng.uniform(0.015, most[side]) if rng.random() < 0.8 else rng.uniform(0.0, 0.05)
        if whole:
            room = abs((0.0 if side < 2 else 1.0) - box[side]) / sizes[side % 2]
            margin = room if rng.random() < 0.5 else rng.uniform(0.0, room)
        if side in sides:
            margin = -rng.uniform(LEAST_CUT, 0.42)
            case.truth[name] = 1.0
            if rng.random() < 0.1:
                margin, case.truth[name] = -rng.uniform(0.0, LEAST_CUT), nan
        case.edges[side] = float(box[side] + outward * margin * sizes[side % 2])
    if len(sides) == 2 and abs(sides[0] - sides[1]) == 2 and sides[0] % 2 == 0:
        case.truth |= dict.fromkeys(SIDES, nan)  # little is left of either lung
    return len(sides) > 0


def _expose(rng: np.random.Generator, bank: Bank, case: Case) -> bool:
    """Whether the exposure is, or may be, burnt out: levels of the lungs' box become one end of the range."""
    quantiles = np.linspace(0, 1, bank.levels.shape[1])

    def level(share: float) -> float:
        return float(np.interp(share, quantiles, bank.levels[case.picture]))

    chance = rng.random()
    share = rng.uniform(SATURATED, 0.95) if chance < 0.14 else rng.uniform(SOUND, SATURATED)
    if chance < 0.18:
        case.grey = (level(share), 1.0) if rng.random() < 0.5 else (0.0, level(1 - share))
        case.truth["over_exposed"] = 1.0 if chance < 0.14 else nan
        if share > 0.85:
            case.truth["inverted"] = nan
        return True
    if chance < 0.4:
        case.grey = (
            (level(rng.uniform(0, SOUND)), 1.0) if rng.random() < 0.5 else (0.0, level(1 - rng.uniform(0, SOUND)))
        )
    return False


def _lateral(rng: np.random.Generator, case: Case) -> None:
    case.truth |= {"lateral": 1.0, "inverted": float(case.negative), "rotated": 0.0}
    case.mirrored = bool(rng.random() < 0.5)
    case.tilt = float(rng.normal(0, 4))
    case.edges = [*rng.uniform(0.02, 0.3, 2), *rng.uniform(0.7, 0.98, 2)]
    case.edges[1] = float(rng.uniform(0.0, 0.22))
    if rng.random() < 0.15:
        case.quarter_turns = int(rng.integers(1, 4))
        case.truth |= {"lateral": nan, "rotated": nan}


def _other(rng: np.random.Generator, case: Case) -> None:
    case.truth["not_chest"] = 1.0
    case.quarter_turns, case.mirrored = int(rng.integers(0, 4)), bool(rng.random() < 0.5)
    case.tilt = float(rng.normal(0, 15))
    case.edges = [*rng.uniform(0.0, 0.35, 2), *rng.uniform(0.65, 1.0, 2)]


def _empty(rng: np.random.Generator, case: Case) -> None:
    case.truth |= {"empty": 1.0, "not_chest": nan, "lateral": 0.0}
    case.edges = [*rng.uniform(0.0, 0.3, 2), *rng.uniform(0.7, 1.0, 2)]
