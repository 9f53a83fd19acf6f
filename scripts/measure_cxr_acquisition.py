#!/usr/bin/env python3
"""Measure cxr-acquisition on films whose faults are known, because they were made: the tables of its CARD.md.

Real films are taken as they are and with one fault each (cut, turned, flipped, negative, burnt out); lateral views are
projections of CT and drawn ones; radiographs of other parts and exposures without a patient should be named as such.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cxr_training import trials  # noqa: E402
from cxr_training.scorer import Scorer  # noqa: E402

EPILOG = """examples:
  scripts/measure_cxr_acquisition.py --data DIR                       the engine of this checkout
  scripts/measure_cxr_acquisition.py --data DIR --engine OLD/cxr-acquisition

DIR holds cxr/ (the films), ct/ (one folder of DICOM files for each patient) and conformance/ (other images); what is
missing is left out of the tables, and said."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--engine", type=Path, default=ROOT / "engines" / "cxr-acquisition", metavar="DIR")
    parser.add_argument("--model", type=Path, metavar="FILE", help="these weights (.npz of the training) instead")
    parser.add_argument("--films", nargs="*", default=list(trials.FILMS), choices=list(trials.FILMS), metavar="FILM")
    parser.add_argument("--verbose", action="store_true", help="print the scores of every trial that came out wrong")
    arguments = parser.parse_args()
    scorer = Scorer(arguments.engine, arguments.model)
    found = [(trial, scorer.scores(trial.image)) for trial in trials.every(arguments.data, arguments.films)]
    print(f"{scorer.name}; films: {', '.join(arguments.films)}\n")
    print_confusion(scorer, found)
    print()
    print_labels(scorer, found)
    if arguments.verbose:
        print_wrong(scorer, found)
    return 0


Found = list[tuple[trials.Trial, dict[str, float]]]


def print_confusion(scorer: Scorer, found: Found) -> None:
    """A row for each fault: how many films got each label. A film may get several."""
    columns = [*scorer.thresholds, "nothing"]
    print("| fault made | n | right | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 3) + "|")
    for fault in dict.fromkeys(trial.fault for trial, _ in found):
        rows = [(trial, scorer.said(scores)) for trial, scores in found if trial.fault == fault]
        counts = Counter(label for _, said in rows for label in (said or {"nothing"}))
        known = any(scorer.expected(trial) or not trial.expected for trial, _ in rows)
        right = sum(is_right(scorer, trial, said) for trial, said in rows) if known else "no label"
        cells = [str(counts[column] or "") for column in columns]
        print(f"| {fault} | {len(rows)} | {right} | " + " | ".join(cells) + " |")


def is_right(scorer: Scorer, trial: trials.Trial, said: set[str]) -> bool:
    """Every label that should be said and none that should not."""
    return said - trial.either == scorer.expected(trial) - trial.either


def print_labels(scorer: Scorer, found: Found) -> None:
    """Of the films that should get a label how many do, and of the others how many do not."""
    print("| label | should be said | was said | should not be said | was not said |")
    print("|---|---|---|---|---|")
    for label in scorer.thresholds:
        said = np.array([label in scorer.said(scores) for _, scores in found])
        wanted = np.array([label in scorer.expected(trial) for trial, _ in found])
        open_ = np.array([label in trial.either for trial, _ in found])
        yes, no = wanted & ~open_, ~wanted & ~open_
        print(f"| {label} | {yes.sum()} | {(said & yes).sum()} | {no.sum()} | {(~said & no).sum()} |")


def print_wrong(scorer: Scorer, found: Found) -> None:
    for trial, scores in found:
        expected = scorer.expected(trial)
        if not is_right(scorer, trial, scorer.said(scores)):
            high = {name: round(value, 2) for name, value in scores.items() if value > 0.2 or name in expected}
            print(f"{trial.film} / {trial.fault}: expected {sorted(expected)}, scores {high}")


if __name__ == "__main__":
    sys.exit(main())
