"""What an engine found, beside what had been planted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.model import Finding, Job
from appliance.phantom import Nodule

SLACK_MM = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One finding, and by whom."""

    engine: str
    rank: int  #: 1 = the engine's first
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    nodule: Nodule
    found: Said | None
    distance_mm: float | None  #: from centre to centre


def said(jobs: Sequence[Job]) -> list[Said]:
    """All findings of these jobs."""
    return [
        Said(engine=job.engine, rank=rank, finding=finding)
        for job in jobs
        if job.outcome is not None
        for rank, finding in enumerate(job.outcome.findings, 1)
    ]


def compare(planted: Sequence[Nodule], findings: Sequence[Said]) -> list[Planted]:
    """For each planted nodule the best ranked finding whose centre lies in it, or within SLACK_MM of it."""
    left = [one for one in findings if one.finding.centre_mm is not None]
    compared = []
    for nodule in planted:
        reach = nodule.diameter_mm / 2 + SLACK_MM
        near = next((one for one in left if _distance(nodule, one.finding) <= reach), None)
        if near is not None:
            left.remove(near)
        distance = _distance(nodule, near.finding) if near else None
        compared.append(Planted(nodule=nodule, found=near, distance_mm=distance))
    return compared


def _distance(nodule: Nodule, finding: Finding) -> float:
    return math.dist(nodule.centre_mm, finding.centre_mm or (math.inf,) * 3)
