"""All pictures that training draws from, made once: drawn chests, projections of CT, the permitted real films."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from appliance import phantom
from appliance.imaging.film import read_film
from appliance.imaging.headers import read_header
from cxr_training import chests, others
from cxr_training.picture import SIZE, Float, Picture, View
from cxr_training.projections import Patient

#: Films whose terms allow it, with left, top, right, bottom of the lungs as a person without training saw them.
REAL_FILMS = {
    "RG1_UNCR_metastases.dcm": (0.06, 0.07, 0.92, 0.80),
    "SIIM_no-pneumothorax.dcm": (0.125, 0.11, 0.88, 0.79),
    "NIH_00000001_000.png": (0.075, 0.15, 0.91, 0.80),
}
PHANTOM_LUNGS = (0.13, 0.17, 0.86, 0.78)  #: of the appliance's own phantom
VIEWS = tuple(View)
LEVELS = np.linspace(0, 1, 41)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    frontal: int = 800
    lateral: int = 400
    other: int = 500
    empty: int = 150
    projected: int = 30  #: of each CT and view


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """N pictures. `levels` (N, 41) are the quantiles of each picture between its lungs' outer edges."""

    images: Float
    view: NDArray[np.int64]
    lungs: NDArray[np.float64]
    whole: NDArray[np.bool_]
    source: NDArray[np.str_]
    levels: NDArray[np.float64]

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def read(cls, path: Path) -> "Bank":
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in cls.__slots__})


def make(seed: int, counts: Counts, data: Path) -> Bank:
    """`data` holds ct/ (unpacked or not: DICOM files below one folder per patient) and cxr/."""
    named = list(_pictures(np.random.default_rng(seed), counts, data))
    pictures = [picture for _, picture in named]
    return Bank(
        images=np.stack([picture.image for picture in pictures]).astype(np.float32),
        view=np.array([VIEWS.index(picture.view) for picture in pictures]),
        lungs=np.array([picture.lungs for picture in pictures]),
        whole=np.array([picture.whole for picture in pictures]),
        source=np.array([name for name, _ in named]),
        levels=np.stack([_levels(picture) for picture in pictures]),
    )


def _pictures(rng: np.random.Generator, counts: Counts, data: Path) -> Iterator[tuple[str, Picture]]:
    patients = list(_patients(data / "ct"))
    sections = [
        patient.body[k] for _, patient in patients for k in range(len(patient.body) // 3, len(patient.body) * 2 // 3, 4)
    ]
    yield from (("drawn", chests.frontal(rng)) for _ in range(counts.frontal))
    yield from (("drawn", chests.lateral(rng)) for _ in range(counts.lateral))
    yield from (("drawn", others.other(rng, sections)) for _ in range(counts.other))
    yield from (("drawn", others.empty(rng)) for _ in range(counts.empty))
    for name, patient in patients:
        for view in (View.FRONTAL, View.LATERAL):
            yield from ((name, patient.project(rng, view)) for _ in range(counts.projected))
    yield "phantom", Picture(image=_phantom(), view=View.FRONTAL, lungs=PHANTOM_LUNGS, whole=True)
    for name, lungs in REAL_FILMS.items():
        yield name, Picture(image=_real(data / "cxr" / name), view=View.FRONTAL, lungs=lungs, whole=True)


def _patients(folder: Path) -> Iterator[tuple[str, Patient]]:
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        with tempfile.TemporaryDirectory() as work:
            yield path.name, Patient(sorted(path.rglob("*.dcm")), Path(work))


def _phantom() -> Float:
    with tempfile.TemporaryDirectory() as folder:
        return _real(phantom.write_cr(Path(folder), 0).files[0])


def _real(path: Path) -> Float:
    """The film as it is displayed, squeezed into a square."""
    image = read_film(read_header(path)).image if path.suffix == ".dcm" else _grey(path)
    small = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _grey(path: Path) -> Float:
    with Image.open(path) as picture:
        return np.asarray(np.asarray(picture.convert("L")) / 255, np.float32)


def _levels(picture: Picture) -> NDArray[np.float64]:
    left, top, right, bottom = (round(edge * SIZE) for edge in picture.lungs)
    within = picture.image[max(top, 0) : bottom, max(left, 0) : right]
    return np.asarray(np.quantile(within, LEVELS), np.float64)
