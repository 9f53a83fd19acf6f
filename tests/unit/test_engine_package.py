"""Engine packages: what loads, and that every way to be wrong is told, with its line."""

import copy
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import engine_package
from appliance.engine_manifest import KeyPath, contradictions
from appliance.engine_ops import LesionCandidates, PreprocessOp, Resample
from appliance.engine_package import EnginePackage
from appliance.errors import PackageInvalid

CT = "1.2.840.10008.5.1.4.1.1.2"
FILES = {"model.onnx": b"a model", "CARD.md": b"# A card\n", "golden/phantom.npz": b"a case"}
BASE: dict[str, Any] = {
    "schema": 1,
    "id": "ct-lesion",
    "version": "0.1.0",
    "status": "reference",
    "title": "Solid lung lesion candidates",
    "intended_use": "A demonstration.",
    "licence": "Apache-2.0",
    "author": "Scanside",
    "training_data": "none",
    "scope": "series",
    "one_per": "study",
    "prefer": {"kernel": ["B[67]0f", "LUNG"], "spacing_mm": 1.0},
    "accepts": {
        "modality": ["CT"],
        "sop_class": [CT],
        "image_type_excludes": ["LOCALIZER"],
        "body_part": ["CHEST"],
        "view": [],
        "orientation": "axial",
        "slices": {"min": 20, "max": 2000},
        "spacing_mm": {"min": 0.3, "max": 5.0},
    },
    "inputs": [
        {"name": "volume", "dtype": "float32", "shape": [1, 1, -1, -1, -1]},
        {"name": "lungs", "dtype": "float32", "shape": [1, 1, -1, -1, -1]},
    ],
    "preprocess": [
        {"op": "resample", "spacing_mm": 2.0},
        {"op": "lung_hull", "output": "lungs"},
        {"op": "window", "low": -1000, "high": 400},
    ],
    "outputs": [
        {"name": "score", "dtype": "float32", "shape": [1, 1, -1, -1, -1]},
        {"name": "radius", "dtype": "float32", "shape": [1, 1, -1, -1, -1]},
    ],
    "postprocess": {
        "op": "lesion_candidates",
        "score": "score",
        "radius": "radius",
        "mask": "lungs",
        "label": "lesion",
    },
    "labels": {
        "lesion": {"text": "Nodule", "code": {"value": "27925004", "scheme": "SCT", "meaning": "Nodule"}},
    },
    "golden": [{"case": "golden/phantom.npz", "atol": 1.0e-3, "rtol": 1.0e-3}],
    "model": "model.onnx",
    "files": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
}
Change = Callable[[dict[str, Any]], object]


def write(folder: Path, text: str) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "engine.yaml").write_text(text, encoding="utf-8")
    return folder


def changed(change: Change = lambda _: None) -> str:
    manifest = copy.deepcopy(BASE)
    change(manifest)
    return yaml.safe_dump(manifest, sort_keys=False)


def refusal(folder: Path) -> list[str]:
    with pytest.raises(PackageInvalid) as caught:
        engine_package.load(folder)
    return str(caught.value).splitlines()


