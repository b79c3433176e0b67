"""Part segmentation: interpolation and metrics against loops, the model, and a run that can be read back."""

import numpy as np
import pytest
import torch
from map_points.part_metrics import (
    part_metrics,
    part_totals,
    parts_of_categories,
    predict_parts,
    shape_iou,
)
from map_points.part_segmenter import PartSegmenter, feature_layers, interpolate_features

from map_core.errors import UserError
from map_core.training import TrainingConfig, train
from map_points.data import PointDataConfig, load_part_data
from map_points.data.shapenetpart import PARTS_OF_SYNSET
from map_points.factory import PointModelConfig, create_backbone, create_classifier
from map_points.segmentation import (
    SegmentationConfig,
    SegmentConfig,
    SegmentTask,
    load_segmenter,
    segmentation_totals,
)

MODEL = PointModelConfig(
    embed_dim=16, patch_hidden_dim=8, num_heads=2, num_patches=16, patch_size=4, layout="MMT", neighbors=3
)
PARTS = ((0, 1), (2, 3, 4))


def segmenter(**changes):
    torch.manual_seed(0)
    return PartSegmenter(create_backbone(MODEL), 2, 5, **{"hidden_dim": 16, **changes})


def test_interpolation_equals_a_loop():
    features, center, points = torch.randn(2, 6, 5), torch.randn(2, 6, 3), torch.randn(2, 9, 3)
    found = interpolate_features(features, center, points)
    for b in range(2):
        for i in range(9):
            distance = ((center[b] - points[b, i]) ** 2).sum(-1)
            near = distance.argsort()[:3]
            weight = 1 / (distance[near] + 1e-8)
            expected = (weight[:, None] * features[b, near]).sum(0) / weight.sum()
            torch.testing.assert_close(found[b, i], expected)


def test_a_point_at_a_centre_takes_its_features():
    features, center = torch.randn(1, 6, 5), torch.randn(1, 6, 3)
    torch.testing.assert_close(interpolate_features(features, center, center), features, rtol=1e-4, atol=1e-4)


def test_features_are_taken_a_third_two_thirds_and_all_the_way_up():
    assert feature_layers(12) == (4, 8, 12)
    assert feature_layers(16) == (6, 11, 16)
    assert feature_layers(4) == (2, 3, 4)
    assert feature_layers(1) == (1,)


def test_every_named_layer_the_category_and_the_point_reach_the_scores():
    model = segmenter(layers=(1, 3)).eval()
    kept = []
    for block in model.backbone.encoder.blocks:
        block.register_forward_hook(lambda module, arguments, out: kept.append(out) or out.retain_grad())
    points, category = torch.randn(2, 64, 3), torch.tensor([0, 1])
    scores = model(points, category)
    assert scores.shape == (2, 64, 5)
    scores.square().sum().backward()
    assert all((layer.grad != 0).any() for layer in kept)
    assert not torch.allclose(model(points, 1 - category), scores)
    order = torch.cat(
        [torch.zeros(1).long(), 1 + torch.randperm(63)]
    )  # point 0 stays: it is the first centre
    torch.testing.assert_close(model(points[:, order], category), scores[:, order], rtol=1e-4, atol=1e-5)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"layers \(0, 3\) must lie in 1..3"):
        segmenter(layers=(0, 3))
    with pytest.raises(UserError, match="segmentation has no class token"):
        PartSegmenter(create_classifier(MODEL, 2), 2, 5)
    for changes, told in (
        ({"smoothing": 1.0}, "smoothing must lie in"),
        ({"hidden_dim": 3}, "hidden_dim must be at least 4"),
        ({"drop_rate": 1.0}, "drop_rate must lie in"),
    ):
        with pytest.raises(UserError, match=told):
            SegmentationConfig(**changes).validate()


def test_predictions_stay_within_the_parts_of_the_category():
    table = parts_of_categories(PARTS, 5)
    logits = torch.randn(40, 7, 5)
    category = torch.arange(40) % 2
    found = predict_parts(logits, category, table)
    for cloud, own, scores in zip(found, category.tolist(), logits, strict=True):
        parts = torch.tensor(PARTS[own])
        assert torch.equal(cloud, parts[scores[:, parts].argmax(-1)])


