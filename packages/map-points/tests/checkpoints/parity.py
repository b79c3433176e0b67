"""Compare converted point checkpoints with what the published code computed from the same random weights.

    python packages/map-points/tests/checkpoints/parity.py FOLDER

FOLDER holds ``NAME_tiny.pth`` and ``NAME_tiny_io.npz`` of mamba3d, pointmae_cls, pointmae_pretrain, pointmae_partseg,
pointmamba_cls and pointmamba_pretrain: clouds, features, logits or predictions, loss and gradients. The files are not
part of this project, whose tests compare the models with ``published_points.py`` instead; so does this program, which
shows that it is what was published.
"""

import sys
from pathlib import Path

import published_points as published
import torch
from converted_points import classify, pretrain, segment

from map_core.tasks.weights import read_weights
from map_core.testing.parity import print_deviations, read_arrays
from map_core.testing.published import gradients, learnable

CUT = {"number": 16, "size": 8}
OURS = {"num_patches": 16, "patch_size": 8}
HEADS = {"num_heads": 4}


def mamba3d(state, arrays):
    points = arrays["points"]
    together = {f"{key}_batch": value for key, value in published.mamba3d(state, points, **CUT).items()}
    alone = [published.mamba3d(state, points[i : i + 1], **CUT) for i in range(len(points))]
    keys = [key for key in alone[0] if key != "loss"]
    theirs = together | {f"{key}_single": torch.cat([one[key] for one in alone]) for key in keys}
    theirs["loss"] = theirs["loss_single"] = theirs["logits_single"].square().mean()
    ours = {f"{key}_single": value for key, value in classify(state, points, **OURS).items()}
    return theirs, ours | {"loss": ours["loss_single"]}


def pointmae_cls(state, arrays):
    points = arrays["points"]
    return published.point_mae(state, points, **CUT, heads=4), classify(state, points, **OURS, **HEADS)


def pointmae_pretrain(state, arrays):
    points, mask = arrays["points"], arrays["mask"]
    theirs = published.point_mae_pretraining(state, points, mask, **CUT, heads=4)
    return theirs, pretrain(state, points, mask, decoder_heads=4, **OURS, **HEADS)


def pointmae_partseg(state, arrays):
    points, category = arrays["points"], arrays["category"]
    theirs = published.point_mae_parts(state, points, category, **CUT, heads=2)
    return theirs, segment(state, points, category, **OURS, num_heads=2)


def pointmamba_cls(state, arrays):
    points = arrays["points"]
    return published.point_mamba(state, points, **CUT), classify(state, points, **OURS)


def pointmamba_pretrain(state, arrays):
    points, mask = arrays["points"], arrays["mask"]
    swapped = bool(arrays["order_is_trans"])
    theirs = published.point_mamba_pretraining(state, points, mask, **CUT, swapped=swapped)
    second = {
        key.replace("_2", "_1"): value for key, value in state.items() if "OrderScale" in key and "_2" in key
    }
    return theirs, pretrain(state | second, points, mask, order="hilbert_cells_swapped", num_patches=16)


CASES = {
    case.__name__: case
    for case in (
        mamba3d,
        pointmae_cls,
        pointmae_pretrain,
        pointmae_partseg,
        pointmamba_cls,
        pointmamba_pretrain,
    )
}


def compare(folder, name):
    """Print how far each array is off and return the number of those that are too far."""
    state = learnable(read_weights(folder / f"{name}_tiny.pth"))
    arrays, far = read_arrays(folder / f"{name}_tiny_io.npz"), 0
    for what, results in zip(("definition", "model"), CASES[name](state, arrays), strict=True):
        if "loss" in results:
            results |= {f"grad:{key}": grad for key, grad in gradients(state, results["loss"]).items()}
        far += print_deviations(results, arrays, f"{name:20} {what:11} ")
    return far


if __name__ == "__main__":
    sys.exit(int(sum(compare(Path(sys.argv[1]), name) for name in CASES) > 0))
