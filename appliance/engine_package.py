"""An engine package: a folder of data whose manifest names every file by its hash, checked before anything is used.

`load` promises (P8): what it returns has a manifest that agrees with itself, and a folder that holds exactly the
files the manifest lists, with exactly those bytes. It runs nothing and trusts nothing: the YAML is read without
tags, aliases or duplicate keys, links and special files are refused, and every size is bounded. All errors that can
be found are told at once, each as `engine.yaml:line: key.path: reason` or `file: reason`.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from appliance.engine_manifest import MAX_FILES, Files, KeyPath, Manifest, contradictions
from appliance.errors import PackageInvalid

MANIFEST = "engine.yaml"
SIGNATURE = "engine.sig"  #: over all the other files; may be there, and is not listed
MAX_MANIFEST_BYTES = 256 * 1024
MAX_NESTING = 16
MAX_FOLDER_DEPTH = 4
MAX_PACKAGE_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePackage:
    """A package whose every byte was checked when it was loaded (but see `load_manifest`)."""

    manifest: Manifest = field(compare=False)
    folder: Path
    package_sha256: str  #: of the manifest's bytes, which name every other file by its hash

    @property
    def key(self) -> str:
        return f"{self.manifest.id}@{self.manifest.version}"

    @property
    def model_path(self) -> Path:
        return self.folder / self.manifest.model

    @property
    def model_sha256(self) -> str:
        return self.manifest.files[self.manifest.model]

    def responsible_for(self, modality: str, sop_class_uid: str) -> bool:
        """Whether a study with such an instance must be concluded by this engine (P6)."""
        return modality in self.manifest.accepts.modality and sop_class_uid in self.manifest.accepts.sop_class


def load(folder: Path) -> EnginePackage:
    """Read and check a package. The folder itself may be a link (an activated version), nothing in it may.

    Raises PackageInvalid with every error found, one line each.
    """
    try:
        folder = folder.resolve(strict=True)
        raw = read_plain(folder / MANIFEST, MAX_MANIFEST_BYTES)
        document = _parse(raw)
        manifest, errors = _validate(document)
        errors += _file_errors(folder, document)
    except OSError as error:
        raise PackageInvalid(f"{error.filename or folder}: {error.strerror or error}") from error
    if manifest is None or errors:
        raise PackageInvalid("\n".join(errors))
    return EnginePackage(manifest=manifest, folder=folder, package_sha256=hashlib.sha256(raw).hexdigest())


def load_manifest(folder: Path) -> EnginePackage:
    """A package as its manifest describes it, its files not looked at: tells what the engine would be responsible for.

    Nothing of it may be run. Raises PackageInvalid where not even the manifest can be read or agrees with itself.
    """
    try:
        raw = read_plain(folder / MANIFEST, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise PackageInvalid(f"{error.filename or folder}: {error.strerror or error}") from error
    manifest, errors = _validate(_parse(raw))
    if manifest is None or errors:
        raise PackageInvalid("\n".join(errors))
    return EnginePackage(manifest=manifest, folder=folder, package_sha256=hashlib.sha256(raw).hexdigest())


def open_plain(path: Path) -> int:
    """A descriptor of a plain file: a link, or a pipe that would never end, is refused, and opening never blocks."""
    if path.is_symlink():
        raise PackageInvalid(f"{path.name}: links are refused")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise PackageInvalid(f"{path.name}: not a plain file")


def read_plain(path: Path, limit: int) -> bytes:
    with open(open_plain(path), "rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise PackageInvalid(f"{path.name}: over {limit} bytes")
    return raw


# The manifest's YAML, with the line of every key.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    data: Any
    lines: dict[KeyPath, int]

    def error(self, path: KeyPath, reason: str) -> str:
        """One message. The path may go further than the document does (a missing key): the nearest line counts."""
        known: KeyPath = ()
        for key in path:
            known = (*known, key) if (*known, key) in self.lines else known
        shown = ".".join(str(key) for key in path)
        return f"{MANIFEST}:{self.lines.get(known, 1)}: {shown}: {reason}" if shown else f"{MANIFEST}: {reason}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses aliases (ten lines can stand for gigabytes), tags and deep nesting while the tree is built."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if problem := self._problem(event):
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _problem(self, event: Any) -> str:
        if isinstance(event, yaml.AliasEvent):
            return "aliases are refused"
        if event.tag is not None:
            return "tags are refused"
        return "nested too deeply" if self.depth >= MAX_NESTING else ""


def _parse(raw: bytes) -> _Document:
    lines: dict[KeyPath, int] = {}
    try:
        loader = _StrictLoader(raw)
        try:
            node = loader.get_single_node()
            data = None if node is None else _build(loader, node, (), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise PackageInvalid(f"{MANIFEST}:{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise PackageInvalid(f"{MANIFEST}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise PackageInvalid(f"{MANIFEST}: must be a mapping of keys to values")
    return _Document(data=data, lines=lines)


def _build(loader: _StrictLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            if key in mapping:
                raise yaml.MarkedYAMLError(problem=f"{key} is there twice", problem_mark=key_node.start_mark)
            mapping[key] = _build(loader, value_node, (*path, key), lines)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return mapping
    try:
        return loader.construct_object(node)
    except (ValueError, ArithmeticError) as error:  # "2024-99-99", or digits without end
        raise yaml.MarkedYAMLError(problem=f"no such value: {error}", problem_mark=node.start_mark) from error


def _key(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=node.start_mark)


def _validate(document: _Document) -> tuple[Manifest | None, list[str]]:
    try:
        manifest = Manifest.model_validate(document.data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return None, [document.error(*_plain(document, item["loc"], item["type"], item["msg"])) for item in found]
    return manifest, [document.error(path, reason) for path, reason in contradictions(manifest)]


def _plain(document: _Document, location: KeyPath, kind: str, message: str) -> tuple[KeyPath, str]:
    """A pydantic error in our words. Its location also names union members, which are no keys of the document."""
    path: KeyPath = ()
    for key in location:
        path = (*path, key) if (*path, key) in document.lines else path
    if kind == "missing":
        return (*path, location[-1]), "is missing"
    if kind == "extra_forbidden":
        return path, "unknown key"
    return path, message.removeprefix("Value error, ")


# The files.


def _file_errors(folder: Path, document: _Document) -> list[str]:
    try:
        listed = TypeAdapter(Files).validate_python(document.data.get("files"))
    except ValidationError:
        return []  # told by _validate
    found, errors = survey(folder)
    errors += [document.error(("files", name), "no such file") for name in sorted(listed.keys() - found.keys())]
    errors += [f"{name}: not listed in files" for name in sorted(found.keys() - listed.keys())]
    if sum(found.values()) > MAX_PACKAGE_BYTES:
        return [*errors, f"the files are over {MAX_PACKAGE_BYTES} bytes together"]
    for name in sorted(listed.keys() & found.keys()):
        with open(open_plain(folder / name), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]:
                errors.append(document.error(("files", name), "altered: its sha256 is another"))
    return errors


def survey(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Sizes of the plain files below the folder, without hidden ones, manifest and signature; and what is none.

    Raises PackageInvalid where folders are nested too deeply, OSError.
    """
    found: dict[str, int] = {}
    errors: list[str] = []
    for count, entry in enumerate(_walk(folder, MAX_FOLDER_DEPTH)):
        if count > 2 * MAX_FILES:  # folders count too
            return found, [*errors, f"more than {MAX_FILES} files"]
        name = os.path.relpath(entry.path, folder)
        if entry.is_symlink():
            errors.append(f"{name}: links are refused")
        elif entry.is_file(follow_symlinks=False):
            found[name] = entry.stat(follow_symlinks=False).st_size
        elif not entry.is_dir(follow_symlinks=False):
            errors.append(f"{name}: not a plain file")
    found.pop(MANIFEST, None)
    found.pop(SIGNATURE, None)
    return found, errors


def _walk(folder: Path, depth: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            yield entry
            if entry.is_dir(follow_symlinks=False):
                if depth == 0:
                    raise PackageInvalid(f"{entry.name}: folders are nested too deeply")
                yield from _walk(Path(entry.path), depth - 1)
