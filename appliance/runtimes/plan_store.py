"""Plans on the disk, and which of them fits: a plan is good for one model, one library, one GPU and one driver.

In the folder of an engine lie, for each key, `KEY.plan` and `KEY.json`, which tells in plain words what the plan was
built for, and its sha256. The key is a hash over all of that; names begin with its first 16 digits. Each file is
written under another name, synced and renamed, the plan first: whatever a power cut leaves is either good or refused by
`find`, and then built again. Two builds of one model differ, so a plan is only ever trusted by its own hash.
How much memory kernels may work in is a limit: a plan that was built under a tighter one than today's is good, too.

What TensorRT-RTX puts at the head of a plan was found by looking (no document tells it): so a plan that was cut short
or built by another version is known without a GPU. For TensorRT itself size and hash must do.
"""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.disk import make_folder, sync_folder, write_all
from appliance.errors import PlanRefused, StoreFailed
from appliance.ports import BuiltPlan

MAX_KEY_BYTES = 64 * 1024
RTX = " RTX"  #: at the end of a library version

_SHORT = 16  # digits of a key in a file name
_KINDS = (".plan", ".json")
_HEADER = struct.Struct("<4s4xI4xQ4B4xI")  # magic, format, bytes, version, compute capabilities
_MAGIC, _FORMAT = b"vtrt", 2
_MASK = {"SM75": 1, "SM80": 2, "SM86": 4, "SM89": 8, "SM120": 16, "SM121": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """All that a plan depends on."""

    onnx_sha256: str
    library: str  #: TensorRT's version, with RTX behind it where it is that
    gpu: str  #: its name; "" where the plan is for any with these compute capabilities
    compute_capabilities: tuple[str, ...]  #: SM87
    driver: str  #: its release, Jetson Linux's and the CUDA that it supports; "" as above
    system: str  #: operating system and processor
    profiles: Mapping[str, tuple[tuple[int, ...], ...]]  #: input -> least, best and largest shape
    precision: str  #: of the model's variant
    flags: tuple[str, ...]
    workspace_mb: int  #: that kernels may take at most, beside weights and tensors; 0: there is no limit to say
    builder: str  #: hash of the code that builds

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """As JSON has them, in which a tuple is a list."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts


class _Stored(BaseModel):
    """What `KEY.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    plan_sha256: str
    plan_bytes: Annotated[int, Field(ge=0)]
    target: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """The head of a plan of TensorRT-RTX."""

    size: int  #: bytes of the whole file
    version: str
    compute_capabilities: frozenset[str]

    @classmethod
    def of(cls, head: bytes) -> "PlanHeader":
        """Raises PlanRefused where it is none."""
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise PlanRefused("no plan of TensorRT-RTX: another file, or the beginning is missing")
        _, form, size, *version, mask = _HEADER.unpack_from(head)
        if form != _FORMAT:
            raise PlanRefused(f"a plan of format {form}; only {_FORMAT} is known")
        named = frozenset(name for name, bit in _MASK.items() if mask & bit)
        return cls(size=size, version=".".join(map(str, version)), compute_capabilities=named)


def keep(folder: Path, target: Target, plan: memoryview) -> BuiltPlan:
    """Write a plan, durably. Raises OSError, and then there is no plan under that key; PlanRefused for a wrong one."""
    path, key = _paths(folder, target.key)
    _check_header(path.name, bytes(plan[: _HEADER.size]), len(plan), target)
    digest = hashlib.sha256(plan).hexdigest()
    make_folder(folder)
    key.unlink(missing_ok=True)  # it described the plan before this one
    stored = _Stored(key=target.key, plan_sha256=digest, plan_bytes=len(plan), target=target.facts())
    _write(path, plan)
    _write(key, memoryview(f"{stored.model_dump_json(indent=2)}\n".encode()))
    return BuiltPlan(path=path, sha256=digest, key=target.key)


def find(folder: Path, target: Target) -> BuiltPlan:
    """The plan for just that, else one that differs only by less workspace; every byte of it checked.

    Raises PlanRefused, which says what is wrong.
    """
    try:
        return _checked(folder, target)
    except PlanRefused as error:
        for tighter in _tighter(folder, target):
            with suppress(PlanRefused):
                return _checked(folder, tighter)
        raise PlanRefused(str(error), target.key) from error


def drop(plan: BuiltPlan) -> None:
    """It was found wrong, and is found no more. Raises OSError, StoreFailed."""
    remove(plan.path.parent, (plan.path.with_suffix(".json"), plan.path))


def others(folder: Path, keys: Collection[str]) -> list[Path]:
    """Files of all plans but those of these keys, and of writes that were cut short; in the order to remove them.

    What has no name of ours, or is no file, is somebody else's. Nobody writes here meanwhile. Raises OSError.
    """
    kept = {f"{key[:_SHORT]}{kind}" for key in keys if key for kind in _KINDS}
    found = (path for path in folder.iterdir() if path.name not in kept and _is_ours(path))
    return sorted(found, key=lambda path: path.suffix)


def remove(folder: Path, files: Iterable[Path]) -> None:
    """In this order, durably: what tells about a plan first, for without it no plan is found.

    Raises OSError; StoreFailed where the sync failed.
    """
    for path in files:
        path.unlink(missing_ok=True)
    try:
        sync_folder(folder)
    except OSError as error:
        raise StoreFailed(f"{folder}: {error.strerror}") from error


def _is_ours(path: Path) -> bool:
    """Raises OSError."""
    is_cut_short = path.name.startswith(".") and path.suffix == ".new"
    return (path.suffix in _KINDS or is_cut_short) and stat.S_ISREG(path.lstat().st_mode)


def _checked(folder: Path, target: Target) -> BuiltPlan:
    path, key = _paths(folder, target.key)
    if not path.exists() and not key.exists():
        raise PlanRefused(_what_changed(folder, target))
    stored = _read_key(key)
    if stored.key != target.key or stored.target != target.facts():
        raise PlanRefused(f"{key.name} is of another plan, or was altered: it tells of something else than its name")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != stored.plan_bytes:
                raise PlanRefused(
                    f"{path.name} has {size} bytes and must have {stored.plan_bytes}: cut short, or another"
                )
            _check_header(path.name, file.read(_HEADER.size), size, target)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PlanRefused(f"{path.name} cannot be read: {error.strerror}") from error
    if digest != stored.plan_sha256:
        raise PlanRefused(f"{path.name} was altered: its sha256 is another")
    return BuiltPlan(path=path, sha256=digest, key=target.key)


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    """Of the plan, and of what tells about it."""
    return folder / f"{key[:_SHORT]}.plan", folder / f"{key[:_SHORT]}.json"


def _check_header(name: str, head: bytes, size: int, target: Target) -> None:
    if not target.library.endswith(RTX):
        return
    header = PlanHeader.of(head)
    if header.size != size:
        raise PlanRefused(f"{name} has {size} bytes, its head says {header.size}: cut short")
    if header.version != target.library.removesuffix(RTX):
        raise PlanRefused(f"{name} is of TensorRT-RTX {header.version}, not {target.library}: stale")
    if lacking := set(target.compute_capabilities) - header.compute_capabilities:
        raise PlanRefused(f"{name} is not for {', '.join(sorted(lacking))}: built for another GPU")


def _tighter(folder: Path, target: Target) -> Iterator[Target]:
    """The same with less workspace, as plans there have it; most first."""
    found = [facts.get("workspace_mb") for facts in _kept(folder)]
    limits = {limit for limit in found if isinstance(limit, int) and 0 < limit < target.workspace_mb}
    return (replace(target, workspace_mb=limit) for limit in sorted(limits, reverse=True))


def _kept(folder: Path) -> Iterator[dict[str, Any]]:
    """What the plans there were built for, as far as it can be read."""
    for path in sorted(folder.glob("*.json")):
        with suppress(PlanRefused):
            yield _read_key(path).target


def _read_key(path: Path) -> _Stored:
    try:
        with path.open("rb") as file:
            return _Stored.model_validate_json(file.read(MAX_KEY_BYTES))
    except OSError as error:
        raise PlanRefused(f"{path.name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise PlanRefused(f"{path.name} was altered: {error.errors(include_url=False)[0]['msg']}") from error


def _what_changed(folder: Path, target: Target) -> str:
    """Why none fits, where some are there: the fewest things in which one differs."""
    facts, nearest = target.facts(), None
    for found in _kept(folder):
        changed = [
            f"{name} was {found.get(name)!r}, is {now!r}{_why(name)}"
            for name, now in facts.items()
            if found.get(name) != now
        ]
        if nearest is None or len(changed) < len(nearest):
            nearest = changed
    if nearest is None:
        return "no plan was built yet"
    return f"the plan that is there is stale: {'; '.join(nearest) or 'its file has another name'}"


def _why(name: str) -> str:
    """A setting that is not called as what it changes."""
    return " (analyse.gpu_memory_mb allows no more)" if name == "workspace_mb" else ""


def _write(path: Path, content: memoryview) -> None:
    """Under another name, synced and renamed, so that the name is never that of half a file."""
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        try:
            write_all(fd, [content])
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
