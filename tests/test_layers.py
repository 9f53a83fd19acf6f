"""The import rule and the fences: who may know whom, who may know which library, and a few things nobody may do."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Low to high. A module imports only from a lower row, or from its own package.
ROWS = (
    "errors",
    "model states certificates",
    "ports config engine_package engine_manifest engine_ops routing disk digest backoff latch",
    "engine_signature",
    "journal engine_store spool file_head wakeup life logs dimse imaging phantom",
    "stages runtimes destinations scanner",
    "board watch",
    "wiring",
    "daemon rehearsal",
    "cli",
    "__main__",
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row.split()}
#: Three modules that are one package in all but name.
FAMILY = frozenset({"engine_package", "engine_manifest", "engine_ops"})
ADAPTERS = ("runtimes", "destinations")
NO_STAGES = ("desk",)  #: what stages share

#: Who may import a library; the names are modules or packages of ours.
FENCES = {
    "pynetdicom": ("dimse", "destinations.dimse"),
    "sqlite3": ("journal",),
    "yaml": ("config", "engine_package"),
    "tensorrt": ("runtimes.tensorrt",),
    "tensorrt_rtx": ("runtimes.tensorrt",),
    "pycuda": ("runtimes.cuda_memory",),
    "cuda": ("runtimes.cuda_memory",),
    "onnxruntime": ("runtimes.onnx",),
    "onnx": (),
    "tritonclient": ("runtimes.kserve",),
    "grpc": ("runtimes.kserve",),
    "highdicom": ("stages.report",),
    "systemd": ("daemon",),
    "httpx": ("destinations.stow_wire",),
    "httpcore": ("destinations.stow_wire",),
    "blake3": ("digest",),
    "model_signing": ("engine_signature",),
    "pickle": (),
}


def violations(tree: Path) -> list[str]:
    """What is wrong in the package `appliance` under this folder, a line each."""
    found = []
    for file in sorted((tree / "appliance").rglob("*.py")):
        relative = file.relative_to(tree / "appliance").with_suffix("")
        module = ".".join(relative.parts).removesuffix("__init__").removesuffix(".")
        parsed = ast.parse(file.read_text(), str(file))
        for check in CHECKS:
            found += [f"{module}:{line}: {words}" for line, words in check(module, parsed)]
    return found


Findings = Iterator[tuple[int, str]]


def imports(parsed: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that is imported, wherever it is imported; of `from a import b` both a and a.b."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = f"{'.' * node.level}{node.module or ''}"
            yield node.lineno, package
            yield from ((node.lineno, f"{package}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def import_rule(module: str, parsed: ast.Module) -> Findings:
    own = module.partition(".")[0]
    if not own:  # the package itself: a version, no imports
        return
    if own not in ROW:
        yield 0, "has no row"
        return
    for line, name in imports(parsed):
        first, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if not first:
            yield line, "imports relatively"
        elif first == "appliance" and other and other not in ROW and not other.startswith("__"):
            yield line, f"imports {other}, which has no row"
        elif {own, other} <= FAMILY:
            continue
        elif first == "appliance" and other in ROW and other != own and ROW[other] >= ROW[own]:
            yield line, f"imports {other}, which is not lower"


def stages_meet_in_the_journal(module: str, parsed: ast.Module) -> Findings:
    package, _, stage = module.partition(".")
    stage = stage.partition(".")[0]
    if package != "stages" or not stage:
        return
    for line, name in imports(parsed):
        if name.startswith("appliance.stages."):
            other = name.split(".")[2]
            if other != stage and other not in NO_STAGES:
                yield line, f"imports stage {other}"


def adapters_know_no_journal(module: str, parsed: ast.Module) -> Findings:
    if module.partition(".")[0] in ADAPTERS:
        for line, name in imports(parsed):
            if name.startswith(("appliance.journal", "appliance.spool")):
                yield line, f"imports {name}"


def fences(module: str, parsed: ast.Module) -> Findings:
    for line, name in imports(parsed):
        library = name.partition(".")[0]
        allowed = FENCES.get(library)
        if allowed is not None and not any(module == one or module.startswith(f"{one}.") for one in allowed):
            yield line, f"imports {library}"


def nobody_catches_everything(module: str, parsed: ast.Module) -> Findings:
    """But the process loop; and whoever raises it again at once."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ExceptHandler):
            names = (
                {_name(part) for part in ast.walk(node.type) if isinstance(part, (ast.Name, ast.Attribute))}
                if node.type
                else {""}
            )
            last = node.body[-1]
            again = isinstance(last, ast.Raise) and last.exc is None
            if names & {"Exception", "BaseException", ""} and not again and module != "wiring.common":
                yield node.lineno, f"catches {ast.unparse(node.type) if node.type else 'everything'}"


