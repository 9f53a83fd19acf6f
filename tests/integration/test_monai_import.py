"""scripts/import_monai_bundle.py: a bundle of MONAI's form becomes a package, and what cannot be mapped is told."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import import_monai_bundle
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from appliance import engine_package
from appliance.engine_ops import Letterbox, Window
from appliance.imaging import preprocess

SCRIPT = Path(import_monai_bundle.__file__)
SIZE = 64
CLASSES = ("Normal", "Effusion", "Pneumothorax, large")


def network(channels: int = 1, opset: int = 17, outputs: int = len(CLASSES)) -> onnx.ModelProto:
    """Logits that tell an upright film from one that lies on its side: means of the top, of the left, and of all."""
    weights = np.zeros((outputs, channels, SIZE, SIZE), np.float32)
    weights[0, :, :, : SIZE // 2] = 1  # MONAI's arrays are (columns, rows): this is the upper half of the film
    if outputs > 1:
        weights[1, :, : SIZE // 2] = 1
    weights /= SIZE * SIZE / 8
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, SIZE, SIZE])
    pred = helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", outputs])
    nodes = [helper.make_node("Conv", ["image", "w"], ["map"]), helper.make_node("Flatten", ["map"], ["pred"])]
    graph = helper.make_graph(nodes, "net", [image], [pred], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


METADATA: dict[str, Any] = {
    "version": "0.3.1",
    "name": "Effusion on chest radiographs",
    "task": "Classification of chest radiographs",
    "description": "A network of a test.",
    "authors": "Somebody",
    "copyright": "Copyright (c) Somebody",
    "data_source": "made up",
    "intended_use": "None.",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "modality": "CR",
                "num_channels": 1,
                "spatial_shape": [SIZE, SIZE],
                "dtype": "float32",
                "value_range": [-1, 1],
                "is_patch_data": False,
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "probabilities",
                "format": "labels",
                "num_channels": 3,
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": False,
                "channel_def": {str(index): name for index, name in enumerate(CLASSES)},
            }
        },
    },
}
EVIL = "$__import__('pathlib').Path('{}').touch()"
INFERENCE: dict[str, Any] = {
    "imports": ["$import os"],
    "bundle_root": "/workspace/bundle",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "size": [SIZE, SIZE],
    "network_def": {"_target_": "DenseNet121", "spatial_dims": 2},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "monai.transforms.Resized", "keys": "image", "spatial_size": "@size"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": 0,
                "a_max": 255,
                "b_min": -1.0,
                "b_max": 1.0,
                "clip": True,
            },
            {"_target_": "DataStatsd", "keys": "image", "_disabled_": True},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
}


@dataclass
class Made:
    """A bundle on disk; `metadata` and `inference` may be altered before `write`."""

    folder: Path
    metadata: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(METADATA)))
    inference: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(INFERENCE)))
    model: bytes | None = field(default_factory=lambda: bytes(network().SerializeToString()))

    def write(self) -> Path:
        for name, content in (("metadata", self.metadata), ("inference", self.inference)):
            path = self.folder / "bundle" / "configs" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                path.write_text(json.dumps(content))
        (self.folder / "bundle" / "models").mkdir(exist_ok=True)
        if self.model is not None:
            (self.folder / "bundle" / "models" / "model.onnx").write_bytes(self.model)
        return self.folder / "bundle"

    def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.inference["preprocessing"]["transforms"]
        return steps

    def form(self, side: str) -> dict[str, Any]:
        tensor: dict[str, Any]
        (tensor,) = self.metadata["network_data_format"][side].values()
        return tensor


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Import = Callable[..., Done]


@pytest.fixture
def imported(capsys: pytest.CaptureFixture[str]) -> Import:
    """The script's own `main`, in this process."""

    def run(made: Made, *more: str) -> Done:
        status = import_monai_bundle.main([str(made.write()), "--to", str(made.folder / "effusion"), *more])
        return Done(status, *capsys.readouterr())

    return run


