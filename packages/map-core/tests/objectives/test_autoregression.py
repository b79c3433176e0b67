"""Autoregression: which input values a prediction depends on, and what the loss is."""

import pytest
import torch
from torch import nn

from map_core import ConsecutiveRegions, Draw, GridRegions, UserError, normalize_targets
from map_core.blocks import FourWayBlock, MambaBlock
from map_core.objectives.autoregression import Autoregression, AutoregressionConfig, NextRegionDecoder
from map_core.testing import GridBackbone, LinearPosition, learn_batch, toy_encoder
from map_core.tokens import undo_scan

ROWS, COLS, CHANNELS = 4, 3, 4
LENGTH = ROWS * COLS
DRAW = Draw.of_batch(2)
COLUMNS = torch.arange(LENGTH).reshape(ROWS, COLS).T.flatten().tolist()
REGIONS = {
    "rows": GridRegions("row"),
    "columns": GridRegions("column"),
    "blocks": GridRegions("block", (2, 2)),
    "consecutive": ConsecutiveRegions(5),
}


@pytest.fixture
def vectors():
    return torch.randn(2, ROWS, COLS, CHANNELS)


def build(backbone, **options):
    decoder = NextRegionDecoder(16, LinearPosition(8), embed_dim=8, depth=2, num_heads=2)
    return Autoregression(backbone, decoder, nn.Linear(8, CHANNELS), **options)


def dependencies(objective, vectors):
    """Which vectors of the input each prediction has a gradient from, and the region of each, in raster order."""
    vectors = vectors.clone().requires_grad_()
    result = objective(vectors, DRAW)
    rows = [
        torch.autograd.grad(one.square().sum(), vectors, retain_graph=True)[0].flatten(1, 2).any(-1)
        for one in result.prediction.unbind(1)
    ]
    depends = undo_scan(torch.stack(rows, 1), result.tokens)  # (b, predictions in raster order, inputs)
    ordered = objective.regions(result.tokens).index.expand(2, -1)
    return depends, undo_scan(ordered, result.tokens), undo_scan(result.mask.hidden, result.tokens)


@pytest.mark.parametrize("rule", REGIONS.values(), ids=REGIONS.keys())
@pytest.mark.parametrize("order", [None, COLUMNS], ids=["row order", "column order"])
@pytest.mark.parametrize("layout", ["M", "T", "MTM"])
def test_a_prediction_reads_earlier_regions_to_the_pixel_and_nothing_else(
    one_way, vectors, rule, order, layout
):
    objective = build(one_way(layout, order=order), regions=rule)
    depends, region, hidden = dependencies(objective, vectors)
    for sample in range(2):
        for i in range(LENGTH):
            expected = (region[sample] < region[sample, i]) & ~hidden[sample]
            assert torch.equal(depends[sample, i], expected)


def test_an_encoder_that_reads_ahead_would_be_seen(one_way, vectors, monkeypatch):
    """The harness itself: an encoder that reads all it sees makes predictions depend on later regions."""
    backbone = one_way()
    monkeypatch.setattr(
        type(backbone), "encode_causally", lambda self, tokens, regions, mask: self.encode(tokens, mask)
    )
    depends, region, _ = dependencies(build(backbone), vectors)
    later = region.unsqueeze(1) >= region.unsqueeze(2)
    assert (depends & later).any()


@pytest.mark.parametrize(
    ("hidden_tokens", "count"), [(None, COLS), (0, 0), (1, 1), (5, 5), (LENGTH - 1, LENGTH - 1)]
)
def test_the_last_tokens_never_enter_the_encoder(one_way, vectors, hidden_tokens, count):
    objective = build(one_way(), hidden_tokens=hidden_tokens)
    result = objective(vectors, DRAW)
    assert result.mask.drop.tolist() == [list(range(LENGTH - count, LENGTH))] * 2
    lengths = []
    objective.backbone.encoder.blocks[0].register_forward_hook(
        lambda _, args, out: lengths.append(args[0].shape[1])
    )
    objective(vectors, DRAW)
    assert lengths == [LENGTH - count]


@pytest.mark.parametrize("hidden_tokens", [-1, LENGTH, 100])
def test_hiding_all_is_refused(one_way, vectors, hidden_tokens):
    bounds = rf"between 0 and {LENGTH - 1}, .* of the {LENGTH} tokens"
    message = rf"objective.hidden_tokens must lie {bounds}; got {hidden_tokens}"
    with pytest.raises(UserError, match=message):
        build(one_way(), hidden_tokens=hidden_tokens)(vectors, DRAW)


@pytest.mark.parametrize("hidden_tokens", [None, 0])
def test_a_single_region_is_refused_as_nothing_comes_before_it(one_way, vectors, hidden_tokens):
    objective = build(one_way(), regions=GridRegions("block", (ROWS, COLS)), hidden_tokens=hidden_tokens)
    message = rf"but these {LENGTH} tokens are one: choose smaller regions"
    with pytest.raises(UserError, match=message):
        objective(vectors, DRAW)
    with pytest.raises(UserError, match=message):
        objective.rehearse(objective.backbone.tokenize(vectors))


def test_the_loss_is_on_every_token(one_way, vectors):
    objective = build(one_way(order=COLUMNS))
    result = objective(vectors, DRAW)
    assert result.prediction.shape == (2, LENGTH, CHANNELS)
    prediction = undo_scan(result.prediction, result.tokens)
    expected = (prediction - normalize_targets(vectors.flatten(1, 2))).square().mean()
    torch.testing.assert_close(result.loss, expected)


def test_global_tokens_are_read_by_all_and_not_predicted(one_way, vectors):
    objective = build(one_way(num_global=2))
    result = objective(vectors, DRAW)
    assert result.prediction.shape[1] == LENGTH
    assert result.index[0].tolist() == list(range(2, LENGTH + 2))
    assert not result.mask.hidden[:, :2].any()


def test_every_parameter_learns(one_way, vectors):
    objective = build(one_way())
    objective(vectors, DRAW).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.usefixtures("unchecked")
def test_learning_overfits_a_batch(one_way, vectors):
    objective = build(one_way())
    losses = learn_batch(objective, vectors, DRAW, steps=150, lr=1e-2)
    # for the first region only the mean of the two samples can be learned
    assert losses[-1] < 0.45 * losses[0]


@pytest.mark.parametrize("block", [MambaBlock, FourWayBlock])
def test_a_model_that_scans_backwards_is_refused(block):
    makers = {"M": lambda width, drop_path: block(width)}
    with pytest.raises(
        UserError,
        match=r"a causal encoder scans one way, but the Mamba layers of this model scan both: set --model.bi",
    ):
        build(GridBackbone(CHANNELS, toy_encoder(16, "M", block_makers=makers)))


def test_a_backbone_that_cannot_encode_causally_is_refused():
    class Plain(nn.Module):
        embed_dim = 16

        def tokenize(self, inputs, *, targets=False): ...

        def encode(self, tokens, mask=None): ...

    with pytest.raises(
        UserError, match=r"needs a backbone with encode_causally\(tokens, regions, mask\), which Plain"
    ):
        build(Plain())


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"objective.hidden_tokens must not be negative; got -2"):
        AutoregressionConfig(hidden_tokens=-2).validate()
    with pytest.raises(UserError, match=r"objective.decoder_depth must be at least 1; got 0"):
        AutoregressionConfig(decoder_depth=0).validate()
