"""The reference engines as packages, in the real runtime: the phantom, the golden cases, and named public cases."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pydicom
import pytest
from numpy.typing import NDArray

from appliance import engine_package, phantom, scanner
from appliance.engine_manifest import Precision
from appliance.engine_package import EnginePackage
from appliance.errors import CannotAnalyse
from appliance.imaging import analysis, blobs, render
from appliance.imaging.analysis import Prepared, Reading
from appliance.imaging.candidates import ScoreVolume
from appliance.imaging.reading import IN_PROCESS
from appliance.model import Conclusion, Finding, Reason
from appliance.ports import LoadedEngine
from appliance.runtimes.process import ChildRuntime, ChildSettings
from tests.missing import missing

ROOT = Path(__file__).resolve().parent.parent.parent
MM = (2.0, 2.0, 2.0)
MASS = (76, 138, 136, 198)  #: of C3N-00247: columns and rows of the mass that a non-expert saw at z -195


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    package: EnginePackage
    loaded: LoadedEngine

    def read(self, paths: list[Path], folder: Path) -> tuple[Prepared, Reading]:
        prepared = analysis.prepare(self.package, paths, folder, IN_PROCESS)
        return prepared, analysis.conclude(self.package, prepared, self.loaded.infer(prepared.inputs, 60))


def started(name: str) -> Iterator[Engine]:
    package = engine_package.load(ROOT / "engines" / name)
    runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable)))
    loaded = runtime.load(package.model_path, package.model_sha256)
    yield Engine(package=package, loaded=loaded)
    loaded.close()


@pytest.fixture(scope="module")
def lesion() -> Iterator[Engine]:
    yield from started("ct-lesion")


@pytest.fixture(scope="module")
def acquisition() -> Iterator[Engine]:
    yield from started("cxr-acquisition")


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> phantom.Truth:
    return phantom.write_ct(tmp_path_factory.mktemp("ct"), 11)


# The packages.


@pytest.mark.parametrize("name", ["lesion", "acquisition"])
def test_golden_cases_come_out_as_they_must(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    manifest = engine.package.manifest
    wanted = [tensor.name for tensor in manifest.outputs]
    for golden in manifest.golden:
        with np.load(engine.package.folder / golden.case, allow_pickle=False) as case:
            found = engine.loaded.infer({key: case[key] for key in case.files if key not in wanted}, 60)
            for output in wanted:
                assert np.allclose(found[output], case[output], rtol=golden.rtol, atol=golden.atol)


def test_half_precision_gives_the_golden_answers_within_their_tolerances() -> None:
    """Both precisions of cxr-acquisition, on the CPU: the same numbers and the same decisions."""
    package = engine_package.load(ROOT / "engines" / "cxr-acquisition")
    half = onnxruntime.InferenceSession(package.folder / "model.fp16.onnx", providers=["CPUExecutionProvider"])
    assert {value.type for value in (*half.get_inputs(), *half.get_outputs())} == {"tensor(float)"}
    for golden in package.manifest.golden:
        with np.load(package.folder / golden.case, allow_pickle=False) as case:
            scores = half.run(["scores"], {"film": case["film"]})[0]
            assert np.allclose(scores, case["scores"], rtol=golden.rtol, atol=golden.atol)
            thresholds = np.array([label.threshold for label in package.manifest.labels.values()])
            assert np.array_equal(scores[0] >= thresholds, case["scores"][0] >= thresholds)


def test_half_precision_finds_the_same_lesions_in_the_golden_cases() -> None:
    """On the CPU: numbers within the tolerances of the variant, and the same candidates."""
    package = engine_package.load(ROOT / "engines" / "ct-lesion")
    variant = package.manifest.variants[Precision.FP16]
    half = onnxruntime.InferenceSession(package.folder / variant.file, providers=["CPUExecutionProvider"])
    assert {value.type for value in (*half.get_inputs(), *half.get_outputs())} == {"tensor(float)"}
    threshold = package.manifest.labels["lesion"].threshold
    for golden, wanted in zip(package.manifest.golden, (1, 0), strict=True):
        with np.load(package.folder / golden.case, allow_pickle=False) as case:
            volume, lung = case["volume"], case["lung"]
            told = [(case["score"], case["radius"]), half.run(["score", "radius"], {"volume": volume, "lung": lung})]
        for whole, halved in zip(*told, strict=True):
            assert np.allclose(halved, whole, rtol=variant.rtol, atol=variant.atol)
        places = [
            [np.rint(found.index).tolist() for found in blobs.find(one, threshold)]
            for one in (
                ScoreVolume(score=score[0, 0], radius_mm=radius[0, 0], hu=volume[0, 0], mask=lung[0, 0], voxel_mm=MM)
                for score, radius in told
            )
        ]
        assert places[0] == places[1]
        assert len(places[0]) == wanted


def test_a_reference_engine_says_that_it_is_one() -> None:
    for folder in (ROOT / "engines").iterdir():
        assert engine_package.load(folder).manifest.status == "reference"
        assert all(path.stat().st_size < 8_000_000 for path in folder.rglob("*") if path.is_file())


def test_the_committed_packages_are_what_the_script_writes() -> None:
    if importlib.util.find_spec("onnx") is None:
        missing("onnx (extra dev) is not installed")
    command = [sys.executable, str(ROOT / "scripts" / "make_reference_engines.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert found.returncode == 0, found.stdout + found.stderr


# CT.


def distance(finding: Finding, nodule: phantom.Nodule) -> float:
    return float(np.linalg.norm(np.subtract(finding.centre_mm or (), nodule.centre_mm)))


def test_the_nodules_of_the_phantom_are_found(lesion: Engine, ct: phantom.Truth, tmp_path: Path) -> None:
    prepared, reading = lesion.read(list(ct.files), tmp_path)
    assert reading.conclusion is Conclusion.FINDING
    assert len(reading.findings) <= 10
    assert prepared.extent.text == "60 slices, 177 mm, spacing 3.0 mm"
    for nodule in ct.nodules:
        near = [finding for finding in reading.findings if distance(finding, nodule) < 5]
        assert len(near) == 1
        assert near[0].laterality == ("R" if nodule.centre_mm[0] < 0 else "L")
        assert near[0].long_axis_mm == pytest.approx(nodule.diameter_mm, abs=2)


def test_a_phantom_without_nodules_gives_no_finding(lesion: Engine, tmp_path: Path) -> None:
    truth = phantom.write_ct(tmp_path / "ct", 12, nodules=())
    assert lesion.read(list(truth.files), tmp_path)[1].conclusion is Conclusion.NO_FINDING


def test_the_key_picture_is_the_same_from_the_files_alone(lesion: Engine, ct: phantom.Truth, tmp_path: Path) -> None:
    prepared, reading = lesion.read(list(ct.files), tmp_path)
    picture = render.key_picture(list(ct.files), reading.findings, IN_PROCESS)
    assert picture.shape == (512, 3 * 512, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render.key_picture(prepared, reading.findings, IN_PROCESS))
    left, top, _, bottom = reading.findings[0].box
    edge = picture[round((top + bottom) / 2), round(left) - 1]
    assert tuple(edge) == render.COLOUR


def test_a_slice_less_is_no_reading(lesion: Engine, ct: phantom.Truth, tmp_path: Path) -> None:
    with pytest.raises(CannotAnalyse, match="about 1 slices missing") as caught:
        lesion.read([*ct.files[:20], *ct.files[21:]], tmp_path)
    assert caught.value.reason is Reason.INCOMPLETE


def unpacked(real_data: Path, name: str, folder: Path) -> list[Path]:
    found = scanner.find(real_data / "ct" / f"{name}.tar.xz", folder)
    return [item.stored.path for item in found.items]


def test_the_mass_of_c3n_00247_is_the_first_candidate(lesion: Engine, real_data: Path, tmp_path: Path) -> None:
    prepared, reading = lesion.read(unpacked(real_data, "C3N-00247_LUNG3mm", tmp_path), tmp_path)
    assert prepared.extent.text == "99 slices, 294 mm, spacing 3.0 mm"
    assert len(reading.findings) <= 10
    first = reading.findings[0]
    assert first.centre_mm is not None
    assert first.centre_mm[2] == pytest.approx(-195, abs=6)
    assert MASS[0] < (first.box[0] + first.box[2]) / 2 < MASS[2]
    assert MASS[1] < (first.box[1] + first.box[3]) / 2 < MASS[3]
    assert first.laterality == "R"


def test_the_thick_slices_of_a0002_are_refused(lesion: Engine, real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotAnalyse, match=r"slices are 8\.00 mm apart") as caught:
        lesion.read(unpacked(real_data, "Lung_Dx-A0002_B40f", tmp_path), tmp_path)
    assert caught.value.reason is Reason.UNSUITABLE


# Films.


def labels(engine: Engine, film: Path, folder: Path) -> set[str]:
    return {finding.label for finding in engine.read([film], folder)[1].findings}


Pixels = NDArray[np.uint16]
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda pixels: pixels,
    "negative": lambda pixels: 4095 - pixels,
    "upside down": lambda pixels: pixels[::-1, ::-1],
    "turned left": lambda pixels: np.rot90(pixels, 1),
    "turned right": lambda pixels: np.rot90(pixels, -1),
    "right lung cut": lambda pixels: pixels[:, pixels.shape[1] * 3 // 10 :],
    "left lung cut": lambda pixels: pixels[:, : pixels.shape[1] * 7 // 10],
    "apices cut": lambda pixels: pixels[pixels.shape[0] * 3 // 10 :],
    "nobody there": lambda pixels: np.full_like(pixels, 2000),
}
SAID = {
    "none": set(),
    "negative": {"inverted"},
    "upside down": {"rotated"},
    "turned left": {"rotated"},
    "turned right": {"rotated"},
    "right lung cut": {"lung_clipped_right"},
    "left lung cut": {"lung_clipped_left"},
    "apices cut": {"lung_clipped_top"},
    "nobody there": {"empty"},
}


def changed_film(source: Path, target: Path, change: str) -> Path:
    """A film of 12 bit with another's pixels, changed."""
    dataset = pydicom.dcmread(source)
    pixels = np.ascontiguousarray(CHANGES[change](dataset.pixel_array), np.uint16)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(target)
    return target


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_is_wrong_with_a_film_is_named(acquisition: Engine, tmp_path: Path, change: str) -> None:
    film = changed_film(phantom.write_cr(tmp_path / "cr", 4).files[0], tmp_path / "changed.dcm", change)
    assert labels(acquisition, film, tmp_path) == SAID[change]


def test_the_key_picture_of_a_film_shows_the_region(acquisition: Engine, tmp_path: Path) -> None:
    film = changed_film(phantom.write_cr(tmp_path / "cr", 4).files[0], tmp_path / "cut.dcm", "left lung cut")
    _, reading = acquisition.read([film], tmp_path)
    picture = render.key_picture([film], reading.findings, IN_PROCESS)
    assert picture.shape == (1024, 716, 3)
    left, top, *_ = reading.findings[0].box
    assert tuple(picture[round(top) + 200, round(left) - 1]) == render.COLOUR


@pytest.mark.parametrize(
    ("film", "found"),
    [
        ("RG1_UNCR_metastases.dcm", set()),
        ("SIIM_no-pneumothorax.dcm", set()),
        ("MONOCHROME1_fake.dcm", {"inverted"}),
    ],
)
def test_public_films(acquisition: Engine, real_data: Path, tmp_path: Path, film: str, found: set[str]) -> None:
    copy = Path(shutil.copy(real_data / "cxr" / film, tmp_path))
    assert labels(acquisition, copy, tmp_path) == found
