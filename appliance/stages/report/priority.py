"""From findings to a priority, by the site's own rules: never in a model, never lowered (P7)."""

from collections.abc import Iterable
from typing import Protocol

from appliance.model import Outcome, Priority


class PriorityRule(Protocol):
    """One line of the config's `priorities`."""

    @property
    def engine(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def min_score(self) -> float: ...
    @property
    def priority(self) -> str: ...


def priority(outcome: Outcome, rules: Iterable[PriorityRule]) -> Priority:
    """URGENT if one finding meets one rule that says so, else ROUTINE.

    A rule can only raise: nothing an engine says sends a study behind others. A late outcome counts as any other,
    since this is the order of sending, and holding it back would only make it later.
    """
    urgent = (rule for rule in rules if rule.engine == outcome.engine.id and Priority(rule.priority) is Priority.URGENT)
    met = any(f.label == rule.label and f.score >= rule.min_score for rule in urgent for f in outcome.findings)
    return Priority.URGENT if met else Priority.ROUTINE