def nobody_sleeps_or_shares_globals(_: str, parsed: ast.Module) -> Findings:
    for node in ast.walk(parsed):
        if isinstance(node, ast.Global):
            yield node.lineno, "global"
        elif isinstance(node, ast.Call) and _name(node.func) in ("time.sleep", "sleep"):
            yield node.lineno, "sleeps"


CHECKS: tuple[Callable[[str, ast.Module], Findings], ...] = (
    import_rule,
    stages_meet_in_the_journal,
    adapters_know_no_journal,
    fences,
    nobody_catches_everything,
    nobody_sleeps_or_shares_globals,
)


def test_the_rules_hold() -> None:
    assert violations(ROOT) == []


def test_every_stage_of_the_rule_is_there() -> None:
    """Or a name that was changed would leave its rule without effect."""
    there = {path.stem for path in (ROOT / "appliance").iterdir() if not path.name.startswith("__p")}
    assert there - {"__init__"} <= set(ROW)
    for name in ("errors", "model", "states", "journal", "spool", "stages", "wiring", "daemon", "cli", *ADAPTERS):
        assert name in there
    assert {path.stem for path in (ROOT / "appliance/stages").iterdir()} >= {"receive", "forward", "report", "desk"}


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("stages/forward", "from appliance.stages import infer", "stages.forward:1: imports stage infer"),
        ("stages/report/sr", "import appliance.stages.infer", "stages.report.sr:1: imports stage infer"),
        ("journal/store", "from appliance.spool import Spool", "journal.store:1: imports spool, which is not lower"),
        ("journal/store", "from appliance import daemon", "journal.store:1: imports daemon, which is not lower"),
        ("model", "def f():\n    import appliance.config", "model:2: imports config, which is not lower"),
        ("errors", "from . import model", "errors:1: imports relatively"),
        ("helpers", "x = 1", "helpers:0: has no row"),
        ("spool", "from appliance import helpers", "spool:1: imports helpers, which has no row"),
        ("destinations/dimse", "import appliance.spool", "destinations.dimse:1: imports appliance.spool"),
        (
            "runtimes/onnx",
            "from appliance.journal.store import Journal",
            "runtimes.onnx:1: imports appliance.journal.store",
        ),
        ("stages/receive", "import sqlite3", "stages.receive:1: imports sqlite3"),
        ("stages/infer", "import onnxruntime as ort", "stages.infer:1: imports onnxruntime"),
        (
            "wiring/receive",
            "from importlib import import_module\nimport_module('highdicom.sr')",
            "wiring.receive:2: imports highdicom",
        ),
        ("stages/receive", "try:\n    f()\nexcept Exception:\n    pass", "stages.receive:3: catches Exception"),
        (
            "dimse/pdu",
            "try:\n    f()\nexcept (OSError, Exception) as e:\n    pass",
            "dimse.pdu:3: catches (OSError, Exception)",
        ),
        ("dimse/pdu", "try:\n    f()\nexcept:\n    pass", "dimse.pdu:3: catches everything"),
        ("dimse/pdu", "try:\n    f()\nexcept BaseException:\n    pass", "dimse.pdu:3: catches BaseException"),
        ("spool", "def f():\n    global x\n    x = 1", "spool:2: global"),
        ("spool", "import time\ntime.sleep(1)", "spool:2: sleeps"),
        ("spool", "from time import sleep\nsleep(1)", "spool:2: sleeps"),
    ],
)
def test_what_is_planted_is_found(tmp_path: Path, module: str, source: str, words: str) -> None:
    file = tmp_path / "appliance" / f"{module}.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert words in violations(tmp_path)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wiring/common", "try:\n    f()\nexcept Exception:\n    pass"),
        ("dimse/pdu", "try:\n    f()\nexcept BaseException:\n    stop()\n    raise"),
        (
            "stages/report/sr",
            "import highdicom\nfrom appliance.stages.report import codes\nfrom appliance.stages import desk",
        ),
        ("engine_package", "from appliance.engine_manifest import Manifest"),
        ("cli/status", "from appliance.journal.store import Journal\nfrom appliance import daemon, spool"),
        (
            "journal/store",
            "import sqlite3\nfrom appliance.journal.clock import Clock\nfrom appliance import __version__",
        ),
    ],
)
def test_what_is_allowed_is_not(tmp_path: Path, module: str, source: str) -> None:
    file = tmp_path / "appliance" / f"{module}.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert violations(tmp_path) == []
