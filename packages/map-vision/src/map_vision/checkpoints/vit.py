"""Vision Transformers under timm's names: timm's, DeiT's, MAE's with and without decoder, DINO's, MoCo v3's."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from map_core.errors import UserError
from map_core.tasks.families import Converted, Family, depth, guessed_heads
from map_vision.checkpoints.description import (
    as_table,
    class_names,
    imagenet_preprocessing,
    nearest_model,
    sizes,
)

BLOCK = tuple(
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
TRUNK = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    *(f"blocks.#.{part}" for part in BLOCK),
)
NORM = ("norm.weight", "norm.bias")
HEAD = ("head.weight", "head.bias")
DECODER = (
    "mask_token",
    "decoder_pos_embed",
    "decoder_embed.weight",
    "decoder_embed.bias",
    *(f"decoder_blocks.#.{part}" for part in BLOCK),
    "decoder_norm.weight",
    "decoder_norm.bias",
    "decoder_pred.weight",
    "decoder_pred.bias",
)
HEAD_WIDTH = 64  # of all published models except ViT-H
HUGE, HUGE_HEADS = 1280, 16
MAE_DECODER_HEADS = 16


def convert_vit(state: Mapping[str, Tensor], *, heads: int | None = None) -> Converted:
    """Class token in front, learned positions, pre-norm blocks; a classifier where there is a head.

    Raises:
        UserError: a norm both before and after the pooling, or neither; patches that do not form a square grid.
    """
    positions = state["pos_embed"][0]
    trunk = {
        "encoder.registers.token": state["cls_token"][0],
        "encoder.registers.position": positions[:1],
        "encoder.position.table": as_table(positions[1:]),
    }
    for key, value in state.items():
        if key.startswith(("blocks.", "norm.")):
            trunk[f"encoder.{key}"] = value
        elif key.startswith(("patch_embed.", "head.")):
            trunk[key] = value
        elif key.startswith("fc_norm."):
            trunk[key.replace("fc_norm", "pool_norm")] = value
    if ("norm.weight" in state) == ("fc_norm.weight" in state):
        raise UserError(
            "a ViT has one last norm, before the pooling (norm) or behind it (fc_norm); export it again"
        )
    width = state["cls_token"].shape[2]
    arguments: dict[str, Any] = {
        "layout": f"Tx{depth(state, 'blocks.')}",
        "num_heads": heads or (HUGE_HEADS if width == HUGE else max(width // HEAD_WIDTH, 1)),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
    }
    model = nearest_model("map_vit_", **sizes(state, len(trunk["encoder.position.table"])), **arguments)
    pool_norm, has_head = "fc_norm.weight" in state, "head.weight" in state
    if pool_norm:
        model |= {"pool_norm": True, "global_pool": "avg"}
    if not has_head:
        model |= {"keep_registers": True, "global_pool": "avg" if pool_norm else "register"}
    invisible_settings: dict[str, Any] = {"patch_stride": None}
    if pool_norm or has_head:  # an encoder that ends with its norm may be pooled in either way
        invisible_settings["pool_norm"] = pool_norm
    preprocessing = imagenet_preprocessing(state)
    return Converted(
        trunk,
        model,
        guessed_settings=guessed_heads(arguments["num_heads"]),
        holds="classifier" if has_head else "encoder",
        invisible_settings=invisible_settings,
        classes=class_names(len(state["head.bias"])) if has_head else (),
        preprocessing=preprocessing,
        notes=("images are taken to be normalised as ImageNet's",) if preprocessing else (),
    )


def convert_mae(state: Mapping[str, Tensor]) -> Converted:
    """MAE's whole pretraining model: the encoder and its decoder."""
    encoder = convert_vit({key: value for key, value in state.items() if key not in decoder_keys(state)})
    positions = state["decoder_pos_embed"][0]
    width, num_blocks = positions.shape[1], depth(state, "decoder_blocks.")
    decoder = {
        "decoder.mask_token": state["mask_token"].reshape(-1),
        "decoder.global_position": positions[:1],
        "decoder.position.table": as_table(positions[1:]),
    }
    prefixes = {
        "decoder_embed.": "decoder.embed.",
        "decoder_blocks.": "decoder.blocks.",
        "decoder_norm.": "decoder.norm.",
        "decoder_pred.": "head.",
    }
    for key, value in state.items():
        for prefix, name in prefixes.items():
            if key.startswith(prefix):
                decoder[name + key.removeprefix(prefix)] = value
    objective = {
        "attention": "mae",
        "mask_ratio": 0.75,
        "decoder_dim": width,
        "decoder_depth": num_blocks,
        "decoder_heads": MAE_DECODER_HEADS,
        "decoder_mlp_ratio": len(state["decoder_blocks.0.mlp.fc1.bias"]) / width,
        "decoder_norm_eps": 1e-6,
        "decoder_position": "learned",
    }
    return Converted(
        encoder.state,
        {**encoder.model, "global_pool": "avg"},
        guessed_settings=encoder.guessed_settings,
        invisible_settings=encoder.invisible_settings,
        preprocessing=encoder.preprocessing,
        decoder_state=decoder,
        objective=objective,
        notes=("positions, which MAE keeps fixed, are learned from here on",),
    )


def decoder_keys(state: Mapping[str, Tensor]) -> set[str]:
    """Keys of MAE's decoder."""
    return {key for key in state if key == "mask_token" or key.startswith("decoder_")}


def convert_dino(state: Mapping[str, Tensor]) -> Converted:
    """The backbone inside a training checkpoint of DINO."""
    return convert_inner(state, "backbone.")


def convert_moco(state: Mapping[str, Tensor]) -> Converted:
    """The trained encoder inside a checkpoint of MoCo v3, without its projector; 12 heads at every size."""
    return convert_inner(state, "base_encoder.", heads=12)


def convert_inner(state: Mapping[str, Tensor], prefix: str, *, heads: int | None = None) -> Converted:
    """Convert the ViT under a prefix; its head is the objective's projector and is left out, as is everything else."""
    pattern = re.compile(re.escape(prefix) + r"(?!head\.)")
    trunk = {pattern.sub("", key, count=1): value for key, value in state.items() if pattern.match(key)}
    converted = convert_vit(trunk, heads=heads)
    unused = tuple(key for key in state if not pattern.match(key))
    return replace(converted, unused=unused)


def prefixed(prefix: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of keys with a prefix in front."""
    return tuple(prefix + key for key in keys)


VIT = Family(
    "ViT (timm, DeiT, DINO, MAE's encoder)",
    TRUNK,
    (*NORM, *HEAD, "fc_norm.weight", "fc_norm.bias"),
    convert_vit,
)
MAE = Family("MAE with decoder", (*TRUNK, *NORM, *DECODER), (), convert_mae)
DINO = Family("DINO's training", prefixed("backbone.", (*TRUNK, *NORM)), ("head.*",), convert_dino)
MOCO_V3 = Family(
    "MoCo v3's training",
    (*prefixed("base_encoder.", (*TRUNK, *NORM)), "base_encoder.head.*"),
    ("momentum_encoder.*", "predictor.*"),
    convert_moco,
)
