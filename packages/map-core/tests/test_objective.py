"""Masked autoregression: what each prediction may depend on, measured by gradient, and how the loss is made."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from map_core import (
    Draw,
    Features,
    GridRegions,
    LossOutput,
    Masking,
    Objective,
    Regions,
    UserError,
    masked_mse,
    normalize_targets,
)
from map_core.testing import (
    Dependencies,
    GridBackbone,
    LinearPosition,
    decoder_dependencies,
    learn_batch,
    toy_encoder,
    toy_objective,
    toy_tokens,
)
from map_core.tokens import gather_tokens

ROWS, COLS, CHANNELS = 4, 3, 4
LENGTH = ROWS * COLS
KINDS = ["map", "mae", "local_mae", "ar"]
DRAW = Draw.of_batch(2, seed=5)


@pytest.fixture
def vectors():
    return torch.randn(2, ROWS, COLS, CHANNELS)


def backbone(**options):
    return GridBackbone(CHANNELS, toy_encoder(), **options)


# ---- causality by gradient


def may_depend(kind, region, i, j):
    """The definition: whether the prediction of token i may read the decoder's input j."""
    if kind == "mae" or region[j] == -1:
        return True
    return {
        "map": region[j] <= region[i],
        "local_mae": region[j] == region[i],
        "ar": (region[j], j) <= (region[i], i),
    }[kind]


def assert_dependencies(measured: Dependencies, kind):
    """Gradients are exactly zero where the definition forbids looking, and nowhere else."""
    for b, region in enumerate(measured.region.tolist()):
        for h, i in enumerate(measured.mask.drop[b].tolist()):
            expected = [may_depend(kind, region, i, j) for j in range(len(region))]
            assert measured.depends[b, h].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_depend_on_what_the_decoder_mask_allows(vectors, kind):
    assert_dependencies(decoder_dependencies(toy_objective(attention=kind), vectors, DRAW), kind)


def test_map_predicts_regions_from_themselves_and_earlier_ones(vectors):
    """The same in the paper's words: nothing from later rows, something from its own row and all earlier ones."""
    measured = decoder_dependencies(toy_objective(), vectors, DRAW)
    later = measured.region.unsqueeze(1) > measured.hidden_region.unsqueeze(2)  # (b, h, l)
    assert later.any()
    assert not (measured.depends & later).any()
    assert measured.depends[~later].all()


