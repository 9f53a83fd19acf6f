"""Networks that are not ours, packaged by declaration alone, in the real runtime: film or volume in, result out.

Each network is made here of plain nodes and looks at what it is given, so that its findings must lie where the test
put something; each package must pass its own golden case.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from appliance.engine_package import EnginePackage
from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.imaging import analysis, golden, render
from appliance.imaging.analysis import Prepared, Reading
from appliance.imaging.reading import IN_PROCESS
from appliance.model import Conclusion, EngineIdentity, Finding, Outcome, Reason
from appliance.ports import Array
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings
from appliance.stages.report.codes import ABNORMAL_STRUCTURE, LUNG
from appliance.stages.report.context import Label, ReportContext
from appliance.stages.report.picture import build_picture
from appliance.stages.report.sr import build_sr
from tests.sources import write_film, write_volume
from tests.strangers import Network, write_package

SIDE = 64  #: of what the film networks take
ROWS, COLUMNS = 150, 200  #: of the films
SCALE = COLUMNS / SIDE
INSERT = (110, 30, 160, 80)  #: what is white on a film: column min, row min, column max, row max
SHAPE, MM = (21, 40, 50), (2.0, 1.0, 1.0)
BLOCK = (slice(6, 12), slice(10, 26), slice(20, 40))  #: what is dense in a volume
CENTRE = (29.5, 17.5, 17.0)  #: of it, x, y, z in mm
PATCH = (17, 24, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What became of one study."""

    package: EnginePackage
    prepared: Prepared
    reading: Reading
    child: ChildEngine

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.reading.findings


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., Read]]:
    """Golden cases first, then the study, in one child; `again` is another study for the same."""
    children = []

    def run(package: EnginePackage, paths: list[Path], again: Read | None = None) -> Read:
        if again is None:
            children.append(started(package))
            assert golden.fault(package, children[-1]) == ""
        child = children[-1]
        prepared = analysis.prepare(package, paths, tmp_path, IN_PROCESS)
        answer = analysis.ask(package, prepared, child, 60.0)
        assert answer.run_ms > 0
        return Read(
            package=package,
            prepared=prepared,
            reading=analysis.conclude(package, prepared, answer.outputs),
            child=child,
        )

    yield run
    for child in children:
        child.close()


def started(package: EnginePackage) -> ChildEngine:
    runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable)))
    return runtime.load(package.model_path, package.model_sha256)


