"""Reconstructions as pictures: what they show of visible and hidden patches, and where in the file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from map_core import Draw
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_vision.domain import DOMAIN
from map_vision.factory import create_backbone
from map_vision.pictures import (
    SHADES,
    WITH_TRUTH,
    WITHOUT_TRUTH,
    Pictures,
    draw_reconstructions,
    figure_of,
    reconstruct,
    thumbnail,
)
from map_vision.pretraining import ImageObjectiveConfig, build_objective


@pytest.fixture
def build():
    """Build the objective of pretrain_digits with changes to its model and objective sections."""
    recipe = load_recipe(DOMAIN.recipes, "pretrain_digits", configs(DOMAIN).pretrain)

    def make(*, order="row", **objective):
        torch.manual_seed(0)
        backbone = create_backbone(replace(recipe.model, order=order, block_size=(2, 2)))
        return build_objective(backbone, replace(recipe.objective, **objective)).eval()

    return make


@pytest.fixture
def digits():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("order", ["row", "column", "block"])
@pytest.mark.parametrize("normalized", [True, False])
def test_visible_patches_are_the_images_and_hidden_ones_predicted(build, digits, order, normalized):
    objective = build(order=order, normalize_targets=normalized)
    pictures = reconstruct(objective, digits, seed=3)
    result = objective(digits, Draw.of_batch(2, seed=3))
    assert torch.equal(pictures.original, digits)
    places = result.tokens.position[0].long().tolist()
    for sample in range(2):
        hidden = result.mask.drop[sample].tolist()
        for token, (row, col) in enumerate(places):
            window = (sample, 0, slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2))
            patch = digits[window]
            if token in hidden:
                predicted = result.prediction[sample, hidden.index(token)].reshape(2, 2)
                if normalized:
                    predicted = predicted * (patch.var(unbiased=True) + 1e-6).sqrt() + patch.mean()
                torch.testing.assert_close(pictures.reconstruction[window], predicted)
                assert not pictures.masked[window].any()
            else:
                assert torch.equal(pictures.reconstruction[window], patch)
                assert torch.equal(pictures.masked[window], patch)


@pytest.mark.parametrize("order", ["row", "column", "block"])
def test_one_picture_reads_nothing_of_hidden_patches(build, digits, order):
    """Other hidden pixels change the picture with true statistics, but not the one with those of visible patches."""
    objective = build(order=order)
    pictures = reconstruct(objective, digits, seed=3)
    hidden = pictures.masked == 0
    brighter = digits.where(~hidden, 3 * digits + 7)
    others = reconstruct(objective, brighter, seed=3)
    assert torch.equal(others.unaided, pictures.unaided)
    assert (others.reconstruction != pictures.reconstruction)[hidden].all()


def test_unaided_predictions_have_the_average_statistics_of_visible_patches(build, digits):
    objective = build()
    pictures = reconstruct(objective, digits, seed=3)
    result = objective(digits, Draw.of_batch(2, seed=3))
    for sample, target in enumerate(result.tokens.target):
        visible = [target[token] for token in result.mask.keep[sample].tolist()]
        mean = sum(patch.mean() for patch in visible) / len(visible)
        deviation = sum(patch.std() for patch in visible) / len(visible)
        for token, prediction in zip(
            result.mask.drop[sample].tolist(), result.prediction[sample], strict=True
        ):
            row, col = result.tokens.position[0, token].int().tolist()
            window = pictures.unaided[sample, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten()
            torch.testing.assert_close(window, prediction * deviation + mean)


@pytest.mark.parametrize(
    ("normalized", "titles", "caption"),
    [
        (
            True,
            ["original", "masked", "reconstruction,\ntrue statistics", "reconstruction,\nvisible statistics"],
            WITH_TRUTH,
        ),
        (False, ["original", "masked", "reconstruction"], WITHOUT_TRUTH),
    ],
)
def test_a_picture_says_what_of_the_truth_it_uses(build, digits, normalized, titles, caption):
    pictures = reconstruct(build(normalize_targets=normalized), digits)
    figure = figure_of(pictures, mean=(0.0,), std=(1.0,))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == titles
    assert len(axis.images) == 2 * len(titles)
    assert figure.get_supxlabel().split() == caption.split()


@pytest.mark.parametrize(
    ("channels", "indices", "words"),
    [
        (1, [0], ""),
        (2, [0], "Channel 1 of 2."),
        (3, [0, 1, 2], ""),
        (13, [0, 1, 2], "Channels 1 to 3 of 13."),
    ],
)
def test_of_many_channels_the_first_ones_are_shown_between_two_deviations(channels, indices, words):
    image = torch.arange(channels).sub(1).reshape(1, -1, 1, 1).expand(-1, -1, 4, 4).float()
    figure = figure_of(
        Pictures(image, image, image), mean=(9.0,) * channels, std=(5.0,) * channels, stored=True
    )
    assert figure.get_supxlabel().split()[: len(words.split())] == words.split()
    assert SHADES.split() == figure.get_supxlabel().split()[-len(SHADES.split()) :]
    values = np.asarray(figure.axes[0].images[0].get_array())[0, 0]
    np.testing.assert_allclose(values.reshape(-1), [(i - 1) / 4 + 0.5 for i in indices])


def test_channels_stay_apart(make_tiny):
    backbone = make_tiny(img_size=(16, 24), num_registers=0, global_pool="avg", num_classes=0, layout="T")
    config = ImageObjectiveConfig(decoder_dim=32, decoder_depth=1, normalize_targets=False)
    objective = build_objective(backbone, config)
    images = torch.zeros(1, 3, 16, 24) + torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    torch.nn.init.zeros_(objective.head.weight)
    with torch.no_grad():
        objective.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).repeat(64))
    assert torch.equal(reconstruct(objective, images).reconstruction, images)


def test_ratio_and_seed_choose_what_is_hidden(build, digits):
    objective = build()

    def hidden(**choice):
        return (reconstruct(objective, digits, **choice).masked == 0).sum().item()

    assert hidden() == 2 * 8 * 4
    assert hidden(ratio=0.75) == 2 * 12 * 4
    first, repeated, other = (reconstruct(objective, digits, seed=seed).masked for seed in (0, 0, 1))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)


def test_objective_is_left_as_it_was(build, digits):
    objective = build().train()
    masking = objective.masking
    reconstruct(objective, digits, ratio=0.75)
    assert objective.training
    assert objective.masking == masking
    assert all(parameter.grad is None for parameter in objective.parameters())


MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)


def test_picture_shows_original_masked_and_reconstruction_in_their_colours(make_tiny, tmp_path):
    """One row per image, three panels: plain colours, so that each panel's pixels can be read back."""
    backbone = make_tiny(img_size=32, num_registers=0, global_pool="avg", num_classes=0, layout="T")
    config = ImageObjectiveConfig(decoder_dim=32, decoder_depth=1, normalize_targets=False)
    objective = build_objective(backbone, config)
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.constant_(objective.head.bias, 1.0)  # every hidden patch is predicted as mean + std
    colours = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.3, 0.9]])
    shift, scale = torch.tensor(MEAN), torch.tensor(STD)
    images = ((colours - shift) / scale)[:, :, None, None].expand(2, 3, 32, 32).contiguous()
    draw_reconstructions(objective, images, tmp_path / "a.png", mean=MEAN, std=STD)
    with Image.open(tmp_path / "a.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)

    def columns_with(colour, rows):
        """Thirds of the picture in which at least a hundredth of the pixels have ``colour``."""
        near = (np.abs(pixels[rows] - np.array(colour) * 255) <= 2).all(-1)
        return [i for i, part in enumerate(np.array_split(near, 3, axis=1)) if part.mean() > 0.01]

    middle = pixels.shape[0] // 2
    for row, colour in zip((slice(0, middle), slice(middle, None)), colours.tolist(), strict=True):
        assert columns_with(colour, row) == [0, 1, 2]
        assert columns_with(MEAN, row) == [1]
        assert columns_with([min(1, m + s) for m, s in zip(MEAN, STD, strict=True)], row) == [2]
    other = colours.flip(0).tolist()
    assert columns_with(other[0], slice(0, middle)) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_small_picture_shows_the_pixels_before_normalisation(channels):
    """The first three channels, or the first one in grey."""
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    mean, std = [0.3 + 0.1 * i for i in range(channels)], [0.2 + 0.05 * i for i in range(channels)]
    image = (pixels / 255 - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)
    expected = pixels[:3] if channels >= 3 else pixels[:1].expand(3, -1, -1)
    picture = thumbnail(image, {"mean": mean, "std": std})
    assert picture.tolist() == expected.permute(1, 2, 0).tolist()


def test_a_small_picture_of_stored_values_lies_between_two_deviations():
    image = torch.tensor([-3.0, -1.0, 1.0, 3.0]).reshape(4, 1, 1)
    picture = thumbnail(image, {"mean": [900.0] * 4, "std": [300.0] * 4, "pixels": "stored"})
    assert picture.tolist() == [[[0, 64, 191]]]
