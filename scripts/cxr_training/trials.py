"""Films with known faults: every fault, made on every film, by plain array operations at full size.

None of this shares code with the faults of the training (faults.py, films.py), except the projections of CT.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from appliance import phantom
from appliance.errors import CannotAnalyse
from appliance.imaging.film import read_film
from appliance.imaging.headers import read_header
from cxr_training import chests, others
from cxr_training.picture import Float, View
from cxr_training.projections import Patient

#: Left, top, right, bottom of the lungs in fractions of the film: by the masks that come with the films of the lung
#: segmentation set, else as a person without training saw them.
FILMS = {
    "RG1_UNCR_metastases.dcm": (0.06, 0.07, 0.92, 0.80),
    "SIIM_no-pneumothorax.dcm": (0.125, 0.11, 0.88, 0.79),
    "NIH_00000001_000.png": (0.075, 0.15, 0.91, 0.80),
    "opencxr_c0001_8bit.png": (0.18, 0.13, 0.88, 0.70),
    "lungseg_1.jpg": (0.113, 0.084, 0.887, 0.818),
    "lungseg_2.jpg": (0.105, 0.115, 0.889, 0.979),
}
CUT = 0.25  #: of the width of both lungs together, or of their height
CLOSE = 0.02  #: what stays beside the lungs of a film that is cut close, but not into them
SAME = 0.02  #: mean difference of two codings of one picture
SEED = 20261127


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    film: str
    fault: str
    image: Float
    expected: frozenset[str]
    either: frozenset[str] = field(default=frozenset())  #: neither right nor wrong


def every(data: Path, films: Sequence[str]) -> Iterator[Trial]:
    for name in films:
        if (data / "cxr" / name).exists():
            yield from of_film(name, read(data / "cxr" / name), FILMS[name])
        else:
            print(f"{name}: not there")
    if (data / "cxr" / "MONOCHROME1_fake.dcm").exists() and "SIIM_no-pneumothorax.dcm" in films:
        yield _trial(
            "SIIM", "the tag MONOCHROME1 on MONOCHROME2 pixels", read(data / "cxr" / "MONOCHROME1_fake.dcm"), "inverted"
        )
    with tempfile.TemporaryDirectory() as folder:
        yield from of_phantom(Path(folder))
    yield from laterals(data / "ct")
    yield from other_parts(data / "conformance")
    yield from empties()


def read(path: Path) -> Float:
    if path.suffix == ".dcm":
        return read_film(read_header(path)).image
    with Image.open(path) as picture:
        return np.asarray(np.asarray(picture.convert("L")) / 255, np.float32)


def of_film(name: str, film: Float, lungs: tuple[float, float, float, float]) -> Iterator[Trial]:
    low, high = np.percentile(film, (0.5, 99.5))
    film = np.asarray(np.clip((film - low) / (high - low), 0, 1), np.float32)
    rows, columns = film.shape
    left, top, right, bottom = (round(edge * size) for edge, size in zip(lungs, (columns, rows) * 2, strict=True))
    wide, high_ = round(CUT * (right - left)), round(CUT * (bottom - top))
    yield _trial(name, "none", film)
    yield from (_trial(name, "none: brighter or darker", film**power) for power in (0.6, 1.6))
    yield from (_trial(name, "none: leaning by 5 or 10 degrees", _leaning(film, by)) for by in (-10, -5, 5, 10))
    yield _trial(name, "none: cut close to the lungs", _close(film, (left, top, right, bottom)))
    yield from (
        _trial(name, "none: black or white border", np.pad(film, rows // 12, constant_values=v)) for v in (0, 1)
    )
    yield _trial(name, "none: at a quarter of the size, noisy", _noisy(film))
    yield _trial(name, "negative", 1 - film, "inverted")
    yield from (_trial(name, f"turned by {90 * k}", np.rot90(film, k).copy(), "rotated") for k in (1, 2, 3))
    yield _trial(name, "flipped upside down", film[::-1].copy(), "rotated")
    yield from (_trial(name, "leaning by 30 degrees", _leaning(film, by), "rotated") for by in (-30, 30))
    yield _trial(name, "flipped left for right", film[:, ::-1].copy(), "mirrored")
    yield _trial(name, "right lung cut", film[:, left + wide :], "lung_clipped_right")
    yield _trial(name, "left lung cut", film[:, : right - wide], "lung_clipped_left")
    yield _trial(name, "apices cut", film[top + high_ :], "lung_clipped_top")
    yield _trial(name, "bases cut", film[: bottom - high_], "lung_clipped_bottom")
    yield _trial(name, "negative, left lung cut", 1 - film[:, : right - wide], "inverted", "lung_clipped_left")
    yield _trial(name, "negative, turned by 90", 1 - np.rot90(film), "inverted", "rotated")
    within = film[top:bottom, left:right]
    dark, bright = (np.float32(np.quantile(within, share)) for share in (0.8, 0.2))
    yield _trial(name, "burnt out to black", np.clip((film - dark) / (1 - dark), 0, 1), "over_exposed")
    yield _trial(name, "burnt out to white", np.clip(film / bright, 0, 1), "over_exposed")


def of_phantom(folder: Path) -> Iterator[Trial]:
    film = read_film(read_header(phantom.write_cr(folder, 4).files[0])).image
    quarter = film.shape[1] // 4
    yield _trial("phantom", "phantom: none", film)
    yield _trial("phantom", "phantom: negative", 1 - film, "inverted")
    yield _trial("phantom", "phantom: right lung cut", film[:, quarter:], "lung_clipped_right")
    yield _trial("phantom", "phantom: left lung cut", film[:, :-quarter], "lung_clipped_left")
    yield _trial("phantom", "phantom: turned by 180", film[::-1, ::-1].copy(), "rotated")


def laterals(folder: Path, each: int = 8) -> Iterator[Trial]:
    """Projections of CT at other angles than the training's (another seed), and drawn ones."""
    rng = np.random.default_rng(SEED)
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.exists() else ():
        with tempfile.TemporaryDirectory() as work:
            patient = Patient(sorted(path.rglob("*.dcm")), Path(work))
        for _ in range(each):
            image = patient.project(rng, View.LATERAL).image
            yield _trial(path.name, "lateral, projected from CT", _trimmed(image), "lateral")
            image = patient.project(rng, View.FRONTAL).image
            yield _trial(path.name, "frontal, projected from CT", _trimmed(image))
    for _ in range(2 * each):
        yield _trial("drawn", "lateral, drawn", _trimmed(chests.lateral(rng).image), "lateral")


