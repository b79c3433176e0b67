"""Finetune a pretrained encoder as any timm model, in plain PyTorch, with few labels.

pip install -c constraints.txt ./packages/map-core './packages/map-vision[demo]'
python examples/pretrain_minimal.py --out digits.safetensors
python examples/finetune_timm.py --init digits.safetensors
python examples/finetune_timm.py                              # the same from scratch
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import map_vision  # noqa: F401  (registers the models with timm)

SMALL = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=96, layout="MMMT", num_heads=4)
LABELLED = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--init", default="", help="weights of an encoder")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    order = torch.randperm(len(images))
    labelled, held_out = order[:LABELLED], order[-360:]

    # timm loads the encoder first; then it gets a head for ten classes
    model = timm.create_model(
        "hybridnet_tiny_patch16_224",
        num_classes=0,
        num_registers=0,
        global_pool="avg",
        checkpoint_path=arguments.init,
        **SMALL,
    )
    model.reset_classifier(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(arguments.steps):
        batch = labelled[torch.randint(LABELLED, (32,))]
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4}  loss {loss.item():.3f}")

    model.eval()
    with torch.inference_mode():
        accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean()
    print(f"accuracy on {len(held_out)} held-out digits after {LABELLED} labels: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
