#!/usr/bin/env python3
"""Write the packages of the two reference engines, or check that the committed ones are what this writes.

The model of ct-lesion is the one that train_ct_lesion.py left in its folder, the graph of cxr-acquisition comes from
reference_engines/ with the weights that train_cxr_acquisition.py learnt. The FP16 variants, the golden cases (from the
phantom) and the hashes of all files are made here. Texts (CARD.md, engine.yaml but for its hashes) are written by hand
and stay.
"""

import argparse
import hashlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ct_lesion_training.backgrounds import SPACING_MM  # noqa: E402
from reference_engines import cxr_acquisition, half  # noqa: E402

from appliance import phantom  # noqa: E402 - runs from a checkout that is not installed
from appliance.engine_ops import CropToMask, Letterbox, LungHull, PercentileWindow, Resample  # noqa: E402
from appliance.imaging import geometry, preprocess, volume  # noqa: E402
from appliance.imaging.film import read_film  # noqa: E402
from appliance.imaging.headers import read_header  # noqa: E402

EPILOG = """examples:
  scripts/make_reference_engines.py           after a change of a graph or of the phantom: write engines/ anew
  scripts/make_reference_engines.py --check   exit 1 and say what differs, write nothing

Needs the extra `dev` (onnx): pip install -e .[dev]
The model must be the same byte for byte; golden numbers may differ by the engine's own tolerance, because processors
round differently."""
SEED = 1
CROP = 48  #: voxels of the golden volume along each axis: 2 mm each
TOLERANCE = 1e-3

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What is generated of one package: the model and its variants by file name, the inputs of each golden case."""

    id: str
    models: dict[str, bytes]
    cases: dict[str, Arrays]

    @property
    def model(self) -> bytes:
        return self.models["model.onnx"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the files that are there, write nothing")
    parser.add_argument("--engines", type=Path, default=ROOT / "engines", metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args()
    problems: list[str] = []
    for engine in engines((arguments.engines / "ct-lesion" / "model.onnx").read_bytes()):
        folder = arguments.engines / engine.id
        if arguments.check:
            problems += check(engine, folder)
        else:
            write(engine, folder)
        print(f"{folder}: {'checked' if arguments.check else 'written'}")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


def engines(lesion: bytes) -> list[Engine]:
    acquisition = cxr_acquisition.build()
    with tempfile.TemporaryDirectory() as folder:
        return [
            Engine(id="ct-lesion", models=_halved(lesion), cases=ct_cases(Path(folder))),
            Engine(id="cxr-acquisition", models=_halved(acquisition), cases=cxr_cases(Path(folder))),
        ]


def _halved(model: bytes) -> dict[str, bytes]:
    """In both precisions."""
    return {"model.onnx": model, "model.fp16.onnx": half.build(model)}


def ct_cases(folder: Path) -> dict[str, Arrays]:
    """The same cube of the phantom with its second nodule and without."""
    truth = phantom.write_ct(folder / "ct", SEED)
    empty = phantom.write_ct(folder / "empty", SEED, nodules=())
    return {"phantom": ct_case(truth, truth, folder), "empty": ct_case(empty, truth, folder)}


def ct_case(written: phantom.Truth, truth: phantom.Truth, folder: Path) -> Arrays:
    """A cube of what was written around the second nodule of `truth`, as the model gets it, in whole HU."""
    stack = geometry.stack([read_header(path) for path in written.files])
    source = volume.build(stack, folder)
    steps = (
        Resample(op="resample", spacing_mm=SPACING_MM),
        LungHull(op="lung_hull", output="lung"),
        CropToMask(op="crop_to_mask", mask="lung", margin_mm=24.0, multiple_of=16),
    )
    image = preprocess.run(steps, source.hu, source.voxel_mm)
    centre = np.array(truth.nodules[1].centre_mm)[::-1] - np.array(stack.to_patient((0, 0, 0)))[::-1]
    index = (centre / source.voxel_mm - image.grid.origin) / image.grid.step
    start = np.clip(np.rint(index).astype(int) - CROP // 2, 0, np.array(image.image.shape) - CROP)
    cube = tuple(slice(low, low + CROP) for low in start)
    return {
        "volume": np.rint(image.image[cube].astype(np.float32))[None, None],
        "lung": image.masks["lung"][cube][None, None],
    }


def cxr_cases(folder: Path) -> dict[str, Arrays]:
    """The phantom's film as it is, and with the faults that the engine is there to tell."""
    film = read_film(read_header(phantom.write_cr(folder / "cr", SEED).files[0])).image
    rows, columns = film.shape
    films = {
        "upright": film,
        "inverted": 1 - film,
        "upside_down": film[::-1, ::-1],
        "empty": np.full_like(film, 0.5),
        "over_exposed": np.clip(film - np.float32(np.quantile(film, 0.75)), 0, 1),
        "clipped_right": film[:, columns * 3 // 10 :],
        "clipped_left": film[:, : columns * 7 // 10],
        "clipped_top": film[rows * 3 // 10 :],
    }
    steps = (PercentileWindow(op="percentile_window"), Letterbox(op="letterbox", size=cxr_acquisition.FILM))
    cases: dict[str, Arrays] = {}
    for name, values in films.items():
        image = preprocess.run(steps, values, (1.0, 1.0)).image.astype(np.float64)
        cases[name] = {"film": np.round(image, 3).astype(np.float32)[None, None]}
    return cases


def write(engine: Engine, folder: Path) -> None:
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    for name, model in engine.models.items():
        (folder / name).write_bytes(model)
    for name, inputs in engine.cases.items():
        content = io.BytesIO()
        np.savez_compressed(content, **inputs, **answers(engine.model, inputs))  # type: ignore[arg-type]
        (folder / "golden" / f"{name}.npz").write_bytes(content.getvalue())
    manifest = folder / "engine.yaml"
    manifest.write_text(with_hashes(manifest.read_text(encoding="utf-8"), folder), encoding="utf-8")


def check(engine: Engine, folder: Path) -> list[str]:
    problems = []
    for name, model in engine.models.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != model:
            problems.append(f"{engine.id}: {name} is not what the script writes")
    for name, inputs in engine.cases.items():
        wanted = {**inputs, **answers(engine.model, inputs)}
        with np.load(folder / "golden" / f"{name}.npz", allow_pickle=False) as case:
            same = set(case.files) == set(wanted) and all(
                np.allclose(case[key].astype(np.float64), array.astype(np.float64), TOLERANCE, TOLERANCE)
                for key, array in wanted.items()
            )
        problems += [] if same else [f"{engine.id}: golden/{name}.npz is not what the script writes"]
    text = (folder / "engine.yaml").read_text(encoding="utf-8")
    if text != with_hashes(text, folder):
        problems.append(f"{engine.id}: engine.yaml does not hold the hashes of the files that are there")
    return problems


def answers(model: bytes, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def with_hashes(manifest: str, folder: Path) -> str:
    """The manifest with its last block, `files:`, made anew from all files of the package."""
    head, _, _ = manifest.partition("\nfiles:")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hashes = [
        f"  {name}: {hashlib.sha256((folder / name).read_bytes()).hexdigest()}"
        for name in names
        if name != "engine.yaml"
    ]
    return "\n".join([head, "files:", *hashes, ""])


if __name__ == "__main__":
    sys.exit(main())
