"""The diffusion head: its process against the definitions, what it learns, and the objective around it.

``parity.py`` compares the head with the published code.
"""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from map_core import Draw, UserError, normalize_targets
from map_core.losses import MaskedMSE
from map_core.objectives.diffusion import DiffusionHead, MaskedDiffusion, MaskedDiffusionConfig, Process
from map_core.objectives.diffusion.process import cosine_betas, respaced
from map_core.testing import learn_batch, toy_objective
from map_core.tokens import gather_tokens

STEPS = 20
DRAW = Draw.of_batch(2, seed=5)
CHANNELS = 4


def values(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


# ---- the process


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_head_computes_in_its_dtype_by_the_same_schedule(dtype):
    head = DiffusionHead(CHANNELS, 8, width=16, sampling_steps=3)
    schedule = {name: buffer.clone() for name, buffer in head.named_buffers()}
    condition, x_0, noise = values(6, 8), values(6, CHANNELS), values(6, CHANNELS)
    step = torch.arange(6) * 150
    expected = head.loss(x_0, condition, step, noise)
    head.to(dtype)
    loss = head.loss(x_0.to(dtype), condition.to(dtype), step, noise)
    torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.02)
    loss.sum().backward()
    assert head.net.input_proj.weight.grad.dtype == dtype
    assert torch.isfinite(head.sample(condition.to(dtype))).all()
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, schedule[name]), name


def test_noise_is_added_step_by_step():
    """q(x_t | x_0) equals t + 1 single steps of variance beta."""
    betas, process = cosine_betas(STEPS), Process.cosine(STEPS)
    mean, variance = 1.0, 0.0
    for t in range(STEPS):
        mean, variance = mean * math.sqrt(1 - betas[t]), variance * (1 - betas[t].item()) + betas[t].item()
        one = process.add_noise(torch.ones(1, 1), torch.tensor([t]), torch.zeros(1, 1)).item()
        noise = process.add_noise(torch.zeros(1, 1), torch.tensor([t]), torch.ones(1, 1)).item()
        assert one == pytest.approx(mean, rel=1e-5)
        assert noise**2 == pytest.approx(variance, rel=1e-5)
    assert variance > 0.99  # nothing but noise is left


def posterior(process, betas, x_0, x_t, t):
    """q(x_{t-1} | x_t, x_0) by Bayes' rule: the product of two Gaussians in x_{t-1}."""
    alpha_bar = torch.cumprod(1 - betas, 0)[t - 1]
    prior_mean, prior_var = alpha_bar.sqrt() * x_0, 1 - alpha_bar
    likelihood_mean, likelihood_var = x_t / (1 - betas[t]).sqrt(), betas[t] / (1 - betas[t])
    variance = 1 / (1 / prior_var + 1 / likelihood_var)
    return Normal(variance * (prior_mean / prior_var + likelihood_mean / likelihood_var), variance.sqrt())


