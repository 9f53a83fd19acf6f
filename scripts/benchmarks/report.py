"""What a benchmark says: rows of figures, goals beside what was measured, and notes a reader must know."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

Figure = str | float | int | None
AT_MOST, AT_LEAST = "at most", "at least"


class BenchError(Exception):
    """The benchmark cannot be run here, or what it runs broke down; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of one of the benchmark's tables; rows of a table have the same columns."""

    table: str
    name: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A promise in a number. NaN was not measured, and so is not met."""

    name: str
    limit: float
    measured: float
    unit: str
    sense: str = AT_MOST

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.sense == AT_MOST else self.measured >= self.limit

    @property
    def text(self) -> str:
        return f"{self.sense} {self.limit:g} {self.unit}".rstrip()

    @property
    def found(self) -> str:
        return f"{_shown(self.measured)} {self.unit}".rstrip()


@dataclass(slots=True)
class Report:
    """Filled by one benchmark."""

    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, table: str, name: str, **figures: Figure) -> None:
        self.rows.append(Row(table=table, name=name, figures=figures))

    def goal(self, name: str, limit: float, measured: float, unit: str = "") -> None:
        self.goals.append(Goal(name=name, limit=limit, measured=measured, unit=unit))

    def goal_at_least(self, name: str, limit: float, measured: float, unit: str = "") -> None:
        self.goals.append(Goal(name=name, limit=limit, measured=measured, unit=unit, sense=AT_LEAST))

    @property
    def met(self) -> bool:
        return all(goal.met for goal in self.goals)

    def as_json(self, facts: Mapping[str, Any]) -> str:
        value = {
            **facts,
            "rows": [
                {"table": row.table, "name": row.name} | {key: _finite(value) for key, value in row.figures.items()}
                for row in self.rows
            ],
            "goals": [
                {
                    "name": goal.name,
                    "goal": goal.limit,
                    "measured": _finite(goal.measured),
                    "met": goal.met,
                    "sense": goal.sense,
                    "unit": goal.unit,
                }
                for goal in self.goals
            ],
            "notes": self.notes,
        }
        return json.dumps(value, indent=1)

    def show(self, facts: Mapping[str, Any]) -> None:
        """Print tables for people."""
        console = Console()
        for table in dict.fromkeys(row.table for row in self.rows):
            console.print(_table(table, [row for row in self.rows if row.table == table]))
        goals = Table("goal", "wanted", "measured", "", title="goals", title_justify="left")
        for goal in self.goals:
            goals.add_row(goal.name, goal.text, goal.found, "met" if goal.met else "[bold red]MISSED[/]")
        console.print(goals)
        for note in self.notes:
            console.print(f"- {note}", markup=False, highlight=False)
        console.print(", ".join(f"{key} {value}" for key, value in facts["machine"].items()), markup=False)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _table(title: str, rows: Sequence[Row]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row.figures))
    table = Table("", title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(row.name, *(_shown(row.figures.get(column)) for column in columns))
    return table


def _shown(figure: Figure) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, float):
        return f"{figure:.4g}" if abs(figure) < 1000 else f"{figure:.0f}"
    return str(figure)


def _finite(figure: Figure) -> Figure:
    """JSON has no NaN."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure
