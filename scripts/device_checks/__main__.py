"""Does TensorRT work on this machine, with each engine, and how fast?

  scripts/device_check                          all shipped engines; a table to paste into the README
  scripts/device_check --engine ct-lesion       one of them (may be repeated)
  scripts/device_check --package PATH           an engine package of your own
  scripts/device_check --python /usr/bin/python3 --json

For each model: a plan is built for this GPU, loaded in a runtime child, its golden cases are compared within the
manifest's tolerances, and its time and memory are measured. Plans are built in a temporary folder and not kept.

The first of these Pythons that has TensorRT and finds a GPU is used: the one given; this environment's; the system's.
  Jetson       apt-get install python3-libnvinfer python3-numpy, and PyCUDA or cuda-bindings for that Python
  workstation  .venv/bin/pip install '.[tensorrt-rtx]', or NVIDIA's own TensorRT and '.[tensorrt]' (PyCUDA)

Where there is no GPU it says why, and what can be done is still done: each model is built for SM86, SM89 and SM120
where TensorRT-RTX is installed.

Exit codes: 0 every engine was built, verified and measured on this GPU; 1 one was not; 2 the command line, or an engine
package that is not valid; 3 no GPU or no TensorRT: nothing was run on a device, and the reason is told.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance import engine_package
from appliance.errors import PackageInvalid, RuntimeFailed
from appliance.runtimes import cuda_probe
from appliance.runtimes.builder import BuildSettings, TensorRtBuilder
from appliance.runtimes.plan_store import RTX
from appliance.runtimes.process import ChildRuntime, ChildSettings
from device_checks.proof import Model, Row, build_offline, models, prove

ENGINES = Path(__file__).resolve().parents[2] / "engines"
SYSTEM_PYTHON = Path("/usr/bin/python3")
DONE, FAILED, WRONG, NO_GPU = 0, 1, 2, 3
HEADINGS = {
    "engine": "engine",
    "built_for": "built for",
    "build_s": "build s",
    "plan_mb": "plan MB",
    "golden_cases": "golden cases",
    "max_difference": "max difference",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "call_p50_ms": "call p50 ms",
    "host_mb": "host MB",
    "how": "how",
    "fault": "fault",
}


def main() -> int:
    given = _arguments()
    try:
        wanted = _models(given)
    except PackageInvalid as error:
        print(error, file=sys.stderr)
        return WRONG
    pythons = [given.python] if given.python else [Path(sys.executable), SYSTEM_PYTHON]
    reasons = {str(python): _reason(python) for python in pythons if python.exists() or python == given.python}
    python = next((Path(path) for path, reason in reasons.items() if not reason), None)
    facts = _facts(python)
    with tempfile.TemporaryDirectory() as folder:
        if python is None:
            rows = _offline(wanted, [Path(path) for path in reasons], Path(folder))
        else:
            rows = [prove(model, python, Path(folder), given.runs, _told) for model in wanted]
    status = NO_GPU if python is None else FAILED if any(row.fault for row in rows) else DONE
    why = {} if python else reasons
    if given.json:
        print(json.dumps({**facts, "unfit": why, "rows": [asdict(row) for row in rows], "exit": status}, indent=1))
    else:
        _show(facts, why, rows)
    return status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="device_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = sorted(path.parent.name for path in ENGINES.glob(f"*/{engine_package.MANIFEST}"))
    parser.add_argument("--engine", action="append", choices=shipped, help="a shipped engine; default: all")
    parser.add_argument("--package", action="append", type=Path, default=[], help="the folder of an engine package")
    parser.add_argument("--python", type=Path, help="the interpreter that has TensorRT (3.10 or newer)")
    parser.add_argument("--runs", type=int, default=200, help="timed runs of each model; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be 1 or more")
    given.engine = given.engine or ([] if given.package else shipped)
    return given


def _models(given: argparse.Namespace) -> list[Model]:
    folders = [*(ENGINES / name for name in given.engine), *given.package]
    return [model for folder in folders for model in models(engine_package.load(folder))]


def _reason(python: Path) -> str:
    """Why TensorRT cannot run with it; "" if it can."""
    return ChildRuntime(ChildSettings(interpreter=python, runtime="tensorrt")).probe()


def _facts(python: Path | None) -> dict[str, Any]:
    gpu = cuda_probe.ask()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": str(python) if python else None,
        "tensorrt": TensorRtBuilder(BuildSettings(interpreter=python)).library() if python else None,
        "gpu": None if gpu["reason"] else gpu,
        "no_gpu": gpu["reason"],
    }


def _offline(wanted: Sequence[Model], pythons: Sequence[Path], folder: Path) -> list[Row]:
    """By the first Python with TensorRT-RTX; nothing where none has it."""
    for python in pythons:
        try:
            if TensorRtBuilder(BuildSettings(interpreter=python)).library().endswith(RTX):
                return [build_offline(model, python, folder, _told) for model in wanted]
        except RuntimeFailed:
            continue  # why it has none, was told already
    return []


def _show(facts: dict[str, Any], why: dict[str, str], rows: Sequence[Row]) -> None:
    gpu = facts["gpu"]
    if gpu:
        print(f"{gpu['gpu']} ({gpu['compute_capability']}), driver {gpu['driver']}, CUDA {gpu['cuda']}")
    if facts["tensorrt"]:
        print(f"TensorRT {facts['tensorrt']} by {facts['python']}, {facts['date']}")
    if rows:
        names = [
            field.name for field in fields(Row) if any(getattr(row, field.name) not in ("", None, 0) for row in rows)
        ]
        print(f"\n| {' | '.join(HEADINGS[name] for name in names)} |\n|{'---|' * len(names)}")
        for row in rows:
            print(f"| {' | '.join(_cell(getattr(row, name)) for name in names)} |")
        print()
    for python, reason in why.items():
        print(f"{python}: {reason}")
    if gpu is None:
        print(f"no GPU: {facts['no_gpu']}")
    if why:
        print(f"Nothing was run on a device. {'Plans were built for GPUs that are not here.' if rows else ''}".rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return (f"{value:.3g}" if isinstance(value, float) else str(value)).replace("|", "/").replace("\n", " ")


def _told(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:100]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
