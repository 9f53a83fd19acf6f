"""The parts of the README that are made from code: run this file to renew them, a test compares them."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance import states

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

PROMISES = {
    "P1": "Acknowledged is durable: Success only after bytes, directory entry and journal are on disk",
    "P2": "Images never wait for AI",
    "P3": "At least once, byte for byte; a result is built once and only ever re-sent",
    "P4": "Nothing is deleted while it is owed",
    "P5": "Refuse before loss: 0xA700 before space or inodes run out, recovery without restart",
    "P6": "Silence never means normal: finding, none above threshold, or not analysed with the reason",
    "P7": "Urgent first, results before pixels, no starvation",
    "P8": "Only verified engines run, and every result names its engine",
    "P9": "Strangers get nothing, hostile peers stop nothing",
    "P10": "No patient data in logs, metrics or crash dumps",
    "P11": "Every transition leaves a line of history",
    "P12": "Killed at any instruction, it ends in the same place",
}


def promised_tests() -> dict[str, dict[str, int]]:
    """promise -> test file -> number of its tests that are marked with it."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        whole_file = [name for node in tree.body if isinstance(node, ast.Assign) for name in _marks(node.value)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = {*whole_file, *(name for mark in node.decorator_list for name in _marks(mark))}
                for promise in marks:
                    found[promise][str(path.relative_to(ROOT))] += 1
    return found


def _marks(node: ast.expr) -> list[str]:
    text = ast.unparse(node)
    return [name for names in re.findall(r"mark\.promise\(([^)]*)\)", text) for name in re.findall(r"P\d+", names)]


def promise_table() -> str:
    tests = promised_tests()
    rows = [
        f"| {name} | {text} | {_tests(tests.get(name, {})) or 'not proven yet'} |" for name, text in PROMISES.items()
    ]
    return "\n".join(["| | promise | tests |", "|---|---|---|", *rows])


def _tests(files: dict[str, int]) -> str:
    return ", ".join(f"`{path.removeprefix('tests/')}`" for path in files)


def state_diagrams() -> str:
    return "\n\n".join(
        f"**{machine.name}**\n\n```mermaid\n{states.mermaid(machine)}\n```" for machine in states.MACHINES
    )


WRONG_CONFIG = """\
ae_title: SCANSIDE
receive:
  bind: 127.0.0.1
  peer:
    - {ae_title: CT01, address: 192.0.2.10}
destinations:
  - name: pacs
    kind: dimse
    host: 192.0.2.20
    port: 1040000
    called_ae: PACS
    takes: images
"""


def check_output() -> str:
    """What `scanside check` says of WRONG_CONFIG."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "wrong.yaml").write_text(WRONG_CONFIG)
        command = [sys.executable, "-m", "appliance", "check", "--config", "wrong.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return f"```text\n$ scanside check --config wrong.yaml\n{(done.stdout + done.stderr).strip()}\n```"


BLOCKS = {"promises": promise_table, "check output": check_output, "states": state_diagrams}


def renewed(text: str) -> str:
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{make()}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
