"""Compare converted checkpoints with what the published code computed from the same random weights.

    python packages/map-vision/tests/checkpoints/parity.py FOLDER

FOLDER holds ``NAME_tiny.pth`` and ``NAME_tiny_io.npz`` of mae, mambar, vim, official (MAP's authors) and arm_finetune:
images, features, logits or predictions, loss and gradients. The files are not part of this project, whose tests
compare the models with ``published.py`` instead; so does this program, which shows that it is what was published.
"""

import sys
from pathlib import Path

import published
import torch
from converted import classify, pretrain, without_registers

from map_core.tasks.weights import read_weights
from map_core.testing.parity import print_deviations, read_arrays
from map_core.testing.published import gradients, learnable

NUM_PATCHES = 16
AUTHORS_GRADIENTS = {
    "grad_patch_proj": "patch_embed.proj.weight",
    "grad_A_log_0": "layers.0.mixer.A_log",
    "grad_blocks_last_fc1": "blocks.1.mlp.fc1.weight",
}


def classifier(name):
    """A classifier by the definition and by our model."""

    def compute(state, arrays):
        images = arrays["images"]
        theirs = getattr(published, name)(state, images)
        return theirs, classify(state, images)

    return compute


def keep_hidden_patches(arrays, theirs, ours, mask):
    """Keep the predictions of hidden patches only: our models make no others."""
    hidden = ours.pop("prediction")
    ours["hidden"] = hidden
    for outputs in (arrays, theirs):
        outputs["hidden"] = outputs["prediction"][mask].reshape(hidden.shape)


def mae(state, arrays):
    mask = arrays["mask"].bool()
    images, ids = arrays["images"], arrays["ids_restore"].argsort(1)[:, : int((~mask[0]).sum())]
    theirs = published.mae(state, images, mask, 4, 3)
    ours = pretrain(state, images, mask, decoder_heads=3, num_heads=4)
    # features in the file's order: class token, then visible patches in random order
    shuffled = ids.argsort(1).argsort(1) + 1
    index = torch.cat([torch.zeros_like(shuffled[:, :1]), shuffled], 1)[..., None]
    theirs["latent"] = theirs["latent"].take_along_dim(index, 1)
    ours["latent"] = ours["encoder"].take_along_dim(index, 1)
    keep_hidden_patches(arrays, theirs, ours, mask)
    return theirs, ours


def official(state, arrays):
    mask, images = arrays["mask"].bool(), arrays["images"]
    theirs = published.authors(state, images, mask, 3, 4)
    ours = pretrain(state, images, mask, decoder_heads=4, num_heads=3)
    keep_hidden_patches(arrays, theirs, ours, mask)
    return theirs, ours


CASES = {
    "mae": mae,
    "mambar": classifier("mambar"),
    "vim": classifier("vim"),
    "official": official,
    "arm_finetune": classifier("arm"),
}


def comparable(expected, actual):
    """Published features, without registers if the model returns none."""
    with_registers = expected.ndim == 3 and expected.shape[1] != actual.shape[1]
    return without_registers(expected, NUM_PATCHES) if with_registers else expected


def compare(folder, name):
    """Print how far each array is off and return the number of arrays that are too far off."""
    state, num_far = learnable(read_weights(folder / f"{name}_tiny.pth")), 0
    arrays = read_arrays(folder / f"{name}_tiny_io.npz")
    for source, outputs in zip(("definition", "model"), CASES[name](state, arrays), strict=True):
        grads = gradients(state, outputs["loss"])
        outputs |= {f"grad:{key}": grad for key, grad in grads.items()}
        outputs |= {key: grads[theirs] for key, theirs in AUTHORS_GRADIENTS.items() if theirs in grads}
        expected = {key: comparable(value, outputs[key]) for key, value in arrays.items() if key in outputs}
        num_far += print_deviations(outputs, expected, f"{name:13} {source:11} ")
    return num_far


if __name__ == "__main__":
    sys.exit(int(sum(compare(Path(sys.argv[1]), name) for name in CASES) > 0))
