"""Predictions of part segmentation and their measures: IoU over the parts of each object's category."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from map_core.float64 import to_double


def parts_of_categories(parts: tuple[tuple[int, ...], ...], num_parts: int) -> Bool[Tensor, "c p"]:
    """Which parts each category has."""
    table = torch.zeros(len(parts), num_parts, dtype=torch.bool)
    for category, category_parts in enumerate(parts):
        table[category, list(category_parts)] = True
    return table


def predict_parts(
    logits: Float[Tensor, "b n p"], category: Int[Tensor, " b"], table: Bool[Tensor, "c p"]
) -> Int[Tensor, "b n"]:
    """The highest-scoring part of each point among those of the object's category, as the field evaluates."""
    return logits.masked_fill(~table[category].unsqueeze(1), -torch.inf).argmax(dim=-1)


def shape_iou(
    predicted: Int[Tensor, "b n"],
    parts: Int[Tensor, "b n"],
    category: Int[Tensor, " b"],
    table: Bool[Tensor, "c p"],
) -> Float[Tensor, " b"]:
    """Intersection over union of each cloud, averaged over its category's parts; 1 for a part absent from both."""
    label = torch.arange(table.shape[1], device=parts.device)
    is_predicted, is_labelled = predicted.unsqueeze(-1) == label, parts.unsqueeze(-1) == label  # (b, n, p)
    union = (is_predicted | is_labelled).sum(dim=1)
    iou = torch.where(union > 0, (is_predicted & is_labelled).sum(dim=1) / union.clamp(min=1), 1.0)
    category_parts = table[category]
    return (iou * category_parts).sum(dim=1) / category_parts.sum(dim=1)


def part_totals(
    logits: Float[Tensor, "b n p"],
    parts: Int[Tensor, "b n"],
    category: Int[Tensor, " b"],
    table: Bool[Tensor, "c p"],
) -> Float[Tensor, "4 c"]:
    """Sums by category: IoU, clouds, correctly predicted points, points; totals of batches and shards add up.

    Points with a negative part are unlabelled and do not count, nor do clouds that have no others.
    """
    labelled = parts >= 0
    predicted = predict_parts(logits, category, table).masked_fill(~labelled, -1)
    counted = to_double(labelled.any(dim=1))
    iou = to_double(shape_iou(predicted, parts, category, table)) * counted
    correct = to_double((predicted == parts) & labelled).sum(dim=1)
    totals = counted.new_zeros(4, len(table))
    rows = (iou, counted, correct, to_double(labelled).sum(dim=1))
    for total, values in zip(totals, rows, strict=True):
        total.index_add_(0, category, values)
    return totals


def part_metrics(totals: Float[Tensor, "4 c"], classes: tuple[str, ...]) -> dict[str, float]:
    """Percentages: instance mIoU (mean over clouds), class mIoU (mean over the categories with clouds) and accuracy
    of points; and the IoU of each category."""
    iou, clouds, correct, points = totals.double()
    present = clouds > 0
    by_class = 100 * iou / clouds.clamp(min=1)
    named = {f"test_iou_{name}": float(by_class[i]) for i, name in enumerate(classes) if present[i]}
    return {
        "test_instance_miou": float(100 * iou.sum() / clouds.sum()),
        "test_class_miou": float(by_class[present].mean()),
        "test_point_accuracy": float(100 * correct.sum() / points.sum()),
        **named,
    }
