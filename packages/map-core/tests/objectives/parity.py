"""Compare the diffusion head with what the published code computed from random weights.

    python packages/map-core/tests/objectives/parity.py FOLDER

FOLDER holds ``diffloss_tiny.pth``, a checkpoint of a head under the published names (12 values, condition 24, 3 blocks
of width 32), and ``diffloss_tiny_io.npz``: targets, conditions, noise, steps and mask, then what was made of them. The
files are not part of this project, whose tests compare the head with ``test_diffusion.py`` instead.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from map_core.objectives.diffusion import DiffusionHead
from map_core.objectives.diffusion.process import cosine_betas
from map_core.tasks.weights import read_weights
from map_core.testing.parity import print_deviations, read_arrays

GIVEN = ("target", "z", "noise", "t", "mask")


def computed(weights: Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this project's head makes of what is given, under the names of the rest."""
    target, z, noise, t, mask = (arrays[name] for name in GIVEN)
    head = DiffusionHead(target.shape[1], z.shape[1], depth=3, width=32)
    head.load_state_dict(read_weights(weights))
    process = head.process
    x_t = process.add_noise(target, t, noise)
    output = head.net(x_t, t, z)
    predicted, share = output.chunk(2, dim=-1)
    of_sample = head.loss(target, z, t, noise)
    loss = (of_sample * mask).sum() / mask.sum()
    loss.backward()
    betas = cosine_betas(len(process))
    bar = torch.cumprod(1 - betas, dim=0)
    before = torch.cat([torch.ones(1, dtype=bar.dtype), bar[:-1]])
    shortened = (
        1 - (head.sampler.signal.double() ** 2) / torch.cat([torch.ones(1), head.sampler.signal[:-1]]) ** 2
    )
    found = {
        "x_t": x_t,
        "net_output": output,
        "mse": (noise - predicted).square().mean(-1),
        "vb": process.bound(predicted.detach(), share, target, x_t, t),
        "loss_per_sample": of_sample,
        "loss": loss,
        "betas": betas,
        "alphas_cumprod": bar,
        "posterior_variance": betas * (1 - before) / (1 - bar),
        "gen_timesteps": head.sampler.step,
        "gen_betas": shortened,
    }
    return found | {f"grad:{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}


def main(folder: Path) -> int:
    """Print how far each array is off, and return 1 if one is too far."""
    arrays = read_arrays(folder / "diffloss_tiny_io.npz")
    return int(print_deviations(computed(folder / "diffloss_tiny.pth", arrays), arrays) > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
