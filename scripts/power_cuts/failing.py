"""A disk that begins to fail: every write and sync then ends in an error (dm-flakey error_writes), or is dropped.

Errors: after the first refusal nothing may be acknowledged until the disk is whole, the receive process must end as
latched, and then every promise from before and after must be kept. Dropped writes are the disk that lies: it says
"written" and has not; no software can tell, so promises are lost, and the trial shows that this rig would see it.
"""

import re
from dataclasses import dataclass, replace

from appliance.wiring.common import EX_LATCHED
from power_cuts import RigError
from power_cuts.disk import make_ext4
from power_cuts.guest import TAIL, Boot, Guest, python_job
from power_cuts.inside_failing import ERROR
from power_cuts.ledger import Ledger, acknowledged, words
from power_cuts.trial import STATE, Tally, judge, workplace

FAILS_S = 180.0
DEVICE = "failing"
MODULES = ("dm-mod", "dm-flakey")
_SET_UP = f"""
sectors=$(/bin/busybox blockdev --getsz /dev/ubda)
echo "0 $sectors linear /dev/ubda 0" | dmsetup create {DEVICE} --noudevsync || exit 1
/bin/busybox mount -t ext4 /dev/dm-0 /run/disk || exit 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """When the disk fails, and how: inside_failing.ERROR or DROP."""

    kind: str
    after: int  #: images that are acknowledged before


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the console of such a guest tells."""

    acked: Ledger
    false_acks: int  #: between the first refusal and the disk's recovery
    acked_after: int  #: once it was whole again
    refused: int
    ended_latched: bool


def course(console: bytes) -> Course:
    """Read the course of events from a console."""
    false_acks = acked_after = refused = 0
    ill = healed = False
    for word, ack in words(console):
        ill = (ill or word in ("REFUSED", "ENDED")) and word != "HEALED"
        healed = healed or word == "HEALED"
        refused += word == "REFUSED"
        false_acks += bool(ack) and ill
        acked_after += bool(ack) and healed
    return Course(
        acked=acknowledged(console),
        false_acks=false_acks,
        acked_after=acked_after,
        refused=refused,
        ended_latched=re.search(rb"^ENDED %d\r*$" % EX_LATCHED, console, re.MULTILINE) is not None,
    )


def fail(fault: Fault) -> tuple[str, Tally, Course]:
    """Let the disk fail in a guest, cut its power at the end, and judge what is there; in a worker.

    Returns the kind of fault too. Raises RigError.
    """
    work = workplace()
    disk = work / "disk.img"
    make_ext4(disk)
    program = python_job(
        "power_cuts.inside_failing",
        *("--state", f"/run/disk/{STATE}", "--mount", "/run/disk", "--device", DEVICE),
        *("--fault", fault.kind, "--after", str(fault.after)),
    )
    with Guest(Boot(job=_SET_UP + program, disks=[disk], modules=MODULES), work) as guest:
        done = guest.listen(lambda console, _: b"\nDONE" in console, FAILS_S)
        console = guest.cut()
    if not done:
        raise RigError(
            f"the failing disk's guest did not come to its end:\n{console[-TAIL:].decode('utf-8', 'replace')}"
        )
    events = course(console)
    tally, _ = judge(disk, events.acked, work, product=fault.kind == ERROR)
    return fault.kind, replace(tally, acked=len(events.acked)), events
