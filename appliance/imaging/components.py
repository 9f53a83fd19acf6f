"""Connected parts of a mask: the few that matter, however many there are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`mask` within `window` of the whole; `weight` is the greatest value in it, or how many elements it has."""

    window: tuple[slice, ...]
    mask: Mask
    weight: float


def parts(marked: Mask, most: int, values: NDArray[np.float32] | None = None) -> list[Part]:
    """The `most` parts with the greatest value in them, or, without `values`, the largest; heaviest first.

    Elements that share a side are of one part. At its peak it takes about 13 bytes for each
    element, `marked` included.
    """
    return ranked(marked, most, values)[0]


def ranked(
    marked: Mask, most: int, values: NDArray[np.float32] | None = None
) -> tuple[list[Part], NDArray[np.float64]]:
    """`parts`, and the weights of all that are not among them."""
    labels, count = ndimage.label(marked)
    if not count:
        return [], np.zeros(0)
    if values is None:
        weights = np.bincount(labels.ravel())[1:]
    else:
        weights = np.full(count, -np.inf, np.float32)
        np.maximum.at(weights, labels[marked] - 1, values[marked])
    order = np.argsort(-weights, kind="stable")
    chosen, others = order[:most], order[most:]
    rank = np.zeros(count + 1, labels.dtype)
    rank[chosen + 1] = np.arange(1, chosen.size + 1)
    np.take(rank, labels, out=labels, mode="clip")  # without a mode it makes a copy first
    windows = ndimage.find_objects(labels)
    heaviest = [
        Part(window=window, mask=labels[window] == number, weight=float(weights[index]))
        for number, (window, index) in enumerate(zip(windows, chosen, strict=True), 1)
    ]
    return heaviest, weights[others].astype(np.float64)
