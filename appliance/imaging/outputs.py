"""A model's outputs as numbers that may be believed: there, of the right shape, finite, and scores within 0..1.

A model that answers nonsense gives RuntimeFailed and no finding at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import RuntimeFailed
from appliance.model import Finding, Reason

Outputs = Mapping[str, NDArray[np.generic]]
Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What an op made of the outputs: findings with the best first, and named numbers."""

    findings: tuple[Finding, ...]
    measures: dict[str, float]
    unlisted: int = 0  #: so many more at least would have been findings


def listed(findings: Sequence[Finding], most: int) -> tuple[Finding, ...]:
    """The first of each label, then as many others as make up `most`, in the order that they came in.

    No label pushes another out: of more labels than `most` each has its first all the same.
    """
    firsts: dict[str, int] = {}
    for number, finding in enumerate(findings):
        firsts.setdefault(finding.label, number)
    chosen = set(firsts.values())
    others = [number for number in range(len(findings)) if number not in chosen]
    chosen.update(others[: max(0, most - len(chosen))])
    return tuple(findings[number] for number in sorted(chosen))


def nonsense(what: str) -> RuntimeFailed:
    return RuntimeFailed(Reason.ENGINE_FAILED, f"the engine answered nonsense: {what}")


def given(outputs: Outputs, name: str) -> NDArray[np.generic]:
    """An output as it came. Raises RuntimeFailed where there is none."""
    if name not in outputs:
        raise nonsense(f"no {name}")
    return outputs[name]


def finite(outputs: Outputs, name: str, shape: tuple[int, ...]) -> Float:
    """Raises RuntimeFailed."""
    output = given(outputs, name)
    if output.shape != shape:
        raise nonsense(f"{name} has the shape {output.shape}, not {shape}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is told
        values = output.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise nonsense(f"{name} is not finite")
    return values


def scores(outputs: Outputs, name: str, shape: tuple[int, ...]) -> Float:
    """Raises RuntimeFailed."""
    values = finite(outputs, name, shape)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise nonsense(f"{name} lies outside 0..1")
    return values


def whole_numbers(outputs: Outputs, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Raises RuntimeFailed where they are none, or too large to be told apart as float32."""
    values = finite(outputs, name, shape)
    if values.size and (np.abs(values).max() >= 2**24 or (values != np.rint(values)).any()):
        raise nonsense(f"{name} holds other than small whole numbers")
    return values.astype(np.int64)
