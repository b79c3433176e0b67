"""Mamba3D's classifiers."""

from collections.abc import Mapping

from torch import Tensor

from map_core.tasks.families import Converted, Family, depth
from map_points.checkpoints.mixers import DIRECTIONS, PROJECTIONS, mixer_keys
from map_points.checkpoints.shared import (
    CLASS_TOKEN,
    DENSE,
    HEAD,
    PATCHES,
    class_names,
    guessed_settings,
    invisible_settings,
    model_section,
    rename_trunk,
    sizes,
)

BLOCKS = (
    (r"(blocks\.blocks\.\d+\.)lfa\.lga\.affine_alpha_feat", r"\1local.scale"),
    (r"(blocks\.blocks\.\d+\.)lfa\.lga\.affine_beta_feat", r"\1local.shift"),
    (r"(blocks\.blocks\.\d+\.)lfa\.pre_norm_ft\.", r"\1local.norm."),
    (r"(blocks\.blocks\.\d+\.)lfa\.mlp\.share_mlp\.", r"\1local.project."),
    *DIRECTIONS,
    (r"blocks\.blocks\.", "encoder.blocks."),
)
BLOCK = (
    *(f"{part}.{kind}" for part in ("norm1", "norm2") for kind in DENSE),
    "lfa.lga.affine_alpha_feat",
    "lfa.lga.affine_beta_feat",
    *(f"lfa.{part}.{kind}" for part in ("pre_norm_ft", "mlp.share_mlp") for kind in DENSE),
    *PROJECTIONS,
    *mixer_keys(),
    *mixer_keys("_b"),
)
TRUNK = (*PATCHES, *(f"blocks.blocks.#.{part}" for part in BLOCK), *(f"norm.{part}" for part in DENSE))


def convert_mamba3d(state: Mapping[str, Tensor]) -> Converted:
    """Convert a classifier whose second scan reads reversed channels; the original adds both scans, ours averages."""
    ours = rename_trunk(state, BLOCKS)
    for key, value in ours.items():
        if key.endswith((".local.scale", ".local.shift")):
            ours[key] = value.flatten()
        elif key.endswith(".mixer.out_proj.weight"):
            ours[key] = 2 * value
    arguments = {**sizes(ours), "layout": f"Mx{depth(ours, 'encoder.blocks.')}"}
    return Converted(
        ours,
        model_section("mamba3d_authors", **arguments),
        guessed_settings=guessed_settings("mamba3d_authors", arguments),
        holds="classifier",
        invisible_settings=invisible_settings(
            "mamba3d_authors", "order", "scan", "local_spread", "local_class_token", "pool", "second_order"
        ),
        classes=class_names(ours),
        notes=(
            "the original's bimamba_type is taken to be v4, as in the published models",
            "the original's spread of the local norm is one of a whole batch, and its pooling adds the mean of the "
            "batch's first cloud to all: this model computes for every cloud what the original does for one alone",
        ),
    )


MAMBA3D = Family("Mamba3D", (*TRUNK, *CLASS_TOKEN, *HEAD), (), convert_mamba3d)