def other_parts(folder: Path) -> Iterator[Trial]:
    """Every other picture of the folder that decodes as one grey frame, whatever it shows, once in all its codings."""
    seen: list[Float] = []
    for path in sorted(folder.glob("*.dcm")) if folder.exists() else ():
        try:
            film = read_film(read_header(path)).image
        except CannotAnalyse:
            continue
        if min(film.shape) <= 60 or "RG1" in path.name:
            continue
        small = np.asarray(Image.fromarray(film).resize((16, 16), Image.Resampling.BOX), np.float32)
        if all(float(np.abs(small - other).mean()) > SAME for other in seen):
            seen.append(small)
            yield _trial(path.name, "no chest film", film, "not_chest", either=("inverted", "rotated", "lateral"))


def empties(count: int = 6) -> Iterator[Trial]:
    rng = np.random.default_rng(SEED)
    shape = (1200, 1000)
    yield _trial("grey", "empty", np.full(shape, 0.5, np.float32), "empty", either=("not_chest",))
    for _ in range(count):
        noise = rng.normal(rng.uniform(0.2, 0.8), 0.02, shape).astype(np.float32)
        yield _trial("noise", "empty", np.clip(noise, 0, 1), "empty", either=("not_chest",))
        fall = np.linspace(0, rng.uniform(0.1, 0.5), shape[1], dtype=np.float32)
        yield _trial("heel effect", "empty", np.clip(noise + fall, 0, 1), "empty", either=("not_chest",))
        image = ndimage.zoom(others.empty(rng).image, 5, order=1)
        yield _trial("drawn", "empty", image, "empty", either=("not_chest",))


def _trial(film: str, fault: str, image: Float, *expected: str, either: Sequence[str] = ()) -> Trial:
    image = np.ascontiguousarray(image, np.float32)
    return Trial(film=film, fault=fault, image=image, expected=frozenset(expected), either=frozenset(either))


def _leaning(film: Float, degrees: float) -> Float:
    return np.asarray(ndimage.rotate(film, degrees, reshape=False, order=1, mode="constant", cval=0), np.float32)


def _close(film: Float, lungs: tuple[int, int, int, int]) -> Float:
    left, top, right, bottom = lungs
    across, down = round(CLOSE * (right - left)), round(CLOSE * (bottom - top))
    return film[max(0, top - down) : bottom + down, max(0, left - across) : right + across]


def _noisy(film: Float) -> Float:
    small = film[::4, ::4]
    noise = np.random.default_rng(SEED).normal(0, 0.04, small.shape)
    return np.asarray(np.clip(small + noise, 0, 1), np.float32)


def _trimmed(image: Float) -> Float:
    """What a technician would put on the film: without most of the neck and the belly."""
    size = len(image)
    return image[size // 10 : round(size * 0.85), size // 10 : round(size * 0.9)]
