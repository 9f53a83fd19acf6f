"""Networks that are not ours, packaged by declaration alone, in the real runtime: film or volume in, result out.

Each network is made here of plain nodes and looks at what it is given, so that its findings must lie where the test
put something; each package must pass its own golden case.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
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
from tests.networks import (
    CENTRE,
    INSERT,
    SCALE,
    film_of,
    volume_of,
    write_classifier,
    write_detector,
    write_judge,
    write_segmenter,
    write_volume_detector,
)


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


def test_a_detector_of_films(tmp_path: Path, read: Callable[..., Read]) -> None:
    package = write_detector(tmp_path / "package")
    found = read(package, film_of(tmp_path))
    (finding,) = found.findings
    assert (finding.label, finding.score) == ("plate", 0.9)
    assert finding.box == pytest.approx(INSERT, abs=SCALE)
    shown(found)

    empty = read(package, film_of(tmp_path / "empty", white=0.0), again=found).reading
    assert empty == Reading(conclusion=Conclusion.NO_FINDING, findings=(), measures={"boxes": 0.0})


def test_a_classifier_that_gives_a_heat_map(tmp_path: Path, read: Callable[..., Read]) -> None:
    found = read(write_classifier(tmp_path / "package"), film_of(tmp_path))
    (finding,) = found.findings
    assert finding.label == "opacity"
    assert finding.score == pytest.approx(1, abs=0.01)
    assert finding.box == pytest.approx(INSERT, abs=8 * SCALE / 2 + 1)  # a cell of the map is 25 pixels
    assert set(found.reading.measures) == {"opacity", "lucency"}
    shown(found)


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


def test_a_detector_of_volumes(tmp_path: Path, read: Callable[..., Read]) -> None:
    found = read(write_volume_detector(tmp_path / "package"), volume_of(tmp_path))
    (finding,) = found.findings
    assert (finding.label, finding.score) == ("mass", 0.9)
    assert finding.centre_mm == pytest.approx(CENTRE, abs=0.6)
    assert finding.box == pytest.approx((20, 10, 40, 26), abs=1)
    shown(found)


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
    context = context_of(found, headers)
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
    if finding.centre_mm is not None:  # the block is 200 HU, the rest -900
        seen = render.key_picture(paths, found.findings, IN_PROCESS, (-1000.0, 1000.0))
        assert seen[18, 30].tolist() == [153] * 3
        assert seen[2, 2].tolist() == [13] * 3
    assert build_picture(context, headers, pixels).file_bytes


def items(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from items(item)


def context_of(found: Read, headers: Sequence[Dataset]) -> ReportContext:
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
        study_instance_uid=headers[0].StudyInstanceUID,
        engine_key="strangers@1.0.0",
        input_digest="c" * 64,
        revision=1,
        concluded_at=datetime(2026, 11, 24, 2, 15, 7, tzinfo=UTC),
        finding_site=None,
    )
