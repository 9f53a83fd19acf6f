"""What runs in the guest: our receive process on the guest's disk, and senders over loopback that keep the ledger.

One line `ACK <SOP Instance UID> <SHA-256 of the data set>` goes to the console, unbuffered, for each Success. The
console is a pipe to the host: the ledger lies outside the store, and outlives the guest. Beside them runs what the
forward process does in the field, checkpoints of the journal, at smaller sizes, so that cuts meet them too.

    python -m power_cuts.inside --state DIR [--alteration WORDS] [--associations N] [--count N] [--marks NAME]
"""

import argparse
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from appliance.config import Config
from appliance.dimse.header import Part10
from appliance.dimse.requestor import RequestedAssociation, connect
from appliance.dimse.wire import Target
from appliance.errors import OutOfResources, ScansideError
from appliance.file_head import file_head
from appliance.journal.store import Journal
from appliance.life import READY, Life
from appliance.wiring import receive
from appliance.wiring.common import EX_FAILED
from power_cuts.controls import Alteration, alter
from power_cuts.write_log import ACK, START

PORT = 11112
SCANNER, HERE = "CT01", "SCANSIDE"
CT_IMAGE, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
SMALL, LARGE = (1 << 10, 1 << 13), (1 << 20) + (1 << 18)  # bytes; a large one is written back while it comes
LARGE_EVERY = 40
#: Of WAL. Smaller than the product's, so that it comes within a second to where it is in the field after hours: the WAL
#: is overwritten in place, and its sync commits nothing else of the file system.
CHECKPOINT_BYTES, RESTART_BYTES, TRUNCATE_BYTES = 1 << 17, 1 << 19, 4 << 20
UPKEEP_EVERY_S = 0.1


def configuration(state: Path, port: int = PORT) -> Config:
    """The appliance's, with one scanner and one destination, to which everything is owed and nothing is sent."""
    return Config.model_validate(
        {
            "state": state,
            "receive": {"port": port, "peers": [{"ae_title": SCANNER, "address": "127.0.0.1", "slots": 8}]},
            "reserve": {"free_mb": 4, "free_inodes": 16, "journal_mb": 1},
            "destinations": [
                {
                    "name": "pacs",
                    "kind": "dimse",
                    "host": "127.0.0.1",
                    "port": 104,
                    "called_ae": "PACS",
                    "takes": ["image"],
                }
            ],
        }
    )


