"""The description of a converted checkpoint: its registered model, its classes, how its images are prepared."""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import Tensor

from map_core.errors import UserError

IMAGENET: dict[str, Any] = {
    "channels": 3,
    "mean": list(IMAGENET_DEFAULT_MEAN),
    "std": list(IMAGENET_DEFAULT_STD),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_pct_small": 1.0,
}
PATCHES = "patch_embed.proj.weight"
DEFAULTS = {
    "wiring": "residual",
    "patch_size": 16,
    "in_chans": 3,
    "mlp_ratio": 2.0,
    "num_heads": 12,
    "global_pool": "register",
}


def nearest_model(prefix: str, **arguments: Any) -> dict[str, Any]:
    """The model section: the registered model nearest to these arguments, and the arguments that differ from its own.

    A model of the same width is preferred to one that differs in fewer settings.

    Args:
        prefix: Prefix of the candidates' names, such as ``map_vit_``.
        **arguments: Model arguments, image size included.
    """
    # not at module level: the registry imports the models, which import the readers of checkpoints
    from map_vision.registry import ARCHITECTURES

    def differences(name: str) -> dict[str, Any]:
        img_size, preset = ARCHITECTURES[name]
        settings = {**DEFAULTS, **preset, "img_size": (img_size, img_size)}
        return {key: value for key, value in arguments.items() if settings.get(key) != value}

    def distance(name: str) -> tuple[bool, int]:
        return "embed_dim" in differences(name), len(differences(name))

    name = min((name for name in ARCHITECTURES if name.startswith(prefix)), key=distance)
    return {"name": name, **differences(name)}


def as_table(positions: Tensor) -> Tensor:
    """Position embeddings of patches, in raster order, as a table of rows and columns.

    Raises:
        UserError: the patches do not form a square grid.
    """
    side = round(len(positions) ** 0.5)
    if side * side != len(positions):
        raise UserError(
            f"pos_embed has {len(positions)} patch positions, which do not form a square grid, and no key says how "
            "many rows they have: resample it to a square first, as models of other projects are read for square "
            "images alone"
        )
    return positions.reshape(side, side, -1)


def sizes(state: Mapping[str, Tensor], grid: int) -> dict[str, Any]:
    """The arguments that the patch embedding shows, and the image size for ``grid`` rows of patches."""
    width, channels, height, _ = state[PATCHES].shape
    side = grid * height
    return {"embed_dim": width, "in_chans": channels, "patch_size": height, "img_size": (side, side)}


def imagenet_preprocessing(state: Mapping[str, Tensor], **changes: float) -> dict[str, Any]:
    """How ImageNet's images are prepared, with ``changes``; nothing where patches have other than three channels."""
    return {**IMAGENET, **changes} if state[PATCHES].shape[1] == IMAGENET["channels"] else {}


def class_names(count: int) -> tuple[str, ...]:
    """Names of ImageNet's classes in their usual order if there are 1000, else numbers."""
    if count == 1000:
        return tuple(ImageNetInfo("imagenet-1k").label_names())
    return tuple(map(str, range(count)))
