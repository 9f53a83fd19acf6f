"""The runtime child: a program that runs one engine for the process that started it, and knows nothing else.

Started by path, by whatever interpreter the configuration names (Python 3.10 on JetPack 6), so it imports only the
standard library, numpy and, beside it by path, the one runtime. It never imports the rest of the project. To build a
plan is a runtime, too: its model is the ONNX, its inputs are the shapes, and its output is the plan.

File descriptor 0 is a Unix stream socket. Both ways go messages of a 4-byte big-endian length and that many bytes of
JSON; arrays never travel in them but in memory files (memfd_create(2)) that the parent makes, sizes and seals, and
passes along with the request. One request, one answer, in this order:

    hello  settings of the runtime -> protocol, version, device
    load   sha256 [model file]     -> inputs, outputs: name, dtype, shape (-1: any length); device
    infer  deadline_s, room, keep, inputs: name, dtype, shape, offset [memory]
                                   -> outputs: name, dtype, shape; offsets; run_ms, note
    again  deadline_s              -> as `infer`
    fetch  offsets, one an output [memory]              -> the memory is filled
    quit                           -> and the child ends

`room` is where in the memory of `infer` outputs may be left, and how many bytes of them: if they fit, `offsets` says
where each is, else it is empty, and they are to be fetched. With `keep` the child holds on to that memory until the
next `infer`, and `again` is a run on what stands at the same places by then; if it leaves outputs of the same kinds at
the same places as the run before, its answer says neither.

Each answer has `ok`; where it is false, `reason` ("runtime", "model", "run", "memory") and `detail`. Anything
unforeseen ends the child with a traceback on stderr, which the parent reads. The end of the socket ends the child.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Protocol, Tuple, cast

import numpy as np
from numpy.typing import NDArray

PROTOCOL = 2
HEADER = struct.Struct(">I")
MAX_MESSAGE = 256 * 1024
AT_ONCE = 4096  # bytes of a message that are read in one go: as a rule, all
MAX_DETAIL = 500
MAX_NOTE = 200
MAX_WRITE = 1 << 30
ALIGNMENT = 64  # of arrays in a memory file: a cache line, and what vector instructions like
QUIET_S = 3.0
RUNTIMES = ("onnx", "tensorrt", "kserve")
BACKENDS = (*RUNTIMES, "plan_build")  # what builds plans is started, asked and limited like what runs them

_NICE = 10  # the child waits behind the processes that keep images
_NICE_AGAIN_S, _NICE_WITHIN_S = 0.03, 1.0
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38  # prctl(2)

Array = NDArray[np.generic]
Message = Dict[str, Any]


class Backend(Protocol):
    """One runtime. Raises ValueError for a model or input it cannot take, ConnectionError where it asks others and they
    are gone, RuntimeError or MemoryError for the rest.
    """

    version: str
    device: str
    deadline_s: float  #: set before each run: who asked waits no longer

    def load(self, model: bytes) -> Tuple[List[Message], List[Message]]:
        """Make the one engine ready; what its inputs and outputs are: name, dtype, shape (-1: any length)."""
        ...

    def run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        """What it returns need be good only until the next run, and so are the inputs: others take their place then.
        It leaves the dictionary as it is. A `note`, if it has one, says how the run went.
        """
        ...


class Refused(Exception):
    """A request that gets `ok: false` for an answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Wire:
    """Messages and descriptors over the socket; EOFError when the parent is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def receive(self) -> Tuple[Message, List[BinaryIO]]:
        files: List[BinaryIO] = []
        read = self._some(AT_ONCE, files)
        while len(read) < HEADER.size:
            read += self._some(HEADER.size - len(read), files)
        whole = HEADER.size + HEADER.unpack_from(read)[0]
        if not len(read) <= whole <= HEADER.size + MAX_MESSAGE:
            raise EOFError("the parent speaks another protocol")
        while len(read) < whole:
            read += self._some(whole - len(read), files)
        return json.loads(read[HEADER.size :]), files

    def send(self, message: Message) -> None:
        body = json.dumps(message).encode()
        self._socket.sendall(HEADER.pack(len(body)) + body)

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing is asked for so long."""
        return not select.select([self._socket], [], [], seconds)[0]

    def _some(self, most: int, files: List[BinaryIO]) -> bytes:
        part, fds, _, _ = socket.recv_fds(self._socket, most, 1)
        files += [os.fdopen(fd, "rb", buffering=0) for fd in fds]
        if not part:
            raise EOFError("the parent is gone")
        return part