def say(line: str) -> None:
    """One whole line in one write, past all buffers."""
    os.write(1, f"{line}\n".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving:
    """The receive process: a child of ours that runs the product's own entry."""

    pid: int

    @classmethod
    def start(cls, config: Config, alteration: Alteration) -> "Receiving":
        """Returns when it takes associations. Forked, not spawned: an import costs a second in here."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os._exit(_receive(config, alteration, theirs.detach()))
        theirs.close()
        while (word := ours.recv(1)) != READY:
            if not word:
                raise SystemExit(f"receive ended at its start: {cls(pid=pid).status()}")
        ours.detach()  # stays open: the process ends when nobody holds the other end of its line
        return cls(pid=pid)

    def stop(self) -> int:
        """Returns its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.status()

    def status(self) -> int:
        """Waits for its end."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _receive(config: Config, alteration: Alteration, line: int) -> int:
    """The receive process, as the daemon runs it; nothing may leave it, for it is a fork of its parent."""
    try:
        alter(alteration)
        life = Life(line)
        life.stop_on_signals()
        return receive.run(config, life)
    except (ScansideError, OSError) as error:
        say(f"receive: {error}")
        return EX_FAILED
    except BaseException:
        traceback.print_exc()
        return 1


def image(folder: Path, series: str, size: int) -> tuple[Part10, str]:
    """A new CT image of one's own in a file, and the SHA-256 of its data set."""
    uid = f"2.25.{uuid4().int}"
    data = b"".join(
        (
            _element(0x0008, 0x0016, b"UI", CT_IMAGE.encode()),
            _element(0x0008, 0x0018, b"UI", uid.encode()),
            _element(0x0008, 0x0060, b"CS", b"CT"),
            _element(0x0010, 0x0020, b"LO", b"RIG"),
            _element(0x0020, 0x000D, b"UI", series.encode()),
            _element(0x0020, 0x000E, b"UI", f"{series}.1".encode()),
            struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OW", size) + os.urandom(size),
        )
    )
    head = file_head(CT_IMAGE, uid, EXPLICIT, SCANNER)
    path = folder / series
    path.write_bytes(head + data)
    stored = Part10(
        path=path,
        data_set_offset=len(head),
        size=len(data),
        sop_class_uid=CT_IMAGE,
        sop_instance_uid=uid,
        transfer_syntax_uid=EXPLICIT,
    )
    return stored, hashlib.sha256(data).hexdigest()


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def associate() -> RequestedAssociation:
    target = Target(host="127.0.0.1", port=PORT, calling_ae=SCANNER, called_ae=HERE)
    return connect(target, [(CT_IMAGE, EXPLICIT)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """One association after the other, each of one series."""

    folder: Path
    told: Callable[[str], None]  #: hears of each acknowledged UID
    large: bool = True  #: some large images among the small ones
    pause_s: float = 0.0  #: after each image, as scanners make one
    next_one: threading.Event = field(default_factory=threading.Event)  #: ends a pause early

    def send(self, count: int) -> None:
        """So many images over one association. Raises DeliveryError; SystemExit where one is refused."""
        series = f"2.25.{uuid4().int}"
        with associate() as association:
            for number in range(count):
                big = self.large and number % LARGE_EVERY == LARGE_EVERY // 2
                size = LARGE if big else random.randrange(*SMALL, 2)  # noqa: S311 - no secret
                item, digest = image(self.folder, series, size)
                status = association.store(item).status
                if status != 0:
                    raise SystemExit(f"refused with {status:#06x}")
                say(f"ACK {item.sop_instance_uid} {digest}")
                self.told(item.sop_instance_uid)
                self.next_one.wait(self.pause_s)


def upkeep(journal: Journal, stopping: threading.Event) -> None:
    """Checkpoints, as the forward process makes them, until told to stop: when the WAL has outgrown its last size."""
    checkpointed = 0
    while not stopping.wait(UPKEEP_EVERY_S):
        size = journal.wal_bytes()
        if size < CHECKPOINT_BYTES or size == checkpointed:
            continue
        with suppress(OutOfResources):  # somebody wrote for long: next time
            journal.checkpoint()
            checkpointed = size
            if size > RESTART_BYTES:
                journal.checkpoint(restart=True, truncate=size > TRUNCATE_BYTES)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    """A thread whose failure ends the guest's program: a rig that half works proves nothing."""

    def guarded() -> None:
        try:
            work()
        except (ScansideError, OSError, SystemExit, subprocess.SubprocessError) as error:
            say(f"SENDER FAILED {error}")
            os._exit(1)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    return thread


def mark(device: str, text: str) -> None:
    """Put a mark into the log of dm-log-writes."""
    subprocess.run(["dmsetup", "message", device, "0", "mark", text], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--alteration", type=Alteration, default=Alteration.NONE)
    parser.add_argument("--associations", type=int, default=3)
    parser.add_argument("--count", type=int, default=1 << 30, help="images per association")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="between the images of an association")
    parser.add_argument("--marks", default="", help="device of dm-log-writes in whose log each ack becomes a mark")
    given = parser.parse_args()
    if given.marks:
        mark(given.marks, START)
    say("BEGIN")
    receiving = Receiving.start(configuration(given.state), given.alteration)
    say("START")
    journal, stopping = Journal(configuration(given.state).journal_path, "upkeep"), threading.Event()
    keeping = in_thread(lambda: upkeep(journal, stopping))
    told = (lambda uid: mark(given.marks, ACK + uid)) if given.marks else (lambda _: None)
    scanner = Scanner(
        folder=Path(os.environ["TMPDIR"]), told=told, large=not given.marks, pause_s=given.pause_ms / 1000
    )
    senders = [in_thread(lambda: scanner.send(given.count)) for _ in range(given.associations)]
    for sender in senders:
        sender.join()
    stopping.set()
    keeping.join()
    return receiving.stop()


if __name__ == "__main__":
    sys.exit(main())
