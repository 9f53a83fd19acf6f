"""How a message shows a value, and the nearest known word to a mistyped one."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 60


def shown(value: object) -> str:
    """The value as one short printable line: a config file may hold anything."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most like `word`, letter case ignored; None if none is alike enough (0..1)."""
    by_lower = {known.lower(): known for known in words}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None
