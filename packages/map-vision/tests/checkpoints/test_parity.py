"""Converted checkpoints compute what was published, features and every gradient alike.

``published.py`` is a second implementation; ``parity.py`` compares both with the published code.
"""

import published
import pytest
import states
import torch
from converted import classify, pretrain, without_registers

from map_core.testing.parity import assert_same_arrays, assert_same_gradients
from map_core.testing.published import learnable

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLASSIFIERS = ("vim", "mambar", "arm")


def hidden_patches(ratio):
    noise = torch.rand(2, states.PATCHES, generator=torch.Generator().manual_seed(2))
    return noise.argsort(1).argsort(1) < ratio * states.PATCHES


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_mamba_classifier_computes_what_was_published(name):
    state = learnable(getattr(states, name)())
    theirs, ours = getattr(published, name)(state, IMAGES), classify(state, IMAGES)
    theirs["sequence"] = without_registers(theirs["sequence"], states.PATCHES)
    compared = ("layer0_mixer", "residual_last", "features", "logits", "loss", "sequence")
    assert_same_arrays(ours, theirs, compared)
    assert_same_gradients(state, ours["loss"], theirs["loss"])


@pytest.mark.parametrize("last", ["norm", "fc_norm"])
def test_a_vit_computes_what_was_published(last):
    state = learnable(states.vit(last=last))
    logits = published.vit(state, IMAGES, heads=4)
    ours = classify(state, IMAGES, num_heads=4)
    assert_same_arrays(ours, {"logits": logits}, ["logits"])
    assert_same_gradients(state, ours["loss"], logits.square().mean())


@pytest.mark.parametrize(("name", "decoder_heads"), [("mae", 3), ("authors", 4)])
def test_a_pretraining_file_reconstructs_and_learns_as_published(name, decoder_heads):
    state, hidden = learnable(getattr(states, name)()), hidden_patches(0.5)
    theirs = getattr(published, name)(state, IMAGES, hidden, 4, decoder_heads)
    ours = pretrain(state, IMAGES, hidden, decoder_heads=decoder_heads, num_heads=4)
    theirs["encoder"] = theirs["latent" if name == "mae" else "encoder"]
    theirs["prediction"] = theirs["prediction"][hidden].reshape(ours["prediction"].shape)
    assert_same_arrays(ours, theirs, ("encoder", "prediction", "loss"))
    assert_same_gradients(state, ours["loss"], theirs["loss"])
