"""Which words may stand where: keys of each group and values of each choice, read off the models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

Place = tuple[str, ...]  #: a key path without list positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one place; `words` is empty where any text may stand."""

    description: str = ""
    words: tuple[str, ...] = ()


def outline(model: type[BaseModel]) -> Mapping[Place, Known]:
    """Every place a model describes. Alternatives (kinds of destinations) are joined."""
    places: dict[Place, Known] = {}
    for place, known in _walk(model, (), ""):
        before = places.get(place, Known())
        places[place] = Known(
            description=before.description or known.description,
            words=tuple(dict.fromkeys(before.words + known.words)),
        )
    return places


def _walk(annotation: Any, place: Place, description: str) -> Iterator[tuple[Place, Known]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, Known(description=description, words=tuple(annotation.model_fields))
        for name, field in annotation.model_fields.items():
            yield from _walk(field.annotation, (*place, name), field.description or "")
        return
    yield place, Known(description=description, words=_choices(annotation))
    if get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from _walk(inner, place, description)


def _choices(annotation: Any) -> tuple[str, ...]:
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return tuple(member.value for member in annotation)
    return tuple(str(value) for value in get_args(annotation)) if get_origin(annotation) is Literal else ()
