"""The part segmenter: interpolation against a loop, and what reaches the scores."""

from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_layer_decay

from map_core.errors import UserError
from map_points.data.shapenetpart import PARTS_OF_SYNSET
from map_points.factory import create_backbone, create_classifier
from map_points.segmentation.model import PartSegmenter, feature_layers, interpolate_features


@pytest.fixture
def segmenter(tiny_model):
    """Builds a tiny segmenter of two categories and five parts, with changes to its settings."""

    def build(**changes):
        torch.manual_seed(0)
        return PartSegmenter(create_backbone(tiny_model), 2, 5, **{"hidden_dim": 16, **changes})

    return build


def test_interpolation_equals_a_loop():
    features, center, points = torch.randn(2, 6, 5), torch.randn(2, 6, 3), torch.randn(2, 9, 3)
    interpolated = interpolate_features(features, center, points)
    for b in range(2):
        for i in range(9):
            distance = ((center[b] - points[b, i]) ** 2).sum(-1)
            near = distance.argsort()[:3]
            weight = 1 / (distance[near] + 1e-8)
            expected = (weight[:, None] * features[b, near]).sum(0) / weight.sum()
            torch.testing.assert_close(interpolated[b, i], expected)


def test_a_point_at_a_centre_takes_its_features():
    features, center = torch.randn(1, 6, 5), torch.randn(1, 6, 3)
    torch.testing.assert_close(interpolate_features(features, center, center), features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (4, 8, 12)), (16, (6, 11, 16)), (4, (2, 3, 4)), (1, (1,))]
)
def test_features_are_taken_a_third_two_thirds_and_all_the_way_up(depth, layers):
    assert feature_layers(depth) == layers


def test_every_named_layer_the_category_and_the_point_reach_the_scores(segmenter):
    model = segmenter(layers=(1, 3)).eval()
    outputs = []
    for block in model.backbone.encoder.blocks:
        block.register_forward_hook(lambda module, arguments, out: outputs.append(out) or out.retain_grad())
    points, category = torch.randn(2, 64, 3), torch.tensor([0, 1])
    scores = model(points, category)
    assert scores.shape == (2, 64, 5)
    scores.square().sum().backward()
    assert all((layer.grad != 0).any() for layer in outputs)
    assert not torch.allclose(model(points, 1 - category), scores)
    order = torch.cat(
        [torch.zeros(1).long(), 1 + torch.randperm(63)]
    )  # point 0 stays: it is the first centre
    torch.testing.assert_close(model(points[:, order], category), scores[:, order], rtol=1e-4, atol=1e-5)


def test_layers_beyond_the_last_one_that_is_read_are_not_run(segmenter):
    model, run = segmenter(layers=(2,)).eval(), []
    for number, block in enumerate(model.backbone.encoder.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    model(torch.randn(2, 64, 3), torch.tensor([0, 1]))
    assert run == [1, 2]


def test_layers_that_the_backbone_has_not_are_refused(segmenter):
    with pytest.raises(UserError, match=r"layers \(0, 3\) must lie in 1..3"):
        segmenter(layers=(0, 3))


@pytest.mark.parametrize("layers", [(2, 2), (3, 1, 3)])
def test_repeated_layers_are_refused(segmenter, layers):
    with pytest.raises(UserError, match=rf"layers \({layers[0]}, .*\) name a layer twice: name each once"):
        segmenter(layers=layers)


def test_further_channels_reach_the_scores_and_are_no_coordinates(tiny_model):
    backbone = create_backbone(replace(tiny_model, in_chans=4))
    model = PartSegmenter(backbone, 2, 5, hidden_dim=16).eval()
    points, category = torch.randn(2, 64, 4), torch.tensor([0, 1])
    leaf = points.clone().requires_grad_()
    scores = model(leaf, category)
    assert scores.shape == (2, 64, 5)
    scores.square().sum().backward()
    assert (leaf.grad[..., 3] != 0).any()
    louder = torch.cat([points[..., :3], 1000 * points[..., 3:]], dim=-1)
    with torch.no_grad():
        torch.nn.init.zeros_(backbone.patch_embed.lift[0].weight[:, 3:])  # patches that see no channel
        torch.testing.assert_close(model(louder, category), model(points, category))


def test_a_class_token_is_refused(tiny_model):
    with pytest.raises(UserError, match="segmentation has no class token"):
        PartSegmenter(create_classifier(tiny_model, 2), 2, 5)


def test_fewer_patches_than_are_interpolated_are_refused(tiny_model):
    backbone = create_backbone(tiny_model)
    backbone.num_patches = 2
    with pytest.raises(UserError, match=r"model.num_patches \(2\) must be at least 3"):
        PartSegmenter(backbone, 2, 5)


def test_the_head_for_shapenetpart_has_50_parts():
    assert len(PARTS_OF_SYNSET) == 16
    assert sum(PARTS_OF_SYNSET.values()) == 50


def test_layer_decay_and_weight_decay_know_the_backbone(segmenter, tiny_model):
    model = segmenter()
    names = dict(model.named_parameters())
    assert {
        f"backbone.{name}" for name in create_backbone(tiny_model).no_weight_decay()
    } == model.no_weight_decay()
    assert model.no_weight_decay() <= set(names)


def test_all_that_is_trained_has_a_gradient_whichever_layers_are_read(segmenter):
    """A process would wait for what has none, and an optimizer would have no state of it to resume from."""
    model = segmenter(layers=(1,))
    model(torch.randn(2, 64, 3), torch.tensor([0, 1])).square().sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in trained.values())
    assert any(name.startswith("backbone.encoder.blocks.0.") for name in trained)
    assert not any(name.startswith("backbone.encoder.blocks.1.") for name in trained)


def test_layer_decay_takes_one_step_per_block(segmenter, tiny_model):
    for model, prefix in ((create_classifier(tiny_model, 2), ""), (segmenter(), "backbone.")):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
        scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
        assert scale.keys() == set(names.values())
        for i in range(3):
            block = f"{prefix}encoder.blocks.{i}."
            assert {value for name, value in scale.items() if name.startswith(block)} == {0.5 ** (3 - i)}
        assert {value for name, value in scale.items() if "patch_embed" in name} == {0.5**4}
        assert {value for name, value in scale.items() if name.startswith("head.")} == {1.0}
