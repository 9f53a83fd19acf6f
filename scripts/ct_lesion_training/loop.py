"""Training: patches by step, one-cycle AdamW, a checkpoint now and then. Needs the extra `train`."""

import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ct_lesion_training import network, patches
from ct_lesion_training.backgrounds import Background
from ct_lesion_training.patches import Patch
from ct_lesion_training.torch_layers import TorchLayers, loss

BATCH = 4
PEAK_RATE, DECAY, WARM = 3e-3, 1e-2, 0.08
EVERY = 50  #: steps between two checkpoints
AHEAD = 4  #: batches that are made before they are needed

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`workers` other processes make patches; 0: this one does. The patches are the same either way."""

    steps: int
    seed: int
    threads: int
    workers: int
    checkpoint: Path
    odds: tuple[float, ...]


def train(plan: Plan, backgrounds: list[Background], tell: Callable[[str], None]) -> dict[str, Float]:
    """The trained weights. Goes on from the checkpoint where there is one."""
    torch.set_num_threads(plan.threads)
    layers = TorchLayers(plan.seed)
    with torch.no_grad():
        network.answer(layers, torch.zeros(1, 1, *(patches.SIZE,) * 3))  # makes the weights
    first = _restored(plan.checkpoint, layers)
    optimiser = torch.optim.AdamW(layers.weights.values(), lr=PEAK_RATE, weight_decay=DECAY)
    if first:
        optimiser.load_state_dict(torch.load(_moments(plan.checkpoint), weights_only=True))
    recent: deque[float] = deque(maxlen=50)
    begun = time.monotonic()
    for step, batch in zip(range(first, plan.steps), _batches(plan, first, backgrounds), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(step / plan.steps)
        recent.append(_step(layers, optimiser, batch))
        if (step + 1) % EVERY == 0 or step + 1 == plan.steps:
            _save(plan.checkpoint, step + 1, layers, optimiser)
            tell(f"step {step + 1}: loss {np.mean(recent):.4f}, {time.monotonic() - begun:.0f} s")
    return layers.arrays()


def difference(weights: dict[str, Float], model: bytes) -> float:
    """How far the exported model's scores are from the trained network's, on noise."""
    layers = TorchLayers(0)
    layers.restore(weights)
    layers.training = False
    noise = np.random.default_rng(0).normal(-600, 300, (1, 1, 32, 48, 64)).astype(np.float32)
    with torch.no_grad():
        trained = network.answer(layers, torch.from_numpy(noise))[:, :1].sigmoid().numpy()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    score = session.run(["score"], {"volume": noise, "lung": np.ones_like(noise)})[0]
    return float(np.abs(score[:, :, ::2, ::2, ::2] - trained).max())


def rate(done: float) -> float:
    """Share of the peak learning rate: linear up, then half a cosine down."""
    if done < WARM:
        return (done + 1e-3) / WARM
    return 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) + 1e-3


def _step(layers: TorchLayers, optimiser: torch.optim.Optimizer, batch: list[Patch]) -> float:
    def stacked(arrays: list[Float]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays))

    optimiser.zero_grad()
    said = network.answer(layers, stacked([patch.hu for patch in batch])[:, None])
    cost = loss(
        said,
        stacked([patch.score for patch in batch]),
        stacked([patch.radius_mm for patch in batch]),
        stacked([patch.weight for patch in batch]),
    )
    cost.backward()
    torch.nn.utils.clip_grad_norm_(layers.weights.values(), 5.0)
    optimiser.step()
    return float(cost.detach())


def _batches(plan: Plan, first: int, backgrounds: list[Background]) -> Iterator[list[Patch]]:
    if not plan.workers:
        for step in range(first, plan.steps):
            yield _batch(plan.seed, step, backgrounds, plan.odds)
        return
    with ProcessPoolExecutor(plan.workers, initializer=_Worker.begin, initargs=(backgrounds, plan.odds)) as pool:
        waiting: deque[Future[list[Patch]]] = deque()
        for step in range(first, plan.steps):
            waiting.append(pool.submit(_Worker.batch, plan.seed, step))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Worker:
    """What a worker process holds."""

    backgrounds: list[Background]
    odds: tuple[float, ...]

    @classmethod
    def begin(cls, backgrounds: list[Background], odds: tuple[float, ...]) -> None:
        cls.backgrounds, cls.odds = backgrounds, odds

    @classmethod
    def batch(cls, seed: int, step: int) -> list[Patch]:
        return _batch(seed, step, cls.backgrounds, cls.odds)


def _batch(seed: int, step: int, backgrounds: list[Background], odds: tuple[float, ...]) -> list[Patch]:
    rng = np.random.default_rng([seed, step])
    return [patches.sample(rng, backgrounds, np.asarray(odds)) for _ in range(BATCH)]


def _moments(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".optimiser")


def _save(checkpoint: Path, step: int, layers: TorchLayers, optimiser: torch.optim.Optimizer) -> None:
    content = io.BytesIO()
    np.savez(content, step=np.int64(step), **layers.arrays())  # type: ignore[arg-type]
    torch.save(optimiser.state_dict(), _moments(checkpoint))
    fresh = checkpoint.with_suffix(".fresh")
    fresh.write_bytes(content.getvalue())
    os.replace(fresh, checkpoint)  # noqa: PTH105


def _restored(checkpoint: Path, layers: TorchLayers) -> int:
    """The step to go on with; 0 where there is no checkpoint."""
    if not checkpoint.exists():
        return 0
    with np.load(checkpoint, allow_pickle=False) as known:
        layers.restore({name: known[name] for name in known.files if name != "step"})
        return int(known["step"])
