"""Point-MAE: classifiers, and pretraining with its decoder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from map_core.tasks.families import Converted, Family, depth
from map_points.checkpoints.shared import (
    CLASS_TOKEN,
    DENSE,
    HEAD,
    HEAD_WIDTH,
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
    rename_trunk,
    sizes,
)

BLOCKS = ((r"blocks\.blocks\.", "encoder.blocks."),)
BLOCK = (
    *(f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj") for kind in DENSE),
    "attn.qkv.weight",
)
TRUNK = (
    *PATCHES,
    *(f"blocks.blocks.#.{part}" for part in BLOCK),
    *(f"norm.{part}" for part in DENSE),
)
DECODER = (*(f"blocks.#.{part}" for part in BLOCK), *(f"norm.{part}" for part in DENSE))


def convert_transformer(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state under our keys, and the model's arguments."""
    ours = rename_trunk(state, BLOCKS)
    settings = sizes(ours)
    hidden = ours["encoder.blocks.0.mlp.fc1.bias"].shape[0]
    arguments = {
        **settings,
        "layout": f"Tx{depth(ours, 'encoder.blocks.')}",
        "num_heads": max(settings["embed_dim"] // HEAD_WIDTH, 1),
        "mlp_ratio": hidden / settings["embed_dim"],
    }
    return ours, arguments


def convert_point_mae(state: Mapping[str, Tensor]) -> Converted:
    """Convert a classifier, whose head reads the class token and the patches' maximum."""
    ours, arguments = convert_transformer(state)
    arguments |= published_patches(ours)
    return Converted(
        ours,
        model_section("point_mae", **arguments),
        guessed_settings=guessed_settings("point_mae", arguments),
        holds="classifier",
        invisible_settings=invisible_settings("point_mae", "pool", "second_order"),
        classes=class_names(ours),
    )


def convert_pretraining(state: Mapping[str, Tensor]) -> Converted:
    """Convert the encoder, and the decoder with which pretraining goes on."""
    ours, arguments = convert_transformer(encoder_state(state))
    arguments |= patch_size_setting(state)
    width, blocks = arguments["embed_dim"], depth(state, "MAE_decoder.blocks.")
    template = state["mask_token"].detach()
    biases = {f"decoder.blocks.{i}.attn.qkv.bias": template.new_zeros(3 * width) for i in range(blocks)}
    objective = {
        "attention": "mae",
        "mask_ratio": MASK_RATIO,
        "num_regions": 1,
        "decoder_dim": width,
        "decoder_depth": blocks,
        "decoder_heads": arguments["num_heads"],
        "decoder_mlp_ratio": state["MAE_decoder.blocks.0.mlp.fc1.bias"].shape[0] / width,
        "decoder_repeat_position": True,
    }
    return Converted(
        ours,
        model_section("point_mae", **arguments),
        guessed_settings=guessed_settings("point_mae", arguments, head_shows_points=True),
        invisible_settings=invisible_settings("point_mae") | patch_size_setting(state),
        decoder_state=convert_decoder(state, str, width) | biases,
        objective=objective,
        notes=(
            "the decoder's projection and its query, key and value biases, which Point-MAE lacks, start as "
            "identity and zero",
        ),
    )


POINT_MAE = Family("Point-MAE", (*TRUNK, *CLASS_TOKEN, *HEAD), (), convert_point_mae)
POINT_MAE_PRETRAINING = Family(
    "Point-MAE's pretraining", pretraining_keys(TRUNK, DECODER), (), convert_pretraining
)
