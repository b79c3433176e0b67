"""SimMIM: hidden tokens are painted over, and nothing of them is left to read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from map_core import Draw, Features, Masking, UserError
from map_core.objectives.simmim import SimMIM, SimMIMConfig
from map_core.testing import GridBackbone, learn_batch, toy_encoder, toy_tokens

ROWS, COLS, CHANNELS, WIDTH = 4, 4, 4, 16
DRAW = Draw.of_batch(2, seed=5)


@pytest.fixture
def vectors():
    return torch.randn(2, ROWS, COLS, CHANNELS)


def build(backbone=None, **options):
    backbone = backbone or GridBackbone(CHANNELS, toy_encoder(WIDTH))
    return SimMIM(backbone, nn.Linear(WIDTH, CHANNELS), **options)


def test_hidden_vectors_reach_the_loss_as_targets_only(vectors):
    objective = build()
    result = objective(vectors.requires_grad_(), DRAW)
    result.prediction.square().sum().backward()
    has_gradient = (vectors.grad.flatten(1, 2) != 0).any(-1)
    assert torch.equal(has_gradient, ~result.mask.hidden)


def test_a_leak_would_be_seen(vectors):
    """The test above fails if hidden tokens are not painted over."""
    objective = build()
    objective.encode_painted = lambda tokens, mask: objective.backbone.encode(tokens)
    result = objective(vectors.requires_grad_(), DRAW)
    result.prediction.square().sum().backward()
    assert (vectors.grad.flatten(1, 2) != 0).any(-1)[result.mask.hidden].any()


def test_the_encoder_reads_every_place_with_the_mask_token_before_its_position(vectors):
    objective = build()
    tokens = objective.backbone.tokenize(vectors)
    mask = objective.masking(tokens, DRAW)
    features = objective.encode_painted(tokens, mask)
    by_hand = tokens.embedding.clone()
    by_hand[mask.hidden] = objective.mask_token
    expected = objective.backbone.encode(replace(tokens, embedding=by_hand)).embedding
    assert features.embedding.shape == (2, ROWS * COLS, WIDTH)
    torch.testing.assert_close(features.embedding, expected)


def test_the_loss_is_the_mean_absolute_error_of_hidden_tokens(vectors):
    result = build()(vectors, DRAW)
    patches, errors = vectors.flatten(1, 2), []
    for sample, drop in enumerate(result.mask.drop.tolist()):
        errors += [(result.prediction[sample, h] - patches[sample, i]).abs() for h, i in enumerate(drop)]
    assert len(errors) == 2 * 10  # 60 % of 16
    torch.testing.assert_close(result.loss, torch.stack(errors).mean())


def test_a_ratio_of_0_leaves_nothing_to_predict(vectors):
    with pytest.raises(UserError, match=r"objective.mask_ratio of simmim must be above 0: it learns from"):
        build(masking=Masking(0.0))(vectors, DRAW)


def test_the_exported_backbone_has_no_mask_token(vectors):
    objective = build()
    assert not any("mask_token" in name for name in objective.backbone.state_dict())
    assert "mask_token" in objective.state_dict()
    assert "mask_token" in objective.no_weight_decay()


class Painting(nn.Module):
    """A backbone that paints by itself."""

    embed_dim = WIDTH

    def __init__(self):
        super().__init__()
        self.inner = GridBackbone(CHANNELS, toy_encoder(WIDTH))
        self.mask_token = nn.Parameter(torch.randn(WIDTH))

    def tokenize(self, inputs, *, targets=False):
        return self.inner.tokenize(inputs, targets=targets)

    def encode(self, tokens, mask=None) -> Features:
        x = torch.where(mask.hidden.unsqueeze(-1), self.mask_token, tokens.embedding)
        return self.inner.encode(replace(tokens, embedding=x))


def test_a_backbone_that_paints_for_itself_does_so(vectors):
    objective = build(Painting())
    assert objective.mask_token is None
    objective(vectors, DRAW).loss.backward()
    assert objective.backbone.mask_token.grad.abs().sum() > 0


def test_every_parameter_learns(vectors):
    objective = build()
    objective(vectors, DRAW).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.usefixtures("unchecked")
def test_learning_overfits_a_batch(vectors):
    objective = build(masking=Masking(0.5, strategy="sequential"))
    losses = learn_batch(objective, vectors, DRAW, steps=150, lr=1e-2)
    assert losses[-1] < 0.4 * losses[0]


# ---- squares of tokens


def test_squares_are_hidden_whole():
    tokens = toy_tokens(grid=(4, 6), batch=3)
    mask = Masking(0.5, unit=2)(tokens, Draw.of_batch(3, seed=1))
    squares = mask.hidden.reshape(3, 2, 2, 3, 2).transpose(2, 3).flatten(3)  # (b, 2, 3, 4)
    assert torch.equal(squares.all(-1), squares.any(-1))
    assert squares.all(-1).sum((1, 2)).tolist() == [3, 3, 3]
    assert len({tuple(row) for row in mask.hidden.tolist()}) > 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            toy_tokens(grid=(4, 5)),
            r"mask unit 2 does not tile a grid of 4x5: choose one that divides both sides, or 1",
        ),
        (toy_tokens(16), r"mask unit 2 does not tile tokens without a grid"),
    ],
    ids=["odd side", "no grid"],
)
def test_squares_must_tile_the_grid(tokens, message):
    with pytest.raises(UserError, match=message):
        Masking(0.5, unit=2)(tokens, Draw.of_batch(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mask_ratio": 0.0},
            r"objective.mask_ratio of simmim must be above 0: it learns from hidden tokens alone",
        ),
        (
            {"mask_scope": "region"},
            r"objective.mask_scope of simmim is all, as it has no regions; got region",
        ),
        ({"mask_unit": 0}, r"objective.mask_unit must be at least 1, .*; got 0 with random"),
        ({"mask_unit": 2, "mask_strategy": "diagonal"}, r"objective.mask_unit .*; got 2 with diagonal"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        SimMIMConfig(**settings).validate()


def test_every_setting_reaches_the_masking():
    assert SimMIMConfig(mask_unit=2).masking == Masking(0.6, unit=2)
