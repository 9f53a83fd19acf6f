"""What a manifest may declare of pre- and post-processing, and where its parts do not fit together."""

from typing import Any

import pytest
from pydantic import ValidationError

from appliance.engine_manifest import Manifest, contradictions
from appliance.engine_ops import Boxes, Normalise, Segmentation, SlidingWindow
from tests.strangers import manifest_of

FILES = {"model.onnx": b"", "golden/case.npz": b""}
PATCH = [16, 24, 32]
SLIDING = {"op": "sliding_window", "size": PATCH}
TWO = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


def tensor(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def film_engine(postprocess: dict[str, Any], *outputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return (
        manifest_of(
            scope="instance",
            labels=("one", "two"),
            files=FILES,
            inputs=[tensor("film", 1, 1, 64, 64)],
            preprocess=[{"op": "letterbox", "size": 64}],
            outputs=list(outputs),
            postprocess={"labels": ["one", "two"], **postprocess},
        )
        | changes
    )


def volume_engine(**changes: Any) -> dict[str, Any]:
    return (
        manifest_of(
            scope="series",
            labels=("one", "two"),
            files=FILES,
            inputs=[tensor("volume", 1, 1, *PATCH)],
            preprocess=[{"op": "resample", "spacing_mm": 2.0}, SLIDING],
            outputs=[tensor("p", 1, 2, *PATCH)],
            postprocess={"op": "segmentation", "output": "p", "kind": "probabilities", "labels": ["one", "two"]},
        )
        | changes
    )


def faults(data: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, path))}: {words}" for path, words in contradictions(Manifest.model_validate(data))]


BOXES = {"op": "boxes", "boxes": "b", "scores": "s"}
MAP = {"op": "heat_map", "map": "m"}


