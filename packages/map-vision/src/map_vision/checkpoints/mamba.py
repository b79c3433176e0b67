"""Mamba encoders with bidirectional mixers under Vim's parameter names: Vim itself, and Mamba-R."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from map_core.tasks.families import Converted, Family, depth
from map_vision.checkpoints.description import (
    PATCHES,
    as_table,
    class_names,
    imagenet_preprocessing,
    nearest_model,
    sizes,
)

# one direction's parameters by our names; {} takes the suffix that tells directions apart
DIRECTION = {
    "A_log": "A{}_log",
    "D": "D{}",
    "conv1d.weight": "conv1d{}.weight",
    "conv1d.bias": "conv1d{}.bias",
    "x_proj.weight": "x_proj{}.weight",
    "dt_proj.weight": "dt_proj{}.weight",
    "dt_proj.bias": "dt_proj{}.bias",
}
BIDIRECTIONAL = {"": "scan_forward", "_b": "scan_backward"}
PROJECTIONS = ("in_proj.weight", "out_proj.weight")
LAYER = (
    "layers.#.norm.weight",
    *(f"layers.#.mixer.{name}" for name in PROJECTIONS),
    *(f"layers.#.mixer.{name.format(suffix)}" for suffix in BIDIRECTIONAL for name in DIRECTION.values()),
)
TRUNK = ("cls_token", "pos_embed", PATCHES, "patch_embed.proj.bias", "norm_f.weight", *LAYER)
HEAD = ("head.weight", "head.bias")
UNCROPPED = 1.0  # Mamba-R is evaluated on whole images
STRIDE_8_GRID = 27  # of Vim's overlapping patches at 224 pixels


def mixer(
    state: Mapping[str, Tensor], source: str, target: str, directions: Mapping[str, str] = BIDIRECTIONAL
) -> dict[str, Tensor]:
    """The parameters of a mixer, renamed from the prefix ``source`` to the prefix ``target``."""
    parameters = {f"{target}{name}": state[f"{source}{name}"] for name in PROJECTIONS}
    for suffix, scan in directions.items():
        for name, pattern in DIRECTION.items():
            parameters[f"{target}{scan}.{name}"] = state[source + pattern.format(suffix)]
    return parameters


def layer(state: Mapping[str, Tensor], index: int, block: int) -> dict[str, Tensor]:
    """The parameters of Mamba layer ``index``, as our block ``block``."""
    target = f"encoder.blocks.{block}."
    norm = {f"{target}norm.weight": state[f"layers.{index}.norm.weight"]}
    return norm | mixer(state, f"layers.{index}.mixer.", f"{target}mixer.")


def matching(state: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """The parameters whose names match; ours are the same."""
    return {key: value for key, value in state.items() if re.match(pattern, key)}


def trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Patches, layers, last norm and head: what Vim and Mamba-R share."""
    parameters = matching(state, r"patch_embed\.|head\.") | {"encoder.norm.weight": state["norm_f.weight"]}
    for i in range(depth(state, "layers.")):
        parameters |= layer(state, i, i)
    return parameters


def registers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mamba-R's registers, and its neck where it has one."""
    parameters = {
        "encoder.registers.token": state["cls_token"][0],
        "encoder.registers.position": state["pos_embed_cls"][0],
    }
    if "neck.weight" in state:
        parameters |= {
            "neck.reduce.weight": state["neck.weight"],
            "neck.norm.weight": state["norm_neck.weight"],
        }
    return parameters


def register_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The number of registers, and by how much the neck reduces each."""
    _, count, width = state["cls_token"].shape
    return {
        "global_pool": "register",
        "num_registers": count,
        "neck_reduction": width // len(state["neck.weight"]) if "neck.weight" in state else 1,
    }


def convert_mambar(state: Mapping[str, Tensor]) -> Converted:
    """Registers spread through the sequence, read by a neck."""
    positions = as_table(state["pos_embed"][0])
    return Converted(
        {**trunk(state), **registers(state), "encoder.position.table": positions},
        nearest_model(
            "mambar_",
            layout=f"Mx{depth(state, 'layers.')}",
            **sizes(state, len(positions)),
            **register_arguments(state),
        ),
        holds="classifier",
        invisible_settings={"order": "row", "patch_stride": None},
        classes=class_names(len(state["head.bias"])),
        preprocessing=imagenet_preprocessing(state, crop_pct=UNCROPPED),
    )


def with_middle_class_token(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The class token and all positions of a model that reads its class token in the middle of the patches.

    Raises:
        UserError: patches that do not form a square grid.
    """
    positions = state["pos_embed"][0]
    middle = (len(positions) - 1) // 2
    return {
        "encoder.registers.token": state["cls_token"][0],
        "encoder.registers.position": positions[middle : middle + 1],
        "encoder.position.table": as_table(torch.cat([positions[:middle], positions[middle + 1 :]])),
    }


def convert_vim(state: Mapping[str, Tensor]) -> Converted:
    """One class token in the middle of the sequence; its position is in the middle of ``pos_embed``.

    Raises:
        UserError: patches that do not form a square grid.
    """
    tokens = with_middle_class_token(state)
    rows = len(tokens["encoder.position.table"])
    arguments = sizes(state, rows)
    stride: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    if rows == STRIDE_8_GRID and arguments["patch_size"] == 16:
        stride = (8, 8)
        arguments |= {"img_size": (224, 224), "patch_stride": 8}
        notes = (
            "27 rows of patches are taken for Vim's patches of 16 pixels every 8, at 224 pixels: side by side they "
            "would be an image of 432",
        )
    return Converted(
        trunk(state) | tokens,
        nearest_model("map_vim_", layout=f"Mx{depth(state, 'layers.')}", **arguments),
        holds="classifier",
        invisible_settings={"order": "row", "patch_stride": stride},
        classes=class_names(len(state["head.bias"])),
        preprocessing=imagenet_preprocessing(state),
        notes=notes,
    )


MAMBA_R = Family(
    "Mamba-R", (*TRUNK, "pos_embed_cls", *HEAD), ("neck.weight", "norm_neck.weight"), convert_mambar
)
VIM = Family("Vim", (*TRUNK, *HEAD), (), convert_vim)
