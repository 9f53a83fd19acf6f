"""Reads a CT as the appliance does, with any model: the engine's preparation, ONNX Runtime, the engine's findings."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from reference_engines import ball_filter

from appliance import engine_package
from appliance.engine_manifest import Label
from appliance.engine_ops import CropToMask, LesionCandidates, LungHull, PreprocessOp, Resample
from appliance.imaging import findings, preprocess
from appliance.imaging.volume import Volume
from appliance.model import Finding
from ct_lesion_training.froc import Candidate

MOST = 50  #: candidates of a scan
FAINTEST = 0.2

FILTER_STEPS: tuple[PreprocessOp, ...] = (
    Resample(op="resample", spacing_mm=ball_filter.SPACING_MM),
    LungHull(op="lung_hull", output="lung", close_mm=12.0, min_ml=100.0),
    CropToMask(op="crop_to_mask", mask="lung", margin_mm=12.0, multiple_of=4),
)
FILTER_FINDINGS = LesionCandidates(op="lesion_candidates", score="score", radius="radius", mask="lung", label="lesion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A model with its preparation and findings; every candidate down to FAINTEST is told."""

    name: str
    session: onnxruntime.InferenceSession
    steps: tuple[PreprocessOp, ...]
    op: LesionCandidates
    labels: dict[str, Label]

    def read(self, volume: Volume) -> tuple[Finding, ...]:
        image = preprocess.run(self.steps, volume.hu, volume.voxel_mm)
        inputs = {"volume": image.image[None, None], "lung": image.masks["lung"][None, None]}
        inputs = {name: np.ascontiguousarray(array, np.float32) for name, array in inputs.items()}
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, inputs), strict=True))
        return findings.lesion_candidates(self.op, self.labels, volume, image, outputs).findings


def trained(package: Path, model: bytes, name: str) -> Reader:
    """The engine of a package with another model in it."""
    manifest = engine_package.load(package).manifest
    if not isinstance(manifest.postprocess, LesionCandidates):
        raise TypeError(f"{package} is no engine that finds lesions")
    return Reader(
        name=name,
        session=_session(model),
        steps=tuple(manifest.preprocess),
        op=manifest.postprocess.model_copy(update={"max_findings": MOST}),
        labels=_all_told(manifest.labels),
    )


def ball_filter_of(package: Path) -> Reader:
    """The engine as it was before it was trained: formulas only."""
    return Reader(
        name="filter",
        session=_session(ball_filter.build()),
        steps=FILTER_STEPS,
        op=FILTER_FINDINGS.model_copy(update={"max_findings": MOST}),
        labels=_all_told(engine_package.load(package).manifest.labels),
    )


def with_hu(volume: Volume, hu: NDArray[np.int16]) -> Volume:
    return replace(volume, hu=hu)


def candidates(found: tuple[Finding, ...], volume: Volume) -> list[Candidate]:
    """Centres in source indices; slices lie across the patient's long axis, rows and columns along x and y."""
    origin = np.array(volume.stack.to_patient((0, 0, 0)))
    axes = [np.array(volume.stack.to_patient(unit)) - origin for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    to_index = np.linalg.inv(np.stack(axes, 1))
    return [
        Candidate(score=finding.score, centre=tuple(to_index @ (np.array(finding.centre_mm) - origin)))
        for finding in found
    ]


def _all_told(labels: dict[str, Label]) -> dict[str, Label]:
    return {name: label.model_copy(update={"threshold": FAINTEST}) for name, label in labels.items()}


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
