"""The corpus as regression tests, and some 20 seconds of fuzzing. Longer: scripts/fuzz.py --minutes 10."""

import importlib.util
import os
import platform
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz import make_corpus, planted
from tests.fuzz.harness_name import MODULE
from tests.fuzz.targets import TARGETS, TooSlow, watched

ROOT = Path(__file__).resolve().parents[2]
CORPUS = make_corpus.CORPUS
MB = 1 << 20
MOST_CORPUS = 200_000  # bytes
MOST_MEMORY = 24 * MB  # for one input: what may be inflated, twice, and a little
SECONDS = 9  # and as long again to start: a second for each target


def seeds() -> list[Path]:
    return sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def imported() -> None:
    """Each target's first input pays for what is imported with it, and no input is to blame for that."""
    for name, target in TARGETS.items():
        target(min((CORPUS / name).iterdir()).read_bytes())


@pytest.mark.promise("P9")
@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("seed", seeds(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_input_that_was_kept_is_read_within_bounds(seed: Path) -> None:
    data = seed.read_bytes()
    watched(TARGETS[seed.parent.name], data)
    tracemalloc.start()
    try:
        TARGETS[seed.parent.name](data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY


def test_the_corpus_is_what_its_maker_makes_and_small() -> None:
    made = {(target, name): content for target, name, content in make_corpus.seeds()}
    kept = {(path.parent.name, path.name): path.read_bytes() for path in seeds()}
    assert {key: content for key, content in kept.items() if not key[1].startswith("found-")} == made
    assert {target for target, _ in kept} == set(TARGETS)
    assert sum(map(len, kept.values())) < MOST_CORPUS


def fuzz(*arguments: object, module: str | None = None) -> "subprocess.CompletedProcess[str]":
    if importlib.util.find_spec("atheris") is None:
        if platform.machine() == "x86_64":
            pytest.fail("atheris is not installed: pip install -e '.[dev]'")
        pytest.skip("atheris is made for x86-64 only")
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), *map(str, arguments)]
    environment = os.environ | ({MODULE: module} if module else {})
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, env=environment)


@pytest.mark.promise("P9")
def test_fuzzing_finds_nothing() -> None:
    done = fuzz("--seconds", SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in done.stdout.splitlines()[1:-1]}
    assert set(runs) == set(TARGETS)
    assert min(runs.values()) > 0, done.stdout


def test_the_fuzzer_finds_what_is_planted_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "escapes").mkdir()
    (tmp_path / "escapes" / "seed").write_bytes(b"na")
    done = fuzz("--seconds", 20, "--corpus", tmp_path, "escapes", module=planted.__name__)
    assert done.returncode == 1, done.stdout + done.stderr
    (found,) = (tmp_path / "escapes").glob("found-*")
    assert found.read_bytes().startswith(b"n")
    assert "LookupError" in done.stderr


def test_an_input_that_costs_too_much_is_a_finding() -> None:
    with pytest.raises(TooSlow):
        watched(planted.TARGETS["slow"], b"short")
