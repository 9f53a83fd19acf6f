"""Plans on the disk: the key covers all that a plan depends on, and what does not fit is refused in words."""

import json
import os
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import PlanRefused
from appliance.ports import BuiltPlan
from appliance.runtimes.plan_store import PlanHeader, Target, find, keep, others

TARGET = Target(
    onnx_sha256="a" * 64,
    library="1.7.1.116 RTX",
    gpu="Some GPU",
    compute_capabilities=("SM89",),
    driver="550.54.14, CUDA 12.4",
    system="debian 12 x86_64",
    profiles={"x": ((1, 2), (2, 2), (4, 2))},
    precision="fp16",
    flags=("strongly_typed",),
    workspace_mb=1024,
    builder="b" * 64,
)
OTHER: dict[str, object] = {
    "onnx_sha256": "c" * 64,
    "library": "1.6.1.120 RTX",
    "gpu": "Another GPU",
    "compute_capabilities": ("SM86",),
    "driver": "560.28.03, CUDA 12.6",
    "system": "debian 13 x86_64",
    "profiles": {"x": ((1, 2), (2, 2), (8, 2))},
    "precision": "fp32",
    "flags": (),
    "workspace_mb": 512,
    "builder": "d" * 64,
}


def rtx(version: tuple[int, ...] = (1, 7, 1, 116), mask: int = 8, body: bytes = b"kernels") -> bytes:
    """As TensorRT-RTX begins a plan."""
    size = 64 + len(body)
    head = struct.pack("<4sIIIQ4BII", b"vtrt", 0, 2, 0, size, *version, 0, mask)
    return head.ljust(64, b"\0") + body


def stored(folder: Path, target: Target = TARGET, content: bytes | None = None) -> BuiltPlan:
    return keep(folder, target, memoryview(content or rtx()))


def beside(plan: BuiltPlan) -> Path:
    return plan.path.with_suffix(".json")


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    plan = stored(tmp_path / "plans")
    assert plan.path.read_bytes() == rtx()
    assert find(tmp_path / "plans", TARGET) == plan
    assert plan.key == TARGET.key


def test_the_key_lies_beside_it_in_plain_words(tmp_path: Path) -> None:
    facts = json.loads(beside(stored(tmp_path)).read_text())
    assert facts["key"] == TARGET.key
    assert facts["target"]["driver"] == "550.54.14, CUDA 12.4"
    assert facts["target"]["profiles"] == {"x": [[1, 2], [2, 2], [4, 2]]}


def test_the_table_below_names_all_that_a_plan_depends_on() -> None:
    assert OTHER.keys() == {field.name for field in fields(Target)}


@pytest.mark.parametrize("name", OTHER)
def test_whatever_is_other_gives_another_key_and_the_old_plan_is_stale(tmp_path: Path, name: str) -> None:
    stored(tmp_path)
    now = replace(TARGET, **{name: OTHER[name]})  # type: ignore[arg-type] # one field of any type
    assert now.key != TARGET.key
    with pytest.raises(PlanRefused, match=f"the plan that is there is stale: {name} was .*, is "):
        find(tmp_path, now)


def test_of_several_stale_plans_the_nearest_is_told(tmp_path: Path) -> None:
    stored(tmp_path, replace(TARGET, gpu="Another GPU", driver="1", precision="fp32"))
    stored(tmp_path, replace(TARGET, driver="1"))
    with pytest.raises(PlanRefused, match=r"^the plan that is there is stale: driver was '1', is '550[^;]*$"):
        find(tmp_path, TARGET)


@pytest.mark.parametrize("limits", [(512,), (300, 512, 2048), (512, 300)])
def test_a_plan_that_was_built_with_less_to_work_in_goes_on_serving(tmp_path: Path, limits: tuple[int, ...]) -> None:
    """A budget that is raised has nothing built anew."""
    plans = {limit: stored(tmp_path, replace(TARGET, workspace_mb=limit)) for limit in limits}
    assert find(tmp_path, TARGET) == plans[512]
    exact = stored(tmp_path)
    assert find(tmp_path, TARGET) == exact
    assert find(tmp_path, replace(TARGET, workspace_mb=4096)) == plans.get(2048, exact)
    with pytest.raises(PlanRefused, match="driver was"):
        find(tmp_path, replace(TARGET, driver="1"))


def test_a_plan_that_was_built_with_more_to_work_in_may_not_fit_and_the_setting_is_named(tmp_path: Path) -> None:
    stored(tmp_path)
    now = replace(TARGET, workspace_mb=300)
    with pytest.raises(PlanRefused, match=r"stale: workspace_mb was 1024, is 300 \(analyse\.gpu_memory_mb ") as no:
        find(tmp_path, now)
    assert no.value.key == now.key


@pytest.mark.parametrize("limit", ["much", -1, True, 1e9, None, [512], 512])
def test_what_a_key_file_says_of_the_workspace_is_not_believed(tmp_path: Path, limit: object) -> None:
    plan = stored(tmp_path, replace(TARGET, workspace_mb=300))
    facts = json.loads(beside(plan).read_text())
    facts["target"]["workspace_mb"] = limit
    beside(plan).write_text(json.dumps(facts))
    with pytest.raises(PlanRefused, match="stale: workspace_mb was "):
        find(tmp_path, TARGET)


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="no plan was built yet"):
        find(tmp_path / "none", TARGET)


