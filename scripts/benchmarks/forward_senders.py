"""Who sends: our lane, DCMTK's storescu, pynetdicom, Orthanc's job, and a plain TCP stream as the ceiling."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config import DimseDestination
from appliance.dimse.header import part10
from benchmarks.forward_orthanc import Orthanc
from benchmarks.forward_place import Cargo, Looker, Pacs, algorithms, connections, plain_stream
from benchmarks.forward_queue import Queue
from benchmarks.report import BenchError
from benchmarks.rig import program, wait_until
from benchmarks.wan import NEAR, Wan

PYNETDICOM = Path(__file__).with_name("forward_pynetdicom.py")
SEND_S = 3600.0
KEPT_S = 5.0
QUIET_S = 30.0  # until a lane that rests lets go of its association: storescp serves one at a time
CUBIC, BBR, OWN = "cubic", "bbr", "its own"
#: What the kernel gives to whoever asks for nothing, while ours choose: nearly cubic, and may be set in a namespace.
UNASKED = "reno"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    name: str
    congestion: str = ""  #: set for it from outside; OWN: what it asks for itself; "": does not matter
    associations: int = 1
    nodelay: bool = True
    as_stored: bool = True  #: the PACS must have the very bytes
    once: bool = False  #: in the first round only: it is slow, and no goal depends on it

    @property
    def title(self) -> str:
        return f"{self.name}, {self.congestion}" if self.congestion else self.name


@dataclass(slots=True)
class Place:
    """What a sender is given to work with."""

    wan: Wan
    cargo: Cargo
    pacs: Pacs
    queue: Queue
    watched: bool  #: whether it matters how ours uses the line: to look costs the processor what a short run takes
    destinations: Mapping[str, str]  #: name of ours -> the destination that sends so, over this line to this PACS
    orthanc: Orthanc
    names: Mapping[Path, str]  #: of the files, in Orthanc
    chosen: str = ""  #: congestion control that ours had last
    connections: int = 0
    _known: frozenset[str] = field(default_factory=frozenset)

    def set_congestion(self, sender: Sender) -> None:
        if sender.congestion == OWN:
            self.wan.congest(NEAR, "")
            self.wan.default_congestion(NEAR, UNASKED)
        elif sender.congestion:
            self.wan.congest(NEAR, sender.congestion)

    def looker(self) -> Looker:
        self._known = self._known or algorithms(self.wan)
        return Looker(self.wan, self.pacs, self._known)


def send(sender: Sender, place: Place) -> float:
    """Everything once, to an empty PACS; in seconds. Raises BenchError where it does not hold all of it afterwards."""
    wait_until(lambda: not connections(place.wan, place.pacs), QUIET_S, "nobody is connected to the PACS")
    place.pacs.empty()
    place.set_congestion(sender)
    if sender.name == "plain TCP":
        return plain_stream(place.wan, place.cargo.bytes, place.chosen)
    if sender.name in place.destinations:
        seconds = _ours(place.destinations[sender.name], place)
    else:
        with place.wan.inside(NEAR):
            seconds = _peer(sender, place)
    _check(sender, place)
    return seconds


def _ours(destination: str, place: Place) -> float:
    """From the commit that lets the objects go to the one that knows the last of them delivered."""
    if not place.watched:
        return place.queue.drain(destination)
    looker = place.looker()
    seconds = place.queue.drain(destination, looker.look)
    looker.look(at_once=True)  # a lane lets go of its connections a little later
    place.chosen = looker.congestion or place.chosen
    place.connections = max(place.connections, looker.connections)
    return seconds


def _peer(sender: Sender, place: Place) -> float:
    if sender.name.startswith("storescu"):
        return _storescu(sender, place)
    if sender.name.startswith("pynetdicom"):
        return _pynetdicom(sender, place)
    names = [place.names[file] for file in place.cargo.files]
    return place.orthanc.send(names, place.pacs.host, place.pacs.port)


def storescu(pacs: Pacs, what: Path, *, nodelay: bool) -> "subprocess.Popen[bytes]":
    """Of a file or a folder, started where the calling thread is."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    environment |= {"TCP_NODELAY": "1"} if nodelay else {}
    titles = ["-aet", "BENCH", "-aec", "STORESCP"]
    command = [program("storescu"), "+sd", *titles, pacs.host, pacs.port, what]
    return subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(processes: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Raises BenchError where one has failed."""
    for process in processes:
        _, said = process.communicate(timeout=SEND_S)
        if process.returncode:
            last = said.decode(errors="replace").strip()[-300:]
            raise BenchError(f"storescu ended with status {process.returncode}: {last}")


def _storescu(sender: Sender, place: Place) -> float:
    folders = place.cargo.images.dealt(place.cargo.folder, sender.associations)
    begun = time.monotonic()
    finish([storescu(place.pacs, folder, nodelay=sender.nodelay) for folder in folders])
    return time.monotonic() - begun


def _pynetdicom(sender: Sender, place: Place) -> float:
    kind = sender.name.removeprefix("pynetdicom-")
    (folder,) = place.cargo.images.dealt(place.cargo.folder, 1)
    words = [sys.executable, str(PYNETDICOM), kind, place.pacs.host, str(place.pacs.port), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SEND_S, check=False)
    if done.returncode:
        raise BenchError(f"pynetdicom's sender failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def _check(sender: Sender, place: Place) -> None:
    """Each object is there; of ours, byte for byte."""
    wanted = len(place.cargo.files)
    wait_until(lambda: len(_kept(place.pacs)) >= wanted, KEPT_S, f"the PACS holds {wanted} objects of {sender.name}")
    if len(_kept(place.pacs)) != wanted:
        raise BenchError(f"the PACS holds {len(_kept(place.pacs))} objects of {sender.name}, {wanted} were sent")
    if (
        sender.name in place.destinations
        and sender.as_stored
        and place.pacs.name == "tuned"
        and _data_sets(_kept(place.pacs)) != _data_sets(place.cargo.files)
    ):
        raise BenchError("what the PACS holds is not what was sent")


def _kept(pacs: Pacs) -> list[Path]:
    return [path for path in pacs.folder.iterdir() if path.stat().st_size]


def _data_sets(files: Iterable[Path]) -> frozenset[tuple[str, str]]:
    found = []
    for file in files:
        stored = part10(file)
        content = file.read_bytes()[stored.data_set_offset :]
        found.append((stored.sop_instance_uid, hashlib.sha256(content).hexdigest()))
    return frozenset(found)


def has_option(name: str) -> bool:
    """Whether a destination of this version can be told so."""
    return name in DimseDestination.model_fields


def destination(name: str, pacs: Pacs, **changes: object) -> dict[str, object]:
    """Config of a lane to this PACS; options that this version does not have are left out."""
    options = {key: value for key, value in changes.items() if has_option(key)}
    common = {"name": name, "kind": "dimse", "host": pacs.host, "port": pacs.port, "called_ae": "STORESCP"}
    return {**common, "takes": ["image", "sr", "sc"], **options}


def peers(congestions: Sequence[str], compared: str = "") -> list[Sender]:
    """DCMTK's as it is and without Nagle's algorithm, over one and four associations; pynetdicom; Orthanc's job.

    Only with the congestion control that ours is `compared` in each round: cubic at 2 % loss takes minutes.
    """
    found = []
    for congestion in congestions:
        once = congestion != compared
        found += [
            Sender(name="storescu-nd", congestion=congestion, once=once),
            Sender(name="storescu-nd-x4", congestion=congestion, associations=4, once=once),
            Sender(name="storescu", congestion=congestion, nodelay=False, once=True),
            Sender(name="storescu-x4", congestion=congestion, associations=4, nodelay=False, once=True),
            Sender(name="pynetdicom-best", congestion=congestion, once=True),
            Sender(name="orthanc-nd", congestion=congestion, once=True),
        ]
    return found
