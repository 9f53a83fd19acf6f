"""Graph of ct-lesion: bright balls among tubes and plates, over seven radii.

At each scale s the Hessian H of the Gaussian-smoothed volume gives three numbers that need no eigenvalues: the sums of
products e1, e2, e3 of the eigenvalues of -H. A bright ball has all three positive and 27 e3 / e1^3 = 1, a tube (vessel)
or a plate (fissure, chest wall) has 27 e3 / e1^3 near 0. The score is s^2 e1 27 e3 / e1^3, scaled so that an ideal ball
of 50 HU in lung of -850 HU scores 1. A ball of radius r answers most at s = r / sqrt(3) (Lindeberg, Int J Comput Vision
30(2), 1998, gives the scale normalisation).
"""

import math

import numpy as np
from numpy.typing import NDArray

from reference_engines.graph import Graph, tensor

SPACING_MM = 2.0
#: (sigma in mm, halvings of the grid before it is computed)
SCALES = ((1.8, 0), (2.5, 0), (3.5, 1), (5.0, 1), (7.0, 1), (10.0, 2), (14.0, 2))
LUNG_HU, LESION_HU = -850.0, 50.0
#: s^2 e1 at the centre of an ideal ball of radius s sqrt(3) and contrast 1.
IDEAL_BALL = 4 * math.pi * 3**1.5 * (2 * math.pi) ** -1.5 * math.exp(-1.5)
SIZE = ["D", "H", "W"]
TINY = 1e-6
FAINT = 1e-8  #: (score 0.01)^4: answers below it count for nothing


def build() -> bytes:
    """Model bytes. Inputs: volume (HU) and lung (0 or 1), [1, 1, D, H, W] at 2 mm, D, H and W multiples of 4."""
    graph = Graph("ct-lesion")
    levels = [_masked(graph)]
    for _ in range(max(level for _, level in SCALES)):
        levels.append(graph.op("AveragePool", levels[-1], kernel_shape=[2] * 3, strides=[2] * 3))
    answers = [_enlarged(graph, _ball_score(graph, levels[level], sigma, level), level) for sigma, level in SCALES]
    score = graph.clip(graph.op("Max", *answers), 0.0, 1.0)
    shape: list[int | str] = [1, 1, *SIZE]
    return graph.model(
        [tensor("volume", shape), tensor("lung", shape)],
        {"score": (score, shape), "radius": (_radius(graph, answers), shape)},
    )


def _radius(graph: Graph, answers: list[str]) -> str:
    """Mean of the scales' radii weighted by answer^4, 0 where none answers.

    Not the radius of the best scale alone: that would jump where two are equal, and differ from device to device.
    """
    squares = [graph.mul(answer, answer) for answer in answers]
    weights = [graph.mul(square, square) for square in squares]
    sizes = [graph.constant(sigma * math.sqrt(3)) for sigma, _ in SCALES]
    total = graph.add(*(graph.mul(weight, size) for weight, size in zip(weights, sizes, strict=True)))
    return graph.op("Div", total, graph.add(*weights, graph.constant(FAINT)))


def _masked(graph: Graph) -> str:
    """Contrast against lung, 0 outside the hull: the chest wall is no lesion, and no lesion's background either."""
    above = graph.sub("volume", graph.constant(LUNG_HU))
    contrast = graph.op("Div", above, graph.constant(LESION_HU - LUNG_HU))
    return graph.mul(graph.clip(contrast, -0.1, 1.0), "lung")


def _ball_score(graph: Graph, volume: str, sigma: float, level: int) -> str:
    voxel = SPACING_MM * 2**level
    blurred = math.sqrt(sigma**2 - (voxel**2 - SPACING_MM**2) / 12)  # the pooling was a blur as well
    smooth = volume
    for axis in range(3):
        smooth = graph.conv(smooth, _gaussian(blurred / voxel, axis))
    first = graph.op("Split", graph.conv(smooth, _negative_hessian()), outputs=6, axis=1)
    xx, yy, zz, xy, xz, yz = (first, *(f"{first}_{index}" for index in range(1, 6)))
    e1 = graph.add(xx, yy, zz)
    squares = graph.add(graph.mul(xy, xy), graph.mul(xz, xz), graph.mul(yz, yz))
    e2 = graph.sub(graph.add(graph.mul(xx, yy), graph.mul(xx, zz), graph.mul(yy, zz)), squares)
    e3 = _determinant(graph, (xx, yy, zz, xy, xz, yz))
    positive = graph.op("Max", e1, graph.constant(TINY))
    roundness = graph.op("Div", graph.mul(graph.op("Relu", e3), graph.constant(27.0)), graph.mul(*[positive] * 3))
    convex = graph.op("Cast", graph.op("Greater", e2, graph.constant(0.0)), to=1)
    size = graph.mul(graph.op("Relu", e1), graph.constant((sigma / voxel) ** 2 / IDEAL_BALL))
    return graph.mul(size, graph.clip(roundness, 0.0, 1.0), convex)


def _determinant(graph: Graph, matrix: tuple[str, str, str, str, str, str]) -> str:
    xx, yy, zz, xy, xz, yz = matrix
    diagonal = graph.mul(xx, graph.sub(graph.mul(yy, zz), graph.mul(yz, yz)))
    second = graph.mul(xy, graph.sub(graph.mul(xy, zz), graph.mul(xz, yz)))
    third = graph.mul(xz, graph.sub(graph.mul(xy, yz), graph.mul(yy, xz)))
    return graph.add(graph.sub(diagonal, second), third)


def _enlarged(graph: Graph, value: str, level: int) -> str:
    if not level:
        return value
    scales = graph.constant([1, 1, *[2**level] * 3])
    return graph.op(
        "Resize", value, "", scales, mode="linear", coordinate_transformation_mode="half_pixel", nearest_mode="floor"
    )


def _gaussian(sigma: float, axis: int) -> NDArray[np.float64]:
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    shape = [1, 1, 1, 1, 1]
    shape[2 + axis] = -1
    return np.asarray(weights / weights.sum()).reshape(shape)


def _negative_hessian() -> NDArray[np.float64]:
    """Central differences (6, 1, 3, 3, 3): xx, yy, zz, xy, xz, yz of -H."""
    one, first, second = np.array([0, 1, 0]), np.array([-0.5, 0, 0.5]), np.array([1, -2, 1])
    kernels = [
        (one, one, second),
        (one, second, one),
        (second, one, one),
        (one, first, first),
        (first, one, first),
        (first, first, one),
    ]
    return np.stack([-np.einsum("i,j,k->ijk", *kernel) for kernel in kernels])[:, None]