class Places:
    """The memory that came with a request, and where in it arrays are."""

    def __init__(self, file: BinaryIO, inputs: List[Message], room: List[int]) -> None:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.inputs = {spec["name"]: _view(memory, spec, spec["offset"]) for spec in inputs}
        self._file = file
        self._room = room
        self._kinds: List[Tuple[str, Any, Tuple[int, ...]]] = []  # of what was left here last
        self._offsets: List[int] = []

    def leave(self, outputs: Dict[str, Array]) -> Message:
        """Put them in the room, if they fit; what there is to say of that."""
        kinds = [(name, array.dtype, array.shape) for name, array in outputs.items()]
        said: Message = {}
        if kinds != self._kinds or not self._offsets:
            self._kinds, self._offsets = kinds, self._fit(outputs)
            specs = [{"name": name, "dtype": dtype.name, "shape": shape} for name, dtype, shape in kinds]
            said = {"outputs": specs, "offsets": self._offsets}
        if self._offsets:
            for at, array in zip(self._offsets, outputs.values(), strict=True):
                write_array(self._file.fileno(), at, array)
        return said

    def _fit(self, outputs: Dict[str, Array]) -> List[int]:
        """Where each goes, one behind the other; [] where the room is too small."""
        offset, left = self._room
        offsets = []
        for array in outputs.values():
            offsets.append(offset)
            taken = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
            offset, left = offset + taken, left - taken
        return offsets if left >= 0 else []

    def close(self) -> None:
        self._file.close()


class Worker:
    """Answers requests with one backend, loaded at `hello`."""

    def __init__(self, runtime: str, threads: int) -> None:
        self._runtime = runtime
        self._threads = threads
        self._backend: Backend
        self._outputs: Dict[str, Array] = {}  # that are to be fetched
        self._kept: Optional[Places] = None
        self._do: Dict[str, Callable[[Message, List[BinaryIO]], Message]] = {
            "hello": self._hello,
            "load": self._load,
            "infer": self._infer,
            "again": self._again,
            "fetch": self._fetch,
        }

    def answer(self, request: Message, files: List[BinaryIO]) -> Message:
        try:
            return {"ok": True, **self._do[request["do"]](request, files)}
        except Refused as refused:
            return {"ok": False, "reason": refused.reason, "detail": str(refused)[:MAX_DETAIL]}
        except MemoryError as error:
            return {"ok": False, "reason": "memory", "detail": f"out of memory: {error}"[:MAX_DETAIL]}
        finally:
            for file in files:
                file.close()

    def _hello(self, request: Message, _files: List[BinaryIO]) -> Message:
        try:
            self._backend = _backend(self._runtime, self._threads, request.get("settings", {}))
        except ImportError as error:
            raise Refused("runtime", f"{self._runtime} cannot be used by {sys.executable}: {error}") from error
        except (RuntimeError, ConnectionError) as error:
            raise Refused("runtime", str(error)) from error
        return {"protocol": PROTOCOL, "version": self._backend.version, "device": self._backend.device}

    def _load(self, request: Message, files: List[BinaryIO]) -> Message:
        """What is hashed is what is run: the bytes are read once, and no runtime opens a file."""
        model = files[0].read()
        if hashlib.sha256(model).hexdigest() != request["sha256"]:
            raise Refused("model", "the model's bytes have another sha256")
        try:
            inputs, outputs = self._backend.load(model)
        except (ValueError, RuntimeError, ConnectionError) as error:
            raise Refused("model", f"cannot be loaded: {error}") from error
        return {"inputs": inputs, "outputs": outputs, "device": self._backend.device}

    def _infer(self, request: Message, files: List[BinaryIO]) -> Message:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        places = Places(files[0], request["inputs"], request["room"])
        if request["keep"]:
            self._kept = places
            files.clear()  # what is in there is closed after the answer
        return self._run(places, request["deadline_s"])

    def _again(self, request: Message, _files: List[BinaryIO]) -> Message:
        if self._kept is None:
            raise Refused("run", "nothing was kept to be run again")
        return self._run(self._kept, request["deadline_s"])

    def _run(self, places: Places, deadline_s: float) -> Message:
        self._backend.deadline_s = deadline_s
        start = time.perf_counter()
        try:
            outputs = self._backend.run(places.inputs)
        except ConnectionError as error:
            raise Refused("runtime", str(error)) from error
        except (ValueError, RuntimeError) as error:
            raise Refused("run", str(error)) from error
        run_ms = (time.perf_counter() - start) * 1000
        note = getattr(self._backend, "note", "")[:MAX_NOTE]
        said = places.leave(outputs)
        self._outputs = outputs if said.get("offsets") == [] else {}
        return {**said, "run_ms": run_ms, "note": note}

    def _fetch(self, request: Message, files: List[BinaryIO]) -> Message:
        outputs, self._outputs = self._outputs, {}
        for offset, array in zip(request["offsets"], outputs.values(), strict=True):
            write_array(files[0].fileno(), offset, array)
        return {}


