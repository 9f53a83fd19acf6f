"""The network's layers in PyTorch, and its loss. Needs the extra `train`."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ct_lesion_training.network import RADIUS_MM, WINDOWS

EPSILON = 1e-4  #: added to a variance
MOMENTUM = 0.03
PRIOR = 0.01  #: score of an untrained network
FOCUS = 2.0
LESION_VOXELS = 60.0  #: the loss is given per so many weighted voxels: a constant, so that empty patches count as well
RADIUS_SHARE = 0.25


class TorchLayers:
    """Weights are made when a name is first met, from `seed`; `training` decides which statistics scale a layer."""

    def __init__(self, seed: int) -> None:
        self.weights: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}
        self.training = True
        self._random = torch.Generator().manual_seed(seed)

    def first(self, name: str, volume: Tensor, channels: int) -> Tensor:
        windows = [((volume - low) / (high - low)).clip(0, 1) * 2 - 1 for low, high in WINDOWS]
        return self._convolved(name, _to_channels(torch.cat(windows, 1)), channels, 3)

    def block(self, name: str, value: Tensor, channels: int) -> Tensor:
        return self._convolved(name, value, channels, 3)

    def halve(self, name: str, value: Tensor, channels: int) -> Tensor:
        return self._convolved(name, value, channels, 2, stride=2)

    def raised(self, name: str, value: Tensor, channels: int) -> Tensor:
        kernel = self._kernel(name, value.shape[1], channels, 1)
        return functional.interpolate(
            functional.conv3d(value, kernel), scale_factor=2.0, mode="trilinear", align_corners=False
        )

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def head(self, name: str, value: Tensor, channels: int) -> Tensor:
        start = torch.zeros(channels)
        start[0], start[1] = math.log(PRIOR / (1 - PRIOR)), math.log(8.0)
        bias = self._weight(f"{name}.bias", start)
        return functional.conv3d(value, self._kernel(name, value.shape[1], channels, 1), bias)

    def _convolved(self, name: str, value: Tensor, channels: int, size: int, stride: int = 1) -> Tensor:
        kernel = self._kernel(name, value.shape[1], channels, size)
        made = functional.conv3d(value, kernel, stride=stride, padding=size // 2 if stride == 1 else 0)
        scale = self._weight(f"{name}.scale", torch.ones(channels))
        shift = self._weight(f"{name}.shift", torch.zeros(channels))
        mean = self.statistics.setdefault(f"{name}.mean", torch.zeros(channels))
        variance = self.statistics.setdefault(f"{name}.variance", torch.ones(channels))
        normal = functional.batch_norm(
            made, mean, variance, scale, shift, training=self.training, momentum=MOMENTUM, eps=EPSILON
        )
        return normal.relu()

    def _kernel(self, name: str, before: int, after: int, size: int) -> Tensor:
        deviation = math.sqrt(2 / (before * size**3))
        shape = (after, before, *(size,) * 3)
        known = self.weights.get(f"{name}.kernel")
        return (
            known
            if known is not None
            else self._weight(f"{name}.kernel", torch.randn(shape, generator=self._random) * deviation)
        )

    def _weight(self, name: str, start: Tensor) -> Tensor:
        if name not in self.weights:
            self.weights[name] = start.requires_grad_()
        return self.weights[name]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All weights and statistics, as `export` takes them."""
        return {name: value.detach().numpy().copy() for name, value in (self.weights | self.statistics).items()}

    def restore(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Take what `arrays` gave."""
        for name, array in arrays.items():
            value = torch.from_numpy(array.copy())
            if name.endswith((".mean", ".variance")):
                self.statistics[name] = value
            else:
                self.weights[name] = value.requires_grad_()


def loss(said: Tensor, score: Tensor, radius_mm: Tensor, weight: Tensor) -> Tensor:
    """Quality focal loss of the score (the wanted score is no mere yes or no), and L1 of ln(radius) in the lesions."""
    logit, log_radius = said[:, 0], said[:, 1]
    off = (logit.sigmoid() - score).abs() ** FOCUS
    scores = functional.binary_cross_entropy_with_logits(logit, score, reduction="none") * off * weight
    inside = weight * (score > 0)
    low, high = (math.log(mm) for mm in RADIUS_MM)
    sizes = (log_radius - radius_mm.clip(RADIUS_MM[0]).log().clip(low, high)).abs() * inside
    return (scores.sum() + RADIUS_SHARE * sizes.sum()) / (LESION_VOXELS * len(said))


def _to_channels(value: Tensor) -> Tensor:
    """Cubes of 2^3 voxels become channels: a convolution of 3^3 on them is one of 6^3 in steps of 2 on the voxels."""
    batch, channels, depth, height, width = value.shape
    cubes = value.reshape(batch, channels, depth // 2, 2, height // 2, 2, width // 2, 2)
    cubes = cubes.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cubes.reshape(batch, channels * 8, depth // 2, height // 2, width // 2).contiguous(
        memory_format=torch.channels_last_3d  # several times faster on a CPU
    )
