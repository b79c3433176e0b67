"""The checkpoints of MAP's authors: Mamba-R's layers with Transformer blocks between them, and their decoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from map_core.errors import UserError
from map_core.tasks.families import Converted, Family, depth, guessed_heads
from map_vision.checkpoints import mamba
from map_vision.checkpoints.description import (
    as_table,
    class_names,
    imagenet_preprocessing,
    nearest_model,
    sizes,
)
from map_vision.checkpoints.vit import BLOCK

DECODER_BLOCK = tuple(
    f"{part}.{kind}"
    for part in ("norm2_1", "norm2_2", "norm2", "attn2.q", "attn2.kv", "attn2.proj", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
DECODER = (
    "mask_token",
    "decoder_pos_embed_learned",
    "decoder_embed.weight",
    "decoder_embed.bias",
    *(f"decoder_blocks.#.{part}" for part in DECODER_BLOCK),
    "decoder_norm.weight",
    "decoder_norm.bias",
    "ar_pred.weight",
    "ar_pred.bias",
)
CLASSIFIER = ("cls_token", "pos_embed_cls", "neck.weight", "norm_neck.weight", *mamba.HEAD)
ENCODER = (*(key for key in mamba.TRUNK if key != "cls_token"), *(f"blocks.#.{part}" for part in BLOCK))
DECODER_HEADS = 16
NUM_HEADS_UNKNOWN = (
    "no file says how many attention heads there are, and the published 12 do not divide its width: give "
    "--model.num_heads N"
)


def convert_authors(state: Mapping[str, Tensor]) -> Converted:
    """A pretraining file is an encoder with its decoder; its registers, neck and head were never trained.

    Raises:
        UserError: a number of Mamba layers that is not a multiple of the number of Transformer blocks.
    """
    pretraining = "ar_pred.weight" in state
    unused = tuple(key for key in CLASSIFIER if key in state)
    positions = as_table(state["pos_embed"][0])
    encoder = {**interleaved(state), "encoder.position.table": positions}
    layer_settings = layer_arguments(state)
    model = nearest_model("hybridnet_", **sizes(state, len(positions)), **layer_settings)
    model["wiring"] = "branch"
    heads = layer_settings.get("num_heads")
    shared: dict[str, Any] = {
        "required_settings": {"num_heads": NUM_HEADS_UNKNOWN} if heads is None else {},
        "guessed_settings": {} if heads is None else guessed_heads(heads),
        "invisible_settings": {"wiring": "branch", "order": "row", "patch_stride": None},
        "preprocessing": imagenet_preprocessing(state),
    }
    if not pretraining and "head.weight" in state:
        classes = class_names(len(state["head.bias"]))
        encoder |= mamba.registers(state) | mamba.matching(state, r"head\.")
        model |= mamba.register_arguments(state)
        return Converted(encoder, model, holds="classifier", classes=classes, **shared)
    if not pretraining:
        return Converted(encoder, model, unused=unused, **shared)
    notes = (
        "the decoder's norms of queries and of keys are folded into the projections behind them: the same function, "
        "trained on with one norm",
    )
    return Converted(
        encoder,
        model,
        decoder_state=decoder(state),
        objective=objective(state),
        unused=unused,
        notes=notes,
        **shared,
    )


def interleaved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's layers in the order in which they run: a Transformer block after every few Mamba layers."""
    period = mamba_layers_per_block(state)
    parameters = mamba.matching(state, r"patch_embed\.") | {"encoder.norm.weight": state["norm_f.weight"]}
    for i in range(depth(state, "layers.")):
        parameters |= mamba.layer(state, i, i + i // period)
    for i in range(depth(state, "blocks.")):
        index = (i + 1) * (period + 1) - 1
        parameters |= {f"encoder.blocks.{index}.{part}": state[f"blocks.{i}.{part}"] for part in BLOCK}
    return parameters


def mamba_layers_per_block(state: Mapping[str, Tensor]) -> int:
    """Mamba layers before each Transformer block."""
    layers, blocks = depth(state, "layers."), depth(state, "blocks.")
    if layers % blocks:
        raise UserError(
            f"{layers} Mamba layers are not a multiple of {blocks} Transformer blocks, which they are in every layout "
            "of MAP"
        )
    return layers // blocks


def layer_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model arguments that the layers show, and the number of heads of the published models."""
    width = state["norm_f.weight"].shape[0]
    group, heads = "M" * mamba_layers_per_block(state) + "T", 16 if width == 1024 else 12
    return {
        "layout": f"({group})x{depth(state, 'blocks.')}",
        "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
        **({} if width % heads else {"num_heads": heads}),
    }


def decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decoder and head."""
    parameters = {
        "decoder.mask_token": state["mask_token"].reshape(-1),
        "decoder.position.table": as_table(state["decoder_pos_embed_learned"][0]),
    }
    for kind in ("weight", "bias"):
        parameters[f"decoder.embed.{kind}"] = state[f"decoder_embed.{kind}"]
        parameters[f"decoder.norm.{kind}"] = state[f"decoder_norm.{kind}"]
        parameters[f"head.{kind}"] = state[f"ar_pred.{kind}"]
    for i in range(depth(state, "decoder_blocks.")):
        prefix = f"decoder_blocks.{i}."
        block = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        parameters |= {f"decoder.blocks.{i}.{key}": value for key, value in decoder_block(block).items()}
    return parameters


def decoder_block(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block with one norm before its attention; both norms' scales and shifts are folded into the projections."""
    queries = fold_norm(block, "norm2_1", "attn2.q")
    keys_and_values = fold_norm(block, "norm2_2", "attn2.kv")
    scale = block["norm2_1.weight"]
    parameters = {
        "norm1.weight": torch.ones_like(scale),
        "norm1.bias": torch.zeros_like(scale),
        "attn.qkv.weight": torch.cat([queries[0], keys_and_values[0]]),
        "attn.qkv.bias": torch.cat([queries[1], keys_and_values[1]]),
    }
    for part in ("norm2", "mlp.fc1", "mlp.fc2"):
        parameters |= {f"{part}.{kind}": block[f"{part}.{kind}"] for kind in ("weight", "bias")}
    return parameters | {f"attn.proj.{kind}": block[f"attn2.proj.{kind}"] for kind in ("weight", "bias")}


def fold_norm(block: Mapping[str, Tensor], norm: str, projection: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection with the scale and shift of the norm before it folded in."""
    scale, shift = (block[f"{norm}.{kind}"].double() for kind in ("weight", "bias"))
    weight, bias = (block[f"{projection}.{kind}"] for kind in ("weight", "bias"))
    weight64 = weight.double()
    return (weight64 * scale).to(weight.dtype), (bias.double() + weight64 @ shift).to(bias.dtype)


def objective(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The objective that the decoder belongs to, with the mask ratios of the authors' code."""
    width = state["decoder_norm.weight"].shape[0]
    return {
        "attention": "map",
        "region": "row",
        "mask_ratio": 0.5,
        "mask_ratio_std": 0.25,
        "mask_ratio_bounds": (0.3, 0.7),
        "decoder_dim": width,
        "decoder_depth": depth(state, "decoder_blocks."),
        "decoder_heads": DECODER_HEADS,
        "decoder_mlp_ratio": len(state["decoder_blocks.0.mlp.fc1.bias"]) / width,
        "decoder_position": "learned",
    }


AUTHORS = Family("MAP's authors", ENCODER, (*CLASSIFIER, *DECODER), convert_authors)
