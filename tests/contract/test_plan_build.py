"""Plans built by real TensorRT-RTX, without a GPU: what ships, and what must be refused. Nothing here runs a plan."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from appliance import engine_package
from appliance.errors import PackageInvalid, RuntimeFailed
from appliance.model import Reason
from appliance.ports import PlanBuilder
from appliance.runtimes.builder import BuildSettings, InputRange, Model, TensorRtBuilder, model_of
from appliance.runtimes.plan_store import PlanHeader
from tests.missing import missing

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "engines").glob("*/model*.onnx"))
TARGETS = ("SM86", "SM89", "SM120")


@pytest.fixture(scope="module")
def version() -> str:
    """Of TensorRT-RTX."""
    try:
        version, _, kind = TensorRtBuilder(BuildSettings()).library().partition(" ")
    except RuntimeFailed as error:
        missing(f"no TensorRT-RTX: {error}")
    if kind != "RTX":
        missing(f"TensorRT {version} needs a GPU to build; TensorRT-RTX is what builds without one")
    return version


class Withdrawn(Exception):
    """By whoever watches the build."""


def told(_phase: str, _step: int, _steps: int) -> None:
    pass


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_model_is_built_for_each_target(version: str, tmp_path: Path, path: Path) -> None:
    builder: PlanBuilder = TensorRtBuilder(BuildSettings(compute_capabilities=TARGETS))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    plan = builder.build(path, sha256, tmp_path, told, 300)
    content = plan.path.read_bytes()
    header = PlanHeader.of(content)
    assert plan.path.parent == tmp_path
    assert plan.sha256 == hashlib.sha256(content).hexdigest()
    assert (header.size, header.version) == (len(content), version)
    assert header.compute_capabilities == set(TARGETS)
    target = json.loads(plan.path.with_suffix(".json").read_text())["target"]
    assert target["precision"] == ("fp16" if path.name == "model.fp16.onnx" else "model")


def test_a_small_model_for_one_target_alone_and_its_key(version: str, tmp_path: Path) -> None:
    target = "SM89"
    path, sha256 = write(tmp_path, network())
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=(target,)), lambda _: small())
    plan = builder.build(path, sha256, tmp_path / "plans", told, 60)
    header = PlanHeader.of(plan.path.read_bytes())
    assert (header.version, header.compute_capabilities) == (version, frozenset({target}))
    assert builder.find(path, sha256, tmp_path / "plans") == plan
    aim = builder.target(path, sha256)
    assert (aim.key, aim.compute_capabilities, aim.onnx_sha256) == (plan.key, (target,), sha256)
    assert aim.profiles == {"x": ((1, 8), (2, 8), (4, 8))}
    bounded = BuildSettings(compute_capabilities=(target,), workspace_mb=16)
    assert TensorRtBuilder(bounded, lambda _: small()).target(path, sha256) == aim  # a limit is no matter to RTX
    assert sorted(file.name for file in (tmp_path / "plans").iterdir()) == [
        f"{plan.key[:16]}.json",
        f"{plan.key[:16]}.plan",
    ]


def small(least: tuple[int, ...] = (1, 8), best: tuple[int, ...] = (2, 8), most: tuple[int, ...] = (4, 8)) -> Model:
    return Model(ranges=(InputRange(name="x", least=least, best=best, most=most),), precision="fp32")


def write(folder: Path, proto: onnx.ModelProto | bytes) -> tuple[Path, str]:
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def network(nodes: tuple[onnx.NodeProto, ...] | None = None) -> onnx.ModelProto:
    """y = relu(x w), unless other nodes are given."""
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    weights = from_array(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), "w")
    usual = (make_node("MatMul", ["x", "w"], ["h"]), make_node("Relu", ["h"], ["y"]))
    graph = make_graph(nodes or usual, "test", [x], [y], [weights])
    return make_model(graph, opset_imports=[make_opsetid("", 18), make_opsetid("of.ours", 1)], ir_version=9)


def suppression() -> onnx.ModelProto:
    """NonMaxSuppression: TensorRT's parser says that it takes it."""
    boxes = make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 16, 4])
    scores = make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 16])
    chosen = make_tensor_value_info("chosen", TensorProto.INT64, ["n", 3])
    most = from_array(np.array([5], np.int64), "most")
    node = make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["chosen"])
    graph = make_graph([node], "test", [boxes, scores], [chosen], [most])
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=9)


def still(name: str, *shape: int) -> InputRange:
    return InputRange(name=name, least=shape, best=shape, most=shape)


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (b"", "cannot be loaded: not an ONNX model"),
        (b"\0" * 64, "cannot be loaded: "),
        (b"no model, but a letter", "cannot be loaded: "),
        (network().SerializeToString()[:-100], "cannot be loaded: "),
        (network((make_node("Unheard", ["x"], ["y"], "odd", domain="of.ours"),)), r"cannot be loaded: .*Unheard"),
    ],
    ids=["empty", "zeros", "text", "truncated", "unknown operator"],
)
def test_what_the_parser_must_refuse(tmp_path: Path, proto: onnx.ModelProto | bytes, words: str) -> None:
    refused(tmp_path, proto, small(), words, Reason.NO_ENGINE)


@pytest.mark.usefixtures("version")
def test_what_is_parsed_and_cannot_be_built(tmp_path: Path) -> None:
    model = Model(ranges=(still("boxes", 1, 16, 4), still("scores", 1, 1, 16)), precision="fp32")
    refused(tmp_path, suppression(), model, "cannot build it", Reason.ENGINE_FAILED)


