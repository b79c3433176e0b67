"""What a picture of a reconstruction shows."""

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from map_core.errors import UserError
from map_core.objective import Objective
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tokens import gather_tokens
from map_points.domain import draw_picture
from map_points.factory import create_backbone
from map_points.pictures import (
    CAPTION,
    CELL,
    CloudViews,
    draw_cloud,
    draw_reconstructions,
    figure_of,
    reconstruct,
)
from map_points.pretraining import build_objective


@pytest.fixture
def objective(tiny_model, tiny_objective):
    return build_objective(create_backbone(tiny_model), tiny_objective)


def test_visible_patches_are_points_of_the_cloud(objective):
    points = torch.randn(2, 64, 3)
    views = reconstruct(objective, points)
    assert torch.equal(views.cloud, points)
    assert views.visible.shape == (2, 8 * 4, 3)
    for cloud, visible in zip(points, views.visible, strict=True):
        assert ((visible[:, None] - cloud[None]).norm(dim=-1).amin(dim=1) < 1e-5).all()


def test_predictions_lie_at_the_centres_of_the_hidden_patches(objective):
    points = torch.randn(2, 64, 3)
    views, result = reconstruct(objective, points, seed=5), hide_and_reconstruct(objective, points, seed=5)
    center = gather_tokens(result.tokens.position, result.mask.drop)
    expected = result.prediction.reshape(2, 8, 4, 3) + center.reshape(2, 8, 1, 3)
    torch.testing.assert_close(views.predicted, expected.reshape(2, 32, 3))


def test_the_share_to_hide_can_be_chosen(objective):
    views = reconstruct(objective, torch.randn(2, 64, 3), ratio=0.25)
    assert views.predicted.shape == (2, 4 * 4, 3)
    assert views.visible.shape == (2, 12 * 4, 3)


def test_the_seed_chooses_what_is_hidden(objective):
    points = torch.randn(2, 64, 3)
    first, again, other = (reconstruct(objective, points, seed=seed).visible for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_explains_its_colours_and_what_of_the_truth_it_uses(objective):
    views = reconstruct(objective, torch.randn(2, 64, 3))
    figure = figure_of(views)
    (legend,) = figure.legends
    legend_colors = {
        text.get_text(): to_hex(handle.get_color())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    (axis,) = figure.axes
    visible, predicted = axis.collections
    assert legend_colors == {
        name: to_hex(part.get_facecolor()[0])
        for name, part in (("visible", visible), ("predicted", predicted))
    }
    assert legend_colors["visible"] != legend_colors["predicted"]
    assert len(predicted.get_offsets()) == views.predicted.shape[:2].numel()
    assert len(visible.get_offsets()) == 2 * (
        64 + 2 * views.visible.shape[1]
    )  # two clouds, their visible points twice
    assert figure.get_supxlabel() == CAPTION


@pytest.mark.parametrize("scale", [1, 3, 100])
def test_predicted_points_stay_in_their_cells(scale):
    clouds = torch.nn.functional.normalize(torch.randn(2, 200, 3), dim=2)
    views = CloudViews(clouds, clouds[:, :50], scale * clouds[:, 50:])
    figure = figure_of(views)
    (axis,) = figure.axes
    offsets = axis.collections[1].get_offsets().filled(np.nan)
    x, y = offsets[np.isfinite(offsets).all(axis=1)].T
    assert (np.abs(x - 2 * CELL) <= CELL / 2).all()
    assert (y <= CELL / 2).all()
    assert (y >= -1.5 * CELL).all()
    left_out = 2 * 150 - len(x)
    assert (left_out > 0) == (scale > 1)
    message = f"\n{left_out} predicted points lie beyond their cell and are left out."
    assert figure.get_supxlabel() == CAPTION + (message if left_out else "")
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("training", [False, True])
def test_drawing_leaves_the_objective_as_it_was(objective, training, tmp_path):
    objective.train(training)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    masking = objective.masking
    draw_reconstructions(objective, torch.randn(1, 64, 3), tmp_path / "r.png", ratio=0.25)
    assert objective.training == training
    assert objective.masking == masking
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_an_objective_that_reconstructs_nothing_is_refused(two_classes, tmp_path):
    class Nothing(Objective):
        def forward(self, inputs, draw):
            raise AssertionError

    with pytest.raises(UserError, match="Nothing reconstructs nothing to draw"):
        draw_picture(Nothing(), torch.randn(1, 64, 3), tmp_path / "r.png", data=two_classes)


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_a_small_picture_of_a_pole_stands_upright(up_axis):
    """A pole along the upright axis is tall, whatever axis that is; one along another axis is wide."""
    pole = torch.zeros(200, 3)
    pole[:, "xyz".index(up_axis)] = torch.linspace(-1, 1, 200)

    def extent(points):
        rows, columns = np.nonzero(draw_cloud(points, up_axis=up_axis).min(axis=-1) < 255)
        return rows.max() - rows.min(), columns.max() - columns.min()

    tall, narrow = extent(pole)
    assert tall > 70 > 10 > narrow
    low, wide = extent(pole.roll(1, dims=1))
    assert wide > low
    assert extent(torch.cat([pole, 100 * torch.rand(200, 2)], dim=1)) == (
        tall,
        narrow,
    )  # channels are not places


def test_a_cloud_of_one_place_has_a_picture():
    assert (draw_cloud(torch.ones(5, 3)) < 255).any()