@pytest.mark.parametrize("kind", KINDS)
def test_dependencies_follow_regions_not_the_sequence(vectors, kind):
    """Scanned column by column, a region is spread over the sequence; predictions keep its order."""
    columns = torch.arange(LENGTH).reshape(ROWS, COLS).T.flatten().tolist()
    objective = toy_objective(backbone=backbone(order=columns), attention=kind)
    measured = decoder_dependencies(objective, vectors, DRAW)
    assert measured.region[0].tolist() == [0, 1, 2, 3] * 3
    assert_dependencies(measured, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_global_tokens_are_read_by_every_prediction(vectors, kind):
    objective = toy_objective(backbone=backbone(num_global=2), attention=kind)
    measured = decoder_dependencies(objective, vectors, DRAW)
    assert measured.depends[:, :, :2].all()
    assert_dependencies(measured, kind)


@pytest.mark.parametrize(
    "regions", [GridRegions("column"), GridRegions("block", (2, 2))], ids=["column", "block"]
)
@pytest.mark.parametrize(
    "masking",
    [
        Masking(0.25, strategy="sequential"),
        Masking(strategy="diagonal"),
        Masking(scope="region"),
        Masking(ratio_std=0.25),
    ],
    ids=["sequential", "diagonal", "region", "drawn ratio"],
)
def test_causality_holds_whatever_is_hidden_and_predicted_together(vectors, masking, regions):
    objective = toy_objective(masking=masking, regions=regions)
    assert_dependencies(decoder_dependencies(objective, vectors, DRAW), "map")


def test_the_region_rule_decides_what_is_predicted_together(vectors):
    """Here regions are counted from the last row upwards, by a rule that also receives the mask."""
    masks = []

    def upwards(tokens, mask=None):
        masks.append(mask)
        rows = GridRegions("row")(tokens)
        return Regions(ROWS - 1 - rows.index, rows.count, rows.smallest)

    measured = decoder_dependencies(toy_objective(regions=upwards), vectors, DRAW)
    assert measured.region[0].tolist() == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert_dependencies(measured, "map")
    assert torch.equal(masks[0].hidden, measured.mask.hidden)


def test_a_leak_would_be_seen(vectors, monkeypatch):
    """The harness itself: one attention mask entry that looks ahead must be caught, even two blocks deep.

    Nothing is predicted at token 0, which reads the last token, but every prediction reads token 0.
    """
    import map_core.objective as module

    correct = module.region_attention_mask

    def leaky(region, kind):
        mask = correct(region, kind).clone()
        mask[..., 0, LENGTH - 1] = True
        return mask

    monkeypatch.setattr(module, "region_attention_mask", leaky)
    objective = toy_objective(masking=Masking(strategy="sequential"))
    with pytest.raises(AssertionError):
        assert_dependencies(decoder_dependencies(objective, vectors, DRAW), "map")


# ---- backbones


class Pyramid(nn.Module):
    """Paints its own token over the hidden ones and returns features at all positions."""

    embed_dim = 16

    def __init__(self):
        super().__init__()
        self.paint = nn.Parameter(torch.randn(16))
        self.mix = nn.Linear(LENGTH, LENGTH)
        self.tokenizer = backbone()

    def tokenize(self, inputs, *, targets=False):
        return self.tokenizer.tokenize(inputs, targets=targets)

    def encode(self, tokens, mask=None):
        x = tokens.embedding
        if mask is not None:
            x = torch.where(mask.hidden.unsqueeze(-1), self.paint, x)
        return Features(self.mix(x.mT).mT, torch.arange(tokens.length).unsqueeze(0))


def test_a_pyramid_has_its_hidden_positions_replaced(vectors):
    objective = toy_objective(backbone=Pyramid())
    assert_dependencies(decoder_dependencies(objective, vectors, DRAW), "map")
    result = objective(vectors, DRAW)
    features = objective.backbone.encode(result.tokens, result.mask)
    sequence = objective.decoder.sequence(features, result.tokens, result.mask)
    position = objective.decoder.position(result.tokens.position).expand_as(sequence)
    painted = (sequence - position)[result.mask.hidden]
    torch.testing.assert_close(painted, objective.decoder.mask_token.expand_as(painted))


@pytest.mark.parametrize("missing", ["embed_dim", "tokenize", "encode"])
def test_an_incomplete_backbone_is_refused(missing):
    parts = {"embed_dim": 16, "tokenize": Pyramid.tokenize, "encode": Pyramid.encode}
    parts.pop(missing)
    incomplete = type("Nothing", (nn.Module,), parts)()
    objective = toy_objective()
    with pytest.raises(
        UserError, match=r"backbone Nothing needs embed_dim, tokenize\(inputs, targets=...\) and encode"
    ):
        type(objective)(incomplete, objective.decoder, objective.head)


def test_the_backbone_is_exported(vectors):
    """Its state, under its own names, gives another objective the same features."""
    trained, fresh = toy_objective(), toy_objective()
    fresh.backbone.load_state_dict(trained.backbone.state_dict())
    tokens = trained.backbone.tokenize(vectors)
    assert torch.equal(fresh.backbone.encode(tokens).embedding, trained.backbone.encode(tokens).embedding)
    parts = {key.split(".")[0] for key in trained.state_dict()}
    assert parts == {"backbone", "decoder", "head"}


# ---- loss


def test_the_loss_is_the_mean_over_hidden_tokens_of_the_batch(vectors):
    objective = toy_objective(masking=Masking(0.3))
    result = objective(vectors, DRAW)
    noise, patches, terms = DRAW.uniform("mask", LENGTH), vectors.flatten(1, 2), []
    for b in range(2):
        for h, i in enumerate(sorted(noise[b].argsort(descending=True)[:4].tolist())):
            target = normalize_targets(patches[b : b + 1, i : i + 1])[0, 0]
            terms.append((result.prediction[b, h] - target).square().mean())
    assert result.prediction.shape == (2, 4, CHANNELS)
    torch.testing.assert_close(result.loss, torch.stack(terms).mean())


def test_predictions_stand_in_sequence_order(vectors):
    """With a decoder that returns each token's target: prediction h belongs to sequence index drop[h]."""
    objective = toy_objective(loss=lambda prediction, target: (prediction - target).abs().mean())
    objective.decoder.forward = lambda features, tokens, mask, regions, attention_mask: gather_tokens(
        tokens.target, mask.drop
    )
    objective.head = nn.Identity()
    result = objective(vectors, DRAW)
    assert result.loss == 0
    assert torch.equal(result.prediction, gather_tokens(vectors.flatten(1, 2), result.mask.drop))


@pytest.mark.parametrize("changed", ["hidden", "visible"])
def test_the_loss_depends_on_the_targets_of_hidden_tokens_only(vectors, changed):
    """Shifts the targets, not the embeddings, of all hidden or of all visible tokens."""
    objective = toy_objective()
    before = objective(vectors, DRAW)
    where = before.mask.hidden if changed == "hidden" else ~before.mask.hidden
    shift, tokenize = where.unsqueeze(-1) * torch.randn(CHANNELS), objective.backbone.tokenize

    def shifted(inputs, *, targets=False):
        tokens = tokenize(inputs, targets=targets)
        return replace(tokens, target=tokens.target + shift)

    objective.backbone.tokenize = shifted
    assert (objective(vectors, DRAW).loss == before.loss) == (changed == "visible")


def test_hidden_tokens_reach_the_loss_as_targets_only(vectors):
    vectors.requires_grad_()
    result = toy_objective()(vectors, DRAW)
    result.prediction.square().sum().backward()
    is_read = (vectors.grad.flatten(1, 2) != 0).any(-1)
    assert torch.equal(is_read, ~result.mask.hidden)


def test_another_loss_is_called_with_prediction_and_target(vectors):
    raw = toy_objective(loss=partial(masked_mse, normalize=False))
    result = raw(vectors, DRAW)
    expected = (result.prediction - gather_tokens(vectors.flatten(1, 2), result.mask.drop)).square().mean()
    torch.testing.assert_close(result.loss, expected)


def test_every_parameter_learns(vectors):
    objective = toy_objective()
    objective(vectors, DRAW).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.usefixtures("unchecked")  # 200 steps
def test_learning_overfits_a_batch(vectors):
    objective = toy_objective(masking=Masking(strategy="sequential"))
    # at a rate of 1e-2 rounding alone decides where it ends
    losses = learn_batch(objective, vectors, DRAW, steps=200, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_a_first_loss_is_that_of_predicting_the_mean(vectors):
    """Normalised targets of c values have mean square (c - 1) / c; a fresh head predicts about zero."""
    loss = toy_objective()(vectors, DRAW).loss
    assert loss.item() == pytest.approx((CHANNELS - 1) / CHANNELS, rel=0.1)


def test_bf16_autocast_keeps_a_close_loss_in_float32(vectors):
    objective = toy_objective()
    full = objective(vectors, DRAW).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(vectors, DRAW).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full.item(), rel=0.02)


# ---- what is hidden


@pytest.mark.parametrize("other", [Draw.of_batch(2, seed=6), Draw.of_batch(2, seed=5, step=1)])
def test_equal_draws_hide_the_same_and_others_do_not(vectors, other):
    objective = toy_objective()
    first, again, others = (objective(vectors, draw) for draw in (DRAW, DRAW, other))
    assert torch.equal(again.mask.drop, first.mask.drop)
    assert again.loss == first.loss
    assert not torch.equal(others.mask.drop, first.mask.drop)


@pytest.mark.parametrize("ratio", [-0.5, 1.0])
def test_a_ratio_that_hides_all_or_less_than_nothing_is_refused_not_replaced(vectors, ratio):
    with pytest.raises(UserError, match=rf"mask ratio must lie in \[0, 1\); got {ratio}"):
        toy_objective(masking=Masking(ratio))(vectors, DRAW)


def test_the_strategy_reaches_the_mask(vectors):
    result = toy_objective(masking=Masking(strategy="sequential"))(vectors, DRAW)
    assert result.mask.drop.tolist() == [[6, 7, 8, 9, 10, 11]] * 2


@pytest.mark.parametrize(("kind", "axis"), [("row", 2), ("column", 1)])
def test_scope_region_hides_alike_in_every_region_of_the_objective(vectors, kind, axis):
    """A quarter of 4 x 3 is 3, one in each of 3 columns; a third is 4, one in each of 4 rows."""
    ratio = 1 / 3 if kind == "row" else 1 / 4
    objective = toy_objective(masking=Masking(ratio, scope="region"), regions=GridRegions(kind))
    hidden = objective(vectors, DRAW).mask.hidden.reshape(2, ROWS, COLS)
    assert (hidden.sum(axis) == 1).all()


# ---- initial values and weight decay


def test_decoder_and_head_follow_the_general_rule_and_the_backbone_keeps_its_own():
    original = backbone()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    objective = toy_objective(backbone=original, decoder_dim=64, channels=200)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name]), name
    for module in [*objective.decoder.blocks.modules(), objective.head]:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.06)
            assert (module.bias == 0).all()


