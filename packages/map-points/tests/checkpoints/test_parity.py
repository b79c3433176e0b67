"""Converted point checkpoints compute what was published, features and every gradient alike.

``published_points.py`` is that a second time; ``parity.py`` compares both with the published code.
"""

import point_states as states
import published_points as published
import pytest
import torch
from converted_points import classify, pretrain, segment
from point_states import CUT, OURS, POINTS

from map_core.testing.parity import assert_same_arrays, assert_same_gradients
from map_core.testing.published import learnable
from map_points.tokenizer import order_patches

HIDDEN = torch.rand(2, 8, generator=torch.Generator().manual_seed(2)).argsort(1).argsort(1) < 5
CATEGORY = torch.tensor([3, 11])


PRETRAINING = ("neighborhood", "center", "visible_features", "decoded", "prediction", "loss")
STAGES = ("neighborhood", "tokens", "block0", "normed", "pooled", "logits", "loss")


def test_point_mae_computes_what_was_published():
    state = learnable(states.point_mae())
    theirs = published.point_mae(state, POINTS, **CUT, heads=4)
    ours = classify(state, POINTS, **OURS, num_heads=4)
    assert_same_arrays(ours, theirs, (*STAGES, "center"))
    assert_same_gradients(state, ours["loss"], theirs["loss"])


def test_mamba3d_computes_for_every_cloud_what_was_published_for_one_alone():
    state = learnable(states.mamba3d())
    alone = [published.mamba3d(state, POINTS[i : i + 1], **CUT) for i in range(2)]
    theirs = {key: torch.cat([one[key] for one in alone]) for key in alone[0] if key != "loss"}
    theirs["loss"] = theirs["logits"].square().mean()
    ours = classify(state, POINTS, **OURS)
    assert_same_arrays(ours, theirs, (*STAGES, "center", "block0_mixer"))
    assert_same_gradients(state, ours["loss"], theirs["loss"])
    together = published.mamba3d(state, POINTS, **CUT)  # where clouds depend on their company
    assert not torch.allclose(together["logits"], theirs["logits"], rtol=1e-3)


@pytest.mark.parametrize("pooled", [1, 2], ids=["mean", "mean and maximum"])
def test_point_mamba_computes_what_was_published(pooled):
    state = learnable(states.point_mamba(pooled))
    theirs = published.point_mamba(state, POINTS, **CUT)
    ours = classify(state, POINTS, **OURS)
    assert_same_arrays(ours, theirs, (*STAGES, "sequence_in"))
    assert_same_gradients(state, ours["loss"], theirs["loss"])


@pytest.mark.parametrize("swapped", [False, True])
def test_cells_of_fixed_size_are_read_as_published(swapped):
    center = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(3)) * 1.9
    center[1] *= 1.6  # wider than 128 cells
    indices = order_patches(center, "hilbert_cells_swapped" if swapped else "hilbert_cells")
    for i in range(2):
        assert torch.equal(indices[i : i + 1], published.hilbert_order(center[i : i + 1], swapped))


def test_point_mae_reconstructs_and_learns_as_published():
    state = learnable(states.point_mae_pretraining())
    theirs = published.point_mae_pretraining(state, POINTS, HIDDEN, **CUT, heads=4)
    ours = pretrain(state, POINTS, HIDDEN, decoder_heads=4, num_patches=8, num_heads=4)
    assert_same_arrays(ours, theirs, PRETRAINING)
    assert_same_gradients(state, ours["loss"], theirs["loss"])


def test_point_mamba_reconstructs_and_learns_as_published():
    state = learnable(states.point_mamba_pretraining())
    theirs = published.point_mamba_pretraining(state, POINTS, HIDDEN, **CUT)
    ours = pretrain(state, POINTS, HIDDEN, num_patches=8)
    assert_same_arrays(ours, theirs, PRETRAINING)
    assert_same_gradients(state, ours["loss"], theirs["loss"])


def test_point_mae_finds_parts_as_published():
    state = learnable(states.point_mae_parts())
    theirs = published.point_mae_parts(state, POINTS, CATEGORY, **CUT, heads=4)
    ours = segment(state, POINTS, CATEGORY, **OURS, num_heads=4)
    assert_same_arrays(ours, theirs, ("label_feature", "propagated", "log_prob"))
    for arrays in (ours, theirs):
        arrays["loss"] = arrays["log_prob"].square().mean()
    assert_same_gradients(state, ours["loss"], theirs["loss"])
