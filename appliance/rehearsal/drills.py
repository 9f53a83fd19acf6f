"""The drills: each thing that a PACS or the line to it does to a sender in the field, done on purpose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.dimse.small_pacs import Answer
from appliance.rehearsal.line import Fault, Line
from appliance.rehearsal.pacs import TimedPacs

OUT_OF_RESOURCES = 0xA700
TIMEOUT_S = 3.0  # the appliance's towards this PACS
LATE_S = 5.0
SLOW_S = 0.6
TIMES = 2  # that a fault happens


class MoodyPacs(TimedPacs):
    """A small PACS that is out of resources when a drill says so."""

    def __init__(self, folder: Path, stir: Callable[[], None]) -> None:
        super().__init__(folder, stir)
        self.full = 0  #: C-STOREs that it still refuses, for want of resources
        self.refusal = OUT_OF_RESOURCES
        self.happened = 0

    def answer(self, sop_instance_uid: str) -> Answer:
        if self.full > 0:
            self.full -= 1
            self.happened += 1
            return self.refusal
        return super().answer(sop_instance_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a drill is held."""

    pacs: MoodyPacs
    line: Line

    def happened(self) -> int:
        return self.line.fault.happened + self.pacs.happened

    def heal(self) -> None:
        """All is well from now on; what is down is up."""
        self.line.fault = Fault(happened=self.line.fault.happened)
        self.pacs.full, self.pacs.delay_s = 0, 0.0

    def restart(self, associations: int) -> None:
        """The PACS anew, granting so many associations at one time."""
        self.pacs.stop()
        self.pacs.associations = associations
        self.pacs.start()


def _slow(place: Place) -> None:
    place.pacs.delay_s = SLOW_S


def _full(place: Place) -> None:
    place.pacs.full = TIMES


def _forgetful(place: Place) -> None:
    """It ends what is open, too: over that, everything might arrive before anybody is refused."""
    place.line.fault = Fault(unknown=True)
    place.pacs.cut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """`begin` before the scanner sends; `end` when the fault was seen, or at the end where it may stay."""

    name: str
    what: str  #: that happens, for the report
    begin: Callable[[Place], None]
    end: Callable[[Place], None] = Place.heal
    must_happen: int = 0  #: times that the fault must be seen before it is put right
    stays: bool = False  #: until everything has arrived
    held_back: bool = False  #: what is put right only when something is owed
    results_first: bool = False  #: results must arrive before the last image


def _faulty(fault: Callable[[], Fault]) -> Callable[[Place], None]:
    def begin(place: Place) -> None:
        place.line.fault = fault()

    return begin


DRILLS = (
    Drill(
        name="down",
        what="The PACS does not answer while the scanner sends; then it comes back.",
        begin=lambda place: place.pacs.stop(),
        end=lambda place: place.pacs.start(),
        held_back=True,
    ),
    Drill(
        name="slow",
        what=f"The PACS takes {SLOW_S:g} s for each answer. Results must pass the images that wait.",
        begin=_slow,
        stays=True,
        results_first=True,
    ),
    Drill(
        name="out of resources",
        what=f"The PACS answers 0xA700 to {TIMES} objects.",
        begin=_full,
        must_happen=TIMES,
    ),
    Drill(
        name="aborts in mid-file",
        what=f"The connection is lost {TIMES} times in the middle of a data set.",
        begin=_faulty(lambda: Fault(cuts=TIMES)),
        must_happen=TIMES,
    ),
    Drill(
        name="loses its answer",
        what=f"The PACS stores an object, and its answer is lost with the connection, {TIMES} times.",
        begin=_faulty(lambda: Fault(lost_answers=TIMES)),
        must_happen=TIMES,
    ),
    Drill(
        name="answers late",
        what=f"An answer comes after {LATE_S:g} s, where the appliance waits {TIMEOUT_S:g} s.",
        begin=_faulty(lambda: Fault(late_answers=1, late_s=LATE_S)),
        must_happen=1,
        stays=True,
    ),
    Drill(
        name="forgets us",
        what="The PACS refuses every association: calling AE title not recognised; then it knows us again.",
        begin=_forgetful,
        must_happen=1,
    ),
    Drill(
        name="one association",
        what="The PACS grants one association at a time.",
        begin=lambda place: place.restart(1),
        end=lambda place: place.restart(32),
        stays=True,
    ),
)
