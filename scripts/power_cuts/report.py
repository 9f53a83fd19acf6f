"""What a run of the rig says: rows of figures and goals, as a table for people or JSON for machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from power_cuts.trial import Tally

PROVED, HARMED, PROVES_NOTHING = 0, 1, 2  #: exit codes
_COLUMNS = (
    "trials",
    "acked",
    "lost",
    "torn",
    "half_visible",
    "unsound",
    "unclean",
    "starts_failed",
    "trials_with_loss",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`weight` is the exit code where it is missed."""

    name: str
    goal: str
    measured: int
    met: bool
    weight: int


@dataclass(slots=True)
class Report:
    """Filled trial by trial."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def product(self, name: str, tally: Tally) -> None:
        """Nothing may be lost, and something must have been at stake."""
        self._row(name, "product", tally)
        self._harmless(name, tally)
        self.at_least(f"{name}: acknowledged", 1, tally.acked)

    def replayed(self, name: str, tally: Tally, *, recorded: int, wanted: int) -> None:
        """As `product`, of crash points of a recording with so many acknowledged instances."""
        self._row(name, "product", tally, acked=recorded)
        self._harmless(name, tally)
        self.at_least(f"{name}: crash points", wanted, tally.trials)
        self.at_least(f"{name}: acknowledged in the recording", 1, recorded)

    def control(self, name: str, tally: Tally, acked: int | None = None) -> None:
        """It must lose something, or the rig sees nothing."""
        self._row(name, "control", tally, acked=acked)
        self.at_least(f"{name}: trials in which it lost what was acknowledged", 1, tally.trials_with_loss)

    def observed(self, name: str, tally: Tally) -> None:
        """Nothing is expected of it."""
        self._row(name, "observation", tally)

    def at_least(self, name: str, wanted: int, measured: int) -> None:
        """Without it the rig has proved nothing."""
        self._goal(
            Goal(name=name, goal=f">= {wanted}", measured=measured, met=measured >= wanted, weight=PROVES_NOTHING)
        )

    def none(self, name: str, measured: int) -> None:
        """A promise: 0 of this."""
        self._goal(Goal(name=name, goal="0", measured=measured, met=measured == 0, weight=HARMED))

    def sound(self, broken: int) -> None:
        """Every trial must have come to a result."""
        goal = Goal(name="trials that broke down", goal="0", measured=broken, met=not broken, weight=PROVES_NOTHING)
        self._goal(goal)

    @property
    def exit_code(self) -> int:
        """1 where something was lost or torn, 2 where nothing was proved, 0 where all goals are met."""
        missed = {goal.weight for goal in self.goals if not goal.met}
        return min(missed, default=PROVED)

    def as_json(self, facts: Mapping[str, Any]) -> str:
        goals = [{key: value for key, value in asdict(goal).items() if key != "weight"} for goal in self.goals]
        return json.dumps({**facts, "rows": self.rows, "goals": goals}, indent=1)

    def show(self, facts: Mapping[str, Any]) -> None:
        """Print tables for people."""
        console = Console()
        table = Table("", "trials", "acked", "lost", "torn", "other harm", "with loss", title="power cuts")
        for row in self.rows:
            other = sum(row[name] for name in ("half_visible", "unsound", "unclean", "starts_failed"))
            figures = (row["trials"], row["acked"], row["lost"], row["torn"], other, row["trials_with_loss"])
            table.add_row(f"{row['kind']}: {row['name']}", *map(str, figures))
        goals = Table("goal", "wanted", "measured", "", title="goals")
        for goal in self.goals:
            goals.add_row(goal.name, goal.goal, str(goal.measured), "met" if goal.met else "[bold red]MISSED[/]")
        console.print(table, goals)
        console.print(", ".join(f"{key} {value}" for key, value in facts.items()), markup=False, highlight=False)

    def _harmless(self, name: str, tally: Tally) -> None:
        self.none(f"{name}: acknowledged and lost", tally.lost)
        self.none(f"{name}: acknowledged and torn", tally.torn)
        self.none(f"{name}: any other harm", tally.harm - tally.lost - tally.torn)

    def _row(self, name: str, kind: str, tally: Tally, acked: int | None = None) -> None:
        figures = asdict(tally)
        if acked is not None:
            figures["acked"] = acked
        self.rows.append({"name": name, "kind": kind, **figures})

    def _goal(self, goal: Goal) -> None:
        self.goals.append(goal)