def test_iou_equals_a_loop_and_counts_parts_absent_from_both_as_found():
    table = parts_of_categories(PARTS, 5)
    category = torch.arange(20) % 2
    parts = torch.stack([torch.tensor(PARTS[c])[torch.randint(0, len(PARTS[c]), (6,))] for c in category])
    predicted = torch.stack([torch.tensor(PARTS[c])[torch.randint(0, len(PARTS[c]), (6,))] for c in category])
    found = shape_iou(predicted, parts, category, table)
    for i, c in enumerate(category.tolist()):
        ious = []
        for part in PARTS[c]:
            a, b = set(np.flatnonzero(predicted[i] == part)), set(np.flatnonzero(parts[i] == part))
            ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        assert float(found[i]) == pytest.approx(np.mean(ious))
    alone = torch.full((1, 6), 2)
    assert float(shape_iou(alone, alone, torch.tensor([1]), table)) == 1.0


def test_metrics_by_hand_and_sums_of_shards():
    table = parts_of_categories(PARTS, 5)
    parts = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 4]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 3, 3]]), 5).float()
    category = torch.tensor([0, 0, 1])
    found = part_metrics(part_totals(logits, parts, category, table).float(), ("cup", "chair"))
    first, second, third = 1.0, (1 / 2 + 2 / 3) / 2, (1 + 1 / 2 + 0) / 3
    assert found["test_instance_miou"] == pytest.approx(100 * (first + second + third) / 3)
    assert found["test_iou_cup"] == pytest.approx(100 * (first + second) / 2)
    assert found["test_class_miou"] == pytest.approx(100 * ((first + second) / 2 + third) / 2)
    assert found["test_point_accuracy"] == pytest.approx(100 * 10 / 12)
    shards = sum(part_totals(logits[i::2], parts[i::2], category[i::2], table) for i in range(2))
    assert part_metrics(shards.float(), ("cup", "chair")) == pytest.approx(found)
    only = part_metrics(part_totals(logits[:2], parts[:2], category[:2], table).float(), ("cup", "chair"))
    assert only["test_class_miou"] == pytest.approx(100 * (first + second) / 2)
    assert "test_iou_chair" not in only


def test_the_head_for_shapenetpart_has_50_parts():
    assert len(PARTS_OF_SYNSET) == 16
    assert sum(PARTS_OF_SYNSET.values()) == 50


def test_layer_decay_and_weight_decay_know_the_backbone():
    model = segmenter()
    names = dict(model.named_parameters())
    assert {
        f"backbone.{name}" for name in create_backbone(MODEL).no_weight_decay()
    } == model.no_weight_decay()
    assert model.no_weight_decay() <= set(names)


def test_a_run_can_be_read_back(two_part_shapes, tmp_path):
    config = SegmentConfig(
        data=PointDataConfig("shapenetpart", str(two_part_shapes), num_points=64),
        model=MODEL,
        objective=SegmentationConfig(hidden_dim=16),
        training=TrainingConfig(
            epochs=2,
            batch_size=8,
            lr=1e-3,
            warmup_epochs=0.5,
            workers=0,
            device="cpu",
            progress=False,
            tensorboard=False,
        ),
    )
    summary = train(SegmentTask(config), config.training, tmp_path / "run", run_config=config)
    assert summary["protocol"].startswith("last epoch: ")
    assert summary["evaluated_on"] == "test split"
    run = load_segmenter(tmp_path / "run")
    assert run.parts == tuple((2 * i, 2 * i + 1) for i in range(5))
    data = load_part_data(config.data)
    device = torch.device("cpu")
    totals = segmentation_totals(run.model, data.evaluation, run.parts, batch_size=3, device=device)
    again = part_metrics(totals.float(), run.classes)
    assert again["test_instance_miou"] == pytest.approx(summary["test_instance_miou"], abs=1e-3)
    with pytest.raises(UserError, match="describes no part segmenter"):
        load_segmenter(tmp_path / "run" / "nothing")