@pytest.mark.parametrize("t", [1, 7, STEPS - 1])
def test_the_bound_is_the_divergence_from_the_true_step_back(t):
    betas, process = cosine_betas(STEPS), Process.cosine(STEPS)
    x_0, noise, predicted, share = values(4, 3, 5).double().unbind(0)
    step = torch.full((3,), t)
    x_t = process.add_noise(x_0, step, noise)
    alpha_bar = torch.cumprod(1 - betas, 0)[t]
    start = (x_t - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
    true = posterior(process, betas, x_0, x_t, t)
    part = (share + 1) / 2
    log_variance = part * betas[t].log() + (1 - part) * 2 * true.stddev.log()
    model = Normal(posterior(process, betas, start, x_t, t).mean, (0.5 * log_variance).exp())
    expected = kl_divergence(true, model).mean(-1) / math.log(2)
    torch.testing.assert_close(
        process.bound(predicted, share, x_0, x_t, step), expected, rtol=1e-4, atol=1e-5
    )


def test_at_the_first_step_the_bound_is_the_datas_own_probability():
    process, step = Process.cosine(STEPS), torch.zeros(3, dtype=torch.long)
    x_0, noise, predicted, share = values(4, 3, 5).mul(0.3).unbind(0)
    x_0[0, :2] = torch.tensor([-1.5, 1.5])  # beyond the outer bins
    x_t = process.add_noise(x_0, step, noise)
    mean, log_variance = (
        process._posterior_mean(process._predict_x_0(predicted, x_t, step), x_t, step),
        process._log_variance(share, step),
    )
    normal = Normal(mean, (0.5 * log_variance).exp())
    low, high = normal.cdf(x_0 - 1 / 255), normal.cdf(x_0 + 1 / 255)
    low, high = torch.where(x_0 < -0.999, 0.0, low), torch.where(x_0 > 0.999, 1.0, high)
    expected = -((high - low).clamp(min=1e-12).log2()).mean(-1)
    torch.testing.assert_close(
        process.bound(predicted, share, x_0, x_t, step), expected, rtol=0.02, atol=0.02
    )


def test_the_bound_trains_the_variance_alone():
    head = DiffusionHead(4, 8, width=16)
    nn.init.normal_(head.net.final_layer.linear.weight, std=0.1)
    x_0, noise = values(2, 6, 4).unbind(0)
    t, condition = torch.arange(6) * 150 + 5, values(6, 8)
    output = head.net(head.process.add_noise(x_0, t, noise), t, condition)
    loss = head.process.loss(output, x_0, head.process.add_noise(x_0, t, noise), t, noise).sum()
    (gradient,) = torch.autograd.grad(loss, output)
    predicted = output.detach()[:, :4].requires_grad_()
    (expected,) = torch.autograd.grad((noise - predicted).square().mean(-1).sum(), predicted)
    torch.testing.assert_close(gradient[:, :4], expected)
    assert gradient[:, 4:].any()


def test_fewer_steps_reach_the_same_levels_of_noise():
    assert respaced(1000, 100)[:8] == [0, 10, 20, 30, 40, 50, 61, 71]
    assert respaced(1000, 100)[-1] == 999
    whole, short = Process.cosine(1000), Process.shortened(100)
    torch.testing.assert_close(short.signal, whole.signal[short.step])
    torch.testing.assert_close(short.noise, whole.noise[short.step])


@pytest.mark.parametrize("steps", [5, 100])
def test_steps_back_with_the_true_noise_end_at_the_data(steps):
    process, x_0 = Process.shortened(steps), values(3, 4)
    x = torch.randn(3, 4)
    for place in reversed(range(steps)):
        t = torch.full((3,), place)
        true = (x - process.signal[place] * x_0) / process.noise[place]
        output = torch.cat([true, -torch.ones(3, 4)], dim=-1)  # the posterior's variance
        x = process.step_back(output, x, t, torch.randn(3, 4))
    torch.testing.assert_close(x, x_0, rtol=0, atol=1e-4)


# ---- the head


def test_a_fresh_head_predicts_no_noise():
    head = DiffusionHead(4, 8, width=16)
    t = torch.randint(1000, (64,))
    assert not head.net(values(64, 4), t, values(64, 8)).any()


@pytest.mark.usefixtures("unchecked")  # 400 steps
def test_samples_follow_the_distribution_of_each_condition():
    """One condition means -1 or 1 with equal odds, where a regression would say 0; the other always .5."""
    torch.manual_seed(0)
    head = DiffusionHead(1, 2, depth=2, width=64, sampling_steps=40)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    labels = torch.arange(256) % 2
    condition = nn.functional.one_hot(labels, 2).float()
    for _ in range(400):
        coin = torch.randint(2, (256,)) * 2.0 - 1
        x_0 = torch.where(labels == 0, coin, 0.5).unsqueeze(-1)
        loss = head.loss(x_0, condition, torch.randint(1000, (256,)), torch.randn(256, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = head.sample(condition, torch.Generator().manual_seed(1)).squeeze(-1)
    two, one = samples[labels == 0], samples[labels == 1]
    assert (two.abs() - 1).abs().median() < 0.25
    assert 0.25 < (two > 0).float().mean() < 0.75
    assert (one - 0.5).abs().median() < 0.25


def test_sampling_is_keyed_by_its_generator():
    head, condition = DiffusionHead(4, 8, width=16, sampling_steps=4), values(3, 8)
    first, again, other = (head.sample(condition, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- the objective


def build(**options):
    plain = toy_objective()
    head = DiffusionHead(CHANNELS, 12, depth=2, width=32, sampling_steps=10)
    return MaskedDiffusion(plain.backbone, plain.decoder, head, loss=MaskedMSE(), **options)


@pytest.fixture
def vectors():
    return torch.randn(2, 4, 3, CHANNELS)


def test_the_loss_denoises_normalised_targets_of_hidden_tokens(vectors):
    objective, calls = build(repeats=3), []
    objective.head.loss = lambda x_0, condition, t, noise: calls.append((x_0, condition, t)) or x_0.mean(-1)
    result = objective(vectors, DRAW)
    x_0, condition, t = calls[0]
    target = normalize_targets(gather_tokens(vectors.flatten(1, 2), result.mask.drop))
    assert torch.equal(x_0, target.flatten(0, 1).repeat(3, 1))
    assert torch.equal(condition, result.prediction.flatten(0, 1).repeat(3, 1))
    assert t.unique().numel() > 20  # every token has its own steps


def test_the_loss_is_a_function_of_the_draw(vectors):
    objective = build().eval()
    first, again, other = (
        objective(vectors, draw).loss for draw in (DRAW, DRAW, Draw.of_batch(2, seed=5, step=1))
    )
    assert first == again
    assert first != other


def test_hidden_vectors_reach_the_conditions_of_none(vectors):
    result = build()(vectors.requires_grad_(), DRAW)
    result.prediction.square().sum().backward()
    has_gradient = (vectors.grad.flatten(1, 2) != 0).any(-1)
    assert torch.equal(has_gradient, ~result.mask.hidden)


def test_a_reconstruction_has_values(vectors):
    objective = build()
    result = objective.reconstruct(vectors, DRAW)
    assert result.prediction.shape == (2, 6, CHANNELS)
    assert result.prediction.isfinite().all()
    assert torch.equal(result.prediction, objective.reconstruct(vectors, DRAW).prediction)


@pytest.mark.usefixtures("unchecked")
def test_learning_overfits_a_batch(vectors):
    torch.manual_seed(0)
    objective = build(repeats=16)
    losses = learn_batch(objective, vectors, DRAW, steps=60, lr=3e-3)
    assert losses[-1] < 0.2 * losses[0]


def test_every_parameter_learns_once_the_output_has_left_zero(vectors):
    objective = build()
    for layer in objective.head.net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
    objective(vectors, DRAW).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diffusion_depth": 0}, r"objective.diffusion_depth must be at least 1; got 0"),
        ({"diffusion_repeats": 0}, r"objective.diffusion_repeats must be at least 1; got 0"),
        ({"sampling_steps": 1}, r"objective.sampling_steps must lie between 2 and 1000; got 1"),
        (
            {"target_scales": (1, 3)},
            r"objective.target_scales of masked_diffusion is \[1\], .*; got \[1, 3\]",
        ),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        MaskedDiffusionConfig(**settings).validate()
