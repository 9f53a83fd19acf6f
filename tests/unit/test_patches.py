"""A volume read patch by patch: the same answer as in one run, within the time, and nothing hidden in a mean."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engine_manifest import Manifest
from appliance.engine_ops import Boxes3D, SlidingWindow
from appliance.errors import CannotAnalyse, RuntimeCancelled, RuntimeFailed
from appliance.imaging import boxes, patches
from appliance.imaging.grid import identity
from appliance.imaging.patches import Answer, Question
from appliance.imaging.preprocess import ModelImage
from appliance.model import Reason
from appliance.ports import Array
from tests.sources import read_volume_of
from tests.strangers import manifest_of

Patch = Mapping[str, Array]


def squashed(patch: Patch) -> dict[str, Array]:
    """A model that looks at each voxel alone: two channels."""
    values = 1 / (1 + np.exp(-patch["volume"].astype(np.float32)))
    return {"p": np.concatenate([values, 1 - values], axis=1)}


@dataclass
class Loaded:
    """An engine that runs in this process, and counts."""

    answer: Callable[[Patch], dict[str, Array]] = squashed
    degraded_at: tuple[int, ...] = ()
    runtime: str = "here"
    runtime_version: str = "1"
    device: str = "none"
    degraded: str = ""
    variant_sha256: str = ""
    plan_sha256: str = ""
    last_run_ms: float = 2.0
    doubts: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)

    def infer(
        self,
        inputs: Patch,
        deadline_s: float,
        cancelled: Callable[[], bool] = lambda: False,  # noqa: ARG002 - the port's signature
    ) -> dict[str, Array]:
        self.degraded = "the server is away" if len(self.shapes) in self.degraded_at else ""
        self.shapes += [array.shape for array in inputs.values()]
        self.left_s.append(deadline_s)
        return self.answer(inputs)

    def doubt(self, why: str) -> None:
        self.doubts.append(why)

    def close(self) -> None:
        return


def manifest(size: tuple[int, int, int], **changes: Any) -> Manifest:
    return Manifest.model_validate(
        manifest_of(
            scope="series",
            inputs=[{"name": "volume", "dtype": "float32", "shape": [1, 1, *size]}],
            preprocess=[{"op": "sliding_window", "size": size}],
            outputs=[{"name": "p", "dtype": "float32", "shape": [1, 2, *size]}],
            postprocess={"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["one", "two"]},
            labels=("one", "two"),
            files={"model.onnx": b"", "golden/case.npz": b""},
        )
        | changes
    )


def ask(
    volume: NDArray[Any],
    loaded: Loaded,
    size: tuple[int, int, int] = (8, 8, 8),
    deadline_s: float = 60.0,
    cancelled: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Answer:
    op = SlidingWindow.model_validate({"op": "sliding_window", "size": size, **options})
    question = Question(
        inputs={"volume": volume[None, None]}, masks=frozenset(), deadline_s=deadline_s, cancelled=cancelled
    )
    return patches.ask(op, manifest(size), loaded, question)


def random(shape: tuple[int, ...], seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


Lengths = st.tuples(*[st.integers(1, 37)] * 3)


@given(
    shape=Lengths,
    size=st.tuples(*[st.integers(8, 15)] * 3),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]),
    blend=st.sampled_from(["gaussian", "constant"]),
)
@settings(max_examples=40, deadline=None)
def test_patch_by_patch_is_what_one_run_says(
    shape: tuple[int, ...], size: tuple[int, int, int], overlap: float, blend: str
) -> None:
    """Of a model that looks at each voxel alone; also at odd sizes, and where the volume is smaller than a patch."""
    volume, loaded = random(shape), Loaded()
    found = ask(volume, loaded, size, overlap=overlap, blend=blend).outputs["p"]
    assert np.allclose(found, squashed({"volume": volume[None, None]})["p"], atol=1e-6)
    assert set(loaded.shapes) == {(1, 1, *size)}


def test_neighbours_overlap_by_no_less_than_is_wanted_and_lie_evenly() -> None:
    """20 voxels in patches of 8, a quarter of which overlaps: three, six voxels apart."""
    starts: list[float] = []

    def note(patch: Patch) -> dict[str, Array]:
        starts.append(float(patch["volume"][0, 0, 0, 0, 0]))
        return squashed(patch)

    volume = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None], (20, 8, 8))
    answer = ask(volume, Loaded(note), overlap=0.25)
    assert starts == [0, 6, 12]
    assert answer.run_ms == 6.0


def test_overlaps_are_means_and_a_gaussian_believes_the_middle_of_a_patch() -> None:
    """Two patches of 8 that share half: the first answers 0 throughout, the second 1."""
    turn = iter([0.0, 1.0] * 2)

    def flat(_: Patch) -> dict[str, Array]:
        return {"p": np.full((1, 2, 8, 8, 8), next(turn), np.float32)}

    volume = np.zeros((12, 8, 8), np.float32)
    constant = ask(volume, Loaded(flat), overlap=0.5, blend="constant").outputs["p"][0, 0, :, 0, 0]
    assert constant.tolist() == [0] * 4 + [0.5] * 4 + [1] * 4
    weighted = ask(volume, Loaded(flat), overlap=0.5).outputs["p"][0, 0, :, 3, 5]
    assert weighted[:4].tolist() == [0] * 4
    assert weighted[8:].tolist() == [1] * 4
    # sigma is one voxel: at voxel 4 the first patch's centre is 0.5 away, the second's 3.5.
    assert weighted[4] == pytest.approx(
        np.exp(-(3.5**2) / 2) / (np.exp(-(3.5**2) / 2) + np.exp(-(0.5**2) / 2)), rel=1e-5
    )
    assert weighted[4] + weighted[7] == pytest.approx(1)


def test_a_small_volume_is_filled_up_with_its_edge_and_masks_with_nothing() -> None:
    seen: dict[str, Array] = {}

    def look(patch: Patch) -> dict[str, Array]:
        seen.update(patch)
        return squashed(patch)

    op = SlidingWindow(op="sliding_window", size=(8, 8, 8))
    ones = np.ones((1, 1, 3, 8, 8), np.float32)
    question = Question(
        inputs={"volume": ones, "lung": ones}, masks=frozenset({"lung"}), deadline_s=60, cancelled=lambda: False
    )
    answer = patches.ask(op, manifest((8, 8, 8)), Loaded(look), question)
    assert seen["volume"].shape == (1, 1, 8, 8, 8)
    assert seen["volume"].min() == 1
    assert seen["lung"].sum() == 3 * 64
    assert answer.outputs["p"].shape == (1, 2, 3, 8, 8)


def test_scores_of_one_stay_within_their_range() -> None:
    def certain(_: Patch) -> dict[str, Array]:
        return {"p": np.ones((1, 2, 8, 8, 8), np.float32)}

    found = ask(random((23, 19, 17)), Loaded(certain), overlap=0.6).outputs["p"]
    assert (found.min(), found.max()) == (pytest.approx(1), 1)


# Time.


def test_the_deadline_is_of_the_whole_volume() -> None:
    with pytest.raises(RuntimeFailed, match="over after 0 of 3 patches") as caught:
        ask(random((20, 8, 8)), Loaded(), deadline_s=0.0)
    assert caught.value.reason == Reason.DEADLINE


def test_a_patch_that_takes_all_the_time_is_the_last() -> None:
    loaded, never = Loaded(), threading.Event()

    def slow(patch: Patch) -> dict[str, Array]:
        never.wait(loaded.left_s[-1] + 0.01)
        return squashed(patch)

    loaded.answer = slow
    with pytest.raises(RuntimeFailed, match="over after 1 of 3 patches") as caught:
        ask(random((20, 8, 8)), loaded, deadline_s=1.0)
    assert caught.value.reason == Reason.DEADLINE
    assert len(loaded.left_s) == 1


def test_each_patch_has_what_is_left_of_the_time() -> None:
    loaded = Loaded()
    ask(random((20, 20, 8)), loaded, deadline_s=60.0)
    assert len(loaded.left_s) == 9
    assert loaded.left_s == sorted(loaded.left_s, reverse=True)
    assert 0 < loaded.left_s[-1] < loaded.left_s[0] <= 60


def test_it_gives_way_between_two_patches() -> None:
    loaded = Loaded()
    with pytest.raises(RuntimeCancelled, match="after 2 of 3 patches"):
        ask(random((20, 8, 8)), loaded, cancelled=lambda: len(loaded.shapes) == 2)
    assert len(loaded.shapes) == 2


# What may be wrong.


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((1, 2, 8, 8, 8), np.nan, np.float32), "p is not finite"),
        (np.full((1, 2, 8, 8, 8), 1.5, np.float32), r"p lies outside 0\.\.1"),
        (np.zeros((1, 2, 8, 8, 7), np.float32), "p has the shape"),
        (np.zeros((1, 9, 8, 8, 8), np.float32), "p has the shape"),
    ],
)
def test_nonsense_in_one_patch_does_not_hide_in_the_mean(bad: Array, words: str) -> None:
    loaded = Loaded()
    loaded.answer = lambda patch: {"p": bad} if len(loaded.shapes) == 2 else squashed(patch)
    with pytest.raises(RuntimeFailed, match=words) as caught:
        ask(random((20, 8, 8)), loaded, overlap=0.5)
    assert caught.value.reason == Reason.ENGINE_FAILED
    assert len(loaded.shapes) == 2
    assert loaded.doubts == [str(caught.value)]


def test_no_output_is_nonsense() -> None:
    with pytest.raises(RuntimeFailed, match="no p"):
        ask(random((20, 8, 8)), Loaded(lambda _: {}))


def test_more_than_the_memory_for_it_is_refused_before_the_first_patch() -> None:
    loaded = Loaded()
    with pytest.raises(CannotAnalyse, match="512 x 512 x 512 voxels of 2 outputs are too many") as caught:
        ask(np.broadcast_to(np.float32(0), (512, 512, 512)), loaded, (256, 256, 256))
    assert caught.value.reason == Reason.UNSUITABLE
    with pytest.raises(CannotAnalyse, match="300 x 300 x 300 voxels are 125000 patches: too many"):
        ask(np.broadcast_to(np.float32(0), (300, 300, 300)), loaded)
    assert not loaded.shapes


def test_it_is_told_how_much_did_not_run_where_it_should() -> None:
    assert ask(random((20, 8, 8)), Loaded()).degraded == ""
    assert ask(random((20, 8, 8)), Loaded(degraded_at=(0,))).degraded == "1 of 3 patches: the server is away"
    assert ask(random((20, 8, 8)), Loaded(degraded_at=(0, 1, 2))).degraded == "the server is away"


@dataclass
class Mixed(Loaded):
    """A server answers the first patches, the processor the rest."""

    from_there: int = 1

    def infer(
        self, inputs: Patch, deadline_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Array]:
        answers = super().infer(inputs, deadline_s, cancelled)
        is_there = len(self.shapes) <= self.from_there
        self.runtime, self.device = ("kserve", "server") if is_there else ("onnx", "CPU")
        self.variant_sha256, self.plan_sha256 = ("5" * 64, "6" * 64) if is_there else ("", "")
        self.degraded = "" if is_there else "the server is away"
        return answers


def test_all_that_a_mixed_run_ran_on_is_named() -> None:
    own = manifest((8, 8, 8)).files["model.onnx"]
    answer = ask(random((20, 8, 8)), Mixed(from_there=1))
    assert (answer.ran_on.runtime, answer.ran_on.variant_sha256, answer.ran_on.plan_sha256) == ("onnx", "", "")
    there = f"kserve 1 on server (model sha256 {'5' * 64}, plan sha256 {'6' * 64})"
    assert answer.degraded == f"2 of 3 patches: the server is away; 1 of 3 patches ran on {there}"
    answer = ask(random((20, 8, 8)), Mixed(from_there=2))
    assert (answer.ran_on.runtime, answer.ran_on.variant_sha256) == ("kserve", "5" * 64)
    here = f"onnx 1 on CPU (model sha256 {own})"
    assert answer.degraded == f"1 of 3 patches: the server is away; 1 of 3 patches ran on {here}"
    assert ask(random((20, 8, 8)), Mixed(from_there=3)).degraded == ""


def test_the_author_is_told_how_large_a_volume_may_be() -> None:
    size = (64, 64, 64)
    assert patches.limit(manifest(size, preprocess=[])) == ""
    words = "The most that it reads is 33554432 voxels, such as 128 slices of 512 x 512, in 10000 patches:"
    assert patches.limit(manifest(size)) == f"{words} a larger volume is not analysed"
    steps = [
        {"op": "resample", "spacing_mm": 0.5},
        {"op": "normalise", "mean": [0, 0, 0, 0], "std": [1, 1, 1, 1]},
        {"op": "sliding_window", "size": size},
    ]
    inputs = [{"name": "volume", "dtype": "float32", "shape": [1, 4, *size]}]
    words = patches.limit(manifest(size, preprocess=steps, inputs=inputs))
    assert "8388608 voxels, such as a cube of 101 mm at 0.5 mm" in words
    eight = [{"name": "p", "dtype": "float32", "shape": [1, 8, *size]}]
    many = {"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["one"] * 8}
    assert patches.most_voxels(manifest(size, outputs=eight, postprocess=many)) == 2**23


# Boxes.

BOXES = {"op": "boxes_3d", "boxes": "b", "scores": "s", "labels": ["one", "two"], "iou": 0.2}
BLOBS = ((slice(3, 7), slice(2, 6), slice(4, 9)), (slice(14, 19), slice(9, 13), slice(1, 5)))


def boxed(values: NDArray[np.float32]) -> tuple[list[list[int]], list[list[float]]]:
    """Corners of what is 1 and of what is 2, and how much of it there is, as scores of the first and second label."""
    found, scores = [], []
    for label, value in enumerate((1, 2)):
        places = np.argwhere(values == value)
        if places.size:
            found.append([*places.min(axis=0).tolist(), *(places.max(axis=0) + 1).tolist()])
            scores.append([0.0, 0.0])
            scores[-1][label] = min(1.0, len(places) / 100)
    return found, scores


@pytest.mark.parametrize(
    "changes",
    [{}, {"axes": "xyz"}, {"layout": "centre_size"}, {"layout": "centre_size", "axes": "xyz"}, {"classes": "c"}],
)
@pytest.mark.parametrize("sure", [False, True])
def test_boxes_of_patches_are_those_of_the_volume(changes: dict[str, Any], sure: bool, tmp_path: Path) -> None:
    """Blobs of 80 voxels, whole in at least one patch: pieces of them in others are much less sure, or hardly so."""
    op = Boxes3D.model_validate(BOXES | changes | ({"iou": 0.6} if sure else {}))
    source = read_volume_of(tmp_path, (21, 16, 10), (1.0, 1.0, 1.0))
    volume = np.zeros((21, 16, 10), np.float32)
    for value, blob in enumerate(BLOBS, 1):
        volume[blob] = value

    def answer(patch: Patch) -> dict[str, Array]:
        found, scores = boxed(patch["volume"][0, 0].astype(np.float32))
        corners = np.array(found, np.float32).reshape(-1, 2, 3)
        if op.axes == "xyz":
            corners = corners[..., ::-1]
        if op.layout == "centre_size":
            corners = np.stack([corners.mean(axis=1), corners[:, 1] - corners[:, 0]], axis=1)
        each = np.array(scores, np.float32).reshape(-1, 2)
        each = np.where(each > 0, np.float32(0.76) + each / 20, each) if sure else each
        best = {"s": each} if op.classes is None else {"s": each.max(axis=1, initial=0), "c": each.argmax(axis=1)}
        return {"b": corners.reshape(-1, 6), **best}

    question = Question(
        inputs={"volume": volume[None, None]}, masks=frozenset(), deadline_s=60, cancelled=lambda: False
    )
    sliding = SlidingWindow(op="sliding_window", size=(12, 12, 8), overlap=0.5)
    labels = manifest((12, 12, 8)).labels
    declared = manifest((12, 12, 8), postprocess=op.model_dump())
    loaded = Loaded(answer)
    answers = patches.ask(sliding, declared, loaded, question).outputs
    assert len(loaded.shapes) > 4
    image = ModelImage(image=volume, masks={}, grid=identity((1.0, 1.0, 1.0)))
    joined = boxes.boxes_3d(op, labels, source, image, answers)
    assert joined == boxes.boxes_3d(op, labels, source, image, answer({"volume": volume[None, None]}))
    assert [(finding.label, finding.score, finding.box) for finding in joined.findings] == [
        ("one", 0.8, (4, 2, 9, 6)),
        ("two", 0.8, (1, 9, 5, 13)),
    ]


def test_a_box_on_the_border_of_two_patches_is_told_though_each_says_that_its_centre_is_the_other_s() -> None:
    """No overlap: patches meet at 12, and each draws the box half a voxel too far."""
    op = Boxes3D.model_validate(BOXES)
    union = boxes.Union(op, manifest((12, 12, 8)).labels, (12, 12, 8))
    own = [step.own for step in patches._row(24, 12, SlidingWindow(op="sliding_window", size=(12, 12, 8), overlap=0.0))]
    everywhere = (-np.inf, np.inf)
    for start, told, box in ((0, own[0], (10.5, 2, 2, 14.5, 6, 6)), (12, own[1], (-2.5, 2, 2, 1.5, 6, 6))):
        answers = {"b": np.array([box], np.float32), "s": np.array([[0.9, 0.0]], np.float32)}
        union.add(answers, (start, 0, 0), np.array([told, everywhere, everywhere]))
    assert len(union.whole()["b"]) == 2


def test_a_patch_without_a_box_adds_none() -> None:
    def first_only(patch: Patch) -> dict[str, Array]:
        count = int(patch["volume"].any())
        return {"b": np.ones((count, 6), np.float32), "s": np.full((count, 2), 0.9, np.float32)}

    volume = np.zeros((1, 1, 20, 8, 8), np.float32)
    volume[0, 0, 0] = 1
    question = Question(inputs={"volume": volume}, masks=frozenset(), deadline_s=60, cancelled=lambda: False)
    op = SlidingWindow(op="sliding_window", size=(8, 8, 8))
    declared = manifest((8, 8, 8), postprocess=BOXES)
    assert len(patches.ask(op, declared, Loaded(first_only), question).outputs["b"]) == 1


def test_many_boxes_of_many_patches_stay_few() -> None:
    rng = np.random.default_rng(1)

    def noise(_: Patch) -> dict[str, Array]:
        low = rng.uniform(0, 7, (3000, 3))
        return {
            "b": np.concatenate([low, low + 1], axis=1).astype(np.float32),
            "s": rng.uniform(0, 1, (3000, 2)).astype(np.float32),
        }

    declared = manifest((8, 8, 8), postprocess=BOXES)
    question = Question(
        inputs={"volume": np.zeros((1, 1, 20, 8, 8), np.float32)},
        masks=frozenset(),
        deadline_s=60,
        cancelled=lambda: False,
    )
    op = SlidingWindow(op="sliding_window", size=(8, 8, 8))
    answers = patches.ask(op, declared, Loaded(noise), question).outputs
    assert 500 <= len(answers["b"]) == len(answers["s"]) <= 2000  # 1000 of each label
    assert answers["b"][:, 3].max() > 14
    assert answers["s"].max(axis=1).min() > 0.88  # the best 1000 of 9000 of a label begin at 8/9
