"""IoU of parts against loops, by hand, and summed over shards."""

import numpy as np
import pytest
import torch

from map_points.segmentation.metrics import (
    part_metrics,
    part_totals,
    parts_of_categories,
    predict_parts,
    shape_iou,
)

PARTS = ((0, 1), (2, 3, 4))


def test_predictions_stay_within_the_parts_of_the_category():
    table = parts_of_categories(PARTS, 5)
    logits = torch.randn(40, 7, 5)
    category = torch.arange(40) % 2
    predicted = predict_parts(logits, category, table)
    for cloud, label, scores in zip(predicted, category.tolist(), logits, strict=True):
        parts = torch.tensor(PARTS[label])
        assert torch.equal(cloud, parts[scores[:, parts].argmax(-1)])


def test_iou_equals_a_loop_and_counts_parts_absent_from_both_as_found():
    table = parts_of_categories(PARTS, 5)
    category = torch.arange(20) % 2
    parts = torch.stack([torch.tensor(PARTS[c])[torch.randint(0, len(PARTS[c]), (6,))] for c in category])
    predicted = torch.stack([torch.tensor(PARTS[c])[torch.randint(0, len(PARTS[c]), (6,))] for c in category])
    iou = shape_iou(predicted, parts, category, table)
    for i, c in enumerate(category.tolist()):
        ious = []
        for part in PARTS[c]:
            a, b = set(np.flatnonzero(predicted[i] == part)), set(np.flatnonzero(parts[i] == part))
            ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        assert float(iou[i]) == pytest.approx(np.mean(ious))
    constant = torch.full((1, 6), 2)
    assert float(shape_iou(constant, constant, torch.tensor([1]), table)) == 1.0


def test_metrics_by_hand_and_sums_of_shards():
    table = parts_of_categories(PARTS, 5)
    parts = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 4]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 3, 3]]), 5).float()
    category = torch.tensor([0, 0, 1])
    metrics = part_metrics(part_totals(logits, parts, category, table).float(), ("cup", "chair"))
    first, second, third = 1.0, (1 / 2 + 2 / 3) / 2, (1 + 1 / 2 + 0) / 3
    assert metrics["test_instance_miou"] == pytest.approx(100 * (first + second + third) / 3)
    assert metrics["test_iou_cup"] == pytest.approx(100 * (first + second) / 2)
    assert metrics["test_class_miou"] == pytest.approx(100 * ((first + second) / 2 + third) / 2)
    assert metrics["test_point_accuracy"] == pytest.approx(100 * 10 / 12)
    shards = sum(part_totals(logits[i::2], parts[i::2], category[i::2], table) for i in range(2))
    assert part_metrics(shards.float(), ("cup", "chair")) == pytest.approx(metrics)
    cup_metrics = part_metrics(
        part_totals(logits[:2], parts[:2], category[:2], table).float(), ("cup", "chair")
    )
    assert cup_metrics["test_class_miou"] == pytest.approx(100 * (first + second) / 2)
    assert "test_iou_chair" not in cup_metrics


def test_points_without_a_part_do_not_count():
    table = parts_of_categories(PARTS, 5)
    logits, category = torch.randn(2, 7, 5), torch.tensor([0, 1])
    parts = torch.tensor([[0, 1, 0, 1, 0, -1, -1], [2, 3, 4, 2, 3, -1, -1]])
    totals = part_totals(logits, parts, category, table)
    torch.testing.assert_close(totals, part_totals(logits[:, :5], parts[:, :5], category, table))


def test_a_cloud_without_a_labelled_point_does_not_count():
    table = parts_of_categories(PARTS, 5)
    logits, category = torch.randn(3, 6, 5), torch.tensor([0, 1, 1])
    parts = torch.tensor([[0, 1, 0, 1, 0, 1], [2, 3, 4, 2, 3, -1], [-100] * 6])
    totals = part_totals(logits, parts, category, table)
    torch.testing.assert_close(totals, part_totals(logits[:2], parts[:2], category[:2], table))
    assert totals[1].tolist() == [1, 1]
