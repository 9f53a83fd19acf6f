"""What the PACS holds, against what was sent and built: byte for byte, by SHA-256 of the data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.dimse.small_pacs import Received
from appliance.journal import lookup
from appliance.journal.store import Journal
from appliance.model import Instance, Job
from appliance.rehearsal.material import Material


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProof:
    sent: int  #: distinct SOP instances
    in_pacs: int
    missing: tuple[str, ...]  #: SOP Instance UIDs
    altered: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.missing and not self.altered


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultProof:
    """One result object: as it was built, and as the PACS has it."""

    engine: str
    kind: str
    sop_instance_uid: str
    size: int
    path: Path | None  #: in the PACS; None: it is not there
    byte_identical: bool


def prove_images(material: Material, received: Sequence[Received]) -> ImageProof:
    held = _by_uid(received)
    return ImageProof(
        sent=len(material.digests),
        in_pacs=sum(uid in held for uid in material.digests),
        missing=tuple(uid for uid in material.digests if uid not in held),
        altered=tuple(uid for uid, sha in material.digests.items() if uid in held and held[uid].sha256 not in sha),
    )


def prove_results(journal: Journal, jobs: Sequence[Job], received: Sequence[Received]) -> list[ResultProof]:
    held = _by_uid(received)
    return [
        _result(job.engine, instance, held.get(instance.sop_instance_uid))
        for job in jobs
        for instance in lookup.results_of(journal, job.id)
    ]


def resent(received: Sequence[Received]) -> int:
    """How many objects the PACS was sent more than once: at least once is the promise (P3)."""
    return sum(one.times > 1 for one in received)


def _result(engine: str, built: Instance, held: Received | None) -> ResultProof:
    return ResultProof(
        engine=engine,
        kind=built.kind,
        sop_instance_uid=built.sop_instance_uid,
        size=built.size,
        path=held.path if held else None,
        byte_identical=held is not None and held.digest == built.digest.hex(),
    )


def _by_uid(received: Sequence[Received]) -> Mapping[str, Received]:
    return {one.sop_instance_uid: one for one in received}
