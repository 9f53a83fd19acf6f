#!/usr/bin/env python3
"""Learn the weights of cxr-acquisition from drawn chests, projections of CT and the films whose terms allow it.

Writes scripts/reference_engines/cxr_acquisition.npz; scripts/make_reference_engines.py makes the package of it.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cxr_training import faults, films  # noqa: E402
from cxr_training.bank import REAL_FILMS, VIEWS, Bank, Counts, make  # noqa: E402
from reference_engines.cxr_acquisition import CONVOLUTIONS, HIDDEN, LABELS, WEIGHTS  # noqa: E402

EPILOG = """examples:
  scripts/train_cxr_acquisition.py --data DIR                    about 4 minutes on an idle core, 6 with the pictures
  scripts/train_cxr_acquisition.py --data DIR --without NIH_00000001_000.png --output held_out.npz

DIR holds ct/ (one folder of DICOM files for each patient) and cxr/. Needs the extra `train` (torch, the CPU build is
enough): pip install -e .[dev,train]
The same machine, seed and versions give the same weights. The committed ones were learnt in several sittings between
which this script was changed (engines/cxr-acquisition/CARD.md): it does not give them again byte for byte."""
BATCH = 64
FASTEST, WARM_UP = 4e-3, 300
#: Of the films drawn, how many come from where. What a kind of picture lacks goes to the others.
SHARES = {"frontal drawn": 0.3, "frontal projected": 0.17, "frontal real": 0.17, "lateral drawn": 0.06}
SHARES |= {"lateral projected": 0.1, "other drawn": 0.14, "empty drawn": 0.08, "frontal phantom": 0.03}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, default=WEIGHTS, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--bank", type=Path, metavar="FILE", help="keep the pictures here, and use them if they are there"
    )
    parser.add_argument("--without", nargs="*", default=[], choices=list(REAL_FILMS), metavar="FILM", help="leave out")
    parser.add_argument("--no-projections", action="store_true", help="leave out the CT")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on from here, and leave off here")
    parser.add_argument("--leave-off-after", type=float, default=1e9, metavar="S", help="seconds; needs --checkpoint")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    bank = pictures(arguments)
    network = train(bank, chances(bank, arguments.without, ct=not arguments.no_projections), arguments)
    if network is None:
        print(f"{arguments.checkpoint}: left off")
        return 3
    np.savez_compressed(arguments.output, **folded(network))  # type: ignore[arg-type]
    print(f"{arguments.output}: written")
    return 0


def pictures(arguments: argparse.Namespace) -> Bank:
    if arguments.bank and arguments.bank.exists():
        return Bank.read(arguments.bank)
    bank = make(arguments.seed, Counts(), arguments.data)
    if arguments.bank:
        bank.save(arguments.bank)
    return bank


def chances(bank: Bank, without: list[str], *, ct: bool) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How often each picture is drawn."""
    names = {"drawn": "drawn", "phantom": "phantom", **dict.fromkeys(REAL_FILMS, "real")}
    origin = np.array([names.get(str(source), "projected") for source in bank.source])
    kinds = np.array([f"{VIEWS[view]} {where}" for view, where in zip(bank.view, origin, strict=True)])
    allowed = ~np.isin(bank.source, without) & (ct | (origin != "projected"))
    chance = np.zeros(len(kinds))
    for kind, share in SHARES.items():
        chosen = (kinds == kind) & allowed
        chance[chosen] = share / max(chosen.sum(), 1)
    return np.asarray(chance / chance.sum(), np.float64)


def build() -> nn.Sequential:
    layers: list[nn.Module] = []  # the pooling that comes first is in the films already
    for inputs, outputs, kernel, stride in CONVOLUTIONS:
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, momentum=0.05),
            nn.ReLU(),
        ]
    last = CONVOLUTIONS[-1][1] * 16
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.25), nn.Linear(last, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(LABELS))
    )


def rate(step: int, steps: int) -> float:
    """Learning rate: it rises for a while, then falls to nothing along a cosine."""
    return FASTEST * min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(
    bank: Bank, chance: np.ndarray[tuple[int], np.dtype[np.float64]], arguments: argparse.Namespace
) -> nn.Sequential | None:
    """The trained network; None where the time was up before."""
    rng = np.random.default_rng(arguments.seed)
    network, images = build(), films.bank_images(bank)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    parts = {"network": network, "optimiser": optimiser}
    started, running, done = time.monotonic(), 1.0, 0
    if arguments.checkpoint and arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        rng.bit_generator.state, done = state["rng"], state["step"]
        torch.set_rng_state(state["torch_rng"])
    for step in range(done + 1, arguments.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, arguments.steps)
        cases = [faults.draw(rng, bank, int(p)) for p in rng.choice(len(chance), BATCH, p=chance)]
        wanted = films.truths(cases)
        known = ~wanted.isnan()
        scores = network(films.render(rng, images, cases))
        loss = functional.binary_cross_entropy_with_logits(scores[known], wanted[known])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step}: loss {running:.4f}, {time.monotonic() - started:.0f} s", flush=True)
        if arguments.checkpoint and step < arguments.steps and time.monotonic() - started > arguments.leave_off_after:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"rng": rng.bit_generator.state, "torch_rng": torch.get_rng_state(), "step": step}
            torch.save(state, arguments.checkpoint)
            return None
    return network.eval()


def folded(network: nn.Sequential) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]:
    """Weights by name, each batch normalisation folded into the convolution before it."""
    found: dict[str, torch.Tensor] = {}
    modules = list(network)
    convolutions = [index for index, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    for number, index in enumerate(convolutions):
        convolution, norm = modules[index], modules[index + 1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        found[f"conv{number}"] = convolution.weight * scale[:, None, None, None]
        found[f"conv{number}_bias"] = norm.bias - norm.running_mean * scale
    for name, layer in zip(("hidden", "scores"), (m for m in modules if isinstance(m, nn.Linear)), strict=True):
        found[name], found[f"{name}_bias"] = layer.weight, layer.bias
    return {name: value.detach().numpy().astype(np.float16) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
