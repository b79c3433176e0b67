"""Compare the model with what the published code computed from random weights.

    python packages/map-vision/tests/mambavision/parity.py FOLDER

FOLDER holds ``mambavision_tiny.pth``, a checkpoint of conftest's pyramid under the published names, and
``mambavision_tiny_io.npz``: images ``a`` (64x64) and ``b`` (96x80), stages, mixer, logits and gradients. The files are
not part of this project, whose tests compare the model with ``test_definition.py`` instead.
"""

import sys
from pathlib import Path

import timm
from torch import Tensor

import map_vision  # noqa: F401  (registers the models)
from map_core.tasks.weights import read_weights
from map_core.testing.parity import print_deviations, read_arrays

PYRAMID = {
    "embed_dim": 64,
    "stem_dim": 4,
    "depths": (1, 1, 2, 2),
    "num_heads": (2, 4),
    "window_size": (4, 2),
    "mlp_ratio": 3.0,
    "num_classes": 10,
}


def compute(weights: Path, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our model computes from the images in ``arrays``, under the published names."""
    model = timm.create_model("map_mambavision_tiny", **PYRAMID).eval()
    model.load_state_dict(read_weights(weights))
    mixed: list[Tensor] = []
    model.levels[2].blocks[0].mixer.register_forward_hook(lambda _, x, y: mixed.extend((x[0], y)))
    outputs: dict[str, Tensor] = {}
    for case in "ab":
        images = arrays[f"images_{case}"]
        features, stages = model.forward_intermediates(images)
        outputs[f"stem_{case}"] = model.patch_embed(images)
        outputs |= {f"stage{i}_{case}": stage for i, stage in enumerate(stages)}
        outputs |= {f"mixer_in_{case}": mixed[-2], f"mixer_out_{case}": mixed[-1]}
        outputs[f"pooled_{case}"] = model.forward_head(features, pre_logits=True)
        outputs[f"logits_{case}"] = model.forward_head(features)
    outputs["loss_a"] = outputs["logits_a"].square().mean()
    outputs["loss_a"].backward()
    return outputs | {f"grad:{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def main(folder: Path) -> int:
    """Print how far each array is off, and return 1 if one is too far."""
    arrays = read_arrays(folder / "mambavision_tiny_io.npz")
    return int(print_deviations(compute(folder / "mambavision_tiny.pth", arrays), arrays) > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