def test_names_without_weight_decay():
    """The matrices of a position MLP decay like any other; a table of positions does not."""
    objective = toy_objective()
    objective.decoder.position.table = nn.Parameter(torch.zeros(2, 2, 4))
    rates = {f"backbone.encoder.blocks.0.mixer.scan_{way}.A_log" for way in ("forward", "backward")}
    assert objective.no_weight_decay() == rates | {"decoder.mask_token", "decoder.position.table"}


# ---- other objectives


def test_an_objective_is_whatever_gives_a_loss_of_inputs_and_a_draw(vectors):
    class Distance(Objective):
        """Pulls two views of each sample together."""

        def __init__(self):
            super().__init__()
            self.backbone = backbone()

        def forward(self, inputs, draw):
            noise = draw.uniform("views", CHANNELS)[:, None, None]
            features = [
                self.backbone.encode(self.backbone.tokenize(view)).embedding.mean(1)
                for view in (inputs, inputs + noise)
            ]
            return LossOutput(
                (features[0] - features[1]).square().mean(), scalars={"spread": features[0].std()}
            )

    objective = Distance()
    output = objective(vectors, DRAW)
    assert output.loss == objective(vectors, DRAW).loss > 0
    assert objective.no_weight_decay() == {
        f"backbone.encoder.blocks.0.mixer.scan_{way}.A_log" for way in ("forward", "backward")
    }


