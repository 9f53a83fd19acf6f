"""A stranger's network becomes an engine in the five steps of the README (Put in an engine); its finding, a result."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from pydicom import dcmread

from appliance import phantom
from appliance.engine_ops import Letterbox
from appliance.imaging import preprocess
from appliance.imaging.film import read_film
from appliance.imaging.headers import read_header
from appliance.imaging.render import COLOUR
from appliance.stages.report.codes import LUNG
from tests.acceptance.rig import ROOT, Appliance, Scanner, folder_destination, report_texts, settings
from tests.networks import CENTRE, INSERT, SCALE, film_of, volume_of, write_detector, write_segmenter
from tests.waiting import eventually

SIZE = 64
DENSE_FROM = 0.05  #: the mean of a film from which the network takes it for dense
VERIFIED_S = 90.0
RESULT_S = 90.0

MANIFEST = f"""
schema: 1
id: somebodys
version: 1.0.0
status: reference
title: Somebody's network
intended_use: To show how an engine is put in.
licence: theirs
author: Somebody
training_data: none
scope: instance
accepts:
  modality: [CR, DX]
  sop_class: [1.2.840.10008.5.1.4.1.1.1, 1.2.840.10008.5.1.4.1.1.1.1]
inputs:
  - {{name: their_input, dtype: float32, shape: [1, 1, {SIZE}, {SIZE}]}}
preprocess:
  - {{op: letterbox, size: {SIZE}}}
outputs:
  - {{name: their_output, dtype: float32, shape: [1, 2]}}
postprocess:
  op: label_scores
  scores: their_output
  labels: [dense, empty]
labels:
  dense:
    text: Dense film
    code: {{value: DENSE, scheme: 99SOMEBODY, meaning: Dense film}}
  empty:
    text: Empty film
    code: {{value: EMPTY, scheme: 99SOMEBODY, meaning: Empty film}}
golden:
  - {{case: golden/noise.npz, atol: 1.0e-4, rtol: 1.0e-4}}
model: model.onnx
"""


def their_network() -> bytes:
    """Scores of how dense, and how empty, a film is: nothing of it is ours but the file format."""
    weights = np.array([[40.0], [-40.0]], np.float32), np.array([-40.0, 40.0], np.float32) * DENSE_FROM
    nodes = [
        helper.make_node("GlobalAveragePool", ["their_input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "w", "b"], ["logits"], transB=1),
        helper.make_node("Sigmoid", ["logits"], ["their_output"]),
    ]
    image = helper.make_tensor_value_info("their_input", TensorProto.FLOAT, [1, 1, SIZE, SIZE])
    scores = helper.make_tensor_value_info("their_output", TensorProto.FLOAT, [1, 2])
    constants = [numpy_helper.from_array(array, name) for array, name in zip(weights, "wb", strict=True)]
    graph = helper.make_graph(nodes, "theirs", [image], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def put_in(folder: Path) -> None:
    """The five steps."""
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(their_network())  # 1
    manifest = MANIFEST  # 2
    film = np.random.default_rng(1).random((1, 1, SIZE, SIZE), np.float32)  # 3
    (scores,) = onnxruntime.InferenceSession(folder / "model.onnx").run(["their_output"], {"their_input": film})
    np.savez_compressed(folder / "golden" / "noise.npz", their_input=film, their_output=scores)
    (folder / "CARD.md").write_text("# Somebody's network\n\nTells dense films from empty ones. Not measured.\n")  # 4
    names = ("CARD.md", "golden/noise.npz", "model.onnx")  # 5
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "engine.yaml").write_text(manifest + yaml.safe_dump({"files": files}))


def expected(film: Path) -> float:
    """What the network says of a film, reckoned by hand."""
    image = preprocess.run([Letterbox(op="letterbox", size=SIZE)], read_film(read_header(film)).image, (1.0, 1.0)).image
    return float(1 / (1 + np.exp(-40 * (image.astype(np.float64).mean() - DENSE_FROM))))


@pytest.mark.promise("P8")
@pytest.mark.timeout(240)
def test_a_strangers_network_in_five_steps(work: Path) -> None:
    put_in(work / "engines" / "somebodys")
    config = settings(
        folder_destination("review", work / "review", takes=["sr"], accept_reference=True),
        engines_dir=str(work / "engines"),
        engines=[{"id": "somebodys", "mode": "publish"}],
    )
    with Appliance(work / "appliance", config) as appliance:
        listed = subprocess.run(
            [sys.executable, "-m", "appliance", "engines", "list", "--json", "--config", appliance.config_path],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=60,
        )
        assert listed.returncode == 0, listed.stdout
        (one,) = json.loads(listed.stdout)["engines"]
        assert (one["id"], one["valid"], one["mode"]) == ("somebodys", True, "publish")
        eventually(appliance.engines_serve, VERIFIED_S, "the engine passed its golden case")
        (film,) = phantom.write_cr(work / "film", seed=1).files
        Scanner(appliance).send([film])
        eventually(lambda: list((work / "review").glob("*.dcm")), RESULT_S, "the report is there")
        told = report_texts(next((work / "review").glob("*.dcm")))
        detail = appliance.query("SELECT outcome FROM job")[0]["outcome"]
    assert "Reference engine: 1 candidate to look at, no statement beyond" in told
    (finding,) = json.loads(detail)["findings"]
    assert finding["label"] == "dense"
    assert finding["score"] == pytest.approx(expected(film), abs=1e-3)
    assert finding["score"] > 0.5


@pytest.mark.promise("P8")
@pytest.mark.timeout(240)
def test_a_detector_and_a_segmenter_of_strangers_from_scanner_to_review(work: Path) -> None:
    """By declaration alone: a film's boxes, and a volume's parts patch by patch, reports and pictures."""
    for name, write in (("their-detector", write_detector), ("their-segmenter", write_segmenter)):
        write(work / "engines" / name, name)
    review = work / "review"
    config = settings(
        folder_destination("review", review, takes=["sr", "sc"], accept_reference=True),
        engines_dir=str(work / "engines"),
        engines=[{"id": "their-detector", "mode": "publish"}, {"id": "their-segmenter", "mode": "publish"}],
    )
    with Appliance(work / "appliance", config) as appliance:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines passed their golden cases")
        Scanner(appliance).send([*film_of(work / "studies"), *volume_of(work / "studies")])
        eventually(lambda: len(list(review.glob("*.dcm"))) == 4, RESULT_S, "two reports and two pictures are there")
        outcomes = [json.loads(row["outcome"]) for row in appliance.query("SELECT outcome FROM job")]
        results = [dcmread(path) for path in review.glob("*.dcm")]
    found = {outcome["engine"]["id"]: outcome["findings"] for outcome in outcomes}
    (plate,), (mass,) = found["their-detector"], found["their-segmenter"]
    assert plate["label"] == "plate"
    assert plate["box"] == pytest.approx(INSERT, abs=SCALE)
    assert mass["label"] == "mass"
    assert mass["centre_mm"] == pytest.approx(CENTRE, abs=0.6)
    reports = [result for result in results if result.Modality == "SR"]
    assert len(reports) == 2
    codes = [{element.value for element in one.iterall() if element.keyword == "CodeValue"} for one in reports]
    assert sorted(set.union(*codes) & {"PLATE", "MASS"}) == ["MASS", "PLATE"]
    assert LUNG.value not in set.union(*codes)  # nobody said where in the patient their findings are
    for picture in (result for result in results if result.Modality != "SR"):
        assert (picture.pixel_array == COLOUR).all(axis=2).any()  # the box of the finding
