"""PointMamba: classifiers, and pretraining with its decoder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from map_core.tasks.families import Converted, Family, depth
from map_points.checkpoints.mixers import DIRECTIONS, PROJECTIONS, mixer_keys
from map_points.checkpoints.shared import (
    DENSE,
    HEAD,
    MASK_RATIO,
    PATCHES,
    class_names,
    convert_decoder,
    encoder_state,
    guessed_settings,
    invisible_settings,
    model_section,
    patch_size_setting,
    pretraining_keys,
    published_patches,
    rename,
    rename_trunk,
    sizes,
)

BLOCKS = (
    (r"OrderScale_gamma_1$", "order_scale.0.scale"),
    (r"OrderScale_beta_1$", "order_scale.0.shift"),
    (r"OrderScale_gamma_2$", "order_scale.1.scale"),
    (r"OrderScale_beta_2$", "order_scale.1.shift"),
    (r"blocks\.norm_f\.", "encoder.norm."),
    *DIRECTIONS,
    (r"blocks\.layers\.", "encoder.blocks."),
)
LAYERS = (
    *(f"layers.#.{part}" for part in (*PROJECTIONS, *mixer_keys())),
    *(f"layers.#.norm.{part}" for part in DENSE),
    *(f"norm_f.{part}" for part in DENSE),
)
TRUNK = (
    *(f"OrderScale_{part}_{order}" for part in ("gamma", "beta") for order in (1, 2)),
    *PATCHES,
    *(f"blocks.{key}" for key in LAYERS),
)
DECODER = tuple(f"blocks.{key}" for key in LAYERS)


def convert_scans(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state under our keys, and the model's arguments."""
    ours = rename_trunk(state, BLOCKS)
    return ours, {**sizes(ours), "layout": f"Sx{depth(ours, 'encoder.blocks.')}"}


def convert_point_mamba(state: Mapping[str, Tensor]) -> Converted:
    """Convert a classifier that reads its patches along a Hilbert curve, and again with x and y exchanged."""
    ours, arguments = convert_scans(state)
    arguments |= published_patches(ours)
    width, head_inputs = arguments["embed_dim"], ours["head.0.weight"].shape[1]
    if head_inputs == 2 * width:
        arguments["pool"] = "mean_and_max"
    return Converted(
        ours,
        model_section("point_mamba", **arguments),
        guessed_settings=guessed_settings("point_mamba", arguments),
        holds="classifier",
        invisible_settings=invisible_settings("point_mamba", "order", "second_order", "pool")
        | pool_setting(arguments),
        classes=class_names(ours),
        notes=(
            "the original's curve is as fine as the largest cloud of a batch asks for; here 128 cells per axis, or 256 "
            "where a cloud is wider than 2.56",
        ),
    )


def pool_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The pooling, where it differs from the named model's."""
    return {"pool": arguments["pool"]} if "pool" in arguments else {}


def convert_pretraining(state: Mapping[str, Tensor]) -> Converted:
    """Convert the encoder, and the decoder with which pretraining goes on: it scans all patches, one way."""
    ours, arguments = convert_scans(encoder_state(state))
    arguments |= patch_size_setting(state)
    return Converted(
        ours,
        model_section("point_mamba", **arguments),
        guessed_settings=guessed_settings("point_mamba", arguments, head_shows_points=True),
        invisible_settings=invisible_settings("point_mamba", "order") | patch_size_setting(state),
        decoder_state=convert_decoder(state, rename_decoder_layer, arguments["embed_dim"]),
        objective={
            "attention": "ar",
            "mask_ratio": MASK_RATIO,
            "num_regions": 1,
            "decoder": "mamba",
            "decoder_norm": "layer",
            "decoder_dim": arguments["embed_dim"],
            "decoder_heads": 1,  # unused here
            "decoder_depth": depth(state, "MAE_decoder.blocks.layers."),
        },
        notes=(
            "pretraining goes on along one curve, where the original draws one of two in each step; the decoder's "
            "projection, which PointMamba lacks, starts as identity",
        ),
    )


def rename_decoder_layer(key: str) -> str:
    """Rename a key of the decoder, below ``MAE_decoder.``, to ours."""
    ours = rename(key, DIRECTIONS)
    return ours.replace("blocks.norm_f.", "norm.").replace("blocks.layers.", "blocks.")


POINT_MAMBA = Family("PointMamba", (*TRUNK, *HEAD), (), convert_point_mamba)
POINT_MAMBA_PRETRAINING = Family(
    "PointMamba's pretraining", pretraining_keys(TRUNK, DECODER), (), convert_pretraining
)
