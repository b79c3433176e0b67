"""One encoder reads an image and a point cloud of the same object as one sequence, and both are reconstructed.

Patches of both are tokens at positions in space, embedded by one set of Fourier features: x, y, z, and the modality.

pip install -c constraints.txt ./packages/map-core
python examples/image_and_cloud.py
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

SIDE, PATCH = 16, 4  # pixels along a side of an image, and of a patch
CENTERS, NEIGHBORS = 16, 16  # patches of a cloud, and points of each
VALUES = 48  # of a patch of either kind: 4 x 4 colours, 16 points
AXIS = torch.linspace(-1, 1, SIDE)


class SceneNet(nn.Module):
    """A hybrid encoder over pairs of images (b, 3, 16, 16) and clouds (b, points, 3)."""

    def __init__(self, embed_dim: int = 64, layout: str = "MMT") -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embed_image, self.embed_cloud = nn.Linear(VALUES, embed_dim), nn.Linear(VALUES, embed_dim)
        makers = {
            "M": lambda dim, drop_path: MambaBlock(dim, drop_path=drop_path),
            "T": lambda dim, drop_path: TransformerBlock(dim, num_heads=4, drop_path=drop_path),
        }
        position, norm = make_position("fourier", embed_dim, coordinates=4), make_norm("rms", embed_dim)
        self.encoder = HybridEncoder(embed_dim, layout, block_makers=makers, position=position, norm=norm)

    def tokenize(self, inputs: tuple[torch.Tensor, torch.Tensor], *, targets: bool = False) -> Tokens:
        images, clouds = inputs
        cells = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (b, 3, rows, columns, 4, 4)
        pixels = cells.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        center = clouds[:, :CENTERS]  # random points, as all are sampled at random
        nearest = torch.cdist(center, clouds).topk(NEIGHBORS, largest=False).indices  # (b, l, k)
        scene = torch.arange(len(clouds))[:, None, None]
        points = (clouds[scene, nearest] - center[:, :, None]).flatten(2)  # the nearest first
        cell_centers = AXIS.reshape(-1, PATCH).mean(1)
        y, x = torch.meshgrid(cell_centers, cell_centers, indexing="ij")
        image_position = torch.stack([x, y, -torch.ones_like(x), -torch.ones_like(x)], -1).flatten(0, 1)
        cloud_position = torch.cat([center, torch.ones_like(center[..., :1])], -1)
        return Tokens(
            torch.cat([self.embed_image(pixels), self.embed_cloud(points)], 1),
            torch.cat([image_position.expand(len(images), -1, -1), cloud_position], 1),
            torch.cat([pixels, points], 1) if targets else None,
        )

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        return self.encoder.encode(tokens, mask)


def ellipsoids(batch: int, points: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of surfaces from above, coloured by their normals, and point clouds of the same surfaces."""
    axes = 0.4 + 0.6 * torch.rand(batch, 1, 3)
    cloud = axes * nn.functional.normalize(torch.randn(batch, points, 3), dim=-1)
    y, x = torch.meshgrid(AXIS, AXIS, indexing="ij")
    surface_xy = torch.stack([x, y], -1).flatten(0, 1) / axes[..., :2]  # (b, pixels, 2)
    height = (1 - surface_xy.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    direction = nn.functional.normalize(torch.cat([surface_xy, height], -1) / axes, dim=-1)
    image = torch.where(height > 0, direction, 0).transpose(1, 2).unflatten(2, (SIDE, SIDE))
    return image, cloud


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    position = make_position("fourier", 48, coordinates=4)
    decoder = RegionDecoder(64, position, embed_dim=48, depth=2, num_heads=4)
    head, regions = nn.Linear(48, VALUES), ConsecutiveRegions(8)
    objective = MaskedAutoregression(SceneNet(), decoder, head, regions=regions)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        loss = objective(ellipsoids(32), Draw.of_batch(32, seed=0, step=step)).loss
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
