"""Masked autoregressive pretraining in a visible loop, without the engine: real images, one model, one objective.

pip install -c constraints.txt ./packages/map-core './packages/map-vision[demo]'
python examples/pretrain_minimal.py --out digits.safetensors
"""

import argparse

import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from map_core import Draw
from map_vision import ImageObjectiveConfig, build_objective

SMALL = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=96, layout="MMMT", num_heads=4)
BATCH = 64


def digits() -> torch.Tensor:
    """The 8 x 8 handwritten digits of scikit-learn as (1797, 1, 8, 8), normalised."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    return (images - images.mean()) / images.std()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="digits.safetensors")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    # for pretraining: no registers, no head, mean-pooled patches
    model = timm.create_model(
        "hybridnet_tiny_patch16_224", num_classes=0, num_registers=0, global_pool="avg", **SMALL
    )
    config = ImageObjectiveConfig(mask_ratio=0.5, decoder_depth=2, decoder_dim=64, decoder_heads=4)
    objective = build_objective(model, config)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    images = digits()
    for step in range(arguments.steps):
        batch = images[torch.randint(len(images), (BATCH,))]
        loss = objective(batch, Draw.of_batch(BATCH, seed=0, step=step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == arguments.steps - 1:
            print(f"step {step:4}  loss {loss.item():.3f}")

    # the objective's backbone is the model: this file is what timm.create_model(checkpoint_path=...) reads
    save_file(objective.backbone.state_dict(), arguments.out)
    print(f"encoder -> {arguments.out}")


if __name__ == "__main__":
    main()
