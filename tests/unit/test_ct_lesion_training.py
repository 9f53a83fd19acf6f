"""What ct-lesion is trained and measured with: simulated lesions, the network's export, sensitivity."""

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
from ct_lesion_training import froc, holdout, lesions, network, patches
from ct_lesion_training.backgrounds import Background
from ct_lesion_training.froc import Candidate, Scan
from ct_lesion_training.holdout import Ground, Planted
from numpy.typing import NDArray

from tests.missing import missing

Float = NDArray[np.float32]
LUNG = -850.0


@pytest.fixture(scope="module")
def background() -> Background:
    """Two cubes of lung in soft tissue, with a known tumour in a corner of one."""
    hull = np.zeros((60, 60, 80), np.bool_)
    hull[10:50, 10:50, 6:36] = hull[10:50, 10:50, 44:74] = True
    known = np.zeros_like(hull)
    known[10:22, 10:22, 6:18] = True
    hu = np.where(hull, LUNG, 30.0).astype(np.float32)
    return Background(name="cubes", hu=hu, hull=hull, known=known, thick_mm=2.0)


# Training.


def sampled(background: Background, seed: int) -> Iterator[patches.Patch]:
    rng = np.random.default_rng(seed)
    while True:
        yield patches.sample(rng, [background], np.ones(1))


def test_the_same_seed_gives_the_same_patches(background: Background) -> None:
    for one, same in zip(sampled(background, 3), sampled(background, 3), strict=False):
        assert np.array_equal(one.hu, same.hu)
        assert np.array_equal(one.score, same.score)
        if one.score.any():
            break