@pytest.mark.parametrize(
    "data",
    [
        film_engine(MAP, tensor("m", 1, 2, 7, 7)),
        film_engine(MAP, tensor("m", 1, -1, -1, -1)),
        film_engine(MAP | {"scores": "s"}, tensor("m", 1, 2, 7, 7), tensor("s", 1, 2)),
        film_engine(BOXES, tensor("b", 1, 100, 4), tensor("s", 1, 100, 2)),
        film_engine(BOXES, tensor("b", -1, 4), tensor("s", -1, 2)),
        film_engine(BOXES | {"labels": ["one"]}, tensor("b", -1, 4), tensor("s", -1)),
        film_engine(BOXES | {"labels": ["one"]}, tensor("b", -1, 4), tensor("s", -1, 1)),
        film_engine(BOXES | {"classes": "c"}, tensor("b", -1, 4), tensor("s", -1), tensor("c", -1)),
        film_engine({"op": "label_scores", "scores": "s"}, tensor("s", 1, 2)),
        film_engine(
            MAP,
            tensor("m", 1, 2, 7, 7),
            inputs=[tensor("film", 1, 3, 64, 64)],
            preprocess=[{"op": "letterbox", "size": 64}, {"op": "normalise", **TWO}],
        ),
        volume_engine(),
        volume_engine(
            inputs=[tensor("volume", 1, 1, *PATCH), tensor("lung", 1, 1, *PATCH)],
            preprocess=[
                {"op": "resample", "spacing_mm": 2.0},
                {"op": "lung_hull", "output": "lung"},
                {"op": "normalise", "mean": [0], "std": [1]},
                SLIDING,
            ],
        ),
        volume_engine(
            preprocess=[],
            outputs=[tensor("s", 1, 2)],
            postprocess={"op": "label_scores", "scores": "s", "labels": ["one", "two"]},
        ),
        volume_engine(
            preprocess=[],
            outputs=[tensor("b", -1, 6), tensor("s", -1, 2)],
            postprocess=BOXES | {"op": "boxes_3d", "labels": ["one", "two"]},
        ),
        volume_engine(
            outputs=[tensor("b", -1, 6), tensor("s", -1, 2)],
            postprocess=BOXES | {"op": "boxes_3d", "labels": ["one", "two"]},
        ),
    ],
)
def test_what_fits_together_has_no_fault(data: dict[str, Any]) -> None:
    assert faults(data) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (film_engine(MAP, tensor("m", 1, 3, 7, 7)), "postprocess: m has the shape [1, 3, 7, 7]; wanted is (1, 2, rows"),
        (film_engine(MAP, tensor("m", 1, 2, 7)), "postprocess: m has the shape"),
        (film_engine(MAP | {"scores": "s"}, tensor("m", 1, 2, 7, 7), tensor("s", 2)), "postprocess: s has the shape"),
        (film_engine(MAP, tensor("other", 1, 2, 7, 7)), "postprocess: reads m, which is not an output of the model"),
        (film_engine(BOXES, tensor("b", -1, 5), tensor("s", -1, 2)), "postprocess: b has the shape [-1, 5]"),
        (film_engine(BOXES, tensor("b", 2, -1, 4), tensor("s", 2, -1, 2)), "postprocess: b has the shape"),
        (film_engine(BOXES, tensor("b", 1, -1, 4), tensor("s", -1, 2)), "postprocess: s has the shape [-1, 2]"),
        (film_engine(BOXES, tensor("b", -1, 4), tensor("s", -1)), "postprocess: s has the shape [-1]"),
        (
            film_engine(BOXES | {"classes": "c"}, tensor("b", -1, 4), tensor("s", -1), tensor("c", -1, 2)),
            "postprocess: c has the shape [-1, 2]",
        ),
        (film_engine({"op": "label_scores", "scores": "s"}, tensor("s", 1, 3)), "postprocess: s has the shape [1, 3]"),
        (
            volume_engine(preprocess=[], inputs=[tensor("volume", 1, 1, 64, 64)]),
            "inputs.0.shape: volume has the shape [1, 1, 64, 64]; it gets (1, 1, z, y, x)",
        ),
        (film_engine(MAP, tensor("m", 1, 2, 7, 7), scope="series"), "scope: the op heat_map reads one instance"),
        (volume_engine(scope="instance"), "scope: the op segmentation reads one series"),
        (
            film_engine(MAP, tensor("m", 1, 2, 7, 7), inputs=[tensor("film", 1, 3, 64, 64)]),
            "inputs.0.shape: film has the shape [1, 3, 64, 64]; it gets (1, 1, rows, columns)",
        ),
        (
            film_engine(
                MAP,
                tensor("m", 1, 2, 7, 7),
                preprocess=[{"op": "normalise", **TWO}, {"op": "letterbox", "size": 64}],
                inputs=[tensor("film", 1, 3, 64, 64)],
            ),
            "preprocess: normalise has no other op after it but sliding_window",
        ),
        (
            volume_engine(preprocess=[SLIDING, {"op": "resample", "spacing_mm": 2.0}]),
            "preprocess: sliding_window has no other op after it",
        ),
        (volume_engine(preprocess=[SLIDING, SLIDING]), "preprocess: normalise may be there once, and sliding_window"),
        (
            volume_engine(preprocess=[SLIDING, {"op": "normalise", "mean": [0], "std": [1]}]),
            "preprocess: normalise may be there once, and sliding_window once after it",
        ),
        (
            film_engine(MAP, tensor("m", 1, 2, 7, 7), preprocess=[SLIDING]),
            "preprocess.0: sliding_window works on a volume, and the scope is instance",
        ),
        (
            volume_engine(
                preprocess=[SLIDING | {"size": [512, 256, 129]}],
                inputs=[tensor("volume", 1, 1, 512, 256, 129)],
                outputs=[tensor("p", 1, 2, 512, 256, 129)],
            ),
            "preprocess.0.size: a patch of [512, 256, 129] and 1 channels is too large; the most is 16777216 elements",
        ),
        (
            volume_engine(
                preprocess=[{"op": "normalise", **TWO}, SLIDING | {"size": [256, 256, 129]}],
                inputs=[tensor("volume", 1, 3, 256, 256, 129)],
                outputs=[tensor("p", 1, 2, 256, 256, 129)],
            ),
            "preprocess.1.size: a patch of [256, 256, 129] and 3 channels is too large; the most is 16777216 elements",
        ),
        (
            volume_engine(inputs=[tensor("volume", 1, 1, -1, 24, 32)]),
            "inputs.0.shape: volume has the shape [1, 1, -1, 24, 32], no patch of [16, 24, 32]",
        ),
        (
            volume_engine(outputs=[tensor("p", 1, 2, 16, 24, 31)]),
            "outputs.0.shape: p has the shape [1, 2, 16, 24, 31], no patch of [16, 24, 32]",
        ),
        (
            volume_engine(
                outputs=[tensor("p", 1, 1, *PATCH)],
                postprocess={"op": "segmentation", "output": "p", "kind": "classes", "labels": ["one", "two"]},
            ),
            "postprocess: segmentation cannot be put together from answers to patches",
        ),
        (
            volume_engine(
                outputs=[tensor("s", 1, 2)],
                postprocess={"op": "label_scores", "scores": "s", "labels": ["one", "two"]},
            ),
            "postprocess: label_scores cannot be put together from answers to patches",
        ),
        (
            volume_engine(
                preprocess=[],
                outputs=[tensor("s", 1, 2)],
                postprocess={
                    "op": "label_scores",
                    "scores": "s",
                    "labels": ["one", "two"],
                    "regions": {"one": [0, 0, 1, 1]},
                },
            ),
            "postprocess.regions: are of films, and the scope is series",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(data: dict[str, Any], words: str) -> None:
    assert any(fault.startswith(words) for fault in faults(data)), faults(data)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Normalise, {"op": "normalise", "mean": [0.5], "std": [0.5, 0.5]}),
        (Normalise, {"op": "normalise", "mean": [0.5], "std": [0]}),
        (Normalise, {"op": "normalise", "mean": [], "std": []}),
        (Normalise, {"op": "normalise", "mean": [float("nan")], "std": [1]}),
        (SlidingWindow, {"op": "sliding_window", "size": [16, 16]}),
        (SlidingWindow, {"op": "sliding_window", "size": [7, 16, 16]}),
        (SlidingWindow, {"op": "sliding_window", "size": [16, 16, 16], "overlap": 0.8}),
        (SlidingWindow, {"op": "sliding_window", "size": [16, 16, 16], "blend": "mean"}),
        (Boxes, BOXES | {"labels": ["one"], "iou": 0}),
        (Boxes, BOXES | {"labels": ["one"], "max_findings": 51}),
        (Boxes, BOXES | {"labels": []}),
        (Segmentation, {"op": "segmentation", "output": "p", "kind": "logits", "labels": ["one"]}),
        (
            Segmentation,
            {"op": "segmentation", "output": "p", "kind": "classes", "labels": ["one"], "background": True},
        ),
    ],
)
def test_words_have_bounds(kind: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(options)
