"""One thing that a person should know."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Something a person should know; `do` says what they can do about it."""

    what: str
    do: str = ""
