"""Point-MAE's part segmenter of ShapeNetPart."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from map_core.errors import UserError
from map_core.tasks.families import Converted, Family
from map_points.checkpoints.point_mae import TRUNK, convert_transformer
from map_points.checkpoints.shared import (
    DENSE,
    NORM,
    as_linear,
    guessed_settings,
    invisible_settings,
    model_section,
)
from map_points.data.shapenetpart import CATEGORIES, PARTS_OF_SYNSET

SEGMENTER = (
    "label_conv.0.weight",
    *(f"label_conv.1.{part}" for part in NORM),
    *(f"propagation_0.mlp_convs.{i}.{part}" for i in (0, 1) for part in DENSE),
    *(f"propagation_0.mlp_bns.{i}.{part}" for i in (0, 1) for part in NORM),
    *(f"convs{i}.{part}" for i in (1, 2, 3) for part in DENSE),
    *(f"bns{i}.{part}" for i in (1, 2) for part in NORM),
)
PREFIXES = {  # theirs to ours
    "label_conv.": "category.",
    "propagation_0.mlp_convs.0.": "propagate.0.",
    "propagation_0.mlp_bns.0.": "propagate.1.",
    "propagation_0.mlp_convs.1.": "propagate.3.",
    "propagation_0.mlp_bns.1.": "propagate.4.",
    "convs1.": "head.0.0.",
    "bns1.": "head.0.1.",
    "convs2.": "head.0.4.",
    "bns2.": "head.0.5.",
    "convs3.": "head.1.",
}
LEAKY_SLOPE = 0.2
NUM_PATCHES = 128


def convert_parts(state: Mapping[str, Tensor]) -> Converted:
    """Convert backbone and segmentation head.

    Raises:
        UserError: categories or parts are not ShapeNetPart's, and no file says which parts belong to which category.
    """
    num_categories, num_parts = state["label_conv.0.weight"].shape[1], state["convs3.bias"].shape[0]
    if (num_categories, num_parts) != (len(CATEGORIES), sum(PARTS_OF_SYNSET.values())):
        raise UserError(
            f"a part segmenter of {num_categories} categories and {num_parts} parts does not say which parts belong "
            "to which category; only ShapeNetPart's, of 16 and 50, is known"
        )
    head_prefixes = tuple(PREFIXES)
    backbone = {key: value for key, value in state.items() if not key.startswith(head_prefixes)}
    ours, arguments = convert_transformer(backbone)
    converted = {f"backbone.{key}": value for key, value in ours.items()} | segmentation_head(state)
    arguments["num_patches"] = NUM_PATCHES
    layers = int(arguments["layout"].removeprefix("Tx"))
    head: dict[str, Any] = {
        "layers": [layers // 3, 2 * layers // 3, layers],
        "hidden_dim": state["propagation_0.mlp_convs.1.bias"].shape[0],
        "propagate_dim": state["propagation_0.mlp_convs.0.bias"].shape[0],
        "category_slope": LEAKY_SLOPE,
    }
    return Converted(
        converted,
        model_section("point_mae", **arguments),
        guessed_settings=guessed_settings("point_mae", arguments),
        holds="part segmenter",
        invisible_settings={
            **invisible_settings("point_mae"),
            "category_slope": LEAKY_SLOPE,
            "layers": head["layers"],
        },
        classes=CATEGORIES,
        extra_description={"parts": parts_of_categories(), "head": head},
    )


def parts_of_categories() -> list[list[int]]:
    """The parts of each of ShapeNetPart's categories, numbered consecutively."""
    counts, first, parts = PARTS_OF_SYNSET.values(), 0, []
    for count in counts:
        parts.append(list(range(first, first + count)))
        first += count
    return parts


def segmentation_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the head after the backbone; the original reads coordinates before features, and has one bias less."""
    converted = {}
    for key, value in state.items():
        for prefix, name in PREFIXES.items():
            if key.startswith(prefix):
                converted[name + key.removeprefix(prefix)] = as_linear(value)
    converted["category.0.bias"] = torch.zeros_like(converted["category.1.bias"]).detach()
    coordinates, features = converted["propagate.0.weight"].split(
        [3, converted["propagate.0.weight"].shape[1] - 3], dim=1
    )
    converted["propagate.0.weight"] = torch.cat([features, coordinates], dim=1)
    return converted


POINT_MAE_PARTS = Family("Point-MAE's part segmentation", (*TRUNK, *SEGMENTER), (), convert_parts)
