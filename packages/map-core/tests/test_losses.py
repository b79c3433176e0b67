"""Targets and losses, against numpy."""

import numpy as np
import pytest
import torch

from map_core import denormalize_prediction, masked_mse, normalize_targets
from map_core.losses import MaskedMSE


def test_targets_have_zero_mean_and_unit_unbiased_variance():
    target = 3 + 5 * torch.randn(2, 7, 48)
    patches = target.double().numpy()
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    expected = (patches - patches.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    torch.testing.assert_close(normalize_targets(target).double().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_eps_stands_inside_the_root():
    target = torch.tensor([[[0.0, 2e-3]]])  # unbiased variance 2e-6
    assert normalize_targets(target, eps=2e-6).tolist() == [[pytest.approx([-0.5, 0.5])]]


def test_a_flat_patch_stays_finite():
    target = torch.full((1, 2, 9), 0.7, requires_grad=True)
    normalised = normalize_targets(target)
    assert normalised.abs().max() < 1e-3
    normalised.square().sum().backward()
    assert target.grad.isfinite().all()


def test_denormalising_undoes_normalising():
    target = 3 + 5 * torch.randn(2, 7, 48)
    torch.testing.assert_close(denormalize_prediction(normalize_targets(target), target), target)


def test_a_patch_of_one_value_is_centred_only():
    target = torch.randn(2, 5, 1)
    assert torch.equal(normalize_targets(target), torch.zeros(2, 5, 1))
    assert torch.equal(denormalize_prediction(torch.zeros(2, 5, 1), target), target)
    assert masked_mse(torch.ones(2, 5, 1), target) == 1


@pytest.mark.parametrize("normalize", [True, False])
def test_mse_is_the_mean_over_samples_tokens_and_values(normalize):
    prediction, target = torch.randn(2, 3, 4), 1 + torch.randn(2, 3, 4)
    terms = []
    for b in range(2):
        for i in range(3):
            patch = target[b, i]
            if normalize:
                patch = (patch - patch.mean()) / torch.sqrt(patch.var() + 1e-6)
            terms += [(prediction[b, i, t] - patch[t]) ** 2 for t in range(4)]
    torch.testing.assert_close(masked_mse(prediction, target, normalize=normalize), sum(terms) / 24)


def test_mse_is_float32_under_autocast():
    prediction = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_mse(prediction, torch.randn(2, 3, 4))
    assert loss.dtype == torch.float32


def test_a_perfect_prediction_costs_nothing_and_normalising_forgets_contrast():
    target = torch.randn(2, 3, 16)
    prediction = normalize_targets(target)
    assert masked_mse(prediction, target) == 0
    assert masked_mse(prediction, 10 * target + 4) < 1e-6


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_object_is_the_function_with_its_settings(normalize):
    prediction, target = torch.randn(2, 3, 16), 2 + 3 * torch.randn(2, 3, 16)
    loss = MaskedMSE(normalize=normalize)
    assert loss(prediction, target) == masked_mse(prediction, target, normalize=normalize)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_in_the_targets_values_is_the_target(normalize):
    target = 2 + 3 * torch.randn(2, 3, 16)
    perfect = normalize_targets(target) if normalize else target
    torch.testing.assert_close(MaskedMSE(normalize=normalize).to_values(perfect, target), target)