@pytest.mark.parametrize("size", [0, 10, 63, 64, 70])
def test_truncated(tmp_path: Path, size: int) -> None:
    plan = stored(tmp_path)
    os.truncate(plan.path, size)
    with pytest.raises(PlanRefused, match=f"has {size} bytes and must have 71"):
        find(tmp_path, TARGET)


@given(position=st.integers(0, 70), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("plans")
    plan = stored(folder)
    content = bytearray(rtx())
    content[position] ^= 1 << bit
    plan.path.write_bytes(content)
    with pytest.raises(PlanRefused):
        find(folder, TARGET)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (rtx()[:-1], "its head says 71: cut short"),
        (rtx((1, 6, 1, 120)), r"is of TensorRT-RTX 1\.6\.1\.120, not 1\.7\.1\.116 RTX: stale"),
        (rtx(mask=4 | 16), "is not for SM89: built for another GPU"),
        (b"ftrt" + rtx()[4:], "no plan of TensorRT-RTX"),
        (b"vtrt", "no plan of TensorRT-RTX"),
        (rtx()[:8] + b"\3" + rtx()[9:], "a plan of format 3"),
    ],
    ids=["truncated", "stale", "foreign", "another file", "no head", "another format"],
)
def test_what_does_not_fit_the_target_is_not_even_kept(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(PlanRefused, match=words):
        stored(tmp_path / "plans", content=content)
    assert not (tmp_path / "plans").exists()


def test_of_tensorrt_itself_the_head_is_not_known(tmp_path: Path) -> None:
    target = replace(TARGET, library="10.3.0")
    plan = stored(tmp_path, target, b"whatever")
    assert find(tmp_path, target) == plan
    plan.path.write_bytes(b"whateveR")
    with pytest.raises(PlanRefused, match="was altered: its sha256 is another"):
        find(tmp_path, target)


def test_a_plan_of_another_engine_under_this_name_is_refused(tmp_path: Path) -> None:
    ours, foreign = stored(tmp_path), stored(tmp_path, replace(TARGET, onnx_sha256="c" * 64))
    foreign.path.replace(ours.path)
    beside(foreign).replace(beside(ours))
    with pytest.raises(PlanRefused, match="is of another plan, or was altered"):
        find(tmp_path, TARGET)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": 1}', "\0", '{"key": "', "x" * 100_000])
def test_a_damaged_key_file(tmp_path: Path, text: str) -> None:
    beside(stored(tmp_path)).write_text(text)
    with pytest.raises(PlanRefused, match=r"\.json was altered"):
        find(tmp_path, TARGET)


@pytest.mark.parametrize("name", ["plan", "json"])
def test_what_a_power_cut_between_the_two_leaves_is_refused_and_built_anew(tmp_path: Path, name: str) -> None:
    plan = stored(tmp_path)
    plan.path.with_suffix(f".{name}").unlink()
    with pytest.raises(PlanRefused, match=rf"\.{name} cannot be read: No such file"):
        find(tmp_path, TARGET)
    again = stored(tmp_path, content=rtx(body=b"a second build differs"))
    assert find(tmp_path, TARGET) == again


def test_a_second_build_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = stored(tmp_path), stored(tmp_path, content=rtx(body=b"differs"))
    assert (first.path, first.key) == (second.path, second.key)
    assert find(tmp_path, TARGET).sha256 == second.sha256 != first.sha256
    assert len(list(tmp_path.iterdir())) == 2


def test_where_nothing_can_be_written_there_is_no_plan_under_that_name(tmp_path: Path) -> None:
    plan = stored(tmp_path)
    plan.path.with_name(f".{plan.path.name}.new").mkdir()  # in the way
    with pytest.raises(OSError, match="Is a directory"):
        stored(tmp_path, content=rtx(body=b"differs"))
    with pytest.raises(PlanRefused):
        find(tmp_path, TARGET)


def test_the_head_of_a_plan() -> None:
    header = PlanHeader.of(rtx(mask=4 | 8 | 16))
    assert (header.size, header.version) == (71, "1.7.1.116")
    assert header.compute_capabilities == {"SM86", "SM89", "SM120"}


def test_only_files_of_our_own_naming_are_others(tmp_path: Path) -> None:
    kept, old = stored(tmp_path), stored(tmp_path, replace(TARGET, driver="1"))
    cut = tmp_path / f".{old.path.name}.new"
    cut.write_bytes(b"cut short")
    (tmp_path / "notes.txt").write_text("somebody else's")
    (tmp_path / "lost.new").write_bytes(b"")
    (tmp_path / "a.plan").mkdir()
    (tmp_path / "b.json").symlink_to(tmp_path / "notes.txt")
    assert others(tmp_path, [kept.key]) == [beside(old), cut, old.path]
