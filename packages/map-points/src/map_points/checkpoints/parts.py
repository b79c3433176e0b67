"""What published point models share: names of the patch embedding, positions, class token and head, and their sizes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from map_core.tasks.families import guess
from map_points.data.scanobjectnn import CLASSES as SCANOBJECTNN
from map_points.model import ARCHITECTURES

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DENSE = ("weight", "bias")
PATCHES = (
    *(f"encoder.{place}.{part}" for place in ("first_conv.0", "first_conv.3") for part in DENSE),
    *(f"encoder.{place}.{part}" for place in ("second_conv.0", "second_conv.3") for part in DENSE),
    *(f"encoder.{place}.1.{part}" for place in ("first_conv", "second_conv") for part in NORM),
    *(f"pos_embed.{place}.{part}" for place in (0, 2) for part in DENSE),
)
CLASS_TOKEN = ("cls_token", "cls_pos")
HEAD = (
    *(f"cls_head_finetune.{place}.{part}" for place in (0, 4, 8) for part in DENSE),
    *(f"cls_head_finetune.{place}.{part}" for place in (1, 5) for part in NORM),
)
RENAMED = (
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
HEAD_WIDTH = 64  # of the published models' attention
DEFAULTS = {
    "embed_dim": 384,
    "patch_hidden_dim": 256,
    "num_heads": 6,
    "head_dim": 256,
    "pool": "max_plus_mean",
}
MODELNET40 = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel",
    "monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool",
    "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
MASK_RATIO = 0.6  # of Point-MAE and PointMamba
ENCODER = "MAE_encoder."  # before the encoder's keys in their pretraining files
CLASSES = {40: MODELNET40, 15: SCANOBJECTNN}


def renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The key after every rule in turn that matches at its beginning."""
    for pattern, ours in rules:
        if re.match(pattern, key):
            key = re.sub(pattern, ours, key, count=1)
    return key


def as_linear(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution (outputs, inputs, 1) as that of a linear layer; others as they are."""
    return weight.squeeze(-1) if weight.ndim == 3 and weight.shape[-1] == 1 else weight


def trunk(state: Mapping[str, Tensor], more: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Keys and shapes of a model as ours, with ``more`` rules for its blocks."""
    found = {}
    for key, value in state.items():
        ours = renamed(key, (*more, *RENAMED))
        found[ours] = value.squeeze(0) if ours.startswith("encoder.registers.") else as_linear(value)
    return found


def pretraining_keys(encoder: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """The keys of a pretraining file whose encoder has ``encoder`` and whose decoder's layers have ``layers``."""
    return (
        *(ENCODER + key for key in encoder),
        "mask_token",
        *(f"decoder_pos_embed.{place}.{part}" for place in (0, 2) for part in DENSE),
        *(f"MAE_decoder.{key}" for key in layers),
        *(f"increase_dim.0.{part}" for part in DENSE),
    )


def encoder_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder in a pretraining file, under a classifier's keys."""
    return {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}


def decoder(state: Mapping[str, Tensor], names: Callable[[str], str], width: int) -> dict[str, Tensor]:
    """A pretraining file's decoder and head by our names, its blocks' by ``names``; our projection is the identity."""
    like = state["mask_token"].detach()
    found = {
        "decoder.mask_token": state["mask_token"].reshape(-1),
        "decoder.embed.weight": torch.eye(width, dtype=like.dtype),
        "decoder.embed.bias": like.new_zeros(width),
    }
    for key, value in state.items():
        if key.startswith("MAE_decoder."):
            found["decoder." + names(key.removeprefix("MAE_decoder."))] = value
        elif key.startswith("decoder_pos_embed."):
            found["decoder.position.mlp." + key.removeprefix("decoder_pos_embed.")] = value
        elif key.startswith("increase_dim.0."):
            found["head." + key.removeprefix("increase_dim.0.")] = as_linear(value)
    return found


def patch_size_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The points of a patch that a pretraining file's head predicts, unless they are the models' own 32."""
    size = state["increase_dim.0.bias"].shape[0] // 3
    return {} if size == 32 else {"patch_size": size}


def sizes(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of a converted state say."""
    found: dict[str, Any] = {
        "embed_dim": ours["encoder.norm.weight"].shape[0],
        "patch_hidden_dim": ours["patch_embed.lift.3.weight"].shape[0],
    }
    if "head.8.weight" in ours:
        found["head_dim"] = ours["head.8.weight"].shape[1]
    return found


def described(name: str, **arguments: Any) -> dict[str, Any]:
    """The ``model`` section: a model's name, and the arguments that it has otherwise."""
    has = {**DEFAULTS, **ARCHITECTURES[name]}
    return {"name": name, **{key: value for key, value in arguments.items() if has.get(key) != value}}


def switches(name: str, *names: str) -> dict[str, Any]:
    """Settings of a named model that no shape shows."""
    has = {"position_activation": "gelu", "repeat_position": True, "order": "fps", "second_order": None}
    has |= {**DEFAULTS, **ARCHITECTURES[name]}
    return {key: has[key] for key in ("position_activation", "repeat_position", "skip_origin", *names)}


def class_names(ours: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of a head's outputs: of ModelNet40's 40 classes or ScanObjectNN's 15, else numbers."""
    count = ours["head.8.bias"].shape[0]
    return CLASSES.get(count, tuple(map(str, range(count))))


def guessed(name: str, arguments: Mapping[str, Any], *, head_shows_points: bool = False) -> dict[str, str]:
    """What no file says of how clouds are cut, and of attention."""
    has = {"num_patches": 64, "patch_size": 32, **ARCHITECTURES[name], **arguments}
    found = guess("num_patches", "how many patches a cloud is cut into", has["num_patches"])
    if not head_shows_points:
        found |= guess("patch_size", "how many points a patch has", has["patch_size"])
    if "num_heads" in arguments:
        found |= guess("num_heads", "how many attention heads there are", has["num_heads"])
    return found