def refused(
    folder: Path, proto: onnx.ModelProto | bytes, model: Model, words: str, reason: Reason, *targets: str
) -> None:
    path, sha256 = write(folder, proto)
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=targets or ("SM86",)), lambda _: model)
    with pytest.raises(RuntimeFailed, match=words) as caught:
        builder.build(path, sha256, folder / "plans", told, 60)
    assert caught.value.reason == reason
    assert not (folder / "plans").exists()


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small(least=(3, 8)), "x"),  # above the best
        (small(most=(1, 8)), "x"),
        (small(least=(1, 7), best=(2, 7), most=(4, 7)), "cannot build it"),  # the network says 8
        (Model(ranges=(), precision="fp32"), "the shapes of x are not known"),
        (small(least=(1,), best=(2,), most=(4,)), "x has the shape"),
    ],
    ids=["least above best", "most below best", "not the network's", "unknown", "another rank"],
)
def test_shapes_that_cannot_be(tmp_path: Path, model: Model, words: str) -> None:
    path, sha256 = write(tmp_path, network())
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=("SM86",)), lambda _: model)
    with pytest.raises(RuntimeFailed, match=words):
        builder.build(path, sha256, tmp_path, told, 60)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.usefixtures("version")
def test_a_gpu_that_it_does_not_build_for_is_told_with_those_it_does(tmp_path: Path) -> None:
    refused(tmp_path, network(), small(), "builds nothing for SM87, only for .*SM86", Reason.ENGINE_FAILED, "SM87")


@pytest.mark.usefixtures("version")
def test_another_file_than_was_named_is_not_built(tmp_path: Path) -> None:
    path, _ = write(tmp_path, network())
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=("SM86",)), lambda _: small())
    with pytest.raises(RuntimeFailed, match="another sha256"):
        builder.build(path, "0" * 64, tmp_path, told, 60)


@pytest.mark.usefixtures("version")
def test_progress_is_told_while_it_builds(tmp_path: Path) -> None:
    path, sha256 = write(tmp_path, network())
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=("SM86",)), lambda _: small())
    heard: list[tuple[str, int, int]] = []
    builder.build(path, sha256, tmp_path, lambda *one: heard.append(one), 60)
    assert all(phase and 0 <= step <= max(steps, 1) for phase, step, steps in heard)
    assert heard[-1] == ("write", 1, 1)
    assert any(phase != "write" for phase, _, _ in heard)


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(("deadline_s", "stop"), [(0.0, False), (60.0, True)], ids=["deadline", "withdrawn"])
def test_a_build_that_is_ended_leaves_no_process_and_no_file(tmp_path: Path, deadline_s: float, stop: bool) -> None:
    path, sha256 = write(tmp_path, network())
    builder = TensorRtBuilder(BuildSettings(compute_capabilities=("SM86",)), lambda _: small())

    def withdraw(_phase: str, _step: int, _steps: int) -> None:
        raise Withdrawn

    with pytest.raises(Withdrawn if stop else RuntimeFailed):
        builder.build(path, sha256, tmp_path, withdraw, deadline_s)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.usefixtures("version")
def test_where_no_gpu_is_it_builds_only_for_named_ones(tmp_path: Path) -> None:
    builder = TensorRtBuilder(BuildSettings(), lambda _: small())
    reason = builder.probe()
    if not reason:
        pytest.skip("there is a GPU")
    path, sha256 = write(tmp_path, network())
    with pytest.raises(RuntimeFailed) as caught:
        builder.build(path, sha256, tmp_path, told, 60)
    assert str(caught.value) == reason


def test_an_interpreter_without_tensorrt_is_a_reason_in_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    python.chmod(0o755)
    reason = TensorRtBuilder(BuildSettings(interpreter=python)).probe()
    assert reason == "the child ended with status 3: no such thing"


def altered(folder: Path, edit: Callable[[str], str]) -> engine_package.EnginePackage:
    source = ROOT / "engines" / "cxr-acquisition"
    text = edit((source / "engine.yaml").read_text())
    (folder / "engine.yaml").write_text(text)
    (folder / "golden").symlink_to(source / "golden")
    return engine_package.load_manifest(folder)


def test_shapes_come_from_the_manifest(tmp_path: Path) -> None:
    package = altered(tmp_path, lambda text: text)
    (one,) = model_of(package, package.model_path).ranges
    assert one == still("film", 1, 1, 128, 128)


def test_a_length_that_the_manifest_leaves_open_is_made_fast_for_the_golden_case(tmp_path: Path) -> None:
    package = altered(tmp_path, lambda text: text.replace("[1, 1, 128, 128]", "[1, 1, -1, -1]"))
    (one,) = model_of(package, package.model_path).ranges
    assert one == InputRange(name="film", least=(1, 1, 16, 16), best=(1, 1, 128, 128), most=(1, 1, 256, 256))


def test_a_model_outside_a_package_has_no_shapes(tmp_path: Path) -> None:
    path, sha256 = write(tmp_path, network())
    with pytest.raises(RuntimeFailed, match=r"no plan without shapes: model\.onnx lies in no engine package"):
        TensorRtBuilder(BuildSettings(compute_capabilities=("SM86",))).build(path, sha256, tmp_path, told, 60)
    with pytest.raises(PackageInvalid):
        model_of(engine_package.load_manifest(tmp_path), path)
