"""Pretrain on generated point clouds and draw what the model predicts where patches were hidden.

pip install -c constraints.txt ./packages/map-core ./packages/map-points
python examples/point_cloud.py --out clouds.png
"""

import argparse
from pathlib import Path

import torch

from map_core import Draw
from map_points import PointObjectiveConfig, build_objective, create_point_model
from map_points.pictures import draw_reconstructions


def solids(batch: int, points: int = 512) -> torch.Tensor:
    """Surfaces of spheres and boxes with random axes, in the unit sphere."""
    direction = torch.nn.functional.normalize(torch.randn(batch, points, 3), dim=-1)
    box = direction / direction.abs().amax(dim=-1, keepdim=True)
    is_box = (torch.arange(batch) % 2 == 1).reshape(-1, 1, 1)
    cloud = torch.where(is_box, box, direction) * (0.4 + 0.6 * torch.rand(batch, 1, 3))
    return cloud / cloud.norm(dim=-1).amax(dim=1).reshape(-1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("clouds.png"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # for pretraining: no class token, no head
    model = create_point_model(
        "hybridnet3d",
        0,
        class_token=False,
        embed_dim=48,
        patch_hidden_dim=32,
        layout="MMT",
        num_heads=4,
        num_patches=32,
        patch_size=16,
        order="hilbert",
    )
    config = PointObjectiveConfig(decoder_depth=2, decoder_dim=48, decoder_heads=4)
    objective = build_objective(model, config)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for step in range(arguments.steps):
        loss = objective(solids(16), Draw.of_batch(16, seed=0, step=step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step:4}  Chamfer distance {losses[-1]:.4f}")
    quarter = max(len(losses) // 4, 1)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    print(f"loss {'fell' if last < first else 'did not fall'} from {first:.4f} to {last:.4f}")
    draw_reconstructions(objective, solids(4), arguments.out)
    print(f"picture -> {arguments.out}")


if __name__ == "__main__":
    main()
