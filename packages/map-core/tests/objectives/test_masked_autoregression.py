"""The options of the paper's objective: a causal encoder, ratio 0, a Mamba decoder, targets of several scales."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from map_core import (
    ConsecutiveRegions,
    Draw,
    GridRegions,
    MaskedAutoregression,
    Masking,
    UserError,
    masked_mse,
)
from map_core.blocks import TransformerBlock
from map_core.objectives.mamba_decoder import MambaRegionDecoder
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.registers import Registers
from map_core.testing import (
    GridBackbone,
    LinearPosition,
    decoder_dependencies,
    learn_batch,
    toy_encoder,
    toy_objective,
)
from map_core.tokens import gather_tokens, undo_scan

ROWS, COLS, CHANNELS = 4, 3, 4
LENGTH = ROWS * COLS
DRAW = Draw.of_batch(2, seed=5)
COLUMNS = torch.arange(LENGTH).reshape(ROWS, COLS).T.flatten().tolist()
KINDS = ["map", "mae", "local_mae", "ar"]


@pytest.fixture
def vectors():
    return torch.randn(2, ROWS, COLS, CHANNELS)


# ---- a causal encoder


def reaches_from_later_regions(objective, vectors):
    """Whether a vector of a later region has a gradient to a prediction."""
    vectors = vectors.clone().requires_grad_()
    result = objective(vectors, DRAW)
    region = undo_scan(objective.regions(result.tokens, result.mask).index.expand(2, -1), result.tokens)
    predicted_region = gather_tokens(objective.regions(result.tokens, result.mask).index, result.index)
    for h, one in enumerate(result.prediction.unbind(1)):
        (gradient,) = torch.autograd.grad(one.square().sum(), vectors, retain_graph=True)
        later = region > predicted_region[:, h : h + 1]
        if gradient.flatten(1, 2)[later].any():
            return True
    return False


@pytest.mark.parametrize("order", [None, COLUMNS], ids=["row order", "column order"])
@pytest.mark.parametrize("rule", [GridRegions("row"), GridRegions("block", (2, 2))], ids=["rows", "blocks"])
@pytest.mark.parametrize("masking", [Masking(), Masking(0.25, scope="region")], ids=["all", "region"])
def test_with_a_causal_encoder_no_pixel_of_a_later_region_reaches_a_prediction(
    one_way, vectors, order, rule, masking
):
    objective = toy_objective(backbone=one_way(order=order), encoder="causal", regions=rule, masking=masking)
    assert not reaches_from_later_regions(objective, vectors)


def test_with_a_bidirectional_encoder_pixels_of_later_regions_do(vectors):
    assert reaches_from_later_regions(toy_objective(), vectors)


def test_a_causal_encoder_has_no_registers():
    makers = {"T": lambda width, drop_path: TransformerBlock(width, num_heads=2)}
    encoder = toy_encoder(16, "T", block_makers=makers, registers=Registers(1, 16))
    with pytest.raises(UserError, match=r"create the model without any \(--model.keep_registers false\)"):
        toy_objective(backbone=GridBackbone(CHANNELS, encoder), encoder="causal")


def test_a_causal_encoder_needs_a_model_that_scans_one_way():
    with pytest.raises(
        UserError, match="a causal encoder scans one way, but the Mamba layers of this model scan both"
    ):
        toy_objective(encoder="causal")


# ---- ratio 0


@pytest.mark.parametrize("num_global", [0, 2])
def test_at_ratio_0_all_tokens_are_seen_and_all_are_predicted(one_way, vectors, num_global):
    objective = toy_objective(backbone=one_way(num_global=num_global), masking=Masking(0.0))
    result = objective(vectors, DRAW)
    assert not result.mask.hidden.any()
    assert result.index[0].tolist() == list(range(num_global, LENGTH + num_global))
    expected = masked_mse(result.prediction, vectors.flatten(1, 2))
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    unreached = {name for name, p in objective.named_parameters() if p.grad is None}
    assert unreached == set(), "parameters outside of the graph break training in several processes"


def test_at_ratio_0_a_prediction_still_reads_no_later_region(vectors):
    dependencies = decoder_dependencies(toy_objective(masking=Masking(0.0)), vectors, DRAW)
    region = dependencies.region
    assert torch.equal(dependencies.depends, region.unsqueeze(1) <= region.unsqueeze(2))


# ---- a Mamba decoder


def with_mamba_decoder(attention, *, regions=None, backbone=None):
    plain = toy_objective(backbone=backbone)
    decoder = MambaRegionDecoder(16, LinearPosition(12), embed_dim=12, depth=2, attention=attention)
    return MaskedAutoregression(
        plain.backbone, decoder, nn.Linear(12, CHANNELS), regions=regions, attention=attention
    )


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("order", [None, COLUMNS], ids=["row order", "column order"])
def test_the_scans_read_what_the_attention_mask_would_allow(one_way, vectors, attention, order):
    objective = with_mamba_decoder(attention, backbone=one_way(order=order))
    depends, result = input_dependencies(objective, vectors)
    allowed = attention_of(objective, result)
    assert torch.equal(depends, gather_tokens(allowed.expand(2, -1, -1), result.mask.drop))


def input_dependencies(objective, vectors):
    """Which entries of the decoder's sequence reach each prediction."""
    sequences, original = [], objective.decoder.sequence

    def record(*arguments):
        sequences.append(original(*arguments).detach().requires_grad_())
        return sequences[-1]

    objective.decoder.sequence = record
    result = objective(vectors, DRAW)
    gradients = [
        torch.autograd.grad(one.square().sum(), sequences[0], retain_graph=True)[0].any(-1)
        for one in result.prediction.unbind(1)
    ]
    return torch.stack(gradients, 1), result