def test_a_patch_is_fit_for_the_network(background: Background) -> None:
    seen = 0
    for number, patch in enumerate(sampled(background, 4)):
        assert patch.hu.shape == (patches.SIZE,) * 3
        assert patch.score.shape == patch.radius_mm.shape == patch.weight.shape == (patches.SIZE // 2,) * 3
        assert np.isfinite(patch.hu).all()
        assert patch.hu.min() >= -1024
        assert 0 <= patch.score.min() <= patch.score.max() <= 1
        lesion = patch.score > 0
        assert (patch.radius_mm[lesion] >= lesions.SMALLEST_MM / 2).all()
        assert (patch.radius_mm[lesion] <= lesions.LARGEST_MM / 2).all()
        seen += bool(lesion.any())
        if number >= 12:
            break
    assert seen >= 6


def test_a_known_tumour_counts_neither_as_lesion_nor_as_lung(background: Background) -> None:
    masked = [patch for patch, _ in zip(sampled(background, 5), range(12), strict=False) if not patch.weight.all()]
    assert masked
    for patch in masked:
        assert not patch.score[patch.weight == 0].any()


def test_a_lesion_is_as_large_as_it_was_asked_to_be() -> None:
    hu = np.full((64, 64, 64), LUNG, np.float32)
    rng = np.random.default_rng(6)
    volumes = []
    for _ in range(12):
        lesion = lesions.draw(rng, hu, np.full(3, 32.0), 20.0, 2.0)
        volumes.append(np.count_nonzero(lesion.level < 1) * 8 / (4 / 3 * np.pi * 20**3))
        assert (lesion.hu >= -1024).all()
    assert 0.6 < float(np.median(volumes)) < 1.7


def test_the_wanted_score_falls_from_the_centre_to_the_surface() -> None:
    wanted = lesions.target(np.array([0, 0.5, 0.999, 1.0, np.inf], np.float32))
    assert wanted == pytest.approx([1, 0.85, 0.4, 0, 0], abs=2e-3)


# Export.


class Shapes:
    """network.Layers that only write down which weights there are; a value is its number of channels."""

    def __init__(self) -> None:
        self.weights: dict[str, Float] = {}
        self._rng = np.random.default_rng(1)

    def _kernel(self, name: str, before: int, after: int, size: int, parts: tuple[str, ...]) -> int:
        scale = (2 / (before * size**3)) ** 0.5
        kernel = self._rng.normal(0, scale, (after, before, size, size, size))
        self.weights[f"{name}.kernel"] = kernel.astype(np.float32)
        for part in parts:
            start = 1.0 if part in {"scale", "variance"} else 0.0
            self.weights[f"{name}.{part}"] = (start + self._rng.normal(0, 0.1, after) ** 2).astype(np.float32)
        return after

    def first(self, name: str, volume: int, channels: int) -> int:
        return self._scaled(name, volume * 8 * len(network.WINDOWS), channels, 3)

    def block(self, name: str, value: int, channels: int) -> int:
        return self._scaled(name, value, channels, 3)

    def halve(self, name: str, value: int, channels: int) -> int:
        return self._scaled(name, value, channels, 2)

    def raised(self, name: str, value: int, channels: int) -> int:
        return self._kernel(name, value, channels, 1, ())

    def add(self, one: int, other: int) -> int:
        assert one == other
        return one

    def head(self, name: str, value: int, channels: int) -> int:
        return self._kernel(name, value, channels, 1, ("bias",))

    def _scaled(self, name: str, before: int, after: int, size: int) -> int:
        return self._kernel(name, before, after, size, ("scale", "shift", "mean", "variance"))


def test_the_exported_network_answers_within_its_bounds_and_only_near_the_lung() -> None:
    if importlib.util.find_spec("onnx") is None:
        missing("onnx (extra dev) is not installed")
    import onnxruntime  # noqa: PLC0415
    from ct_lesion_training import export  # noqa: PLC0415

    shapes = Shapes()
    assert network.answer(shapes, 1) == 2
    session = onnxruntime.InferenceSession(export.build(shapes.weights), providers=["CPUExecutionProvider"])
    hu = np.random.default_rng(2).normal(-600, 300, (1, 1, 32, 48, 80)).astype(np.float32)
    lung = np.zeros_like(hu)
    lung[..., :20] = 1
    score, radius = session.run(["score", "radius"], {"volume": hu, "lung": lung})
    assert score.shape == radius.shape == hu.shape
    assert 0 <= score.min() <= score.max() <= 1
    assert network.RADIUS_MM[0] - 1e-3 <= radius.min() <= radius.max() <= network.RADIUS_MM[1] + 1e-3
    assert score[..., :20].any()
    assert not score[..., 34:].any()


def test_a_kernel_over_cubes_is_the_same_kernel_over_voxels() -> None:
    if importlib.util.find_spec("onnx") is None:
        missing("onnx (extra dev) is not installed")
    from ct_lesion_training import export  # noqa: PLC0415

    rng = np.random.default_rng(3)
    kernel = rng.normal(0, 1, (1, 8, 3, 3, 3)).astype(np.float32)
    voxels = rng.normal(0, 1, (6, 6, 6)).astype(np.float32)
    cubes = voxels.reshape(3, 2, 3, 2, 3, 2).transpose(1, 3, 5, 0, 2, 4).reshape(8, 3, 3, 3)
    assert float((export.of_voxels(kernel)[0, 0] * voxels).sum()) == pytest.approx(
        float((kernel[0] * cubes).sum()), rel=1e-4
    )


# Evaluation.


def ground() -> Ground:
    hull = np.zeros((60, 60, 80), np.bool_)
    hull[5:55, 5:55, 5:75] = True
    hu = np.where(np.repeat(np.repeat(hull, 2, 1), 2, 2), LUNG, 30).astype(np.int16)
    return Ground(
        hu=hu, voxel_mm=(2.0, 1.0, 1.0), hull=hull, known=np.zeros_like(hull), origin=(0, 0.5, 0.5), step=(1, 2, 2)
    )


def test_one_lesion_of_each_size_is_planted_where_there_is_room() -> None:
    case = ground()
    hu, planted = holdout.plant(np.random.default_rng(1), case)
    assert len(planted) >= 4
    for lesion in planted:
        place = tuple(round(part) for part in lesion.centre)
        assert hu[place] > case.hu[place] - 1
    changed = np.count_nonzero(hu.astype(int) - case.hu > 200) * 2.0
    wanted = sum(4 / 3 * np.pi * (lesion.diameter_mm / 2) ** 3 for lesion in planted)
    assert 0.5 * wanted < changed < 1.6 * wanted


def lesion(row: float, diameter_mm: float) -> Planted:
    return Planted(centre=(10.0, row, 10.0), diameter_mm=diameter_mm, kind="solid", place="free")


def test_a_candidate_within_the_radius_is_a_hit_and_a_second_one_is_nothing() -> None:
    found = [
        Candidate(score=0.9, centre=(10, 18, 10)),
        Candidate(score=0.7, centre=(10, 13, 10)),
        Candidate(score=0.6, centre=(10, 60, 10)),
    ]
    scan = froc.scored([lesion(10, 20), lesion(40, 5)], found, (1.0, 1.0, 1.0))
    assert scan.hits == (0.9, 0.0)
    assert scan.false == (0.6,)


def test_sensitivity_at_a_number_of_false_positives() -> None:
    scans = [
        Scan(lesions=(lesion(1, 5), lesion(2, 30)), hits=(0.4, 0.9), false=(0.8, 0.5)),
        Scan(lesions=(lesion(1, 5), lesion(2, 30)), hits=(0.0, 0.85), false=(0.6, 0.3)),
    ]
    one = froc.sensitivity(scans, 1)
    assert one.threshold == pytest.approx(0.5, abs=1e-3)
    assert one.value == 0.5
    assert froc.sensitivity(scans, 2).value == 0.75
    assert froc.sensitivity(scans, 1, (20.0, 40.0)).value == 1.0
    assert one.low <= one.value <= one.high
    assert froc.table(scans)[0][0] == "all (4)"