def tensor(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def film_of(folder: Path, white: float = 1.0) -> list[Path]:
    pixels = np.zeros((ROWS, COLUMNS), np.float32)
    left, top, right, bottom = INSERT
    pixels[top:bottom, left:right] = white
    return [write_film(folder / "film", pixels)]


def squares(seed: int) -> NDArray[np.float32]:
    """A golden film in one channel of [0, 1]: a white square on black."""
    film = np.zeros((1, 1, SIDE, SIDE), np.float32)
    at = 8 + seed
    film[..., at : at + 20, at + 4 : at + 30] = 1
    return film


def volume_of(folder: Path) -> list[Path]:
    hu = np.full(SHAPE, -900, np.int16)
    hu[BLOCK] = 200
    return write_volume(folder / "volume", hu, MM)


# The networks.


def extent(net: Network, seen: str, axis: int, rank: int) -> tuple[str, str]:
    """Where what is 1 begins along an axis, and where it ends: (1,) each."""
    others = [other for other in range(rank) if other != axis]
    profile = net.node("ReduceMax", seen, axes=others, keepdims=0)
    begins = net.node("ArgMax", profile, axis=0, keepdims=1)
    from_behind = net.node("ArgMax", profile, axis=0, keepdims=1, select_last_index=1)
    ends = net.node("Add", from_behind, net.constant([1], np.int64))
    return net.node("Cast", begins, to=1), net.node("Cast", ends, to=1)


def above(net: Network, name: str, level: float) -> str:
    return net.node("Cast", net.node("Greater", name, net.constant(level)), to=1)


def detector(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> bytes:
    """Boxes about what is white, three channels of [-1, 1]; none where nothing is: their count is the data's.

    The box itself, the box a little larger and less sure, and one far outside.
    """
    net = Network()
    grey = net.node("ReduceMean", "image", axes=[1], keepdims=1)
    seen = above(net, grey, 0.0)
    (left, right), (top, bottom) = extent(net, seen, 3, 4), extent(net, seen, 2, 4)
    box = net.node("Unsqueeze", net.node("Concat", left, top, right, bottom, axis=0), net.constant([0], np.int64))
    larger = net.node("Add", box, net.constant([[-1, -1, 1, 1]]))
    far = net.constant([[500, 500, 600, 600]])
    every = net.node("Concat", box, larger, far, axis=0)
    there = net.node("ReduceMax", seen, keepdims=0)
    sure = net.node("Mul", net.constant([0.9, 0.8, 0.95]), there)
    kept = net.node("Greater", sure, net.constant(0.0))
    net.node("Compress", every, kept, axis=0, name="boxes")
    net.node("Compress", sure, kept, axis=0, name="scores")
    net.node("Compress", net.constant([2, 2, 1], np.int64), kept, axis=0, name="classes")
    return net.model(inputs, outputs)


def write_detector(folder: Path) -> EnginePackage:
    inputs = [tensor("image", 1, 3, SIDE, SIDE)]
    outputs = [tensor("boxes", -1, 4), tensor("scores", -1), tensor("classes", -1, dtype="int64")]
    film = np.repeat(squares(3) * 2 - 1, 3, axis=1)
    return write_package(
        folder,
        detector(inputs, outputs),
        {"square": {"image": film}, "empty": {"image": -np.ones_like(film)}},
        scope="instance",
        labels=("clip", "plate"),
        inputs=inputs,
        preprocess=[{"op": "letterbox", "size": SIDE}, {"op": "normalise", "mean": [0.5] * 3, "std": [0.5] * 3}],
        outputs=outputs,
        postprocess={
            "op": "boxes",
            "boxes": "boxes",
            "scores": "scores",
            "classes": "classes",
            "first_class": 1,
            "labels": ["clip", "plate"],
        },
    )


def test_a_detector_of_films(tmp_path: Path, read: Callable[..., Read]) -> None:
    package = write_detector(tmp_path / "package")
    found = read(package, film_of(tmp_path))
    (finding,) = found.findings
    assert (finding.label, finding.score) == ("plate", 0.9)
    assert finding.box == pytest.approx(INSERT, abs=SCALE)
    shown(found)

    empty = read(package, film_of(tmp_path / "empty", white=0.0), again=found).reading
    assert empty == Reading(conclusion=Conclusion.NO_FINDING, findings=(), measures={"boxes": 0.0})


def write_classifier(folder: Path) -> EnginePackage:
    """Scores of two labels, and a map of 8 x 8 of each: how white it is there, and how black."""
    net = Network()
    white = net.node("AveragePool", "image", kernel_shape=[8, 8], strides=[8, 8])
    black = net.node("Sub", net.constant(1.0), white)
    net.node("Concat", white, black, axis=1, name="map")
    top = net.node("ReduceMax", white, axes=[2, 3], keepdims=0)
    halved = net.node("Mul", top, net.constant(0.2))
    net.node("Concat", top, halved, axis=1, name="scores")
    inputs, outputs = [tensor("image", 1, 1, SIDE, SIDE)], [tensor("map", 1, 2, 8, 8), tensor("scores", 1, 2)]
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"square": {"image": squares(1)}},
        scope="instance",
        labels=("opacity", "lucency"),
        inputs=inputs,
        preprocess=[{"op": "letterbox", "size": SIDE}],
        outputs=outputs,
        postprocess={"op": "heat_map", "map": "map", "scores": "scores", "labels": ["opacity", "lucency"]},
    )


def test_a_classifier_that_gives_a_heat_map(tmp_path: Path, read: Callable[..., Read]) -> None:
    found = read(write_classifier(tmp_path / "package"), film_of(tmp_path))
    (finding,) = found.findings
    assert finding.label == "opacity"
    assert finding.score == pytest.approx(1, abs=0.01)
    assert finding.box == pytest.approx(INSERT, abs=8 * SCALE / 2 + 1)  # a cell of the map is 25 pixels
    assert set(found.reading.measures) == {"opacity", "lucency"}
    shown(found)


