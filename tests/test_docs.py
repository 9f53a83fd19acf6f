"""The README tells the truth: its tables come from code, its commands run, its examples are valid."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from appliance import phantom
from appliance.config import load
from tests import readme
from tests.waiting import eventually

ROOT = readme.ROOT
TEXT = readme.README.read_text()
START_S = 60.0


def commands() -> list[str]:
    """All commands of the README's shell blocks, comments stripped."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def test_generated_parts_are_current() -> None:
    assert readme.renewed(TEXT) == TEXT, "run: python -m tests.readme"


def test_every_promise_of_the_design_is_in_the_table() -> None:
    assert list(readme.PROMISES) == [f"P{number}" for number in range(1, 13)]
    assert set(readme.promised_tests()) <= set(readme.PROMISES)


def test_files_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"`((?:appliance|config|engines|scripts|tests)/[\w./-]+)`", TEXT))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_yaml_example_is_a_valid_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert set(yaml.safe_load(example)) == {"receive", "destinations"}
    (tmp_path / "scanside.yaml").write_text(example)
    assert load(tmp_path / "scanside.yaml").destinations[0].name == "pacs"


@dataclass(frozen=True, slots=True)
class Site:
    """A configuration as shipped, plus one peer and one destination that refuses nothing."""

    config: Path
    log: Path

    def facts(self) -> dict[str, int]:
        path = self.config.parent / "var" / "run" / "receive.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    shipped = yaml.safe_load((ROOT / "config" / "scanside.yaml").read_text())
    shipped["engines_dir"] = str(ROOT / "engines")
    shipped["receive"] |= {"port": 0, "peers": [{"ae_title": "SCANNER", "address": "127.0.0.1"}]}
    shipped["reserve"] = {"free_mb": 64, "free_inodes": 0, "journal_mb": 1}
    config = folder / "scanside.yaml"
    config.write_text(json.dumps(shipped))
    return Site(config=config, log=folder / "log")


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[int]:
    """The README's `run`, and the port it listens on."""
    with site.log.open("w") as log:
        daemon = subprocess.Popen([*_words("scanside run"), "--config", str(site.config)], stderr=log, cwd=ROOT)
    try:
        yield eventually(lambda: site.facts().get("port", 0), START_S, "the daemon listens")
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


def _words(command: str) -> list[str]:
    words = shlex.split(command)
    return [sys.executable, "-m", "appliance", *words[1:]] if words[0] == "scanside" else words


def _run(command: str, *ok: int, **replaced: str) -> str:
    """Run a command of the README with its placeholders filled in; its exit code must be one of `ok`."""
    words = [replaced.get(word, word) for word in _words(command)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode in (ok or (0,)), f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_commands(site: Site, running: int, tmp_path: Path) -> None:
    """Each command of the README, in an order that gives each of them something to do."""
    phantom.write_cr(tmp_path, seed=5)
    config = {"config/scanside.yaml": str(site.config)}
    left = set(commands()) - {"scripts/demo", "scripts/test"}

    def run(begins: str, *ok: int, **replaced: str) -> str:
        (command,) = [command for command in left if command.startswith(begins)]
        left.remove(command)
        return _run(command, *ok, **config, **replaced)

    left -= {command for command in left if command.startswith("scanside run ")}  # the fixture runs it
    assert "correct" in run("scanside check")
    assert "ct-lesion" in run("scanside engines list")
    run("scanside send", FOLDER=str(tmp_path), **{"127.0.0.1:11112": f"127.0.0.1:{running}"})
    run("scanside status", 0, 1)  # 1: an image without a destination is held, and that needs somebody
    held = json.loads(_run("scanside deliveries --state held --json --config config/scanside.yaml", **config))
    assert len(held["deliveries"]) == 1
    delivery = held["deliveries"][0]
    assert str(delivery["id"]) in run("scanside deliveries")
    assert "received" in run("scanside trace", UID=delivery["sop_instance_uid"])
    run("scanside requeue", 0, 1)  # 1: there is still no destination that takes it
    run("scanside abandon", ID=str(delivery["id"]))
    run("scanside recover", 1)  # refused while the daemon runs
    assert left == set()


def test_the_two_commands_exist() -> None:
    """`scripts/demo` is run by tests/acceptance/test_demo.py; `scripts/test` runs this."""
    for name in ("scripts/demo", "scripts/test"):
        assert name in commands()
        assert os.access(ROOT / name, os.X_OK)
    assert "Exit 0" in _run("scripts/test --help")
