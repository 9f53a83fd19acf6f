#!/usr/bin/env python3
"""Measure what the README promises in numbers, on this machine.

  scripts/bench.py ingest               how quickly images are taken, beside storescp, Orthanc, pynetdicom and raw TCP
  scripts/bench.py hostile              a scanner's images while peers misbehave, beside stock pynetdicom
  scripts/bench.py forward              how quickly images go out over good and bad lines, beside storescu and others
  scripts/bench.py engine               what an engine costs a study, beside bare ONNX Runtime on the same arrays
  scripts/bench.py latency              from the last image to the report in PACS, stage by stage
  scripts/bench.py scale                a very large study, a very large object, a very large journal
  scripts/bench.py scale --quick        smaller, within 50 s: shows that it works, not the figures
  scripts/bench.py latency --json       {"rows": [...], "goals": [{"name", "goal", "measured", "met"}], ...}

Exit codes: 0 every goal is met; 1 a goal is missed; 2 it cannot be run here. TMPDIR moves the state folders it makes,
and removes, to another disk.
"""

import argparse
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
BENCHMARKS = ("ingest", "hostile", "forward", "engine", "latency", "scale")
MET, MISSED, CANNOT = 0, 1, 2


def main() -> int:
    arguments = _arguments()
    try:
        from benchmarks import machine, report, rig  # noqa: PLC0415 - says what is missing instead of a traceback

        benchmark = importlib.import_module(f"benchmarks.{arguments.benchmark}")
    except ModuleNotFoundError as error:
        return _cannot(f"{error}. scripts/test makes an environment; then: .venv/bin/python scripts/bench.py ...")
    signal.signal(signal.SIGTERM, _end)
    options = rig.Options(quick=arguments.quick, data=arguments.data, temp=Path(tempfile.gettempdir()))
    facts = {
        "benchmark": arguments.benchmark,
        "quick": arguments.quick,
        "machine": machine.facts(options.temp),
    }
    try:
        found: report.Report = benchmark.run(options)
    except report.BenchError as error:
        return _cannot(str(error))
    if arguments.json:
        print(found.as_json(facts))
    else:
        found.show(facts)
    return MET if found.met else MISSED


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, within 50 s")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SCANSIDE_DATA", ROOT.parent / "shared" / "data")),
        help="folder of real cases (default: $SCANSIDE_DATA, or ../shared/data beside the repository)",
    )
    return parser.parse_args()


def _cannot(why: str) -> int:
    print(f"bench: {why}", file=sys.stderr)
    return CANNOT


def _end(number: int, _: FrameType | None) -> None:
    """As an exception, so that everything that was started and written is cleaned up."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