def line_of(text: str, start: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


def put(*path: str | int, value: Any) -> Change:
    """A change of the manifest: the value at a key path."""

    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def profile(least: list[int], usual: list[int], most: list[int]) -> Change:
    """A change of the manifest: the shapes that a plan for the first input must take."""

    def change(manifest: Any) -> None:
        manifest["inputs"][0] |= {"min": least, "opt": usual, "max": most}

    return change


@pytest.fixture
def package(tmp_path: Path) -> EnginePackage:
    return engine_package.load(write(tmp_path, changed()))


def test_a_good_package_loads_as_typed_values(package: EnginePackage, tmp_path: Path) -> None:
    assert package.key == "ct-lesion@0.1.0"
    assert package.package_sha256 == hashlib.sha256((tmp_path / "engine.yaml").read_bytes()).hexdigest()
    assert package.model_path.read_bytes() == FILES["model.onnx"]
    assert package.model_sha256 == hashlib.sha256(FILES["model.onnx"]).hexdigest()
    first = package.manifest.preprocess[0]
    assert isinstance(first, Resample)
    assert first.spacing_mm == 2.0
    assert isinstance(package.manifest.postprocess, LesionCandidates)
    assert package.manifest.labels["lesion"].threshold == 0.5


def test_what_schema_1_may_say_besides(tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        profile([1, 1, 8, 8, 8], [1, 1, 8, 16, 16], [1, 1, 64, 64, 64])(manifest)
        manifest["tolerances"] = {"atol": 0.25, "rtol": 0.5}
        manifest["golden"] = [{"case": "golden/phantom.npz"}, {"case": "golden/phantom.npz", "atol": 0.125}]
        manifest["variants"] = {"fp16": {"file": "model.onnx", "atol": 0.01, "rtol": 0.02}}
        manifest["accepts"]["age_years"] = {"min": 16}

    folder = write(tmp_path, changed(change))
    (folder / "engine.sig").write_bytes(b"a signature is not listed")
    manifest = engine_package.load(folder).manifest
    assert manifest.inputs[0].opt == (1, 1, 8, 16, 16)
    assert manifest.inputs[1].opt is None
    assert [(case.atol, case.rtol) for case in manifest.golden] == [(0.25, 0.5), (0.125, 0.5)]
    assert {name: variant.file for name, variant in manifest.variants.items()} == {"fp16": "model.onnx"}
    assert manifest.accepts.age_years is not None
    assert (manifest.accepts.age_years.min, manifest.accepts.age_years.max) == (16, 150)


def test_values_are_frozen_and_hashable(package: EnginePackage) -> None:
    with pytest.raises(ValueError, match="frozen"):
        package.manifest.title = "another"
    assert {package: 1}[package] == 1


@pytest.mark.parametrize(
    ("modality", "sop_class_uid", "responsible"),
    [("CT", CT, True), ("MR", CT, False), ("CT", "1.2.3", False), ("", "", False)],
)
def test_responsibility_is_modality_and_sop_class(
    package: EnginePackage, modality: str, sop_class_uid: str, responsible: bool
) -> None:
    assert package.responsible_for(modality, sop_class_uid) is responsible


class Makes(PreprocessOp):
    """An op that makes further inputs."""

    names: tuple[str, ...]

    def input_names(self) -> tuple[str, ...]:
        return self.names


@pytest.mark.parametrize(
    ("made", "path", "reason"),
    [
        ([("lungs",)], None, None),
        ([()], ("inputs",), "left over: lungs, volume"),
        ([("lungs", "volume")], ("inputs",), "left over: none"),
        ([("lungs",), ("ribs",)], ("preprocess", 1), "makes ribs, which is not an input of the model"),
        ([("lungs",), ("lungs",)], ("preprocess", 1), "lungs is made twice"),
    ],
)
def test_one_input_is_the_image_and_ops_make_the_others(
    package: EnginePackage, made: list[tuple[str, ...]], path: KeyPath | None, reason: str | None
) -> None:
    volume = package.manifest.inputs[0]
    inputs = (volume, volume.model_copy(update={"name": "lungs"}))
    ops = tuple(Makes(names=names) for names in made)
    found = list(contradictions(package.manifest.model_copy(update={"inputs": inputs, "preprocess": ops})))
    if path is None or reason is None:
        assert found == []
    else:
        assert any(where == path and reason in text for where, text in found)


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [
        (put("schema", value=2), "schema", "should be 1"),
        (put("scop", value="series"), "scop", "unknown key"),
        (put("accepts", "modalty", value=["CT"]), "accepts.modalty", "unknown key"),
        (lambda m: m.pop("licence"), "licence", "is missing"),
        (lambda m: m["inputs"][0].pop("dtype"), "inputs.0.dtype", "is missing"),
        (put("id", value="../ct"), "id", "match pattern"),
        (put("version", value=1.0), "version", "valid string"),
        (put("accepts", "slices", value={"min": 9, "max": 3}), "accepts.slices", "min must not be above max"),
        (put("accepts", "sop_class", value=[]), "accepts.sop_class", "at least 1 item"),
        (put("accepts", "sop_class", 0, value="1.2.x"), "accepts.sop_class.0", "match pattern"),
        (put("prefer", "kernel", 1, value="B["), "prefer.kernel", "no regular expression"),
        (put("preprocess", 0, "op", value="reslice"), "preprocess.0", "'resample'"),
        (put("preprocess", 0, "spacing_mm", value=0), "preprocess.0.spacing_mm", "greater than"),
        (put("accepts", "spacing_mm", "max", value=float("nan")), "accepts.spacing_mm.max", "finite"),
        (put("preprocess", 2, "low", value=float("nan")), "preprocess.2.low", "finite"),
        (lambda m: m["inputs"].append(copy.deepcopy(m["inputs"][0])), "inputs", "volume is there 2 times"),
        (put("postprocess", "radius", value="width"), "postprocess", "reads width, which is not an output"),
        (put("postprocess", "label", value="mass"), "postprocess", "uses the label mass"),
        (put("labels", "lesion", "threshold", value=1.5), "labels.lesion.threshold", "less than or equal to 1"),
        (put("labels", "lesion", "code", "value", value="x" * 17), "labels.lesion.code.value", "match pattern"),
        (put("scope", value="instance"), "one_per", "only an engine of scope series"),
        (lambda m: m.pop("one_per"), "prefer", "means nothing without one_per"),
        (put("golden", value=[]), "golden", "at least 1 item"),
        (put("golden", 0, "case", value="golden/other.npz"), "golden.0.case", "not listed in files"),
        (put("model", value="other.onnx"), "model", "not listed in files"),
        (put("variants", value={"fp16": {"file": "a.onnx", "atol": 0, "rtol": 0}}), "variants.fp16.file", "not listed"),
        (put("variants", value={"fp12": {"file": "model.onnx", "atol": 0, "rtol": 0}}), "variants.fp12", "'fp32'"),
        (put("inputs", 0, "min", value=[1, 1, 8, 8, 8]), "inputs.0", "min, opt and max belong together"),
        (profile([1, 1, 8, 8], [1, 1, 8, 8], [1, 1, 8, 8]), "inputs.0", "does not fit the shape"),
        (profile([1, 2, 8, 8, 8], [1, 2, 8, 8, 8], [1, 2, 8, 8, 8]), "inputs.0", "does not fit the shape"),
        (profile([1, 1, 8, 8, 8], [1, 1, 4, 8, 8], [1, 1, 8, 8, 8]), "inputs.0", "must grow from min over opt to max"),
        (put("accepts", "age_years", value={"min": 16, "max": 2}), "accepts.age_years", "min must not be above max"),
        (lambda m: m["golden"][0].pop("atol"), "golden.0.atol", "is missing"),
        (put("tolerances", value={"atol": 2, "rtol": 0}), "tolerances.atol", "less than or equal to 1"),
        (put("files", "CARD.md", value="0" * 64), "files.CARD.md", "altered"),
        (put("files", "CARD.md", value="0" * 63), "files.CARD.md", "match pattern"),
        (put("files", "gone.txt", value="0" * 64), "files.gone.txt", "no such file"),
    ],
)
def test_each_fault_is_told_with_its_line(tmp_path: Path, change: Change, key: str, reason: str) -> None:
    text = changed(change)
    messages = refusal(write(tmp_path, text))
    message = next(m for m in messages if f": {key}: " in m)
    assert reason in message
    line = int(re.match(r"engine\.yaml:(\d+): ", message)[1])  # type: ignore[index]
    assert 1 <= line <= len(text.splitlines())


def test_the_line_is_the_key_s_line(tmp_path: Path) -> None:
    text = changed(put("labels", "lesion", "threshold", value=2))
    assert refusal(write(tmp_path, text))[0].startswith(f"engine.yaml:{line_of(text, 'threshold')}: labels.lesion")


def test_every_fault_at_once(tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["scope"] = "body"
        manifest["preprocess"][0]["spacing_mm"] = [1, 1]
        manifest["files"]["gone.txt"] = "0" * 64

    folder = write(tmp_path, changed(change))
    (folder / "extra.bin").write_bytes(b"")
    text = "\n".join(refusal(folder))
    for part in (
        "scope: ",
        "preprocess.0.spacing_mm",
        "files.gone.txt: no such file",
        "extra.bin: not listed in files",
    ):
        assert part in text


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../model.onnx", "golden/../model.onnx", "a//b", "a\\b", ".hidden", ""]
)
def test_a_listed_path_stays_inside(tmp_path: Path, path: str) -> None:
    (message,) = refusal(write(tmp_path, changed(put("files", path, value="0" * 64))))
    assert "files" in message


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", changed())
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "pipe")
    assert sorted(refusal(folder)) == ["link: links are refused", "pipe: not a plain file"]


