"""Compare the diffusion head with what the published code computed from random weights.

    python packages/map-core/tests/objectives/parity.py FOLDER

FOLDER holds ``diffloss_tiny.pth``, a checkpoint of a head under the published names (12 values, condition 24, 3 blocks
of width 32), and ``diffloss_tiny_io.npz``: targets, conditions, noise, steps and mask, then the results. The
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

INPUTS = ("target", "z", "noise", "t", "mask")


def compute(weights: Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this project's head computes from the input arrays, under the names of the other arrays."""
    target, z, noise, t, mask = (arrays[name] for name in INPUTS)
    head = DiffusionHead(target.shape[1], z.shape[1], depth=3, width=32)
    head.load_state_dict(read_weights(weights))
    process = head.process
    x_t = process.add_noise(target, t, noise)
    output = head.net(x_t, t, z)
    predicted, variance_share = output.chunk(2, dim=-1)
    sample_loss = head.loss(target, z, t, noise)
    loss = (sample_loss * mask).sum() / mask.sum()
    loss.backward()
    betas = cosine_betas(len(process))
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    alpha_bar_prev = torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    shortened = (
        1 - (head.sampler.signal.double() ** 2) / torch.cat([torch.ones(1), head.sampler.signal[:-1]]) ** 2
    )
    results = {
        "x_t": x_t,
        "net_output": output,
        "mse": (noise - predicted).square().mean(-1),
        "vb": process.bound(predicted.detach(), variance_share, target, x_t, t),
        "loss_per_sample": sample_loss,
        "loss": loss,
        "betas": betas,
        "alphas_cumprod": alpha_bar,
        "posterior_variance": betas * (1 - alpha_bar_prev) / (1 - alpha_bar),
        "gen_timesteps": head.sampler.step,
        "gen_betas": shortened,
    }
    return results | {f"grad:{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}


def main(folder: Path) -> int:
    """Print the deviation of each array, and return 1 if one is too large."""
    arrays = read_arrays(folder / "diffloss_tiny_io.npz")
    return int(print_deviations(compute(folder / "diffloss_tiny.pth", arrays), arrays) > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