def write_segmenter(folder: Path) -> EnginePackage:
    """A fixed patch in, how dense each voxel is out."""
    net = Network()
    steep = net.node("Mul", net.node("Sub", "patch", net.constant(0.5)), net.constant(20.0))
    net.node("Sigmoid", steep, name="p")
    inputs, outputs = [tensor("patch", 1, 1, *PATCH)], [tensor("p", 1, 1, *PATCH)]
    patch = np.zeros((1, 1, *PATCH), np.float32)
    patch[0, 0, 2:7, 3:9, 4:12] = 1
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"block": {"patch": patch}},
        scope="series",
        labels=("mass",),
        inputs=inputs,
        preprocess=[
            {"op": "resample", "spacing_mm": 1.0},
            {"op": "window", "low": -1000, "high": 400},
            {"op": "sliding_window", "size": list(PATCH), "overlap": 0.4},
        ],
        outputs=outputs,
        postprocess={"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["mass"], "min_ml": 0.1},
    )


@dataclass
class Counted:
    """Says yes once the engine was asked so often."""

    child: ChildEngine
    after: int
    asked: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.child, name)

    def infer(self, inputs: Mapping[str, Array], deadline_s: float, cancelled: Callable[[], bool]) -> dict[str, Array]:
        self.asked += 1
        return self.child.infer(inputs, deadline_s, cancelled)

    def cancelled(self) -> bool:
        return self.asked >= self.after


def test_a_segmenter_that_takes_patches(tmp_path: Path, read: Callable[..., Read]) -> None:
    """6 x 16 x 20 voxels of 2 x 1 x 1 mm; resampled to 1 mm the two end slices of 12 weigh half: 11 mm remain."""
    found = read(write_segmenter(tmp_path / "package"), volume_of(tmp_path))
    (finding,) = found.findings
    assert finding.label == "mass"
    assert finding.volume_mm3 == pytest.approx(11 * 16 * 20, rel=0.1)
    assert found.reading.measures["mass_ml"] == pytest.approx((finding.volume_mm3 or 0) / 1000, abs=0.006)
    assert finding.centre_mm == pytest.approx(CENTRE, abs=0.6)
    assert finding.box == pytest.approx((20, 10, 40, 26), abs=1)
    assert finding.long_axis_mm == pytest.approx(np.hypot(19, 15) + 1, abs=0.2)
    shown(found)
    # A run that gives way, or is out of time, leaves the engine ready for the next, which says what one run would.
    counted = Counted(child=found.child, after=3)
    with pytest.raises(RuntimeCancelled):
        analysis.ask(found.package, found.prepared, counted, 60.0, counted.cancelled)  # type: ignore[arg-type]
    with pytest.raises(RuntimeFailed) as caught:
        analysis.ask(found.package, found.prepared, found.child, 0.0)
    assert caught.value.reason == Reason.DEADLINE
    answer = analysis.ask(found.package, found.prepared, found.child, 60.0)
    given = found.prepared.inputs["patch"].astype(np.float64)
    assert given.shape == (1, 1, 41, 40, 50)
    assert np.allclose(answer.outputs["p"], 1 / (1 + np.exp(-20 * (given - 0.5))), atol=1e-5)


def write_volume_detector(folder: Path) -> EnginePackage:
    """The box about what is dense in a volume of any size, its corners from x on."""
    net = Network()
    seen = above(net, "volume", 0.5)
    sides = [extent(net, seen, axis, 5) for axis in (4, 3, 2)]
    ends = [side[end] for end in (0, 1) for side in sides]
    net.node("Unsqueeze", net.node("Concat", *ends, axis=0), net.constant([0, 1], np.int64), name="boxes")
    there = net.node("ReduceMax", seen, keepdims=0)
    net.node("Reshape", net.node("Mul", there, net.constant(0.9)), net.constant([1, 1, 1], np.int64), name="scores")
    inputs, outputs = [tensor("volume", 1, 1, -1, -1, -1)], [tensor("boxes", 1, -1, 6), tensor("scores", 1, -1, 1)]
    volume = np.zeros((1, 1, 8, 12, 10), np.float32)
    volume[0, 0, 2:6, 3:9, 1:5] = 1
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"block": {"volume": volume}},
        scope="series",
        labels=("mass",),
        inputs=inputs,
        preprocess=[{"op": "resample", "spacing_mm": 1.0}, {"op": "window", "low": -1000, "high": 400}],
        outputs=outputs,
        postprocess={"op": "boxes_3d", "boxes": "boxes", "scores": "scores", "labels": ["mass"], "axes": "xyz"},
    )


