"""Power cuts at random moments: a disk is written by the product in a guest, cut, examined, and perhaps used again."""

import random
from dataclasses import dataclass, replace

from power_cuts import RigError
from power_cuts.controls import Alteration, preload
from power_cuts.disk import is_half_full, make_ext4, mounted
from power_cuts.guest import TAIL, Boot, Guest, python_job
from power_cuts.ledger import Ledger, acknowledged
from power_cuts.trial import STATE, Tally, judge, without, workplace

MOUNT = "/bin/busybox mount -t ext4 /dev/ubda /run/disk || exit 1\n"
BOOT_S = 120.0
STARTING_S = (0.0, 0.7)  # from the start of the receive process to an early cut
EARLY_SHARE = 0.1  # of cuts that fall into the start


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The life of one disk: so many cuts, one after the other."""

    seed: str
    alteration: Alteration = Alteration.NONE
    cuts: int = 1
    associations: int = 3
    pause_ms: float = 0.0  #: between the images of an association
    sending_s: tuple[float, float] = (0.1, 1.6)  #: from the first ack to the cut, at random between these


class Moment:
    """When to cut: drawn at random, counted from the first ack or from the start of the receive process."""

    def __init__(self, rng: random.Random, life: Life) -> None:
        early = life.alteration is Alteration.NONE and rng.random() < EARLY_SHARE
        self._sign = b"BEGIN" if early else b"ACK "
        self._delay_s = rng.uniform(*(STARTING_S if early else life.sending_s))
        self._at_s: float | None = None

    def __call__(self, console: bytes, seconds: float) -> bool:
        if self._at_s is None and self._sign in console:
            self._at_s = seconds + self._delay_s
        return self._at_s is not None and seconds >= self._at_s


def live(life: Life) -> Tally:
    """Carry out one disk's life, in a worker. Raises RigError."""
    work = workplace()
    image = work / "disk.img"
    product = life.alteration is Alteration.NONE
    ledger: Ledger = {}
    total = Tally()
    for number in range(life.cuts):
        if number == 0 or _should_be_renewed(life):
            make_ext4(image)
            ledger = {}
        rng = random.Random(f"{life.seed}/{number}")  # noqa: S311 - no secret
        new = _cut(life, Moment(rng, life))
        ledger |= new
        tally, verdict = judge(image, ledger, work, product=product)
        ledger = without(ledger, verdict)
        total += replace(tally, acked=len(new))
    return total


def _cut(life: Life, moment: Moment) -> Ledger:
    work = workplace()
    arguments = ("--state", f"/run/disk/{STATE}", "--alteration", life.alteration)
    sending = ("--associations", str(life.associations), "--pause-ms", str(life.pause_ms))
    program = python_job("power_cuts.inside", *arguments, *sending, preload=preload(life.alteration))
    with Guest(Boot(job=MOUNT + program, disks=[work / "disk.img"]), work) as guest:
        reached = guest.listen(moment, BOOT_S)
        console = guest.cut()
    if not reached:
        raise RigError(f"the guest ended, or never came so far:\n{console[-TAIL:].decode('utf-8', 'replace')}")
    return acknowledged(console)


def _should_be_renewed(life: Life) -> bool:
    if life.cuts == 1:
        return False
    work = workplace()
    with mounted(work / "disk.img", work / "mount") as where:
        return is_half_full(where)
