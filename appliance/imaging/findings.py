"""From a model's scores to findings: candidates for lesions, measured in the source images, and labels as they are.

A model that answers nonsense (NaN, a wrong shape, a score outside 0..1, a radius of a metre) gives RuntimeFailed and no
finding at all. Boxes are measured here, within the image, never taken from a model.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from appliance.engine_manifest import Label
from appliance.engine_ops import LabelScores, LesionCandidates
from appliance.imaging import blobs, candidates, outputs
from appliance.imaging.candidates import Candidate, ScoreVolume
from appliance.imaging.film import Film
from appliance.imaging.measure import REACH, Measured, Seed, ball, measure
from appliance.imaging.outputs import Outputs, Said, nonsense
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.volume import Volume
from appliance.model import Finding

MAX_RADIUS_MM = 100.0
LEARNT_REACH = 1.25  #: x radius: a lesion's own radius, unlike a filter's scale, has room for its lobes only
NEAR_MM = 3.0  #: a model's centre of a small lesion may be off by this
VALLEY = 0.5  #: of the lung's section in the sagittal plane, between two lungs


def lesion_candidates(
    op: LesionCandidates, labels: Mapping[str, Label], volume: Volume, image: ModelImage, answers: Outputs
) -> Said:
    """Ranked candidates, measured. Raises RuntimeFailed."""
    shape = (1, 1, *image.image.shape)
    said = ScoreVolume(
        score=outputs.scores(answers, op.score, shape)[0, 0],
        radius_mm=outputs.finite(answers, op.radius, shape)[0, 0],
        hu=image.image.astype(np.float32, copy=False),
        mask=image.masks[op.mask],
        voxel_mm=image.grid.spacing_mm,
    )
    if said.radius_mm.min() < 0 or said.radius_mm.max() > MAX_RADIUS_MM:
        raise nonsense(f"{op.radius} lies outside 0..{MAX_RADIUS_MM} mm")
    threshold = labels[op.label].threshold
    found = blobs.find(said, threshold) if op.learnt else candidates.find(said, threshold, op.solid_hu)
    middle = _middle_of(said.mask, image, volume) if _has_two_lungs(said.mask) else None
    findings: list[Finding] = []
    for candidate in found:
        finding = _lesion(op, candidate, volume, image, middle)
        if finding is not None and not _repeats(finding, findings):
            findings.append(finding)
    told = tuple(findings[: op.max_findings])
    lung_ml = float(np.count_nonzero(said.mask)) * float(np.prod(said.voxel_mm)) / 1000
    measures = {"candidates": float(len(told)), "lung_hull_ml": round(lung_ml)}
    return Said(findings=told, measures=measures, unlisted=len(findings) - len(told))


def label_scores(op: LabelScores, labels: Mapping[str, Label], source: Film | Volume, answers: Outputs) -> Said:
    """One finding for each label at or above its threshold; every score is a measure. Raises RuntimeFailed.

    That of a volume lies nowhere in it: it is put on the whole of its middle slice.
    """
    scores = outputs.scores(answers, op.scores, (1, len(op.labels)))[0]
    if isinstance(source, Film):
        (rows, columns), header = source.image.shape, source.header
    else:
        (_, rows, columns), header = source.hu.shape, source.stack.slices[len(source.stack.slices) // 2].header
    findings = []
    for name, value in zip(op.labels, scores, strict=True):
        left, top, right, bottom = op.regions.get(name, (0.0, 0.0, 1.0, 1.0))
        if value >= labels[name].threshold:
            box = (left * columns, top * rows, right * columns, bottom * rows)
            findings.append(Finding(label=name, score=float(value), sop_instance_uid=header.sop_instance_uid, box=box))
    findings.sort(key=lambda finding: -finding.score)
    measures = {name: round(float(value), 4) for name, value in zip(op.labels, scores, strict=True)}
    return Said(findings=tuple(findings), measures=measures)


def _lesion(
    op: LesionCandidates, candidate: Candidate, volume: Volume, image: ModelImage, middle_mm: float | None
) -> Finding | None:
    """Measured; None where there is nothing solid, or too little. Its side stays open where `middle_mm` is None."""
    seed = Seed(
        centre=image.grid.to_source(candidate.index),
        radius_mm=candidate.radius_mm,
        hull=image.masks[op.mask],
        grid=image.grid,
        reach=LEARNT_REACH if op.learnt else REACH,
    )
    measured = measure(volume, seed, op.solid_hu)
    if op.learnt and (measured is None or not _is_of(measured, seed, volume)):
        measured = ball(volume, seed)
    if measured is None or measured.long_axis_mm < op.min_diameter_mm:
        return None
    centre = volume.stack.to_patient(measured.centre)
    return Finding(
        label=op.label,
        score=round(min(candidate.score, 1.0), 4),
        sop_instance_uid=volume.stack.slices[measured.key_slice].header.sop_instance_uid,
        box=measured.box,
        laterality="" if middle_mm is None else "R" if centre[0] < middle_mm else "L",
        centre_mm=(round(centre[0], 1), round(centre[1], 1), round(centre[2], 1)),
        long_axis_mm=round(measured.long_axis_mm, 1),
        short_axis_mm=round(measured.short_axis_mm, 1),
        volume_mm3=round(measured.volume_mm3, 1),
    )


def _is_of(measured: Measured, seed: Seed, volume: Volume) -> bool:
    """Whether what was measured lies about the seed, and is no vessel in or beside a lesion that is not solid."""
    offset = np.subtract(measured.centre, seed.centre) * volume.voxel_mm
    near = np.linalg.norm(offset) <= max(0.5 * seed.radius_mm, NEAR_MM)
    return bool(near and measured.long_axis_mm >= seed.radius_mm)


def _repeats(finding: Finding, others: list[Finding]) -> bool:
    """Two peaks in one lesion: measured from either, it has the same centre to within half its short axis."""
    return any(
        np.linalg.norm(np.subtract(finding.centre_mm or (), other.centre_mm or ()))
        < 0.5 * max(finding.short_axis_mm or 0, other.short_axis_mm or 0)
        for other in others
    )


def _has_two_lungs(mask: NDArray[np.float32]) -> bool:
    """Whether the mask has a valley half-way across. The middle of a single lung says nothing of sides."""
    across = np.count_nonzero(mask > 0, axis=(0, 1))
    across = across[np.flatnonzero(across)[0] : np.flatnonzero(across)[-1] + 1]
    left, middle, right = np.split(across, [round(0.4 * across.size), round(0.6 * across.size)])
    if not (left.size and middle.size and right.size):
        return False
    return bool(middle.min() < VALLEY * min(left.max(), right.max()))


def _middle_of(mask: NDArray[np.float32], image: ModelImage, volume: Volume) -> float:
    """Where x in mm is half-way between the outermost lung columns: sides are told from there, not from the table."""
    columns = np.flatnonzero((mask > 0).any(axis=(0, 1)))
    middle = (0.0, 0.0, float(columns[0] + columns[-1]) / 2)
    return volume.stack.to_patient(image.grid.to_source(middle))[0]
