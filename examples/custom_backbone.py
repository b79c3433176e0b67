"""Pretrain a backbone of your own with the objective.

A backbone needs `embed_dim`, `tokenize(inputs, targets=...) -> Tokens` and `encode(tokens, mask) -> Features`. This
one works as convolutional hybrids do, in miniature: it cannot drop tokens, so it writes a mask token over the hidden
patches, runs convolutions over the whole grid and returns every cell of it. The decoder puts its own mask token at the
hidden cells, so nothing that the backbone wrote there leaks into the prediction.

pip install -c constraints.txt ./packages/map-core ./packages/map-vision
python examples/custom_backbone.py
"""

import argparse

import torch
from torch import nn

from map_core import (
    Draw,
    Features,
    GridRegions,
    MaskedAutoregression,
    RegionDecoder,
    TokenMask,
    Tokens,
    make_position,
)
from map_vision import tokenize_images
from map_vision.patches import PatchEmbed


class ConvBackbone(nn.Module):
    """Residual 3 x 3 convolutions over the grid of patches."""

    def __init__(self, embed_dim: int, depth: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed((4, 4), 1, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(embed_dim))
        self.convs = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in range(depth))

    def tokenize(self, inputs: torch.Tensor, *, targets: bool = False) -> Tokens:
        return tokenize_images(inputs, self.patch_embed, targets=targets)

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        x = tokens.embedding
        if mask is not None:
            x = torch.where(mask.hidden.unsqueeze(-1), self.mask_token, x)
        assert tokens.grid is not None
        x = x.transpose(1, 2).unflatten(2, tokens.grid)  # (b, l, d) -> (b, d, rows, cols)
        for conv in self.convs:
            x = x + conv(nn.functional.gelu(x))
        return Features(x.flatten(2).transpose(1, 2), torch.arange(tokens.length).unsqueeze(0))


def stripes(batch: int) -> torch.Tensor:
    """Images whose hidden patches can be guessed: stripes of random angle and width."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle, frequency = torch.rand(batch, 1, 1) * torch.pi, 0.2 + 0.3 * torch.rand(batch, 1, 1)
    return torch.sin(frequency * (x * angle.cos() + y * angle.sin())).unsqueeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    objective = MaskedAutoregression(
        ConvBackbone(64, depth=4),
        RegionDecoder(64, make_position("learned", 64, grid=(8, 8)), embed_dim=64, depth=2, num_heads=4),
        nn.Linear(64, 16),
        regions=GridRegions("row"),
        attention="map",
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        loss = objective(stripes(32), Draw.of_batch(32, seed=0, step=step)).loss
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
