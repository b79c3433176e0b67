"""Converted checkpoints compute what was published, features and every gradient alike.

``published.py`` is that a second time; ``parity.py`` compares both with the published code.
"""

import published
import pytest
import states
import torch
from converted import classify, gradients, pretrain, without_registers

TOLERANCE = {"rtol": 5e-5, "atol": 5e-5}  # of each array's maximum
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLASSIFIERS = ("vim", "mambar", "arm")


def assert_equal(ours, theirs, name):
    scale = theirs.abs().max()
    assert scale > 0, f"{name} shows nothing"
    torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE, msg=lambda text: f"{name}: {text}")


def learnable(state):
    return {key: value.clone().requires_grad_() for key, value in state.items()}


def hidden_patches(ratio):
    noise = torch.rand(2, states.PATCHES, generator=torch.Generator().manual_seed(2))
    return noise.argsort(1).argsort(1) < ratio * states.PATCHES


def assert_equal_gradients(state, ours, theirs):
    expected = gradients(state, theirs["loss"])
    found = gradients(state, ours["loss"])
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        # the smallest gradients are differences of large terms
        scale = max(grad.abs().max(), 1e-3 * max(value.abs().max() for value in expected.values()))
        torch.testing.assert_close(found[key] / scale, grad / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_mamba_classifier_computes_what_was_published(name):
    state = learnable(getattr(states, name)())
    theirs, ours = getattr(published, name)(state, IMAGES), classify(state, IMAGES)
    for key in ("layer0_mixer", "residual_last", "features", "logits", "loss"):
        assert_equal(ours[key], theirs[key], key)
    assert_equal(ours["sequence"], without_registers(theirs["sequence"], states.PATCHES), "sequence")
    assert_equal_gradients(state, ours, theirs)


@pytest.mark.parametrize("last", ["norm", "fc_norm"])
def test_a_vit_computes_what_was_published(last):
    state = learnable(states.vit(last=last))
    logits = published.vit(state, IMAGES, heads=4)
    ours = classify(state, IMAGES, num_heads=4)
    assert_equal(ours["logits"], logits, "logits")
    assert_equal_gradients(state, ours, {"loss": logits.square().mean()})


@pytest.mark.parametrize(("name", "decoder_heads"), [("mae", 3), ("authors", 4)])
def test_a_pretraining_file_reconstructs_and_learns_as_published(name, decoder_heads):
    state, hidden = learnable(getattr(states, name)()), hidden_patches(0.5)
    theirs = getattr(published, name)(state, IMAGES, hidden, 4, decoder_heads)
    ours = pretrain(state, IMAGES, hidden, decoder_heads=decoder_heads, num_heads=4)
    assert_equal(ours["encoder"], theirs["latent" if name == "mae" else "encoder"], "encoder")
    assert_equal(
        ours["prediction"], theirs["prediction"][hidden].reshape(ours["prediction"].shape), "prediction"
    )
    assert_equal(ours["loss"], theirs["loss"], "loss")
    assert_equal_gradients(state, ours, theirs)
