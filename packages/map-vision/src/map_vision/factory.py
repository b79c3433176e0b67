"""From the ``model`` section of a configuration to a model."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import timm
from timm.layers import to_2tuple
from torch import nn

import map_core.tasks.trained_models
from map_core.encoder import Wiring
from map_core.errors import UserError, near_matches
from map_core.orders import ScanOrder
from map_core.positions import PositionKind
from map_core.ranges import check, refuse_without_effect
from map_core.tasks.trained_models import Models
from map_vision.checkpoints import FAMILIES
from map_vision.model import GlobalPool
from map_vision.pretrained import SOURCES, described_cfg
from map_vision.registry import MODEL_NAMES, PYRAMIDS, default_cfgs, model_class, named_settings
from map_vision.weights import load_init


@dataclass
class ModelConfig(map_core.tasks.trained_models.ModelConfig):
    """A registered model, and what to change in it; what is not given stays as the name says.

    Args:
        name: Registered model; `map-vision info` lists them.
        img_size: Height and width in pixels.
        patch_size: Height and width of a patch in pixels.
        in_chans: Image channels: 3, 1 for grayscale, or any number of stored values (data.pixels).
        layout: Layers with counts, such as '(MMMT)x8', 'Mx24,Tx8', 'Mx32' or 'Tx32'; F scans four ways, as ARM.
        embed_dim: Width; of a pyramid, that of its last stage.
        num_heads: Attention heads of Transformer blocks; a pyramid takes one number for each of its last two stages.
        mlp_ratio: MLP width of Transformer blocks over embed_dim; 0 for attention only.
        stem_dim: Channels inside the stem of a pyramid.
        depths: Blocks of each stage of a pyramid.
        window_size: Rows and columns of a window, in each of the last two stages of a pyramid.
        layer_scale: Initial scale of what the blocks of a pyramid's last two stages add.
        num_registers: Global tokens of the classifier.
        neck_reduction: Factor by which the neck reduces each register.
        global_pool: What the classifier reads, 'register' or 'avg'.
        order: Scan order of the patches: row, column, snake, block, z_order, hilbert or random.
        block_size: Rows and columns of patches of a block, for order block.
        position: Positions: learned, sincos, fourier or mlp.
        bidirectional: Scan both ways in Mamba blocks.
        wiring: What a Transformer block reads and adds to: residual, or branch as in the code of MAP's authors.
        pool_norm: Normalise the mean patch, as finetuned MAE does, instead of every patch.
        patch_stride: Distance of patches in pixels where they overlap; for classification only.
        keep_registers: Pretrain and probe with the registers too, which must stand in front: a class token.
        drop_rate: Dropout before the classifier's head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
    """

    name: str = "hybridnet_base_patch16_224"
    img_size: int | tuple[int, int] | None = None
    patch_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    layout: str | None = None
    embed_dim: int | None = None
    num_heads: int | tuple[int, int] | None = None
    mlp_ratio: float | None = None
    stem_dim: int | None = None
    depths: tuple[int, int, int, int] | None = None
    window_size: tuple[int, int] | None = None
    layer_scale: float | None = None
    num_registers: int | None = None
    neck_reduction: int | None = None
    global_pool: GlobalPool | None = None
    order: ScanOrder | None = None
    block_size: tuple[int, int] | None = None
    position: PositionKind | None = None
    bidirectional: bool | None = None
    wiring: Wiring | None = None
    pool_norm: bool | None = None
    patch_stride: int | tuple[int, int] | None = None
    keep_registers: bool | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first setting that no model can have, or that its model never reads."""
        self.check_ranges()
        if self.name not in MODEL_NAMES or self.name in PYRAMIDS:  # which is told when one is made
            return
        settings = resolved(self)
        if (order := settings["order"]) != "block":
            refuse_without_effect("model", self, "block_size", because=f"model.order {order}")
        if (pool := settings["global_pool"]) != "register":
            refuse_without_effect("model", self, "neck_reduction", because=f"model.global_pool {pool!r}")

    def check_ranges(self) -> None:
        """Raise a :class:`UserError` for the first setting that no model can have."""
        check(
            "model",
            self,
            at_least_one=AT_LEAST_ONE,
            not_negative=("mlp_ratio", "num_registers"),
            positive=("layer_scale",),
            shares_below_one=("drop_rate", "drop_path_rate"),
        )


AT_LEAST_ONE = (
    "img_size", "patch_size", "patch_stride", "in_chans", "embed_dim", "num_heads", "stem_dim", "depths", "window_size",
    "neck_reduction", "block_size",
)  # fmt: skip


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check numbers that a model's name is called with; what more a model asks of them is its own to say.

    Raises:
        UserError: a number below 1 of what there must be one of.
    """
    numbers = {
        key: value for key, value in arguments.items() if key in AT_LEAST_ONE and isinstance(value, int)
    }
    check("model", SimpleNamespace(**numbers), at_least_one=tuple(numbers))


def input_size(config: ModelConfig) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model takes, read from its name without building it."""
    known_name(config)
    chans, *size = default_cfgs[config.name].default.input_size
    height, width = to_2tuple(config.img_size or tuple(size))
    return config.in_chans or chans, height, width