def test_a_listed_file_that_is_a_link_to_the_right_bytes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", changed())
    (folder / "CARD.md").rename(tmp_path / "CARD.md")
    (folder / "CARD.md").symlink_to(tmp_path / "CARD.md")
    assert "CARD.md: links are refused" in refusal(folder)


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", changed())
    (folder / "engine.yaml").rename(tmp_path / "engine.yaml")
    (folder / "engine.yaml").symlink_to(tmp_path / "engine.yaml")
    assert refusal(folder) == ["engine.yaml: links are refused"]


def test_the_folder_itself_may_be_a_link_and_hidden_files_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct-lesion@0.1.0", changed())
    (folder / ".DS_Store").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_bytes(b"")
    (tmp_path / "current").symlink_to(folder)
    assert engine_package.load(tmp_path / "current").folder == folder


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere")[0]
    assert "No such file" in refusal(tmp_path)[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("a: 1\nb: 2\na: 3\n", "engine.yaml:3: a is there twice"),
        ("a: &x [1]\nb: *x\n", "engine.yaml:2: aliases are refused"),
        ("a: !!python/object/apply:os.system [ls]\n", "engine.yaml:1: tags are refused"),
        ("a: !!binary aGVsbG8=\n", "tags are refused"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
        ("a: 2024-99-99\n", "no such value"),
        ("a: " + "9" * 5000, "no such value"),
        ("[a]: 1\n", "a key must be a word"),
        ("a: [\n", "engine.yaml:2: "),
        ("a: 1\n---\nb: 2\n", "engine.yaml:2: "),
        ("a: \x07\n", "not YAML"),
        ("a: " + "x" * 300_000, "over 262144 bytes"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(write(tmp_path, text))[0]


def test_too_many_files_and_folders(tmp_path: Path) -> None:
    folder = write(tmp_path, changed())
    for number in range(600):
        (folder / f"d{number}").mkdir()
    assert "more than 256 files" in refusal(folder)
    deep = write(tmp_path / "deep", changed())
    (deep / "a/b/c/d/e/f").mkdir(parents=True)
    assert refusal(deep) == ["e: folders are nested too deeply"]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(sorted(BASE)), value=json_like)
def test_any_value_anywhere_is_accepted_or_refused_in_words(tmp_path: Path, key: str, value: Any) -> None:
    folder = write(tmp_path, changed(put(key, value=value)))
    with suppress(PackageInvalid):  # any other exception fails the test
        assert engine_package.load(folder).key


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "engine.yaml").write_bytes(raw)
    assert refusal(tmp_path)
