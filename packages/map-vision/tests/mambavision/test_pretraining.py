"""Masked autoregression over a pyramid: hidden cells are painted over, so that nothing of them can be read."""

import pytest
import torch
from torch import nn

from map_core import Draw, Features, UserError
from map_core.masking import sample_mask
from map_core.testing import learn_batch
from map_vision.mambavision import MambaVision
from map_vision.patches import patchify, unpatchify
from map_vision.pictures import reconstruct
from map_vision.pretraining import ImageObjectiveConfig, build_objective

SMALL = ImageObjectiveConfig(decoder_depth=2, decoder_dim=32, decoder_heads=4)
DRAW = Draw.of_batch(2, seed=0)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class PaintsTooLate(MambaVision):
    """Paints positions of the stem's map, whose neighbours have already read the hidden pixels."""

    def encode(self, tokens, mask=None):
        x = self.patch_embed(unpatchify(tokens.embedding, tokens.grid, self.patch_size))
        hidden = mask.hidden.unflatten(1, tokens.grid).unsqueeze(1)
        hidden = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)
        x = torch.where(hidden, self.mask_token[: x.shape[1], None, None], x)
        for stage in self.levels:
            x = stage(x)
            x = x if stage.downsample is None else stage.downsample(x)
        return Features(self.norm(x).flatten(2).mT, torch.arange(tokens.length).unsqueeze(0))


def pretrained_form(make_pyramid, **changes):
    return make_pyramid(num_classes=0, mask_token=True, **changes)


def change_hidden_pixels(result):
    """The images with other pixels in the hidden cells."""
    tokens, hidden = result.tokens, result.mask.hidden.unsqueeze(-1)
    cells = torch.where(hidden, tokens.embedding.flip(0) * 3 + 1, tokens.embedding)
    return unpatchify(cells, tokens.grid, (32, 32))


def reads_hidden_pixels(objective, x):
    """Whether predictions change with the pixels that they predict."""
    before = objective(x, DRAW)
    changed = change_hidden_pixels(before)
    assert not torch.equal(changed, x)
    after = objective(changed, DRAW)
    assert torch.equal(before.mask.hidden, after.mask.hidden)
    return not torch.equal(before.prediction, after.prediction)


@pytest.mark.parametrize("training", [False, True])
def test_predictions_do_not_read_hidden_pixels(make_pyramid, training):
    objective = build_objective(pretrained_form(make_pyramid), SMALL).train(training)
    assert not reads_hidden_pixels(objective, images(2, 3, 64, 96))


@pytest.mark.parametrize("training", [False, True])
def test_a_planted_leak_is_seen(make_pyramid, training):
    objective = build_objective(pretrained_form(make_pyramid), SMALL).train(training)
    objective.backbone.__class__ = PaintsTooLate
    assert reads_hidden_pixels(objective, images(2, 3, 64, 96))


def test_predictions_have_gradients_from_every_visible_cell_and_from_no_hidden_one(make_pyramid):
    objective = build_objective(pretrained_form(make_pyramid), SMALL)
    x = images(2, 3, 64, 96).requires_grad_()
    result = objective(x, DRAW)
    (gradient,) = torch.autograd.grad(result.prediction.square().sum(), x)
    read = patchify(gradient, (32, 32)).abs().sum(-1) > 0
    assert torch.equal(read, ~result.mask.hidden)


def test_every_parameter_learns(make_pyramid):
    objective = build_objective(pretrained_form(make_pyramid, layer_scale=0.1), SMALL).train()
    objective(images(2, 3, 64, 96), DRAW).loss.backward()
    # batch normalisation removes the bias before it
    biases = {f"backbone.levels.{i}.blocks.0.conv{j}.bias" for i in (0, 1) for j in (1, 2)}
    still = {name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()}
    assert still <= biases


def test_tokens_are_the_cells_of_the_last_grid(make_pyramid):
    model, x = pretrained_form(make_pyramid), images(2, 3, 64, 96)
    tokens = model.tokenize(x, targets=True)
    assert tokens.grid == (2, 3)
    assert tokens.position[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert torch.equal(tokens.target[:, 4].unflatten(1, (32, 32, 3)).permute(0, 3, 1, 2), x[:, :, 32:, 32:64])
    features = model.encode(tokens)
    assert features.index.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert features.embedding.shape[-1] == model.embed_dim
    torch.testing.assert_close(features.embedding.mT.unflatten(2, (2, 3)), model.forward_features(x))


def test_hidden_cells_are_the_learned_one(make_pyramid):
    model, x = pretrained_form(make_pyramid), images(2, 3, 64, 96)
    tokens = model.tokenize(x)
    mask = sample_mask(tokens, 0.5, noise=torch.rand(2, 6, generator=torch.Generator().manual_seed(3)))
    painted = x.clone()
    cell = model.mask_token.unflatten(0, (32, 32, 3)).permute(2, 0, 1)
    for sample, drop in enumerate(mask.drop.tolist()):
        for row, col in (divmod(place, 3) for place in drop):
            painted[sample, :, 32 * row : 32 * row + 32, 32 * col : 32 * col + 32] = cell
    expected = model.forward_features(painted).flatten(2).mT
    torch.testing.assert_close(model.encode(tokens, mask).embedding, expected)


def test_regions_are_rows_of_the_last_grid(make_pyramid):
    objective = build_objective(pretrained_form(make_pyramid), SMALL)
    tokens = objective.backbone.tokenize(images(1, 3, 64, 96), targets=True)
    assert objective.regions(tokens).index.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_pictures_show_the_visible_pixels_and_predictions_elsewhere(make_pyramid):
    objective = build_objective(pretrained_form(make_pyramid), SMALL)
    x = images(2, 3, 64, 96)
    pictures = reconstruct(objective, x, ratio=0.5)
    visible = patchify(pictures.masked, (32, 32)).abs().sum(-1) > 0
    assert visible.sum(1).tolist() == [3, 3]
    unchanged = (patchify(pictures.reconstruction, (32, 32)) == patchify(x, (32, 32))).all(-1)
    assert torch.equal(unchanged, visible)


def test_a_few_images_are_learned_by_heart(make_pyramid):
    objective = build_objective(pretrained_form(make_pyramid), SMALL).train()
    x = nn.functional.interpolate(images(2, 3, 4, 6), size=(64, 96), mode="bilinear")
    losses = learn_batch(objective, x, DRAW, steps=60, lr=1e-2)
    assert losses[0] > 0.9
    assert losses[-1] < 0.2, losses[-1]


def test_a_model_without_a_cell_to_paint_with_says_so(make_pyramid):
    model = make_pyramid(num_classes=0)
    tokens = model.tokenize(images(1, 3, 64, 96))
    mask = sample_mask(tokens, 0.5)
    with pytest.raises(UserError, match=r"hidden cells are painted with a learned one: .* mask_token=True"):
        model.encode(tokens, mask)


def test_sides_must_be_multiples_of_a_cell(make_pyramid):
    model = pretrained_form(make_pyramid)
    with pytest.raises(UserError, match=r"image size 64x80 does not fit patch size 32x32: height and width"):
        model.tokenize(images(1, 3, 64, 80))
    with pytest.raises(UserError, match=r"image size 64x80 does not fit patch size 32x32: height and width"):
        build_objective(pretrained_form(make_pyramid, img_size=(64, 80)), SMALL)
