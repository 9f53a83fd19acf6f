"""An engine package, or weights that are no package yet, asked for the scores of a film as the appliance would."""

from pathlib import Path

import numpy as np
import onnxruntime
from reference_engines import cxr_acquisition

from appliance import engine_package
from appliance.engine_ops import LabelScores
from appliance.imaging import preprocess
from cxr_training.picture import Float
from cxr_training.trials import Trial


class Scorer:
    def __init__(self, package: Path, weights: Path | None) -> None:
        """Raises PackageInvalid. `weights` replace the package's model."""
        loaded = engine_package.load(package) if weights is None else engine_package.load_manifest(package)
        self.manifest = loaded.manifest
        model: bytes | str = str(loaded.model_path)
        self.name = f"cxr-acquisition {self.manifest.version}"
        if weights is not None:
            with np.load(weights, allow_pickle=False) as stored:
                model = cxr_acquisition.build({name: stored[name].astype(np.float32) for name in stored.files})
            self.name += f" with {weights.name}"
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        operation = self.manifest.postprocess
        if not isinstance(operation, LabelScores):
            raise TypeError(f"{package} gives no scores of labels")
        self.thresholds = {label: self.manifest.labels[label].threshold for label in operation.labels}

    def scores(self, film: Float) -> dict[str, float]:
        image = preprocess.run(self.manifest.preprocess, film, (float("nan"), float("nan"))).image
        values = self._session.run(None, {"film": np.asarray(image, np.float32)[None, None]})[0][0]
        return dict(zip(self.thresholds, (float(value) for value in values), strict=True))

    def said(self, scores: dict[str, float]) -> set[str]:
        return {label for label, value in scores.items() if value >= self.thresholds[label]}

    def expected(self, trial: Trial) -> set[str]:
        """What this engine, which may know fewer labels, should say; 0.1.0 had one label for all that is no chest."""
        known = {label for label in trial.expected if label in self.thresholds}
        if "not_frontal" in self.thresholds and trial.expected & {"rotated", "lateral", "not_chest", "empty"}:
            known.add("not_frontal")
        return known
