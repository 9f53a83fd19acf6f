"""YAML to plain groups, lists and texts, with the line of each. Never raises: what is wrong is in `problems`.

Every value stays the text that was typed: the models say which are numbers. So `mode: off` is the word off and
`ae_title: 0123` keeps its nought, which YAML 1.1 would turn into False and 83. Text, depth and number of values are
bounded, aliases counted as if written out, so that no file can exhaust the reader.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from appliance.config.words import shown

Key = str | int
KeyPath = tuple[Key, ...]
Value = dict[str, "Value"] | list["Value"] | str | None

_MAX_DEPTH = 16
_MAX_VALUES = 20_000
_NOTHING = frozenset({"", "~", "null", "Null", "NULL"})
_UNTAGGED = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:str"})
_NO_SPACE = re.compile(r"\s*(?:- +)*[A-Za-z_]+:[^\s/]")
_PEM = "-----BEGIN"
_CANNOT_STAND = {
    "\t": "a tab: use spaces to indent and to separate",
    "\u00a0": "a no-break space, as word processors make them: type an ordinary space",
    "\u201c": "a typographic quotation mark: type \" or '",
    "\u201d": "a typographic quotation mark: type \" or '",
}
_ADVICE = (
    (
        "mapping values are not allowed",
        "a ':' that cannot be here: indent like the line above, or quote the value",
    ),
    ("could not find expected ':'", "a key without a value: write 'key: value', with a space after the colon"),
    (
        "expected <block end>",
        "the indentation does not fit: keys that belong together start in one column",
    ),
    ("expected ',' or ']'", "a list opened here with '[' lacks a comma or its ']'"),
    ("expected ',' or '}'", "a group opened here with '{' lacks a comma or its '}'"),
    ("unexpected end of stream", "a quotation mark opened here is never closed"),
    ("unknown escape character", "a backslash between double quotes: use single quotes"),
    ("cannot start any token", "a value may not begin with this character: put it in quotes"),
    ("expected alphabetic or numeric", "a value that begins with '*' or '&' must be in quotes"),
    ("undefined alias", "a value that begins with '*' must be in quotes"),
    ("another document", "a second document starts here: remove the line '---'"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    line: int
    path: KeyPath
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a YAML text says; `data` is None where it could not be read as a group of keys."""

    data: dict[str, Value] | None
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]

    def line_of(self, path: KeyPath) -> int:
        """The line of the deepest part of `path` that stands in the text."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(text: str) -> Document:
    """Read one YAML document whose top level is a group of keys."""
    strangers = tuple(_characters_that_cannot_stand(text))
    if strangers:
        return Document(data=None, lines={}, problems=strangers)
    walk = _Walk()
    try:
        root = yaml.compose(text, Loader=_BoundedLoader)
        data = walk.value(root, ()) if root is not None else None
    except yaml.YAMLError as error:
        return Document(data=None, lines={}, problems=(_syntax_problem(error, text),))
    except (ValueError, OverflowError):  # PyYAML on escapes and versions that are no number it can take
        return _unusable("a backslash between double quotes stands for no character: use single quotes")
    if isinstance(data, dict):
        return Document(data=data, lines=walk.lines, problems=tuple(walk.problems))
    if data is None and not walk.problems:
        return _unusable("the file is empty: start from config/scanside.yaml")
    return _unusable("the file must hold lines 'key: value', with a space after the colon")


def _unusable(reason: str) -> Document:
    return Document(data=None, lines={}, problems=(Problem(line=1, path=(), text=reason),))


class _BoundedLoader(yaml.BaseLoader):
    """PyYAML's composer is recursive and unbounded; every plain value is a text to it."""

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.values += 1
        if self.depth > _MAX_DEPTH or self.values > _MAX_VALUES:
            raise _too_much(self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Walk:
    """Turns nodes into plain values, keeping the line of each key and the first of duplicate keys."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Value:
        self._values += 1
        if self._values > _MAX_VALUES or len(path) > _MAX_DEPTH:  # an alias may stand inside itself
            raise _too_much(node.start_mark)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _UNTAGGED:
            self._problem(node, path, f"the tag {shown(node.tag)} is not used here: remove the '!...'")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._group(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._text(node, path)

    def _text(self, node: yaml.Node, path: KeyPath) -> str | None:
        text = str(node.value)
        if _is_plain(node) and text in _NOTHING:
            return None
        wrong = ""
        if _PEM in text:
            wrong = "a certificate or key itself: put it into a file of its own, and that file's name here"
        elif not text.isprintable():
            wrong = "a line break or a character that cannot be printed: write plain text on one line"
        if wrong:
            self._problem(node, path, wrong)
        return None if wrong else text

    def _group(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Value]:
        group: dict[str, Value] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value or not key_node.value.isprintable():
                self._problem(key_node, path, "a key must be a word; a value with '{' or '[' in it needs quotes")
                continue
            key = key_node.value
            here = (*path, key)
            if key in group:
                self._problem(key_node, here, f"this key stands twice, first in line {self.lines[here]}: remove one")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            group[key] = self.value(value_node, here)
        return group

    def _problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(line=node.start_mark.line + 1, path=path, text=text))


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _too_much(mark: yaml.Mark) -> yaml.YAMLError:
    text = f"too deep or too long: at most {_MAX_DEPTH} levels and {_MAX_VALUES} values, aliases (*) written out"
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def _characters_that_cannot_stand(text: str) -> Iterator[Problem]:
    for number, line in enumerate(text.splitlines(), start=1):
        before_comment = line.partition("#")[0]
        for character, reason in _CANNOT_STAND.items():
            column = before_comment.find(character) + 1
            if column:
                yield Problem(line=number, path=(), text=f"column {column} has {reason}")


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem(line=line, path=(), text="a control character: is this a text file?")
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(line=1, path=(), text=shown(str(error)))
    said = error.problem or error.context or "not YAML"
    advice = next((advice for phrase, advice in _ADVICE if phrase in said), said)
    opened = "simple key" in (error.context or "") or "opened here" in advice
    mark = error.context_mark if opened and error.context_mark else error.problem_mark
    line = mark.line + 1 if mark else 1
    rows = text.splitlines()
    for number in (line, line - 1):
        if 0 < number <= len(rows) and _NO_SPACE.match(rows[number - 1]):
            return Problem(line=number, path=(), text="a space is missing after the colon: write 'key: value'")
    return Problem(line=line, path=(), text=" ".join(advice.split()))
