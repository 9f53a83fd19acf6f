"""What runs in the guest when its disk fails: writes begin to fail in mid-transfer, and later succeed again.

    python -m power_cuts.inside_failing --state DIR --mount DIR --device NAME --fault error_writes|drop_writes --after N

A line each: ACK for each Success, REFUSED for any other end of a C-STORE; FAULT once the disk fails, ENDED with the
exit status of the receive process, AGAIN once a new one was tried on the failing disk, HEALED once one runs on the disk
made whole, DONE. Commands: dm-flakey, kernel Documentation/admin-guide/device-mapper/dm-flakey.rst.
"""

import argparse
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.errors import DeliveryError
from power_cuts.controls import Alteration
from power_cuts.inside import SMALL, Receiving, Scanner, associate, configuration, image, say

DROP, ERROR = "drop_writes", "error_writes"
AFTER_HEALING = 20  # images
LIES = 40  # images that a disk which lies is sent
TRIES = 5  # on a failing disk
DOWN_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingDisk:
    """A device-mapper device that is a straight map of the disk, or fails all writes."""

    name: str
    mount: Path
    source: str = "/dev/ubda"
    node: str = "/dev/dm-0"  # there is no udev in the guest

    def fail(self, fault: str) -> None:
        """From now on; nothing that is dirty is written before."""
        self._load(f"flakey {self.source} 0 0 {DOWN_S} 1 {fault}")

    def heal(self) -> None:
        """As after a reboot with a good cable: unmounted, checked, mounted."""
        _run("busybox", "umount", str(self.mount))
        self._load(f"linear {self.source} 0")
        subprocess.run(["e2fsck", "-p", self.node], check=False, stdout=subprocess.DEVNULL)
        _run("busybox", "mount", "-t", "ext4", self.node, str(self.mount))

    def _load(self, table: str) -> None:
        size = subprocess.run(["busybox", "blockdev", "--getsz", self.source], capture_output=True, check=True).stdout
        _run("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        _run("dmsetup", "load", self.name, "--table", f"0 {int(size)} {table}")
        _run("dmsetup", "resume", "--noudevsync", self.name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insisting:
    """A scanner that tries again over a new association after each failure, and says what it was told."""

    folder: Path

    def send(self, tries: int, stopping: threading.Event) -> None:
        for _ in range(tries):
            if stopping.is_set():
                return
            try:
                self._send_one()
            except (DeliveryError, OSError):
                say("REFUSED by silence")
                stopping.wait(0.05)

    def _send_one(self) -> None:
        item, digest = image(self.folder, "insisting", random.randrange(*SMALL, 2))  # noqa: S311 - no secret
        with associate() as association:
            status = association.store(item).status
        say(f"ACK {item.sop_instance_uid} {digest}" if status == 0 else f"REFUSED {status:#06x}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--mount", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--fault", choices=(DROP, ERROR), required=True)
    parser.add_argument("--after", type=int, required=True, help="images before the fault")
    given = parser.parse_args()
    disk = FailingDisk(name=given.device, mount=given.mount)
    folder = Path(os.environ["TMPDIR"])
    start = partial(Receiving.start, configuration(given.state), Alteration.NONE)
    receiving = start()
    Scanner(folder=folder, told=lambda _: None, large=False).send(given.after)
    insisting, stopping = Insisting(folder=folder), threading.Event()
    if given.fault == DROP:
        disk.fail(given.fault)
        say("FAULT")
        insisting.send(LIES, stopping)
        say("DONE")
        return 0
    sender = threading.Thread(target=insisting.send, args=(1 << 30, stopping))
    sender.start()
    disk.fail(given.fault)
    say("FAULT")
    say(f"ENDED {receiving.status()}")
    stopping.set()
    sender.join()
    _try_again(start, insisting)
    disk.heal()
    receiving = start()
    say("HEALED")
    insisting.send(AFTER_HEALING, threading.Event())
    say("DONE")
    return receiving.stop()


def _try_again(start: Callable[[], Receiving], insisting: Insisting) -> None:
    """The supervisor's restart, while the disk still fails."""
    try:
        receiving = start()
    except SystemExit as error:
        say(f"AGAIN {error}")
        return
    insisting.send(TRIES, threading.Event())
    say(f"AGAIN {receiving.stop()}")


if __name__ == "__main__":
    sys.exit(main())
