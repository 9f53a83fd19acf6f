"""Of cxr-acquisition's making: the rules in its graph, the faults that training draws, and the script that measures."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from tests.missing import missing

ROOT = Path(__file__).resolve().parent.parent.parent

if TYPE_CHECKING or importlib.util.find_spec("onnx") is not None:
    from cxr_training import bank, chests, faults, others
    from cxr_training.bank import Bank
    from cxr_training.picture import Picture, View
    from reference_engines import cxr_acquisition as graph


@pytest.fixture(autouse=True)
def needs_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        missing("onnx (extra dev) is not installed")


def said(likely: dict[str, float], *, flat_film: bool = False) -> dict[str, float]:
    """What the graph says where its network, of no weights but the last biases, finds these likelihoods."""
    flat = graph.CONVOLUTIONS[-1][1] * 16
    weights = {
        "hidden": np.zeros((graph.HIDDEN, flat), np.float32),
        "hidden_bias": np.zeros(graph.HIDDEN, np.float32),
        "scores": np.zeros((len(graph.LABELS), graph.HIDDEN), np.float32),
        "scores_bias": np.array(
            [math.log((p := likely.get(name, 0.1)) / (1 - p)) for name in graph.LABELS], np.float32
        ),
    }
    for index, (inputs, outputs, kernel, _) in enumerate(graph.CONVOLUTIONS):
        weights[f"conv{index}"] = np.zeros((outputs, inputs, kernel, kernel), np.float32)
        weights[f"conv{index}_bias"] = np.zeros(outputs, np.float32)
    session = onnxruntime.InferenceSession(graph.build(weights), providers=["CPUExecutionProvider"])
    film = np.zeros((1, 1, graph.FILM, graph.FILM), np.float32)
    film[..., : 0 if flat_film else graph.FILM // 2] = 1
    return dict(zip(graph.LABELS, (float(value) for value in session.run(None, {"film": film})[0][0]), strict=True))


@pytest.mark.parametrize("silencer", ["rotated", "lateral", "not_chest", "empty", "over_exposed"])
def test_of_what_is_no_upright_chest_no_side_is_named(silencer: str) -> None:
    found = said({silencer: 0.9, "lung_clipped_left": 0.9, "inverted": 0.8})
    assert found[silencer] == pytest.approx(0.9, abs=1e-4)
    assert found["lung_clipped_left"] == 0
    assert found["inverted"] == pytest.approx(0 if silencer in graph.NO_PATIENT else 0.8, abs=1e-4)


def test_what_is_unlikely_silences_nothing() -> None:
    found = said({"rotated": 0.39, "lung_clipped_left": 0.9, "lung_clipped_top": 0.7})
    assert found["lung_clipped_left"] == pytest.approx(0.9, abs=1e-4)
    assert found["lung_clipped_top"] == pytest.approx(0.7, abs=1e-4)


def test_a_flat_film_is_empty_whatever_the_network_takes_it_for() -> None:
    found = said({"over_exposed": 0.9, "not_chest": 0.9, "inverted": 0.9}, flat_film=True)
    assert found == {label: pytest.approx(float(label == "empty"), abs=1e-4) for label in graph.LABELS} | {
        "lateral": pytest.approx(0.1, abs=1e-4),
    }


def small_bank(rng: np.random.Generator) -> Bank:
    pictures: list[Picture] = [chests.frontal(rng), chests.lateral(rng), others.other(rng, []), others.empty(rng)]
    return Bank(
        images=np.stack([picture.image for picture in pictures]),
        view=np.array([bank.VIEWS.index(picture.view) for picture in pictures]),
        lungs=np.array([picture.lungs for picture in pictures]),
        whole=np.zeros(len(pictures), np.bool_),
        source=np.array(["drawn"] * len(pictures)),
        levels=np.tile(bank.LEVELS, (len(pictures), 1)),
    )


def test_a_lung_is_cut_where_the_films_edge_lies_within_it() -> None:
    rng = np.random.default_rng(3)
    pictures = small_bank(rng)
    left, top, right, bottom = pictures.lungs[0]
    size = {"right": right - left, "left": right - left, "top": bottom - top, "bottom": bottom - top}
    cut_off = 0
    for _ in range(400):
        case = faults.draw(rng, pictures, 0)
        gone = {"right": case.edges[0] - left, "top": case.edges[1] - top}
        gone |= {"left": right - case.edges[2], "bottom": bottom - case.edges[3]}
        for side, length in gone.items():
            other = {"right": "left", "left": "right"}.get(side, side) if case.mirrored else side
            truth = case.truth[f"lung_clipped_{other}"]
            assert math.isnan(truth) or (truth == 1) == (length / size[side] >= faults.LEAST_CUT)
            cut_off += truth == 1
    assert cut_off > 50


def test_each_view_is_told_from_the_others() -> None:
    rng = np.random.default_rng(4)
    pictures = small_bank(rng)
    expected = {View.LATERAL: "lateral", View.OTHER: "not_chest", View.EMPTY: "empty"}
    for index, view in enumerate(bank.VIEWS[code] for code in pictures.view):
        for _ in range(50):
            truth = faults.draw(rng, pictures, index).truth
            for label in expected.values():
                assert math.isnan(truth[label]) or truth[label] == (label == expected.get(view))


def test_the_figures_are_made_also_where_there_are_no_films(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "measure_cxr_acquisition.py"), "--data", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "RG1_UNCR_metastases.dcm: not there" in found.stdout
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:4] for line in found.stdout.splitlines() if line.startswith("|")
    }
    for fault in ("none", "negative", "right lung cut", "left lung cut", "turned by 180"):
        assert [cell.strip() for cell in rows[f"phantom: {fault}"]] == ["1", "1"]