# ---- the toys themselves


def test_toy_tokens_stand_on_their_grid():
    tokens = toy_tokens(batch=2, grid=(3, 2))
    assert tokens.position[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert (tokens.batch_size, tokens.length) == (2, 6)
    assert LinearPosition(5)(tokens.position).shape == (1, 6, 5)


@pytest.mark.parametrize("num_global", [0, 2])
def test_a_toy_backbone_keeps_together_what_belongs_to_a_token(vectors, num_global):
    order = torch.randperm(LENGTH).tolist()
    toy = backbone(order=order, num_global=num_global)
    tokens = toy.tokenize(vectors, targets=True)
    for place, raster in enumerate(order, start=num_global):
        row, col = divmod(raster, COLS)
        assert tokens.position[0, place].tolist() == [row, col]
        assert torch.equal(tokens.target[:, place], vectors[:, row, col])
        assert tokens.origin[0, place] == raster + num_global
    assert toy.tokenize(vectors).target is None


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_encoder_is_refused():
    with pytest.raises(UserError, match=r"encoder 'casual' is unknown; did you mean causal\?"):
        toy_objective(encoder="casual")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_attention_mask_is_refused():
    with pytest.raises(UserError, match="attention mask kind 'local_ma' is unknown; did you mean local_mae"):
        toy_objective(attention="local_ma")
