"""Whether two answers decide the same: boxes on a film that differ as little as numbers may, and ones that do not."""

import numpy as np
import pytest

from appliance.engine_package import EnginePackage
from appliance.imaging import golden
from appliance.model import Finding
from tests.strangers import Network, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> EnginePackage:
    """A detector that answers what its film holds: in its first rows, a box and its score, each of three channels."""
    net = Network()
    first = net.node("ReduceMean", "film", axes=[1], keepdims=0)
    for name, begin, count in (("b", 0, 4), ("s", 4, 1)):
        least, most = net.constant([0, 0, begin], np.int64), net.constant([1, 1, begin + count], np.int64)
        part = net.node("Slice", first, least, most)
        net.node("Reshape", part, net.constant([1, 1, count], np.int64), name=name)
    inputs = [{"name": "film", "dtype": "float32", "shape": [1, 3, 32, 32]}]
    outputs = [
        {"name": "b", "dtype": "float32", "shape": [1, 1, 4]},
        {"name": "s", "dtype": "float32", "shape": [1, 1, 1]},
    ]
    film = np.zeros((1, 3, 32, 32), np.float32)
    film[..., 0, :5] = (4, 4, 24, 24, 0.8)
    return write_package(
        tmp_path_factory.mktemp("packages") / "one",
        net.model(inputs, outputs),
        {"one": {"film": film}},
        scope="instance",
        labels=("clip",),
        inputs=inputs,
        preprocess=[{"op": "letterbox", "size": 32}, {"op": "normalise", "mean": [0.5] * 3, "std": [0.2] * 3}],
        outputs=outputs,
        postprocess={"op": "boxes", "boxes": "b", "scores": "s", "labels": ["clip"]},
    )


def decided(package: EnginePackage, box: list[float], score: float = 0.8) -> golden.Decisions:
    inputs, _ = golden.read_case(package, package.manifest.golden[0])
    answer = {"b": np.array([[box]], np.float32), "s": np.array([[[score]]], np.float32)}
    return golden.decisions(package, inputs, answer)


def test_boxes_that_nearly_lie_on_each_other_are_one_decision(package: EnginePackage) -> None:
    one = decided(package, [4, 4, 24, 24])
    assert not isinstance(one, str)
    assert one[0].box == (4, 4, 24, 24)
    assert golden._same(one, decided(package, [4.01, 3.99, 24.01, 24]))
    assert not golden._same(one, decided(package, [4, 4, 24, 18.9]))
    assert not golden._same(one, decided(package, [4, 4, 24, 24], score=0.4))
    assert not golden._same(one, decided(package, [float("nan"), 4, 24, 24]))


def test_equal_boxes_are_one_decision_though_they_have_no_area() -> None:
    one = (Finding(label="clip", score=0.8, sop_instance_uid="1.2", box=(4.0, 4.0, 4.0, 24.0)),)
    assert golden._same(one, tuple(one))


def test_an_input_of_other_channels_is_no_case_of_the_engine(package: EnginePackage) -> None:
    with pytest.raises(ValueError, match="channels of this engine"):
        golden.decisions(package, {"film": np.zeros((1, 1, 32, 32), np.float32)}, {})
