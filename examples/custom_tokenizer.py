"""Pretrain on a new kind of data: a tokenizer for one-dimensional signals, everything else unchanged.

A signal is cut into windows; a window is a token, its samples are its target, and its time is its position. Regions are
groups of consecutive windows, so the decoder reconstructs the signal from beginning to end.

pip install -c constraints.txt ./packages/map-core
python examples/custom_tokenizer.py
"""

import argparse

import torch
from torch import nn

from map_core import (
    ConsecutiveRegions,
    Draw,
    Features,
    HybridEncoder,
    MaskedAutoregression,
    RegionDecoder,
    TokenMask,
    Tokens,
    make_position,
)
from map_core.blocks import MambaBlock, TransformerBlock, make_norm

WINDOW = 16


class SignalNet(nn.Module):
    """A hybrid encoder over windows of signals (b, samples)."""

    def __init__(self, embed_dim: int = 64, layout: str = "MMT") -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embed = nn.Linear(WINDOW, embed_dim)
        self.encoder = HybridEncoder(
            embed_dim,
            layout,
            block_makers={
                "M": lambda dim, drop_path: MambaBlock(dim, drop_path=drop_path),
                "T": lambda dim, drop_path: TransformerBlock(dim, num_heads=4, drop_path=drop_path),
            },
            position=make_position("fourier", embed_dim, coordinates=1),
            norm=make_norm("rms", embed_dim),
        )

    def tokenize(self, inputs: torch.Tensor, *, targets: bool = False) -> Tokens:
        windows = inputs.unflatten(1, (-1, WINDOW))  # (b, samples) -> (b, l, window)
        time = torch.linspace(-1, 1, windows.shape[1]).reshape(1, -1, 1)
        return Tokens(self.embed(windows), time, windows if targets else None)

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        return self.encoder.encode(tokens, mask)


def chirps(batch: int, samples: int = 512) -> torch.Tensor:
    """Signals whose frequency rises or falls."""
    time = torch.linspace(0, 1, samples)
    start, rate, phase = torch.rand(3, batch, 1)
    return torch.sin(2 * torch.pi * (phase + (4 + 8 * start) * time + 16 * (rate - 0.5) * time**2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    backbone = SignalNet()
    objective = MaskedAutoregression(
        backbone,
        RegionDecoder(64, make_position("fourier", 48, coordinates=1), embed_dim=48, depth=2, num_heads=4),
        nn.Linear(48, WINDOW),
        regions=ConsecutiveRegions(8),
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        loss = objective(chirps(32), Draw.of_batch(32, seed=0, step=step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:4}  loss {losses[-1]:.3f}")
    quarter = max(len(losses) // 4, 1)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    print(f"loss {'fell' if last < first else 'did not fall'} from {first:.3f} to {last:.3f}")


if __name__ == "__main__":
    main()
