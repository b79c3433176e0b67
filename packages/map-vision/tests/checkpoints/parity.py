"""Compare converted checkpoints with what the published code computed from the same random weights.

    python packages/map-vision/tests/checkpoints/parity.py FOLDER

FOLDER holds ``NAME_tiny.pth`` and ``NAME_tiny_io.npz`` of mae, mambar, vim, official (MAP's authors) and arm_finetune:
images, features, logits or predictions, loss and gradients. The files are not part of this project, whose tests
compare the models with ``published.py`` instead; so does this program, which shows that it is what was published.
"""

import sys
from pathlib import Path

import numpy as np
import published
import torch
from converted import classify, gradients, pretrain, without_registers

from map_core.tasks.weights import read_weights

TOLERANCE, GRADIENT_TOLERANCE = 5e-5, 1e-4  # of each array's maximum
AUTHORS_GRADIENTS = {
    "grad_patch_proj": "patch_embed.proj.weight",
    "grad_A_log_0": "layers.0.mixer.A_log",
    "grad_blocks_last_fc1": "blocks.1.mlp.fc1.weight",
}


def classifier(name):
    """Both readings of a classifier."""

    def compute(state, arrays):
        images = arrays["images"]
        theirs = getattr(published, name)(state, images)
        return theirs, classify(state, images)

    return compute


def mae(state, arrays):
    mask = arrays["mask"].bool()
    images, ids = arrays["images"], arrays["ids_restore"].argsort(1)[:, : int((~mask[0]).sum())]
    theirs = published.mae(state, images, mask, 4, 3)
    ours = pretrain(state, images, mask, decoder_heads=3, num_heads=4)
    shuffled = ids.argsort(1).argsort(1) + 1  # features as the file has them: class token, then kept as drawn
    index = torch.cat([torch.zeros_like(shuffled[:, :1]), shuffled], 1)[..., None]
    theirs["latent"] = theirs["latent"].take_along_dim(index, 1)
    ours["latent"] = ours["encoder"].take_along_dim(index, 1)
    hidden = arrays["prediction"][mask].reshape(ours["prediction"].shape)
    arrays |= {"hidden": hidden}
    theirs["hidden"], ours["hidden"] = (
        theirs["prediction"][mask].reshape(hidden.shape),
        ours.pop("prediction"),
    )
    return theirs, ours


def official(state, arrays):
    mask, images = arrays["mask"].bool(), arrays["images"]
    theirs = published.authors(state, images, mask, 3, 4)
    ours = pretrain(state, images, mask, decoder_heads=4, num_heads=3)
    hidden = arrays["prediction"][mask].reshape(ours["prediction"].shape)
    arrays |= {"hidden": hidden}
    theirs["hidden"], ours["hidden"] = (
        theirs["prediction"][mask].reshape(hidden.shape),
        ours.pop("prediction"),
    )
    return theirs, ours


CASES = {
    "mae": mae,
    "mambar": classifier("mambar"),
    "vim": classifier("vim"),
    "official": official,
    "arm_finetune": classifier("arm"),
}


def distances(expected, found, num_patches):
    """How far each array that both have is off, relative to its maximum."""
    for name, value in found.items():
        if name not in expected:
            continue
        wanted = expected[name]
        if wanted.ndim == 3 and wanted.shape[1] != value.shape[1]:
            wanted = without_registers(wanted, num_patches)
        yield name, float((value - wanted).detach().abs().max() / wanted.abs().max())


def compare(folder, name):
    """Print how far each array is off and return the number of those that are too far."""
    state = {key: value.requires_grad_() for key, value in read_weights(folder / f"{name}_tiny.pth").items()}
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}_tiny_io.npz").items()}
    far = 0
    readings = CASES[name](state, arrays)
    for what, found in zip(("definition", "model"), readings, strict=True):
        grads = gradients(state, found["loss"])
        found |= {f"grad:{key}": grad for key, grad in grads.items()}
        found |= {key: grads[theirs] for key, theirs in AUTHORS_GRADIENTS.items() if theirs in grads}
        for key, off in distances(arrays, found, 16):
            limit = GRADIENT_TOLERANCE if key.startswith("grad") else TOLERANCE
            far += off > limit
            print(f"{name:13} {what:11} {key:40} {off:.1e}  {'equal' if off <= limit else 'DIFFERS'}")
    return far


if __name__ == "__main__":
    sys.exit(int(sum(compare(Path(sys.argv[1]), name) for name in CASES) > 0))
