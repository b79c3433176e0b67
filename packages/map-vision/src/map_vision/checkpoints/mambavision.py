"""MambaVision's published checkpoints, whose names are ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from map_core.tasks.families import Converted, Family, depth, guess
from map_vision.checkpoints.description import IMAGENET, class_names

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STEM = (
    "patch_embed.conv_down.0.weight",
    "patch_embed.conv_down.3.weight",
    *(f"patch_embed.conv_down.{place}.{part}" for place in (1, 4) for part in NORM),
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
HEADS_ARE_ASKED = (
    "no file says how many attention heads a MambaVision has, and none of embed_dim {width} is published: give those "
    "of its last two stages, as in --model.num_heads 8 16"
)
WINDOWS = (14, 7)  # of the others
LARGE3: dict[str, Any] = {"num_heads": (16, 32), "window_size": (16, 8), "img_size": 256}


def convert_mambavision(state: Mapping[str, Tensor]) -> Converted:
    """The names stay; the sizes are read off, heads and windows are those published of the width."""
    from map_vision.registry import default_cfgs  # which imports the models, and these what reads checkpoints

    dims, stem = state["norm.weight"].shape[0], state["patch_embed.conv_down.0.weight"].shape[0]
    first = "levels.2.blocks.0."
    arguments: dict[str, Any] = {
        "embed_dim": dims,
        "stem_dim": stem,
        "depths": tuple(depth(state, f"levels.{i}.blocks.") for i in range(4)),
        "mlp_ratio": state[f"{first}mlp.fc1.weight"].shape[0] / state[f"{first}mlp.fc1.weight"].shape[1],
        "layer_scale": 1e-5 if f"{first}gamma_1" in state else None,
        **published(dims),
    }
    heads, windows = arguments.get("num_heads"), arguments.get("window_size", WINDOWS)
    asked = {"num_heads": HEADS_ARE_ASKED.format(width=dims)} if heads is None else {}
    guessed = guess("window_size", "how large windows are (32 16 in files for 512 pixels)", in_words(windows))
    if heads is not None:
        guessed |= guess("num_heads", "how many attention heads there are", in_words(heads))
    model = nearest(arguments)
    classes = class_names(len(state["head.bias"])) if "head.bias" in state else ()
    return Converted(
        dict(state),
        model,
        asked=asked,
        guessed=guessed,
        holds="classifier" if classes else "encoder",
        classes=classes,
        prepared={**IMAGENET, "crop_pct": default_cfgs[model["name"]].default.crop_pct},
    )


def in_words(of_stages: tuple[int, int]) -> str:
    """A setting of the last two stages as the command line has it."""
    return " ".join(map(str, of_stages))


def published(width: int) -> dict[str, Any]:
    """What no parameter shows of the published pyramid whose last stage has this width."""
    from map_vision.registry import PYRAMIDS

    if width == LARGE3_WIDTH:
        return LARGE3
    heads = {theirs["embed_dim"]: theirs["num_heads"] for theirs in PYRAMIDS.values()}
    return {"num_heads": heads[width]} if width in heads else {}


def nearest(arguments: dict[str, Any]) -> dict[str, Any]:
    """The registered pyramid that is most like these arguments, and what it has otherwise."""
    from map_vision.registry import PYRAMIDS

    def changed(name: str) -> dict[str, Any]:
        has = {"mlp_ratio": 4.0, **PYRAMIDS[name]}
        return {key: value for key, value in arguments.items() if has.get(key) != value}

    name = min(PYRAMIDS, key=lambda name: len(changed(name)))
    return {"name": name, **changed(name)}


MAMBAVISION = Family(
    "MambaVision",
    (*STEM, *BLOCKS, *(f"norm.{part}" for part in NORM)),
    (*SCALES, *HEAD),
    convert_mambavision,
)