def test_a_detector_of_volumes(tmp_path: Path, read: Callable[..., Read]) -> None:
    found = read(write_volume_detector(tmp_path / "package"), volume_of(tmp_path))
    (finding,) = found.findings
    assert (finding.label, finding.score) == ("mass", 0.9)
    assert finding.centre_mm == pytest.approx(CENTRE, abs=0.6)
    assert finding.box == pytest.approx((20, 10, 40, 26), abs=1)
    shown(found)


def write_judge(folder: Path) -> EnginePackage:
    """Says that a series is too dense to be read."""
    net = Network()
    mean = net.node("ReduceMean", "volume", axes=[2, 3, 4], keepdims=0)
    net.node("Sigmoid", net.node("Mul", mean, net.constant(50.0)), name="scores")
    inputs, outputs = [tensor("volume", 1, 1, -1, -1, -1)], [tensor("scores", 1, 1)]
    return write_package(
        folder,
        net.model(inputs, outputs),
        {"grey": {"volume": np.full((1, 1, 8, 8, 8), 0.1, np.float32)}},
        scope="series",
        labels=("unfit",),
        inputs=inputs,
        preprocess=[{"op": "resample", "spacing_mm": 2.0}, {"op": "window", "low": -1000, "high": 400}],
        outputs=outputs,
        postprocess={"op": "label_scores", "scores": "scores", "labels": ["unfit"]},
    )


def test_a_judge_of_a_series(tmp_path: Path, read: Callable[..., Read]) -> None:
    found = read(write_judge(tmp_path / "package"), volume_of(tmp_path))
    (finding,) = found.findings
    assert (finding.label, finding.box, finding.centre_mm) == ("unfit", (0, 0, 50, 40), None)
    shown(found)


# Their results.


def shown(found: Read) -> None:
    """The report and the picture of a study with one finding: its concept, its outline, no site that is ours."""
    (finding,) = found.findings
    paths = [header.path for header in found.prepared.headers]
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    context = context_of(found)
    report = pydicom.dcmread(pydicom.filebase.DicomBytesIO(build_sr(context, headers).file_bytes))
    values = list(items(report))
    codes = {item.CodeValue for item in values if "CodeValue" in item}
    assert finding.label.upper() in codes
    assert codes.isdisjoint({LUNG.value, ABNORMAL_STRUCTURE.value})
    left, top, right, bottom = finding.box
    outlines = [list(item.GraphicData) for item in values if item.get("GraphicType") == "POLYLINE"]
    assert outlines == [pytest.approx([left, top, right, top, right, bottom, left, bottom, left, top], abs=0.01)]
    pixels = render.key_picture(paths, found.findings, IN_PROCESS)
    whole = finding.box == (0, 0, pixels.shape[1], pixels.shape[0])  # a frame would lie about the picture
    assert whole or (pixels == render.COLOUR).all(axis=2).any()
    assert build_picture(context, headers, pixels).file_bytes


def items(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from items(item)


def context_of(found: Read) -> ReportContext:
    manifest = found.package.manifest
    engine = EngineIdentity(
        id=manifest.id,
        version=manifest.version,
        status=manifest.status,
        package_sha256="a" * 64,
        model_sha256=found.package.model_sha256,
        runtime="onnx",
        runtime_version="1",
        device="CPU",
    )
    return ReportContext(
        node="box-1",
        outcome=Outcome(
            conclusion=found.reading.conclusion,
            findings=found.findings,
            measures=found.reading.measures,
            extent=found.prepared.extent,
            engine=engine,
            evidence="mpps",
        ),
        title=manifest.title,
        labels={
            key: Label(
                text=label.text,
                code=Code(label.code.value, label.code.scheme, label.code.meaning),
                threshold=label.threshold,
            )
            for key, label in manifest.labels.items()
        },
        study_instance_uid="1.2.3",
        engine_key="strangers@1.0.0",
        input_digest="c" * 64,
        revision=1,
        concluded_at=datetime(2026, 11, 24, 2, 15, 7, tzinfo=UTC),
        finding_site=None,
    )
