"""From cases to what the network gets: many films at once, as the engine's declared preparation would make them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from reference_engines.cxr_acquisition import CELLS, LABELS
from torch.nn import functional

from cxr_training.bank import Bank
from cxr_training.faults import Case

STRETCH = 0.12


def render(rng: np.random.Generator, images: torch.Tensor, cases: Sequence[Case]) -> torch.Tensor:
    """Films (N, 1, CELLS, CELLS) within [0, 1], as the network pools them. `images` are all pictures of the bank."""
    grids, outside, inside = zip(*(_grid(case, rng) for case in cases), strict=True)
    low, high = (torch.tensor([case.grey[end] for case in cases])[:, None, None, None] for end in (0, 1))
    chosen = images[torch.tensor([case.picture for case in cases])][:, None]
    exposed = ((chosen - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
    film = functional.grid_sample(exposed, torch.stack(grids), padding_mode="border", align_corners=False)
    shape = (len(cases), 1, 1, 1)
    film = film ** torch.from_numpy(np.exp(rng.uniform(-0.35, 0.35, shape)).astype(np.float32))
    # A burnt-out part stays without detail, whatever else changes.
    patient = torch.tensor([float(case.truth["empty"] != 1) for case in cases])[:, None, None, None]
    detail = ((film > 0.004) & (film < 0.996)).float()
    film = film + detail * patient * _clouds(rng, len(cases))
    noise = torch.from_numpy(rng.uniform(0, 0.04, shape).astype(np.float32))
    film = film + detail * noise * torch.from_numpy(rng.standard_normal(film.shape, np.float32))
    film = film.clamp(0, 1)
    negative = torch.tensor([case.negative for case in cases])[:, None, None, None]
    film = torch.where(negative, 1 - film, film)
    frames = torch.tensor([case.frame_grey for case in cases])[:, None, None, None]
    film = torch.where(torch.stack(outside)[:, None], frames, film)
    film = _letters(rng, film)
    film = _windowed(film, torch.stack(inside)[:, None])
    # Of an empty film the window stretches the noise of single pixels, which the pooling then takes away.
    kept = torch.from_numpy(rng.choice([1.0, 0.3, 0.1, 0.03, 0.0], shape).astype(np.float32))
    flat = rng.uniform(0, 1) + (film - film.mean(dim=(1, 2, 3), keepdim=True)) * kept
    return torch.where(patient > 0, film, flat.clamp(0, 1))


def truths(cases: Sequence[Case]) -> torch.Tensor:
    """(N, labels): 1, 0 or NaN."""
    return torch.tensor([[case.truth[label] for label in LABELS] for case in cases])


def bank_images(bank: Bank) -> torch.Tensor:
    """A little smoothed, since a film is drawn from fewer points than a picture has."""
    images = torch.from_numpy(bank.images)[:, None]
    return functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]


def _grid(case: Case, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where in its picture each pixel of the film lies, as grid_sample wants it.

    Also which pixels lie in the frame, and which are the film's own and not the letterbox's.
    """
    left, top, right, bottom = case.edges
    wide = max(right - left, 0.05) * math.exp(rng.uniform(-STRETCH, STRETCH))
    high = max(bottom - top, 0.05)
    if case.quarter_turns % 2:
        wide, high = high, wide
    steps = (torch.arange(CELLS) + 0.5) / CELLS
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    u, v = ((value - 0.5) * max(wide, high) / size + 0.5 for value, size in ((u, wide), (v, high)))
    inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    u, v = u.clamp(0, 1), v.clamp(0, 1)
    for _ in range(case.quarter_turns):
        u, v = v, 1 - u
    if case.mirrored:
        u = 1 - u
    before, above, after, below = case.frame
    u, v = u * (1 + before + after) - before, v * (1 + above + below) - above
    outside = (u < 0) | (u > 1) | (v < 0) | (v > 1)
    x = left + u.clamp(0, 1) * (right - left) - case.centre[0]
    y = top + v.clamp(0, 1) * (bottom - top) - case.centre[1]
    cosine, sine = math.cos(math.radians(case.tilt)), math.sin(math.radians(case.tilt))
    x, y = x * cosine - y * sine + case.centre[0], x * sine + y * cosine + case.centre[1]
    return torch.stack([2 * x - 1, 2 * y - 1], dim=-1), outside, inside


def _clouds(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Smooth lightening and darkening: disease, scatter, the fall of the beam."""
    coarse = rng.standard_normal((count, 1, 7, 7)) * (
        rng.uniform(0, 0.12, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < 0.6)
    )
    return functional.interpolate(
        torch.from_numpy(coarse.astype(np.float32)), (CELLS, CELLS), mode="bicubic", align_corners=False
    )


def _letters(rng: np.random.Generator, film: torch.Tensor) -> torch.Tensor:
    for one in film:
        if rng.random() < 0.4:
            row, column = rng.integers(0, CELLS - 3, 2)
            height, width = rng.integers(1, 4, 2)
            one[0, row : row + height, column : column + width] = float(rng.choice((0.0, 1.0)))
    return film


def _windowed(film: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """As the op percentile_window does before the letterbox."""
    own = torch.where(inside, film, torch.tensor(float("nan")))[:, 0].flatten(1)
    low, high = torch.nanquantile(own, torch.tensor([0.01, 0.99]), dim=1)
    return ((film - low[:, None, None, None]) / (high - low).clamp(min=1e-6)[:, None, None, None]).clamp(0, 1)
