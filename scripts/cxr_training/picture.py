"""What every source of training pictures yields, and the way from line integrals to the grey of a film."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

SIZE = 160  #: pixels of a picture along both axes
FIELD_MM = 460.0  #: what a drawn or projected picture spans
PIXEL_MM = FIELD_MM / SIZE


class View(StrEnum):
    FRONTAL = "frontal"
    LATERAL = "lateral"
    OTHER = "other"  #: no chest film at all
    EMPTY = "empty"  #: exposed without a patient


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """`image` (SIZE, SIZE) within [0, 1], brighter = denser; `lungs` = left, top, right, bottom of both lungs.

    `lungs` is in fractions of the picture and means nothing but on frontal views. `whole` says that the picture is all
    of a real film: nothing can be seen beyond its edges.
    """

    image: Float
    view: View
    lungs: tuple[float, float, float, float] = (0.2, 0.2, 0.8, 0.8)
    whole: bool = False


def axes() -> tuple[Float, Float]:
    """Millimetres from the middle of the picture: x to the patient's left, z to the head."""
    axis = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * np.float32(PIXEL_MM)
    x, z = np.meshgrid(axis, -axis)
    return x.astype(np.float32), z.astype(np.float32)


def develop(rng: np.random.Generator, tissue_mm: Float) -> Float:
    """Film of line integrals (mm of water): a random S-shaped response around the chest's own range."""
    low, high = np.percentile(tissue_mm[tissue_mm > 20], (3, 97)) if (tissue_mm > 20).sum() > 99 else (0.0, 200.0)
    centre = low + (high - low) * rng.uniform(0.25, 0.6)
    width = (high - low) * rng.uniform(0.16, 0.4)
    film = 1 / (1 + np.exp(-np.clip((tissue_mm - centre) / max(width, 1), -30, 30)))
    return np.asarray(film ** rng.uniform(0.75, 1.3), np.float32)


def box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is True, in fractions of the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    size = mask.shape[0]
    return columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size