def _view(memory: mmap.mmap, spec: Message, offset: int) -> Array:
    count = int(np.prod(spec["shape"], dtype=np.int64))
    flat: Array = np.frombuffer(memory, dtype=np.dtype(spec["dtype"]), count=count, offset=offset)
    return flat.reshape(spec["shape"])


def write_array(fd: int, offset: int, array: Array) -> None:
    """By system calls: a mapping would cost a page fault each 4 kB."""
    whole = np.ascontiguousarray(array)
    done = os.pwrite(fd, whole.data, offset) if whole.nbytes <= MAX_WRITE else 0
    while done < whole.nbytes:
        done += os.pwrite(fd, octets(whole)[done : done + MAX_WRITE].data, offset + done)


def octets(array: Array) -> NDArray[np.uint8]:
    """The bytes of a contiguous one, not copied."""
    return array.reshape(-1).view(np.uint8)


def _backend(runtime: str, threads: int, settings: Message) -> Backend:
    """The module beside this file. It and its neighbours find each other by their usual names, in packages made here
    of this folder alone: on sys.path it would hide others, and the rest of the project may need a newer Python.
    """
    for name, folders in (("appliance", []), ("appliance.runtimes", [str(Path(__file__).resolve().parent)])):
        package = types.ModuleType(name)
        package.__path__ = folders
        sys.modules.setdefault(name, package)
    module = importlib.import_module(f"appliance.runtimes.{runtime}")
    return cast(Backend, module.open_backend(threads, **settings))


def limit_run(memory_mb: int) -> None:
    """RLIMIT_DATA counts what is really written to, RLIMIT_AS would also count what CUDA and glibc only reserve."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_mb << 20 if most == resource.RLIM_INFINITY else min(memory_mb << 20, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _, cpu = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))  # who starts us has a limit for each of its steps
    wait_behind(_NICE)


def wait_behind(more: int) -> None:
    """Nicer by so much than who started us, and not only to our own threads.

    Where the kernel makes an autogroup of each session, and a child has a session of its own, `nice` weighs among the
    members of the group alone: the group has to be made nice as well (sched(7), "The autogroup feature"). It gets a
    tenth of what others get then, and all that they leave. To others than the root it is given once in 100 ms on the
    machine. Called before `confine`, which takes the right away.
    """
    with contextlib.suppress(OSError):
        os.nice(more)
    until = time.monotonic() + _NICE_WITHIN_S
    while time.monotonic() < until:
        try:
            Path("/proc/self/autogroup").write_text(str(_NICE))
        except BlockingIOError:
            select.select([], [], [], _NICE_AGAIN_S)  # the kernel tells nobody when it may be asked again
        except OSError:  # no such kernel, or no such right: nice alone has to do
            return
        else:
            return


def confine() -> None:
    """Give up what a child does not need; nothing here may fail it.

    It is the first to go when the machine is short of memory, leaves no core (pixels are patient data) and dies with
    the thread that started it. It stands in a folder where nobody can put a file, because ONNX Runtime looks there for
    weights that a model names and its hash does not cover.
    """
    os.chdir("/proc")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # a pipe in core_pattern ignores RLIMIT_CORE
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def give_memory_back() -> None:
    """What a run took, some hundred megabytes, glibc keeps for ever; between two studies others need it more."""
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def open_wire() -> Wire:
    """The socket that is stdin now; whatever a library reads from stdin later, it is not our protocol."""
    wire = Wire(socket.socket(fileno=os.dup(0)))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return wire


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs one engine; started by scanside, not by hand.")
    parser.add_argument("--runtime", choices=BACKENDS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    options = parser.parse_args()
    limit_run(options.memory_mb)
    confine()
    wire = open_wire()
    worker = Worker(options.runtime, options.threads)
    with contextlib.suppress(EOFError, ConnectionError):
        request, files = wire.receive()
        while request["do"] != "quit":
            wire.send(worker.answer(request, files))
            if wire.is_quiet(QUIET_S):
                give_memory_back()
            request, files = wire.receive()
        wire.send({"ok": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