def attention_of(objective, result):
    """The mask that a Transformer decoder would have, where ``ar`` counts places in the order of regions."""
    region = objective.regions(result.tokens, result.mask).index
    query, key = region.unsqueeze(-1), region.unsqueeze(-2)
    if objective.attention == "ar":
        place = torch.argsort(torch.argsort(region, dim=1, stable=True), dim=1)
        return place.unsqueeze(-2) <= place.unsqueeze(-1)
    return {"map": key <= query, "local_mae": key == query, "mae": torch.ones_like(key == query)}[
        objective.attention
    ]


@pytest.mark.parametrize("attention", KINDS)
def test_every_parameter_of_a_mamba_decoder_learns(vectors, attention):
    objective = with_mamba_decoder(attention)
    objective(vectors, DRAW).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.usefixtures("unchecked")
def test_a_mamba_decoder_overfits_a_batch(vectors):
    objective = with_mamba_decoder("map")
    losses = learn_batch(objective, vectors, DRAW, steps=100, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]


def test_scans_within_regions_need_regions_of_equal_size(vectors):
    message = "with attention map needs regions of equal size, but these 5 regions of 12 tokens differ"
    with pytest.raises(UserError, match=message):
        with_mamba_decoder("map", regions=ConsecutiveRegions(5))(vectors, DRAW)
    assert with_mamba_decoder("ar", regions=ConsecutiveRegions(5))(vectors, DRAW).loss.isfinite()


def test_a_mamba_decoder_has_no_heads_to_divide_its_width():
    config = MaskedAutoregressionConfig(decoder="mamba", decoder_dim=40)
    assert config.decoder_dim % config.decoder_heads
    config.validate()
    with pytest.raises(UserError, match=r"decoder_dim \(40\) must be a multiple of objective.decoder_heads"):
        replace(config, decoder="transformer").validate()


@pytest.mark.parametrize(
    ("name", "value", "default"), [("decoder_mlp_ratio", 2.0, 4.0), ("decoder_norm_eps", 1e-6, 1e-5)]
)
def test_what_a_mamba_decoder_does_not_read_is_refused(name, value, default):
    message = rf"objective.{name} {value} has no effect with objective.decoder mamba: leave it at {default}"
    with pytest.raises(UserError, match=message):
        MaskedAutoregressionConfig(decoder="mamba", **{name: value}).validate()


# ---- refused before the first step


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_a_rehearsal_hides_at_the_bounds_of_a_drawn_ratio(vectors, ratio):
    bounds = (min(ratio, 0.4), max(ratio, 0.6))
    objective = toy_objective(masking=Masking(0.5, 0.01, bounds))
    objective(vectors, DRAW)
    with pytest.raises(
        UserError, match=rf"mask ratio {ratio} of 12 tokens hides .* objective.mask_ratio_bounds"
    ):
        objective.rehearse(objective.backbone.tokenize(vectors))


def test_a_rehearsal_lays_out_the_regions_of_a_mamba_decoder(vectors):
    objective = with_mamba_decoder("map", regions=ConsecutiveRegions(5))
    with pytest.raises(UserError, match="needs regions of equal size"):
        objective.rehearse(objective.backbone.tokenize(vectors))


# ---- targets of several scales


def test_each_scale_has_its_part_of_the_head_and_its_target(vectors):
    def coarser_targets(inputs, tokens):
        return [torch.full_like(tokens.target, 7.0), tokens.target.roll(1, dims=1)]

    plain = toy_objective()
    objective = MaskedAutoregression(
        plain.backbone, plain.decoder, nn.Linear(12, 3 * CHANNELS), coarser_targets=coarser_targets,
        loss=lambda prediction, target: (prediction - target).square().mean(),
    )  # fmt: skip
    predicted = []
    objective.head.register_forward_hook(lambda _, args, out: predicted.append(out))
    result = objective(vectors, DRAW)
    fine = gather_tokens(vectors.flatten(1, 2), result.index)
    targets = [
        fine,
        torch.full_like(fine, 7.0),
        gather_tokens(vectors.flatten(1, 2).roll(1, 1), result.index),
    ]
    expected = (predicted[0] - torch.cat(targets, -1)).square().mean()
    torch.testing.assert_close(result.loss, expected)
    assert torch.equal(result.prediction, predicted[0][..., :CHANNELS])
