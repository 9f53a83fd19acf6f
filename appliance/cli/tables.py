"""What a command says: tables, lines and progress for people, one JSON document for machines, errors on stderr.

Colour, boxes and moving bars are for terminals only; elsewhere the same words come as plain aligned text.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    right: bool = False  #: numbers
    style: str = ""


class Output:
    """Where the words of one command go. With `as_json` people get nothing, and `document` is printed instead."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False, quiet=as_json)

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal and not self.as_json

    def document(self, value: object) -> None:
        """The one JSON document, for machines only."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
            sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(clean(text), style=style), soft_wrap=True)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
        """Rows under their headings; nothing where there are no rows."""
        cells = [[clean(str(value)) for value in row] for row in rows]
        if self.as_json or not cells:
            return
        if self.is_terminal:
            self._console.print(_boxed(columns, cells))
        else:
            for text in _aligned(columns, cells):
                self.line(text)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yields a function that takes how many are done, of how many; a bar on a terminal, nothing elsewhere."""
        if not self.is_terminal:
            yield lambda _done, _total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def phases(self) -> Iterator[Callable[[str, int, int], None]]:
        """As `progress`, of work in several phases: the function takes the name of the phase, too."""
        with self.progress("") as bar:
            if not self.is_terminal:
                yield lambda _phase, _done, _total: None
                return
            said = set[str]()

            def tell(phase: str, done: int, total: int) -> None:
                if phase not in said:
                    said.add(phase)
                    self.line(phase, style="dim")
                bar(done, total)

            yield tell

    @contextmanager
    def waiting(self) -> Iterator[Callable[[str], None]]:
        """Yields a function that tells each step as a line with the seconds so far; a spinner shows that it goes on."""
        begun = time.monotonic()
        with self._spinner() as spin:

            def tell(text: str) -> None:
                self.line(f"{time.monotonic() - begun:5.1f} s  {text}", style="dim")
                spin(text)

            yield tell

    @contextmanager
    def _spinner(self) -> Iterator[Callable[[str], None]]:
        if not self.is_terminal:
            yield lambda _: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as spinner:
            task = spinner.add_task("", total=None)
            yield lambda text: spinner.update(task, description=clean(text))


def complain(*lines: str) -> None:
    """Errors, on standard error, as plain text that a log may keep."""
    for line in lines:
        sys.stderr.write(clean(line, keep="\n") + "\n")


def clean(text: str, keep: str = "") -> str:
    """Without control characters: what a peer or a file name says must not steer the terminal."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def _boxed(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column.name, justify="right" if column.right else "left", style=column.style, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    rows = [[column.name for column in columns], *cells]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    return [
        GAP.join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def size_of(count: float) -> str:
    """Bytes in the unit that people read: 52.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span_of(ms: float) -> str:
    """A length of time in its largest unit: 3.2 s, 12 min, 5.0 h, 3.1 days."""
    seconds = ms / 1000
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{ms:.0f} ms"


def run_by(runtime: str, plan_sha256: str) -> str:
    """A runtime and its version, and the plan that it runs, by the first digits of its hash."""
    return f"{runtime}, plan {plan_sha256[:12]}" if plan_sha256 else runtime


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
