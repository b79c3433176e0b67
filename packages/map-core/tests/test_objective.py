"""Masked autoregression: what each prediction may depend on, shown by gradient, and what makes the loss."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from map_core import Features, ObjectiveConfig, UserError, masked_mse, normalize_targets
from map_core.testing import (
    GridTokenizer,
    LinearPosition,
    decoder_dependencies,
    toy_encoder,
    toy_objective,
    toy_tokens,
)
from map_core.tokens import gather_tokens

ROWS, COLS, CHANNELS = 4, 3, 4
LENGTH = ROWS * COLS
KINDS = ["map", "mae", "local_mae", "ar"]


@pytest.fixture
def vectors():
    return torch.randn(2, ROWS, COLS, CHANNELS)


def tokenizer(**options):
    return GridTokenizer(CHANNELS, 16, **options)


# ---- causality by gradient


def may_depend(kind, region, i, j):
    """design.md: whether the prediction of token i may read the decoder's input j."""
    if kind == "mae" or region[j] == -1:
        return True
    return {
        "map": region[j] <= region[i],
        "local_mae": region[j] == region[i],
        "ar": (region[j], j) <= (region[i], i),
    }[kind]


def assert_dependencies(found, kind):
    """Gradients are exactly zero where the definition forbids to look, and nowhere else."""
    for b, region in enumerate(found.region.tolist()):
        for h, i in enumerate(found.mask.drop[b].tolist()):
            expected = [may_depend(kind, region, i, j) for j in range(len(region))]
            assert found.depends[b, h].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_depend_on_what_the_decoder_mask_allows(vectors, kind):
    assert_dependencies(decoder_dependencies(toy_objective(attention=kind), vectors), kind)


def test_map_predicts_regions_from_themselves_and_earlier_ones(vectors):
    """The same in the paper's words: zero from later rows, something from the own and from earlier rows."""
    found = decoder_dependencies(toy_objective(), vectors)
    later = found.region.unsqueeze(1) > found.hidden_region.unsqueeze(2)  # (b, h, l)
    assert later.any()
    assert not (found.depends & later).any()
    assert found.depends[~later].all()


@pytest.mark.parametrize("kind", KINDS)
def test_dependencies_follow_regions_not_the_sequence(vectors, kind):
    """Scanned column by column, a region is spread over the sequence; predictions keep its order."""
    columns = torch.arange(LENGTH).reshape(ROWS, COLS).T.flatten().tolist()
    objective = toy_objective(tokenizer=tokenizer(order=columns), attention=kind)
    found = decoder_dependencies(objective, vectors)
    assert found.region[0].tolist() == [0, 1, 2, 3] * 3
    assert_dependencies(found, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_global_tokens_are_read_by_every_prediction(vectors, kind):
    objective = toy_objective(tokenizer=tokenizer(num_global=2), attention=kind)
    found = decoder_dependencies(objective, vectors)
    assert found.depends[:, :, :2].all()
    assert_dependencies(found, kind)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_strategy": "sequential", "mask_ratio": 0.25},
        {"mask_strategy": "diagonal"},
        {"mask_scope": "region"},
    ],
    ids=["sequential", "diagonal", "region"],
)
def test_causality_holds_however_tokens_are_hidden(vectors, options):
    assert_dependencies(decoder_dependencies(toy_objective(**options), vectors), "map")


def test_the_region_rule_decides_what_is_predicted_together(vectors):
    """Here regions are counted from the last row upwards, and the mask is at the rule's hand."""

    def upwards(tokens, mask):
        assert mask.hidden.shape == (2, LENGTH)
        return ROWS - 1 - tokens.region

    found = decoder_dependencies(toy_objective(region_rule=upwards), vectors)
    assert found.region[0].tolist() == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert_dependencies(found, "map")


def test_a_leak_would_be_seen(vectors, monkeypatch):
    """The check itself: an attention mask that lets one later token through must not pass."""
    import map_core.objective as module

    honest = module.region_attention_mask

    def leaky(region, kind):
        mask = honest(region, kind).clone()
        mask[..., 0, LENGTH - 1] = True
        return mask

    monkeypatch.setattr(module, "region_attention_mask", leaky)
    noise = torch.linspace(1, 0, LENGTH).expand(2, LENGTH)  # hides the first half
    with pytest.raises(AssertionError):
        assert_dependencies(decoder_dependencies(toy_objective(), vectors, noise=noise), "map")


# ---- encoders


class Pyramid(nn.Module):
    """Paints its own token over the hidden ones and returns features at all positions."""

    embed_dim = 16

    def __init__(self):
        super().__init__()
        self.paint = nn.Parameter(torch.randn(16))
        self.mix = nn.Linear(LENGTH, LENGTH)

    def encode(self, tokens, mask=None):
        x = tokens.embedding
        if mask is not None:
            x = torch.where(mask.hidden.unsqueeze(-1), self.paint, x)
        return Features(self.mix(x.mT).mT, torch.arange(tokens.length).unsqueeze(0))


