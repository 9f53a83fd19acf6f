"""From a model's maps over a film to findings: regions, back through the letterbox to source pixels."""

from collections.abc import Mapping

import numpy as np

from appliance.engine_manifest import Label
from appliance.engine_ops import HeatMap
from appliance.imaging import outputs
from appliance.imaging.boxes import LEAST_SIDE
from appliance.imaging.components import Part, parts
from appliance.imaging.film import Film
from appliance.imaging.grid import Float
from appliance.imaging.outputs import Outputs, Said, given, listed, nonsense
from appliance.imaging.preprocess import ModelImage
from appliance.model import Finding

MAX_SIDE = 2048  #: of a map: as many elements as the largest film has pixels for a model
MOST_REGIONS = 256  #: of a label, the best, that are looked at

Box = tuple[float, float, float, float]


def heat_map(op: HeatMap, labels: Mapping[str, Label], film: Film, image: ModelImage, answers: Outputs) -> Said:
    """Regions of the maps, or one place for each label that the scores decide for; best first. Raises RuntimeFailed.

    The maps' resolution is what the model makes it: they are spread evenly over the image that it got.
    """
    maps = _maps(op, answers)
    decided = None if op.scores is None else outputs.scores(answers, op.scores, (1, len(op.labels)))[0]
    scores = maps.max(axis=(1, 2)) if decided is None else decided
    findings: list[Finding] = []
    for name, values, score in zip(op.labels, maps, scores, strict=True):
        threshold = labels[name].threshold
        if score < threshold:
            continue
        regions = parts(values >= threshold, MOST_REGIONS, values) if decided is None else []
        placed = [(region.weight, _box(region, values, film, image)) for region in regions]
        if decided is not None:
            placed = [(float(score), _at_the_peak(op.share, values, film, image))]
        findings += [
            Finding(label=name, score=round(weight, 4), sop_instance_uid=film.header.sop_instance_uid, box=box)
            for weight, box in placed
            if box is not None
        ]
    findings.sort(key=lambda finding: -finding.score)
    measures = {name: round(float(score), 4) for name, score in zip(op.labels, scores, strict=True)}
    told = listed(findings, op.max_findings)
    return Said(findings=told, measures=measures, unlisted=len(findings) - len(told))


def _at_the_peak(share: float, values: Float, film: Film, image: ModelImage) -> Box:
    """The whole film where the map points beside it: what the classifier decided is stated in any case."""
    (region,) = parts(values >= share * values.max(), 1, values)
    rows, columns = film.image.shape
    return _box(region, values, film, image) or (0.0, 0.0, float(columns), float(rows))


def _maps(op: HeatMap, answers: Outputs) -> Float:
    shape = given(answers, op.map).shape
    if len(shape) != 4 or shape[:2] != (1, len(op.labels)) or not all(0 < side <= MAX_SIDE for side in shape[2:]):
        raise nonsense(f"{op.map} has the shape {shape}, not (1, {len(op.labels)}, rows, columns)")
    maps: Float = outputs.scores(answers, op.map, shape)[0]
    return maps


def _box(part: Part, values: Float, film: Film, image: ModelImage) -> Box | None:
    """Of a region of a map in source pixels, clipped to the film; None where nothing of it lies on the film."""
    cells = np.array([[side.start for side in part.window], [side.stop for side in part.window]])
    low, high = image.grid.edges_to_source(cells * np.divide(image.image.shape, values.shape))
    (top, left), (bottom, right) = np.clip((low, high), 0, film.image.shape)
    if min(bottom - top, right - left) <= LEAST_SIDE:  # in the padding alone, but for a rounding error
        return None
    return (round(float(left), 2), round(float(top), 2), round(float(right), 2), round(float(bottom), 2))
