"""What a technician reads: pydantic's error details turned into what is wrong and what to type instead."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from appliance.config.outline import Known, Place
from appliance.config.words import closest, shown
from appliance.config.yaml_lines import KeyPath, Problem

_MARKS = frozenset({"<dimse>", "<stow>", "<folder>", "[key]"})  #: of pydantic, not of the technician
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9.]+)\s*[A-Za-z%]+\s*")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    path: KeyPath
    value: Any
    limits: Mapping[str, Any]
    places: Mapping[Place, Known]

    @property
    def key(self) -> str:
        """The last key of the path, list positions left out."""
        return next((key for key in reversed(self.path) if isinstance(key, str)), "")

    @property
    def known(self) -> Known:
        return self.places.get(place_of(self.path), Known())


def place_of(path: KeyPath) -> Place:
    return tuple(key for key in path if isinstance(key, str))


def written(path: KeyPath) -> str:
    """The path as one word: destinations[0].when.modality; strange keys are quoted."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _PLAIN_KEY.fullmatch(key) else shown(key))
    return text or "file"


def fault_path(error: ErrorDetails) -> KeyPath:
    return tuple(key for key in error["loc"] if key not in _MARKS)


def explain(error: ErrorDetails, places: Mapping[Place, Known]) -> str:
    """One line: what is wrong with one value, and what to do."""
    fault = _Fault(path=fault_path(error), value=error["input"], limits=error.get("ctx", {}), places=places)
    text = _TEXTS.get(error["type"])
    return text(fault) if text else error["msg"]


def format_problem(file: str, problem: Problem) -> str:
    return f"{file}:{problem.line}: {written(problem.path)}: {problem.text}"


def suggestion(word: str, words: Iterable[str]) -> str:
    near = closest(word, words)
    return f"; did you mean '{near}'?" if near else ""


def _unknown_key(fault: _Fault) -> str:
    here = fault.places.get(place_of(fault.path[:-1]), Known()).words
    start = f"unknown key {shown(fault.key)}"
    if fault.key == "<<":
        return f"{start}: merging is not used here, write the keys out"
    if ":" in fault.key:
        return f"{start}: put a space after the colon"
    if closest(fault.key, here, cutoff=0.8):
        return start + suggestion(fault.key, here)
    elsewhere = [".".join(place[:-1]) for place in fault.places if len(place) > 1 and place[-1] == fault.key]
    if fault.key in fault.places[()].words:
        return f"{start} here; it belongs to the left margin: check the indentation"
    if elsewhere:
        return f"{start} here; it belongs under {' or '.join(elsewhere)}: check the indentation"
    return start + (suggestion(fault.key, here) or f"; known here: {', '.join(here)}")


def _missing(fault: _Fault) -> str:
    return f"missing; needed is: {fault.known.description}"


def _not_a_choice(fault: _Fault) -> str:
    words = fault.known.words
    end = suggestion(fault.value, words) if isinstance(fault.value, str) else ""
    choice = f"not one of {', '.join(words)}" if len(words) > 1 else f"not {words[0]}, the only choice"
    return f"{shown(fault.value)} is {choice}{end}"


def _no_commitment_but_of_nodes(fault: _Fault) -> str:
    if fault.key == "proof" and fault.value in ("commitment", "find"):
        return "only kind dimse can be asked to answer for what it keeps: write 'store', or leave the key out"
    return _not_a_choice(fault)


def _not_a_number(fault: _Fault, kind: str) -> str:
    unit = _NUMBER_AND_UNIT.fullmatch(fault.value) if isinstance(fault.value, str) else None
    if unit:
        return f"{shown(fault.value)} is no {kind}: leave the unit out, write {unit.group(1)}"
    return f"{shown(fault.value)} is no {kind}: write digits only"


def _not_a_list(fault: _Fault) -> str:
    if isinstance(fault.value, dict | str) and next(iter(fault.value), "").startswith("-"):
        return "must be a list: put a space after each '-'"
    if isinstance(fault.value, dict):
        return "must be a list: begin each entry with '- '"
    if not isinstance(fault.value, str):
        return f"must be a list, not {shown(fault.value)}"
    words = fault.known.words
    items = [closest(item.strip(), words) or item.strip() for item in fault.value.split(",")]
    return f"must be a list: write {fault.key}: [{', '.join(items)}]"[:200]


def _not_a_group(fault: _Fault) -> str:
    example = next(iter(fault.known.words), "default")
    if isinstance(fault.value, list):
        return f"must be a group of keys, not a list: remove the '-', write '{example}: ...' below"
    if fault.value is None:
        return f"an entry without keys: write '{example}: ...', or remove the '-'"
    return f"must be a group of keys such as '{example}: ...', not {shown(fault.value)}; a space after each colon?"


def _only_other_kind(fault: _Fault) -> str:
    return f"not used by this kind of destination ({fault.known.description}): remove it, or change 'kind'"


def _limit(text: str) -> Callable[[_Fault], str]:
    return lambda fault: f"{shown(fault.value)} {text.format(**fault.limits)}"


_TEXTS: Mapping[str, Callable[[_Fault], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown_key,
    "enum": _not_a_choice,
    "literal_error": _no_commitment_but_of_nodes,
    "none_required": _only_other_kind,
    "int_parsing": lambda fault: _not_a_number(fault, "whole number"),
    "int_parsing_size": lambda fault: _not_a_number(fault, "number of sensible size"),
    "int_type": lambda fault: _not_a_number(fault, "whole number"),
    "int_from_float": lambda fault: _not_a_number(fault, "whole number"),
    "float_parsing": lambda fault: _not_a_number(fault, "number"),
    "float_type": lambda fault: _not_a_number(fault, "number"),
    "finite_number": lambda fault: _not_a_number(fault, "number"),
    "bool_parsing": lambda fault: f"{shown(fault.value)}: write true or false",
    "bool_type": lambda fault: f"{shown(fault.value)}: write true or false",
    "greater_than": _limit("is too small: it must be more than {gt:g}"),
    "greater_than_equal": _limit("is too small: at least {ge:g}"),
    "less_than_equal": _limit("is too large: at most {le:g}"),
    "tuple_type": _not_a_list,
    "model_type": _not_a_group,
    "mapping_type": _not_a_group,
    "dict_type": _not_a_group,
    "string_type": lambda fault: f"must be one value, not {shown(fault.value)}",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": _limit("is too long: at most {max_length} characters"),
    "path_type": lambda fault: f"must be one path, not {shown(fault.value)}",
    "value_error": lambda fault: str(fault.limits["error"]),
}