def test_a_pyramid_encoder_has_its_hidden_positions_replaced(vectors):
    objective = toy_objective(encoder=Pyramid())
    assert_dependencies(decoder_dependencies(objective, vectors), "map")
    result = objective(vectors)
    features = objective.encoder.encode(result.tokens, result.mask)
    sequence = objective.decoder.sequence(features, result.tokens, result.mask)
    position = objective.decoder.position(result.tokens.position).expand_as(sequence)
    painted = (sequence - position)[result.mask.hidden]
    torch.testing.assert_close(painted, objective.decoder.mask_token.expand_as(painted))


def test_what_is_no_encoder_is_refused():
    class Nothing(nn.Module):
        embed_dim = 16

    with pytest.raises(
        UserError, match=r"encoder Nothing needs an encode\(tokens, mask\) method and embed_dim"
    ):
        toy_objective(encoder=Nothing())


# ---- loss


def test_the_loss_is_the_mean_over_hidden_tokens_of_the_batch(vectors):
    objective, noise = toy_objective(mask_ratio=0.3), torch.rand(2, LENGTH)
    result = objective(vectors, noise=noise)
    patches, terms = vectors.flatten(1, 2), []
    for b in range(2):
        for h, i in enumerate(sorted(noise[b].argsort(descending=True)[:4].tolist())):
            target = normalize_targets(patches[b : b + 1, i : i + 1])[0, 0]
            terms.append((result.prediction[b, h] - target).square().mean())
    assert result.prediction.shape == (2, 4, CHANNELS)
    torch.testing.assert_close(result.loss, torch.stack(terms).mean())


def test_predictions_stand_in_sequence_order(vectors):
    """A head that gives each token's position away: prediction h belongs to sequence index drop[h]."""
    objective = toy_objective(loss=lambda prediction, target: (prediction - target).abs().mean())
    objective.decoder.forward = lambda features, tokens, mask, attention_mask: gather_tokens(
        tokens.target, mask.drop
    )
    objective.head = nn.Identity()
    result = objective(vectors)
    assert result.loss == 0
    assert torch.equal(result.prediction, gather_tokens(vectors.flatten(1, 2), result.mask.drop))


def change_targets(objective, where):
    """Shift the targets, not the embeddings, of the tokens that ``where(mask)`` picks; give both losses."""
    vectors, noise = torch.randn(2, ROWS, COLS, CHANNELS), torch.rand(2, LENGTH)
    before = objective(vectors, noise=noise)
    chosen = where(before.mask).unsqueeze(-1) * torch.randn(CHANNELS)
    plain = objective.tokenizer

    class Shifted(nn.Module):
        def forward(self, inputs):
            tokens = plain(inputs)
            return replace(tokens, target=tokens.target + chosen)

    objective.tokenizer = Shifted()
    return before.loss, objective(vectors, noise=noise).loss


def test_the_loss_depends_on_hidden_targets_only():
    before, after = change_targets(toy_objective(), lambda mask: ~mask.hidden)
    assert before == after
    before, after = change_targets(toy_objective(), lambda mask: mask.hidden)
    assert before != after


def test_hidden_tokens_reach_the_loss_as_targets_only(vectors):
    objective, noise = toy_objective(), torch.rand(2, LENGTH)
    vectors.requires_grad_()
    result = objective(vectors, noise=noise)
    result.prediction.square().sum().backward()
    seen = (vectors.grad.flatten(1, 2) != 0).any(-1)
    assert torch.equal(seen, ~result.mask.hidden)


def test_another_loss_is_called_with_prediction_and_target(vectors):
    raw = toy_objective(loss=partial(masked_mse, normalize=False))
    result = raw(vectors)
    expected = (result.prediction - gather_tokens(vectors.flatten(1, 2), result.mask.drop)).square().mean()
    torch.testing.assert_close(result.loss, expected)


def test_every_parameter_learns(vectors):
    objective = toy_objective()
    objective(vectors).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_learning_overfits_a_batch(vectors):
    objective = toy_objective(mask_strategy="sequential")
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)  # at 1e-2 rounding alone decides where it ends
    first = objective(vectors).loss.item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = objective(vectors).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


# ---- what is hidden