@pytest.mark.promise("P8")
def test_a_bundle_becomes_a_package_that_says_what_the_network_says(made: Made, imported: Import) -> None:
    done = imported(made, "--body-part", "CHEST", "--view", "PA", "--threshold", "0.4")
    assert done.returncode == 0, done.stderr
    assert "Normal is left out" in done.stdout
    assert "letterbox: keeps the film's proportions" in done.stdout
    package = engine_package.load(made.folder / "effusion")
    manifest = package.manifest
    assert (manifest.id, manifest.version, manifest.status) == ("effusion", "0.3.1", "reference")
    assert manifest.preprocess == (
        Letterbox(op="letterbox", size=SIZE),
        Window(op="window", low=0.0, high=1.0),
    )
    assert list(manifest.labels) == ["effusion_0", "pneumothorax_large_1"]
    assert {label.threshold for label in manifest.labels.values()} == {0.4}
    assert manifest.accepts.body_part == ("CHEST",)
    assert "Copyright (c) Somebody" in (made.folder / "effusion" / "CARD.md").read_text()

    film = np.zeros((SIZE, SIZE), np.float32)  # rows, columns
    film[: SIZE // 2] = 1
    given = preprocess.run(manifest.preprocess, film, (1.0, 1.0)).image.astype(np.float32)[None, None]
    (tensor,) = manifest.inputs
    (scores,) = onnxruntime.InferenceSession(package.model_path).run(None, {tensor.name: given})
    # As MONAI would: columns before rows, from 0..255 to -1..1, softmax over all three.
    (logits,) = onnxruntime.InferenceSession(network().SerializeToString()).run(
        None, {"image": film.T[None, None] * 2 - 1}
    )
    wanted = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(scores, wanted[:, 1:], atol=1e-5)


def test_rows_first_repeated_channels_percentiles_and_a_norm(made: Made, imported: Import) -> None:
    steps = made.steps()
    steps[0] |= {"reader": "ITKReader", "reverse_indexing": True}
    steps[3:4] = [
        {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "RepeatChanneld", "repeats": 3},
        {"_target_": "NormalizeIntensityd", "subtrahend": [0.5, 0.5, 0.5], "divisor": [0.25, 0.25, 0.25]},
    ]
    made.form("inputs")["num_channels"] = 3
    made.model = network(channels=3).SerializeToString()
    assert imported(made).returncode == 0
    package = engine_package.load(made.folder / "effusion")
    assert [op.op for op in package.manifest.preprocess] == ["letterbox", "percentile_window"]
    film = np.random.default_rng(3).random((1, 1, SIZE, SIZE), np.float32)
    (scores,) = onnxruntime.InferenceSession(package.model_path).run(None, {package.manifest.inputs[0].name: film})
    wanted = np.repeat((film - 0.5) / 0.25, 3, axis=1)
    (logits,) = onnxruntime.InferenceSession(network(channels=3).SerializeToString()).run(None, {"image": wanted})
    np.testing.assert_allclose(scores, (np.exp(logits) / np.exp(logits).sum())[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "swaps"),
    [
        ({}, True),
        ({"reader": "ITKReader"}, True),
        ({"reader": "ITKReader", "reverse_indexing": True}, False),
        ({"reader": "PILReader"}, True),
        ({"reader": "PILReader", "reverse_indexing": False}, False),
        ({"reader": "PydicomReader", "swap_ij": False}, False),
    ],
)
def test_the_order_of_axes_is_that_of_the_reader(
    made: Made, imported: Import, options: dict[str, object], swaps: bool
) -> None:
    made.steps()[0].update(options)
    assert imported(made).returncode == 0
    kinds = [node.op_type for node in onnx.load(made.folder / "effusion" / "model.onnx").graph.node]
    assert ("Transpose" in kinds) is swaps


@pytest.mark.promise("P9")
def test_nothing_of_the_bundle_is_evaluated(made: Made, imported: Import) -> None:
    touched = made.folder / "touched"
    made.inference["imports"] = [EVIL.format(touched)]
    made.inference["initialize"] = [EVIL.format(touched)]
    made.steps()[3]["a_max"] = EVIL.format(touched)
    done = imported(made)
    assert done.returncode == 1
    assert "ScaleIntensityRange: a_max is" in done.stderr
    assert "not a number" in done.stderr
    assert not touched.exists()
    assert not (made.folder / "effusion").exists()


def spleen(made: Made) -> None:
    """As MONAI's own bundle for the spleen on CT."""
    made.form("inputs").update(modality="CT", spatial_shape=[96, 96, 96], format="hounsfield")
    made.form("outputs").update(format="segmentation", spatial_shape=[96, 96, 96])
    made.steps()[2:3] = [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    ]
    made.steps()[4].update(a_min=-57, a_max=164, b_min=0)
    made.inference["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96]}


def no_model(made: Made) -> None:
    made.model = None
    made.write()
    (made.folder / "bundle" / "models" / "model.ts").write_bytes(b"PK")


def altered(**options: Any) -> Callable[[Made], None]:
    return lambda made: made.steps()[3].update(options)


def as_yaml(made: Made) -> None:
    said, made.inference = made.inference, {}
    (made.write() / "configs" / "inference.yaml").write_text(yaml.safe_dump(said))


def in_a_circle(made: Made) -> None:
    made.inference |= {"size": "@other", "other": "@size"}


def two_outputs(made: Made) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 3, 1, 1]))
    made.model = model.SerializeToString()


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (
            spleen,
            [
                "modality 'CT': only radiographs",
                "Orientation: no op of ours",
                "Spacing: no op of ours",
                "from -57 to 164",
                "SlidingWindowInferer: no op of ours",
                "'segmentation': label_scores reads a vector",
            ],
        ),
        (no_model, ["model.onnx cannot be read", "there is model.ts", "python -m monai.bundle onnx_export"]),
        (lambda made: made.steps()[0].update(reverse_indexing=True), ["nothing without the reader's name"]),
        (altered(clip=False), ["clip is not true"]),
        (altered(a_max=4095), ["from 0 to 4095: our film is what is meant to be seen"]),
        (altered(_target_="SomethingNewd"), ["SomethingNew: no op of ours does that", "what range the network wants"]),
        (in_a_circle, ["lead round in a circle"]),
        (as_yaml, ["inference.json cannot be read", "there is inference.yaml: save it as JSON"]),
        (two_outputs, ["1 inputs and 2 outputs"]),
        (lambda made: setattr(made, "model", b"PK"), ["no sound ONNX"]),
        (lambda made: setattr(made, "model", network(opset=11).SerializeToString()), ["opset 11: export it with 13"]),
        (lambda made: setattr(made, "model", network(outputs=2).SerializeToString()), []),
        (lambda made: made.inference["postprocessing"]["transforms"].clear(), ["no Activations"]),
        (lambda made: made.form("outputs")["channel_def"].update({"7": "x"}), ["not every channel once"]),
        (lambda made: made.form("outputs").update(channel_def={"0": "Normal"}, num_channels=1), ["no channel is left"]),
        (lambda made: made.metadata.pop("network_data_format"), ["names 0 tensors"]),
    ],
)
def test_what_cannot_be_mapped_is_told_and_nothing_is_written(
    made: Made, imported: Import, alter: Callable[[Made], object], words: list[str]
) -> None:
    alter(made)
    done = imported(made)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be imported:" in done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert not (made.folder / "effusion").exists()
    assert [path.name for path in made.folder.iterdir()] == ["bundle"]


def test_a_folder_that_is_there_is_not_touched(made: Made, imported: Import) -> None:
    (made.folder / "effusion").mkdir()
    done = imported(made)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert list((made.folder / "effusion").iterdir()) == []


def test_its_help_teaches() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for words in ("examples:", "After it:", "onnx_export", "Exit codes", "--leave-out"):
        assert words in done.stdout
