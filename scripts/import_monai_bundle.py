#!/usr/bin/env python3
"""Turn a MONAI bundle on this disk into an engine package, as far as our ops can say what the bundle does.

The bundle is read as data: nothing of it is imported, evaluated or run but its ONNX, once, for the golden case. What
cannot be mapped is told, all of it, and nothing is written. Only nets that give scores to radiographs can be mapped.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

EPILOG = """examples:
  scripts/import_monai_bundle.py ~/bundles/effusion --to engines/effusion --body-part CHEST --view PA --view AP
  scripts/import_monai_bundle.py ~/bundles/effusion --to engines/effusion --leave-out other --threshold 0.7

In the bundle's folder there must be configs/metadata.json, configs/inference.json and models/model.onnx. Without the
last one, where MONAI is:  python -m monai.bundle onnx_export network_def --filepath models/model.onnx ...

After it:
  1. read CARD.md: what was mapped nearly and not quite
  2. set the codes and thresholds of the labels in engine.yaml
  3. scanside engines list                is it what its manifest says?
  4. add it under engines: of the config, in shadow
  5. look at what it says of your own films before anything of it is sent

Exit codes: 0 the package is there; 1 it cannot be imported, and why; 2 wrong command line, or no extra dev."""


def main(words: Sequence[str] | None = None) -> int:
    """`words`: of the command line, without the program; None: those it was called with."""
    arguments = _arguments(words)
    try:
        from monai_bundle import bundle, mapping, package  # noqa: PLC0415 - says what is missing, no traceback
    except ModuleNotFoundError as error:
        print(f"{error}: pip install -e '.[dev]' installs it", file=sys.stderr)
        return 2
    wanted = package.Wanted(
        id=arguments.id or arguments.to.name,
        threshold=arguments.threshold,
        body_part=arguments.body_part,
        view=arguments.view,
    )
    try:
        found = bundle.read(arguments.bundle)
        mapped = mapping.find(found, arguments.leave_out)
        package.write(found, mapped, wanted, arguments.to)
    except bundle.CannotImport as error:
        print(f"{arguments.bundle} cannot be imported:", file=sys.stderr)
        print("\n".join(f"  {reason}" for reason in error.reasons), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or arguments.to}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{arguments.to}: written, labels {', '.join(mapped.labels)}")
    print("\n".join(f"  {remark}" for remark in mapped.remarks))
    return 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="the package to make; must not be there"
    )
    parser.add_argument("--id", type=_id, help="id of the engine; the name of the folder where none is given")
    parser.add_argument(
        "--threshold", type=_share, default=0.5, help="score from which a label is a finding (default: %(default)s)"
    )
    parser.add_argument(
        "--body-part", action="append", default=[], metavar="CODE", help="BodyPartExamined, such as CHEST"
    )
    parser.add_argument("--view", action="append", default=[], metavar="CODE", help="ViewPosition, such as PA")
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="CHANNEL",
        help="a channel that is no finding, such as normal",
    )
    return parser.parse_args(words)


def _id(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: small letters, digits and single hyphens between them")
    return text


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a score is 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