def test_the_call_may_name_ratio_and_noise(vectors):
    objective, noise = toy_objective(mask_ratio=0.5), torch.rand(2, LENGTH)
    assert objective(vectors).mask.drop.shape == (2, 6)
    first, second = objective(vectors, ratio=0.25, noise=noise), objective(vectors, ratio=0.25, noise=noise)
    assert first.mask.drop.shape == (2, 3)
    assert torch.equal(first.mask.drop, second.mask.drop)
    assert first.loss == second.loss


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_that_hides_nothing_or_all_is_refused_not_replaced(vectors, ratio):
    with pytest.raises(UserError, match=r"mask ratio must lie inside \(0, 1\)"):
        toy_objective()(vectors, ratio=ratio)


def test_settings_reach_the_mask(vectors):
    assert toy_objective(mask_strategy="sequential")(vectors).mask.drop.tolist() == [[6, 7, 8, 9, 10, 11]] * 2
    counts = (
        toy_objective(mask_scope="region", mask_ratio=1 / 3)(vectors)
        .mask.hidden.reshape(2, ROWS, COLS)
        .sum(-1)
    )
    assert (counts == 1).all()


def test_bf16_autocast_runs_with_a_float32_loss(vectors):
    objective, noise = toy_objective(), torch.rand(2, LENGTH)
    full = objective(vectors, noise=noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(vectors, noise=noise).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full.item(), rel=0.02)


# ---- initial values and weight decay


def test_decoder_and_head_follow_the_general_rule_and_the_encoder_keeps_its_own():
    encoder = toy_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    objective = toy_objective(encoder=encoder, decoder_dim=64, channels=200)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in [*objective.decoder.blocks.modules(), objective.head]:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.06)
            assert (module.bias == 0).all()


def test_names_without_weight_decay():
    """The matrices of a position MLP decay like any other; a table of positions does not."""
    objective = toy_objective()
    objective.decoder.position.table = nn.Parameter(torch.zeros(2, 2, 4))
    rates = {f"encoder.blocks.0.mixer.scan_{way}.A_log" for way in ("forward", "backward")}
    assert objective.no_weight_decay() == rates | {"decoder.mask_token", "decoder.position.table"}


def test_a_first_loss_is_that_of_predicting_the_mean(vectors):
    """Normalised targets of c values have mean square (c - 1) / c; a fresh head predicts about nothing."""
    assert toy_objective()(vectors).loss.item() == pytest.approx((CHANNELS - 1) / CHANNELS, rel=0.1)


# ---- configuration


def test_the_default_configuration_is_valid():
    ObjectiveConfig().validate()
    ObjectiveConfig(mask_ratio_std=0.25).validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, r"objective.mask_ratio must lie inside \(0, 1\); got 0.0"),
        ({"mask_ratio": 1.0}, r"objective.mask_ratio must lie inside \(0, 1\); got 1.0"),
        ({"mask_ratio": math.nan}, r"objective.mask_ratio must lie inside \(0, 1\); got nan"),
        ({"mask_ratio_std": 0.1, "mask_ratio_bounds": (0.7, 0.3)}, r"0 < low < high < 1; got 0.7, 0.3"),
        ({"mask_ratio_std": 0.1, "mask_ratio_bounds": (0.0, 0.3)}, r"mask_ratio_bounds .* got 0.0, 0.3"),
        ({"mask_ratio_std": 0.0}, r"objective.mask_ratio_std must be positive; got 0.0"),
        ({"decoder_dim": 190}, r"decoder_dim \(190\) must be a multiple of objective.decoder_heads \(16\)"),
        ({"decoder_depth": 0}, r"objective.decoder_depth must be at least 1; got 0"),
        ({"decoder_heads": 0}, r"objective.decoder_heads must be at least 1; got 0"),
        ({"decoder_dim": 0}, r"objective.decoder_dim must be at least 1; got 0"),
    ],
)
def test_wrong_settings_name_the_field_the_value_and_the_rule(settings, message):
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**settings).validate()


def test_the_ratio_of_a_step_is_fixed_or_drawn_within_its_bounds():
    fixed = ObjectiveConfig(mask_ratio=0.4)
    assert {fixed.ratio(0, step) for step in range(5)} == {0.4}
    drawn = ObjectiveConfig(mask_ratio_std=0.25, mask_ratio_bounds=(0.45, 0.6))
    ratios = [drawn.ratio(0, step) for step in range(50)]
    assert len(set(ratios)) == 50
    assert all(0.45 <= ratio <= 0.6 for ratio in ratios)
    assert ratios == [drawn.ratio(0, step) for step in range(50)]
    assert ratios[0] != drawn.ratio(1, 0)


# ---- the toys themselves


def test_toy_tokens_stand_on_their_grid():
    tokens = toy_tokens([0, 0, 1, 1, 2, 2], batch=2, grid=(3, 2))
    assert tokens.position[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert (tokens.batch_size, tokens.length) == (2, 6)
    assert LinearPosition(5)(tokens.position).shape == (1, 6, 5)
