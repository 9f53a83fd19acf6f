#!/usr/bin/env python3
"""Train the network of ct-lesion and write it as ONNX.

Simulated lesions are put into the lungs of two public patients and of the phantom; the patients' own tumours are masked
out. With --leave-out the network never sees that patient: such a network is for evaluate_ct_lesion.py.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ct_lesion_training import backgrounds, export  # noqa: E402 - runs from a checkout that is not installed

EPILOG = """examples:
  scripts/train_ct_lesion.py --out engines/ct-lesion/model.onnx      then scripts/make_reference_engines.py
  scripts/train_ct_lesion.py --leave-out C3N-00247 --out fold.onnx   for scripts/evaluate_ct_lesion.py

Needs the extra `train` (torch; a build for the CPU is enough) and `dev` (onnx), and the public cases of --data.
Stopped, it goes on from its checkpoint. The same seed on the same machine gives the same weights; processors and
versions of torch round differently, so another machine's weights are near, not equal."""
PHANTOMS = (101, 102, 103)  #: seeds
ODDS = {"C3N-00247": 0.5, "Lung_Dx-A0002": 0.25}  #: how often a patch is of this background; the rest: phantoms
PHANTOM_ODDS = 0.22
SAME = 1e-3  #: of a score


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("SCANSIDE_DATA", ROOT.parent / "shared" / "data")
    names = [case.name for case in backgrounds.CASES]
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument("--data", type=Path, default=Path(data), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--leave-out", choices=names, default="", help="a patient that is not trained on")
    parser.add_argument(
        "--steps", type=int, default=4000, metavar="N", help="of four patches each; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that make patches; default: 1")
    arguments = parser.parse_args()
    try:
        from ct_lesion_training import loop  # noqa: PLC0415 - torch is an extra
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install -e .[train]", file=sys.stderr)
        return 1
    lungs = backgrounds.real(arguments.data, arguments.leave_out) + backgrounds.phantoms(PHANTOMS)
    plan = loop.Plan(
        steps=arguments.steps,
        seed=arguments.seed,
        threads=arguments.threads,
        workers=arguments.workers,
        checkpoint=arguments.out.with_suffix(".checkpoint.npz"),
        odds=tuple(ODDS.get(lung.name, PHANTOM_ODDS / len(PHANTOMS)) for lung in lungs),
    )
    weights = loop.train(plan, lungs, lambda line: print(line, flush=True))
    model = export.build(weights)
    off = loop.difference(weights, model)
    if off > SAME:
        print(f"the ONNX answers otherwise than what was trained, by {off:.5f}: not written", file=sys.stderr)
        return 1
    arguments.out.write_bytes(model)
    count = sum(int(np.prod(array.shape)) for array in weights.values())
    print(f"{arguments.out}: {count} weights, {len(model)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
