#!/usr/bin/env python3
"""Measure ct-lesion against the filter that it replaced: simulated lesions in lungs that the network never saw.

Each network is tested on the patient that it was not trained on, with lesions of another generator than that of
training; then on the patients' own tumours, which no training saw. Prints the tables of CARD.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ct_lesion_training import backgrounds, froc, holdout, reading  # noqa: E402 - runs from a checkout
from ct_lesion_training.backgrounds import Case  # noqa: E402
from ct_lesion_training.froc import Candidate, Scan  # noqa: E402
from ct_lesion_training.holdout import Ground  # noqa: E402
from ct_lesion_training.reading import Reader  # noqa: E402

from appliance.imaging import preprocess  # noqa: E402
from appliance.imaging.volume import Volume  # noqa: E402

EPILOG = """examples:
  scripts/evaluate_ct_lesion.py --fold C3N-00247=a.onnx --fold Lung_Dx-A0002=b.onnx

A fold is a patient and the network that train_ct_lesion.py made with --leave-out of that patient. Needs the public
cases of --data and the extra `dev`. The limit on slice spacing is lifted: one of the patients has slices of 8 mm."""
PACKAGE = ROOT / "engines" / "ct-lesion"
SEED = 2024


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a reader made of a patient's own tumour, in the scan as it is."""

    reader: str
    patient: str
    rank: int | None  #: of the first candidate on the tumour, 1 = best
    score: float
    others: int  #: candidates elsewhere that reach the engine's threshold


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("SCANSIDE_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--fold", action="append", default=[], metavar="PATIENT=FILE", help="may be given repeatedly")
    parser.add_argument("--scans", type=int, default=12, metavar="N", help="per patient; default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path(data), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="figures for a machine")
    arguments = parser.parse_args()
    folds = dict(fold.split("=", 1) for fold in arguments.fold)
    known = {case.name: case for case in backgrounds.CASES}
    if not folds or not set(folds) <= set(known):
        parser.error(f"--fold PATIENT=FILE, PATIENT one of {', '.join(known)}")
    scans: dict[str, list[Scan]] = {"network": [], "filter": []}
    own: list[Own] = []
    for name, model in folds.items():
        readers = [
            reading.trained(PACKAGE, Path(model).read_bytes(), "network"),
            reading.ball_filter_of(PACKAGE),
        ]
        with tempfile.TemporaryDirectory() as folder:
            volume = backgrounds.read_case(known[name], arguments.data, Path(folder))
            own += [_own(reader, known[name], volume) for reader in readers]
            for made in _scans(readers, known[name], volume, arguments.scans):
                scans[made[0]].append(made[1])
        _tell_own([one for one in own if one.patient == name])
    if arguments.json:
        print(json.dumps({name: froc.table(of) for name, of in scans.items()}))
        return 0
    for name, of in scans.items():
        _tell(name, of, len(folds))
    return 0


def _scans(readers: list[Reader], case: Case, volume: Volume, number: int) -> Iterator[tuple[str, Scan]]:
    ground = _ground(readers[0], case, volume)
    tumour = backgrounds.tumour(case, volume)
    for index in range(number):
        rng = np.random.default_rng([SEED, backgrounds.CASES.index(case), index])
        hu, planted = holdout.plant(rng, ground)
        for reader in readers:
            begun = time.monotonic()
            changed = reading.with_hu(volume, hu)
            found = reading.candidates(reader.read(changed), changed)
            scan = froc.scored(planted, [one for one in found if not _on(tumour, one)], volume.voxel_mm)
            print(
                f"{case.name} {index} {reader.name}: {len(found)} candidates, {time.monotonic() - begun:.1f} s; "
                + " ".join(
                    f"{lesion.diameter_mm:.0f}:{hit:.2f}" for lesion, hit in zip(planted, scan.hits, strict=True)
                ),
                file=sys.stderr,
                flush=True,
            )
            yield reader.name, scan


def _ground(reader: Reader, case: Case, volume: Volume) -> Ground:
    """Hull and known tumour on the engine's grid, before it is cut."""
    image = preprocess.run(reader.steps[:2], volume.hu, volume.voxel_mm)
    tumour = backgrounds.tumour(case, volume)
    indices = [
        np.clip(image.grid.to_source((0, 0, 0))[axis] + np.arange(size) * image.grid.step[axis], 0, limit - 1)
        for axis, (size, limit) in enumerate(zip(image.image.shape, tumour.shape, strict=True))
    ]
    return Ground(
        hu=np.asarray(volume.hu),
        voxel_mm=volume.voxel_mm,
        hull=image.masks["lung"] > 0,
        known=tumour[np.ix_(*(np.rint(index).astype(int) for index in indices))],
        origin=image.grid.origin,
        step=image.grid.step,
    )


def _own(reader: Reader, case: Case, volume: Volume) -> Own:
    """The patient's own tumour, without the margin that training and simulation keep."""
    tumour = backgrounds.tumour(case, volume, around_mm=0)
    found = reading.candidates(reader.read(volume), volume)
    on = [index for index, one in enumerate(found) if _on(tumour, one)]
    return Own(
        reader=reader.name,
        patient=case.name,
        rank=on[0] + 1 if on else None,
        score=found[on[0]].score if on else 0.0,
        others=sum(one.score >= 0.5 and index not in on for index, one in enumerate(found)),
    )


def _on(tumour: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], candidate: Candidate) -> bool:
    index = tuple(
        int(np.clip(round(place), 0, size - 1)) for place, size in zip(candidate.centre, tumour.shape, strict=True)
    )
    return bool(tumour[index])


def _tell_own(own: list[Own]) -> None:
    for one in own:
        where = "missed" if one.rank is None else f"candidate {one.rank}, score {one.score:.2f}"
        print(f"{one.patient} own tumour, {one.reader}: {where}; {one.others} others at 0.5 or more", flush=True)


def _tell(name: str, scans: list[Scan], patients: int) -> None:
    print(f"\n{name} (patients: n = {patients}; {len(scans)} scans)\n")
    print("| lesions (number) |" + "".join(f" {false:.0f} false/scan |" for false in froc.FALSE_PER_SCAN))
    print("|" + " --- |" * (1 + len(froc.FALSE_PER_SCAN)))
    for row in froc.table(scans):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    sys.exit(main())
