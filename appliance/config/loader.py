"""Reads the configuration file: all of it or nothing, every error at once."""

from pathlib import Path

from pydantic import ValidationError

from appliance.config.crosschecks import cross_checks
from appliance.config.messages import explain, fault_path, format_problem
from appliance.config.models import Config
from appliance.config.outline import outline
from appliance.config.yaml_lines import Document, Problem, read_yaml
from appliance.errors import ConfigError

_MAX_BYTES = 1 << 20
_MAX_MESSAGES = 100
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def load(path: Path) -> Config:
    """The configuration in `path`, its own paths made absolute.

    Raises ConfigError with one message per error, in the order of the lines: `file:line: key.path: reason`.
    """
    document = read(path)
    problems, config = validated(document, path.absolute().parent)
    if problems or config is None:
        raise ConfigError(messages(path, problems))
    return config


def read(path: Path) -> Document:
    """The text and its lines; what is wrong with it is in `problems`."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        return _failed(1, f"cannot be read: {error.strerror}")
    if len(content) > _MAX_BYTES:
        return _failed(1, f"longer than {_MAX_BYTES} bytes: is this the configuration?")
    return _decoded(content)


def _decoded(content: bytes) -> Document:
    if content.startswith(_UTF_16):
        return _failed(1, "is UTF-16: save it as UTF-8")
    try:
        return read_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _failed(line, f"the byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8")


def _failed(line: int, text: str) -> Document:
    return Document(data=None, lines={}, problems=(Problem(line=line, path=(), text=text),))


def validated(document: Document, folder: Path) -> tuple[list[Problem], Config | None]:
    """What is wrong, and the configuration if nothing is; `folder` is where its relative paths start."""
    if document.data is None:
        return list(document.problems), None
    problems = [*document.problems, *cross_checks(document, folder)]
    unreadable = {problem.path for problem in problems}
    try:
        config = Config.model_validate(document.data, context={"folder": folder})
    except ValidationError as error:
        places = outline(Config)
        for fault in error.errors(include_url=False):
            path = fault_path(fault)
            if fault["type"] == "missing" and path in unreadable:
                continue  # it is there, and has its message
            problems.append(Problem(line=document.line_of(path), path=path, text=explain(fault, places)))
        return problems, None
    return problems, config


def messages(path: Path, problems: list[Problem]) -> list[str]:
    """One line each, in the order of the file."""
    problems = sorted(problems, key=lambda problem: problem.line)
    lines = [format_problem(str(path), problem) for problem in problems[:_MAX_MESSAGES]]
    left = len(problems) - _MAX_MESSAGES
    return [*lines, f"{path}: and {left} more"] if left > 0 else lines
