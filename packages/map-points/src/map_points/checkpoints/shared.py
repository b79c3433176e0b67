"""What published point models share: keys of the patch embedding, positions, class token and head, and their sizes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from map_core.tasks.families import Guess, guessed_heads
from map_points.data.scanobjectnn import CLASSES as SCANOBJECTNN
from map_points.model import ARCHITECTURES

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DENSE = ("weight", "bias")
PATCHES = (
    *(f"encoder.{layer}.{part}" for layer in ("first_conv.0", "first_conv.3") for part in DENSE),
    *(f"encoder.{layer}.{part}" for layer in ("second_conv.0", "second_conv.3") for part in DENSE),
    *(f"encoder.{layer}.1.{part}" for layer in ("first_conv", "second_conv") for part in NORM),
    *(f"pos_embed.{layer}.{part}" for layer in (0, 2) for part in DENSE),
)
CLASS_TOKEN = ("cls_token", "cls_pos")
HEAD = (
    *(f"cls_head_finetune.{layer}.{part}" for layer in (0, 4, 8) for part in DENSE),
    *(f"cls_head_finetune.{layer}.{part}" for layer in (1, 5) for part in NORM),
)
RENAMING = (
    (r"encoder\.first_conv\.", "patch_embed.lift."),
    (r"encoder\.second_conv\.0\.", "patch_embed.join."),
    (r"encoder\.second_conv\.1\.", "patch_embed.project.0."),
    (r"encoder\.second_conv\.3\.", "patch_embed.project.2."),
    (r"pos_embed\.", "encoder.position.mlp."),
    (r"cls_token$", "encoder.registers.token"),
    (r"cls_pos$", "encoder.registers.position"),
    (r"norm\.", "encoder.norm."),
    (r"cls_head_finetune\.", "head."),
)
HEAD_WIDTH = 64  # width of an attention head in the published models
DEFAULTS = {
    "embed_dim": 384,
    "patch_hidden_dim": 256,
    "num_heads": 6,
    "head_dim": 256,
    "patch_size": 32,
    "pool": "max_plus_mean",
}
MODELNET40 = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel",
    "monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool",
    "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
MASK_RATIO = 0.6  # of Point-MAE and PointMamba
ENCODER = "MAE_encoder."  # prefix of the encoder's keys in their pretraining files
SCANOBJECTNN_PATCHES = 128  # of 2048 points, by Point-MAE and PointMamba
CLASSES = {40: MODELNET40, 15: SCANOBJECTNN}


def rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Rename a key by each rule, in turn, that matches at its beginning."""
    for pattern, ours in rules:
        if re.match(pattern, key):
            key = re.sub(pattern, ours, key, count=1)
    return key


def as_linear(weight: Tensor) -> Tensor:
    """Turn the weight of a 1x1 convolution (outputs, inputs, 1) into that of a linear layer; leave others unchanged."""
    return weight.squeeze(-1) if weight.ndim == 3 and weight.shape[-1] == 1 else weight


def rename_trunk(state: Mapping[str, Tensor], block_rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Give a model our keys and shapes, with ``block_rules`` for its blocks."""
    converted = {}
    for key, value in state.items():
        ours = rename(key, (*block_rules, *RENAMING))
        converted[ours] = value.squeeze(0) if ours.startswith("encoder.registers.") else as_linear(value)
    return converted


def pretraining_keys(encoder: Sequence[str], decoder_layers: Sequence[str]) -> tuple[str, ...]:
    """The keys of a pretraining file, from those of its encoder and of its decoder's layers."""
    return (
        *(ENCODER + key for key in encoder),
        "mask_token",
        *(f"decoder_pos_embed.{layer}.{part}" for layer in (0, 2) for part in DENSE),
        *(f"MAE_decoder.{key}" for key in decoder_layers),
        *(f"increase_dim.0.{part}" for part in DENSE),
    )


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a pretraining file, under a classifier's keys."""
    return {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}


def convert_decoder(
    state: Mapping[str, Tensor], rename_layer: Callable[[str], str], width: int
) -> dict[str, Tensor]:
    """Give the decoder and head of a pretraining file our keys, those of its blocks by ``rename_layer``.

    Our projection, which the file lacks, is the identity.
    """
    template = state["mask_token"].detach()
    converted = {
        "decoder.mask_token": state["mask_token"].reshape(-1),
        "decoder.embed.weight": torch.eye(width, dtype=template.dtype),
        "decoder.embed.bias": template.new_zeros(width),
    }
    for key, value in state.items():
        if key.startswith("MAE_decoder."):
            converted["decoder." + rename_layer(key.removeprefix("MAE_decoder."))] = value
        elif key.startswith("decoder_pos_embed."):
            converted["decoder.position.mlp." + key.removeprefix("decoder_pos_embed.")] = value
        elif key.startswith("increase_dim.0."):
            converted["head." + key.removeprefix("increase_dim.0.")] = as_linear(value)
    return converted


def patch_size_setting(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The patch size that a pretraining file's head predicts."""
    return {"patch_size": state["increase_dim.0.bias"].shape[0] // 3}


def sizes(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the shapes of a converted state show."""
    settings: dict[str, Any] = {
        "embed_dim": ours["encoder.norm.weight"].shape[0],
        "patch_hidden_dim": ours["patch_embed.lift.3.weight"].shape[0],
    }
    if "head.8.weight" in ours:
        settings["head_dim"] = ours["head.8.weight"].shape[1]
    return settings


def model_section(name: str, **arguments: Any) -> dict[str, Any]:
    """The ``model`` section: a model's name, and the arguments that differ from the named model's."""
    defaults = {**DEFAULTS, **ARCHITECTURES[name]}
    return {"name": name, **{key: value for key, value in arguments.items() if defaults.get(key) != value}}


def invisible_settings(name: str, *names: str) -> dict[str, Any]:
    """Settings of a named model that no shape shows."""
    settings = {"position_activation": "gelu", "repeat_position": True, "order": "fps", "second_order": None}
    settings |= {**DEFAULTS, **ARCHITECTURES[name]}
    return {key: settings[key] for key in ("position_activation", "repeat_position", "skip_origin", *names)}


def class_names(ours: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of a head's outputs: ModelNet40's for 40 classes, ScanObjectNN's for 15, else numbers."""
    count = ours["head.8.bias"].shape[0]
    return CLASSES.get(count, tuple(map(str, range(count))))


def published_patches(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The number of patches of ScanObjectNN's clouds in the published classifiers; the named model's for others."""
    of_scanobjectnn = class_names(ours) == SCANOBJECTNN
    return {"num_patches": SCANOBJECTNN_PATCHES} if of_scanobjectnn else {}


def guessed_settings(
    name: str, arguments: Mapping[str, Any], *, head_shows_points: bool = False
) -> dict[str, Guess]:
    """What no file says about how clouds are cut, and about attention heads."""
    settings = {"num_patches": 64, **DEFAULTS, **ARCHITECTURES[name], **arguments}
    guesses = {"num_patches": Guess("how many patches a cloud is cut into", settings["num_patches"])}
    if not head_shows_points:
        guesses["patch_size"] = Guess("how many points a patch has", settings["patch_size"])
    if "num_heads" in arguments:
        guesses |= guessed_heads(settings["num_heads"])
    return guesses
