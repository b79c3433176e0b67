"""MambaVision's published checkpoints; our parameter names are the same."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from map_core.tasks.families import Converted, Family, Guess, depth, guessed_heads
from map_vision.checkpoints.description import IMAGENET, class_names

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STEM = (
    "patch_embed.conv_down.0.weight",
    "patch_embed.conv_down.3.weight",
    *(f"patch_embed.conv_down.{i}.{part}" for i in (1, 4) for part in NORM),
)
BLOCKS = (
    *(f"levels.#.blocks.#.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")),
    *(f"levels.#.blocks.#.norm{i}.{part}" for i in (1, 2) for part in NORM),
    *(f"levels.#.blocks.#.mlp.fc{i}.{part}" for i in (1, 2) for part in ("weight", "bias")),
    *(f"levels.#.blocks.#.mixer.{part}.weight" for part in ("in_proj", "out_proj", "x_proj", "qkv", "proj")),
    *(f"levels.#.blocks.#.mixer.{part}.bias" for part in ("qkv", "proj")),
    *(f"levels.#.blocks.#.mixer.{part}" for part in ("dt_proj.weight", "dt_proj.bias", "A_log", "D")),
    *(f"levels.#.blocks.#.mixer.conv1d_{half}.weight" for half in "xz"),
    "levels.#.downsample.reduction.0.weight",
)
SCALES = ("levels.#.blocks.#.gamma_1", "levels.#.blocks.#.gamma_2")
HEAD = ("head.weight", "head.bias")
# MambaVision-L3 for 256 pixels, which is published and not registered
LARGE3_WIDTH = 2048
NUM_HEADS_UNKNOWN = (
    "no file says how many attention heads a MambaVision has, and none of embed_dim {width} is published: give those "
    "of its last two stages, as in --model.num_heads 8 16"
)
WINDOWS = (14, 7)  # of all other published models
LARGE3: dict[str, Any] = {"num_heads": (16, 32), "window_size": (16, 8), "img_size": 256}


def convert_mambavision(state: Mapping[str, Tensor]) -> Converted:
    """Names stay, sizes are read from the shapes, heads and windows are those published for the width."""
    # not at module level: the registry imports the models, which import the readers of checkpoints
    from map_vision.registry import default_cfgs

    width, stem = state["norm.weight"].shape[0], state["patch_embed.conv_down.0.weight"].shape[0]
    block = "levels.2.blocks.0."
    arguments: dict[str, Any] = {
        "embed_dim": width,
        "stem_dim": stem,
        "depths": tuple(depth(state, f"levels.{i}.blocks.") for i in range(4)),
        "mlp_ratio": state[f"{block}mlp.fc1.weight"].shape[0] / state[f"{block}mlp.fc1.weight"].shape[1],
        "layer_scale": 1e-5 if f"{block}gamma_1" in state else None,
        **published_settings(width),
    }
    heads, windows = arguments.get("num_heads"), arguments.get("window_size", WINDOWS)
    required_settings = {"num_heads": NUM_HEADS_UNKNOWN.format(width=width)} if heads is None else {}
    guesses = {"window_size": Guess("how large windows are (32 16 in files for 512 pixels)", windows)}
    if heads is not None:
        guesses |= guessed_heads(heads)
    model = nearest_pyramid(arguments)
    classes = class_names(len(state["head.bias"])) if "head.bias" in state else ()
    return Converted(
        dict(state),
        model,
        required_settings=required_settings,
        guessed_settings=guesses,
        holds="classifier" if classes else "encoder",
        classes=classes,
        preprocessing={**IMAGENET, "crop_pct": default_cfgs[model["name"]].default.crop_pct},
    )


def published_settings(width: int) -> dict[str, Any]:
    """The settings that no parameter shows, of the published pyramid with this width in its last stage."""
    from map_vision.registry import PYRAMIDS

    if width == LARGE3_WIDTH:
        return LARGE3
    heads = {settings["embed_dim"]: settings["num_heads"] for settings in PYRAMIDS.values()}
    return {"num_heads": heads[width]} if width in heads else {}


def nearest_pyramid(arguments: dict[str, Any]) -> dict[str, Any]:
    """The registered pyramid nearest to these arguments, and the arguments that differ from its own."""
    from map_vision.registry import PYRAMIDS

    def differences(name: str) -> dict[str, Any]:
        settings = {"mlp_ratio": 4.0, **PYRAMIDS[name]}
        return {key: value for key, value in arguments.items() if settings.get(key) != value}

    name = min(PYRAMIDS, key=lambda name: len(differences(name)))
    return {"name": name, **differences(name)}


MAMBAVISION = Family(
    "MambaVision",
    (*STEM, *BLOCKS, *(f"norm.{part}" for part in NORM)),
    (*SCALES, *HEAD),
    convert_mambavision,
)