def known_name(config: ModelConfig) -> str:
    """The model's name.

    Raises:
        UserError: it is unknown, with near matches.
    """
    if config.name not in MODEL_NAMES:
        raise UserError(f"model.name {config.name!r} is unknown; {near_matches(config.name, MODEL_NAMES)}")
    return config.name


def create_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Create the model through ``timm.create_model``.

    Raises:
        UserError: an unknown name (with near matches), settings that the model does not have, or arguments that do
            not fit together.
    """
    return timm.create_model(known_name(config), num_classes=num_classes, **_arguments(config))


def without_registers(config: ModelConfig) -> ModelConfig:
    """The form that is pretrained and probed: mean-pooled patches, and no registers unless they are to be kept."""
    changes: dict[str, Any] = {"global_pool": "avg"}
    if config.keep_registers:
        changes["global_pool"] = config.global_pool or "avg"
    elif config.name not in PYRAMIDS:
        changes["num_registers"] = 0
    return ModelConfig(config.name, **{**config.arguments(), **changes})


def create_backbone(config: ModelConfig) -> nn.Module:
    """Create the form that is pretrained and probed, see :func:`without_registers`, without head."""
    known_name(config)
    # a pyramid drops no tokens: it learns what hides them
    hiding = {"mask_token": True} if config.name in PYRAMIDS else {}
    return timm.create_model(config.name, num_classes=0, **_arguments(without_registers(config)), **hiding)


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """The model's keyword arguments that are given.

    Raises:
        UserError: it does not have one of them, or one is out of its range.
    """
    config.check_ranges()  # settings without effect are no reason to keep a trained model from use
    arguments = config.arguments()
    if arguments.pop("keep_registers", None) and config.name in PYRAMIDS:  # else it says which form is made
        raise UserError(f"model.keep_registers of {config.name}: it has no registers to keep; leave it out")
    has = inspect.signature(model_class(config.name)).parameters
    for name, value in arguments.items():
        if name not in has:
            known = [field.name for field in fields(config) if field.name in has]
            raise UserError(
                f"model.{name} ({value}) is no setting of {config.name}; it has {', '.join(known)}: leave it out"
            )
    if config.name not in PYRAMIDS and isinstance(config.num_heads, tuple):
        raise UserError(f"model.num_heads of {config.name} is one number; got {config.num_heads}")
    if config.name in PYRAMIDS and config.global_pool == "register":
        raise UserError(f"model.global_pool of {config.name} is 'avg' or '': it has no registers to pool")
    return arguments


def resolved(config: ModelConfig) -> dict[str, Any]:
    """Every setting of a model; the size of blocks where it scans by blocks alone."""
    known = inspect.signature(model_class(known_name(config))).parameters.items()
    settings = {name: entry.default for name, entry in known}
    settings |= named_settings(config.name) | config.arguments()
    if settings.get("order") != "block":
        settings["block_size"] = None
    if settings.get("patch_stride") is not None:
        stride, patch = to_2tuple(settings["patch_stride"]), to_2tuple(settings["patch_size"])
        settings["patch_stride"] = None if stride == patch else stride
    return settings


def timm_config(config: ModelConfig, description: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` from which timm makes a described model and prepares its images."""
    form = config if description.get("classes") else without_registers(config)
    arguments = {key: value for key, value in form.arguments().items() if key != "keep_registers"}
    # never empty: timm tells of no source's arguments where a card has none
    arguments.setdefault("global_pool", resolved(form)["global_pool"])
    base, size = default_cfgs[config.name].default, input_size(config)
    said = described_cfg(description, max(size[1:]))
    return {
        "architecture": config.name,
        "num_classes": said["num_classes"],
        "model_args": arguments,
        **({"label_names": said.pop("label_names")} if "label_names" in said else {}),
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": False,
            "pool_size": None,
            "crop_pct": base.crop_pct,
            "interpolation": base.interpolation,
            "mean": base.mean,
            "std": base.std,
            "first_conv": base.first_conv,
            "classifier": base.classifier,
            **said,
        },
    }


def tell_timm(model: nn.Module, config: ModelConfig, description: Mapping[str, Any]) -> None:
    """Make the ``pretrained_cfg`` of a loaded model that of its weights, as timm reads it off a card of them."""
    said, of_name = timm_config(config, description), getattr(model, "pretrained_cfg", {})
    cfg = {key: value for key, value in of_name.items() if key not in (*SOURCES, "label_names")}
    cfg |= said["pretrained_cfg"]
    if "label_names" in said:
        cfg["label_names"] = said["label_names"]
    for name in ("pretrained_cfg", "default_cfg"):  # the latter is timm's older name
        setattr(model, name, cfg)


UNSEEN = ("num_heads", "wiring", "order", "block_size", "position", "window_size", "patch_stride")
MODELS = Models(
    config=ModelConfig,
    names=MODEL_NAMES,
    create_classifier=create_model,
    create_backbone=create_backbone,
    probed=without_registers,
    create_probed=create_model,
    load_init=load_init,
    unseen=UNSEEN,
    inputs=("in_chans",),
    resolved=resolved,
    families=FAMILIES,
    loaded=tell_timm,
)
described_model = MODELS.described
