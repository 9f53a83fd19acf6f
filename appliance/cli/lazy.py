"""Commands that are imported when they are called, so that `--help` and the light ones need not wait for the heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives: a module with a Typer `app` that has it, and what the list of commands says of it."""

    module: str
    summary: str


class LazyCommand(TyperCommand):
    """Stands for a command in the list; becomes the real one as soon as it is called or asked for help."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.summary, rich_markup_mode=None)
        self.entry = entry

    def load(self) -> Any:
        group = typer.main.get_group(import_module(self.entry.module).app)
        return group.commands[str(self.name)]

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """The context of the real command, whose parser and callback then take over."""
        return self.load().make_context(*arguments, **options)


class LazyGroup(TyperGroup):
    """A group of lazy commands; a subclass gives the table."""

    table: Mapping[str, Entry] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: LazyCommand(name, entry) for name, entry in self.table.items()})
