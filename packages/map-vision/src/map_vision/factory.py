"""Create a model from the ``model`` section of a configuration."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Literal

import timm
from timm.layers import to_2tuple
from torch import nn

import map_core.tasks.trained_models
from map_core.encoder import Wiring
from map_core.errors import UserError, unknown_name
from map_core.layout import expand_layout
from map_core.orders import ScanOrder
from map_core.positions import PositionKind
from map_core.ranges import check, refuse_without_effect
from map_core.tasks.trained_models import NO_CHANGES, Models
from map_vision.checkpoints import FAMILIES
from map_vision.pretrained import SOURCES, cfg_from_description
from map_vision.registry import MODEL_NAMES, PYRAMIDS, default_cfgs, model_class, named_settings
from map_vision.weights import load_init


@dataclass
class ModelConfig(map_core.tasks.trained_models.ModelConfig):
    """A registered model and the settings to override; the others keep the values of that model.

    Args:
        name: Registered model; `map-vision info` lists them.
        img_size: Height and width in pixels.
        patch_size: Height and width of a patch in pixels.
        in_chans: Image channels: 3, 1 for grayscale, or any number of stored values (data.pixels).
        layout: Layers with counts, such as '(MMMT)x8', 'Mx24,Tx8', 'Mx32' or 'Tx32'; F scans four ways, as ARM.
        embed_dim: Width; for a pyramid, the width of its last stage.
        num_heads: Attention heads of Transformer blocks; a pyramid takes one number for each of its last two stages.
        mlp_ratio: MLP width of Transformer blocks over embed_dim; 0 for attention only.
        stem_dim: Channels inside a pyramid's stem.
        depths: Blocks in each stage of a pyramid.
        window_size: Rows and columns of a window, in each of the last two stages of a pyramid.
        layer_scale: Initial layer scale of the blocks in a pyramid's last two stages.
        num_registers: Global tokens of the classifier.
        neck_reduction: Factor by which the neck reduces each register.
        global_pool: What the classifier reads, 'register' or 'avg'.
        order: Scan order of the patches: row, column, snake, block, z_order, hilbert or random.
        block_size: Rows and columns of patches in a block, for order block.
        position: Position embeddings: learned, sincos, fourier or mlp.
        bidirectional: Scan both ways in Mamba blocks.
        wiring: What a Transformer block reads and adds to: residual, or branch as in the code of MAP's authors.
        pool_norm: Normalise the mean patch, as finetuned MAE does, instead of every patch.
        patch_stride: Step from one patch to the next in pixels, for overlapping patches; for classification only.
        keep_registers: Pretrain and probe with the registers too, such as a class token; they must come first.
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
    global_pool: Literal["register", "avg"] | None = None
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
        """Raise a :class:`UserError` for the first setting that is out of range, or that the model never reads."""
        self.check_ranges()
        if self.name not in MODEL_NAMES or self.name in PYRAMIDS:  # checked when the model is created
            return
        settings = resolved(self)
        if (order := settings["order"]) != "block":
            refuse_without_effect("model", self, "block_size", because=f"model.order {order}")
        if (pool := settings["global_pool"]) != "register":
            refuse_without_effect("model", self, "neck_reduction", because=f"model.global_pool {pool!r}")

    def check_ranges(self) -> None:
        """Raise a :class:`UserError` for the first setting that is out of range."""
        check("model", self, **RANGES)


SETTINGS_OF_LAYERS = {"num_heads": "T", "mlp_ratio": "T", "bidirectional": "M"}
AT_LEAST_ONE = (
    "img_size", "patch_size", "patch_stride", "in_chans", "embed_dim", "num_heads", "stem_dim", "depths", "window_size",
    "neck_reduction", "block_size",
)  # fmt: skip
RANGES = {
    "at_least_one": AT_LEAST_ONE,
    "not_negative": ("mlp_ratio", "num_registers"),
    "positive": ("layer_scale",),
    "shares_below_one": ("drop_rate", "drop_path_rate"),
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the numbers that a model's entry point is called with; the model itself checks the rest.

    Raises:
        UserError: one that is out of range, see :data:`RANGES`.
    """
    numbers = SimpleNamespace(**{key: value for key, value in arguments.items() if _is_numeric(value)})
    ranges = {rule: [name for name in names if hasattr(numbers, name)] for rule, names in RANGES.items()}
    check("model", numbers, **ranges)


def _is_numeric(value: Any) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(number, int | float) for number in numbers)


def input_size(config: ModelConfig) -> tuple[int, int, int]:
    """Channels, height and width of the model's images, looked up by its name without building it."""
    checked_name(config)
    chans, *size = default_cfgs[config.name].default.input_size
    height, width = to_2tuple(config.img_size or tuple(size))
    return config.in_chans or chans, height, width


def checked_name(config: ModelConfig) -> str:
    """The model's name.

    Raises:
        UserError: an unknown name, with near matches.
    """
    if config.name not in MODEL_NAMES:
        raise unknown_name("model.name", config.name, MODEL_NAMES)
    return config.name


def create_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Create the model through ``timm.create_model``.

    Raises:
        UserError: an unknown name (with near matches), settings that the model does not have, or arguments that do
            not fit together.
    """
    return timm.create_model(checked_name(config), num_classes=num_classes, **_arguments(config))


def without_registers(config: ModelConfig) -> ModelConfig:
    """The form that is pretrained and probed: mean-pooled patches, without registers unless ``keep_registers``."""
    changes: dict[str, Any] = {"global_pool": "avg"}
    if config.keep_registers:
        changes["global_pool"] = config.global_pool or "avg"
    elif config.name not in PYRAMIDS:
        changes["num_registers"] = 0
    return ModelConfig(config.name, **{**config.arguments(), **changes})


def create_backbone(config: ModelConfig) -> nn.Module:
    """Create the form that is pretrained and probed, see :func:`without_registers`, without a head."""
    checked_name(config)
    arguments = _arguments(without_registers(config))
    if config.name in PYRAMIDS:  # it cannot drop tokens: it learns a mask token that hides them
        arguments["mask_token"] = True
    return timm.create_model(config.name, num_classes=0, **arguments)


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """The model's keyword arguments that the configuration sets.

    Raises:
        UserError: one that the model does not have, or one that is out of range.
    """
    config.check_ranges()  # a setting without effect must not keep a trained model from being loaded
    arguments = config.arguments()
    if arguments.pop("keep_registers", None) and config.name in PYRAMIDS:  # elsewhere it chooses the form
        raise UserError(f"model.keep_registers of {config.name}: it has no registers to keep; leave it out")
    parameters = inspect.signature(model_class(config.name)).parameters
    for name, value in arguments.items():
        if name not in parameters:
            settings = [field.name for field in fields(config) if field.name in parameters]
            raise UserError(
                f"model.{name} ({value}) is not a setting of {config.name}; it has {', '.join(settings)}: leave it out"
            )
    if config.name not in PYRAMIDS and isinstance(config.num_heads, tuple):
        raise UserError(f"model.num_heads of {config.name} is one number; got {config.num_heads}")
    if config.name in PYRAMIDS and config.global_pool == "register":
        raise UserError(f"model.global_pool of {config.name} is 'avg': it has no registers to pool")
    return arguments


def resolved(config: ModelConfig, changes: Mapping[str, Any] = NO_CHANGES) -> dict[str, Any]:
    """Every setting of a model, each written in one way: None where no layer or order of the model reads it.

    Args:
        config: The ``model`` section.
        changes: Further arguments of the model, also some that have no field there.
    """
    parameters = inspect.signature(model_class(checked_name(config))).parameters
    settings = {name: parameter.default for name, parameter in parameters.items()}
    settings |= named_settings(config.name) | config.arguments() | dict(changes)
    if settings.get("num_registers") == 0:
        settings["spread_registers"] = None
    if settings.get("order") != "block":
        settings["block_size"] = None
    if settings.get("patch_stride") is not None:
        stride, patch = to_2tuple(settings["patch_stride"]), to_2tuple(settings["patch_size"])
        settings["patch_stride"] = None if stride == patch else stride
    if config.name in PYRAMIDS:  # one number is for both of the last stages
        settings |= {name: to_2tuple(settings[name]) for name in ("num_heads", "window_size")}
    else:
        kinds = expand_layout(settings["layout"])
        settings |= {name: None for name, kind in SETTINGS_OF_LAYERS.items() if kind not in kinds}
    return settings


def timm_config(config: ModelConfig, description: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` from which timm creates a described model and prepares its images."""
    exported = config if description.get("classes") else without_registers(config)
    arguments = {key: value for key, value in exported.arguments().items() if key != "keep_registers"}
    # never empty: timm passes pretrained_model_args on only where config.json has model_args
    arguments.setdefault("global_pool", resolved(exported)["global_pool"])
    base, size = default_cfgs[config.name].default, input_size(config)
    weights_cfg = cfg_from_description(description, max(size[1:]))
    return {
        "architecture": config.name,
        "num_classes": weights_cfg["num_classes"],
        "model_args": arguments,
        **({"label_names": weights_cfg.pop("label_names")} if "label_names" in weights_cfg else {}),
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
            **weights_cfg,
        },
    }


def set_pretrained_cfg(model: nn.Module, config: ModelConfig, description: Mapping[str, Any]) -> None:
    """Set a loaded model's ``pretrained_cfg`` to that of its weights, as timm reads it from a ``config.json``."""
    config_json, registered_cfg = timm_config(config, description), getattr(model, "pretrained_cfg", {})
    cfg = {key: value for key, value in registered_cfg.items() if key not in (*SOURCES, "label_names")}
    cfg |= config_json["pretrained_cfg"]
    if "label_names" in config_json:
        cfg["label_names"] = config_json["label_names"]
    for name in ("pretrained_cfg", "default_cfg"):  # the latter is timm's older name
        setattr(model, name, cfg)


# settings that change what the weights compute without changing any shape
INVISIBLE_SETTINGS = ("num_heads", "wiring", "order", "block_size", "position", "window_size", "patch_stride")
CLASSIFIER_SETTINGS = ("global_pool", "pool_norm")  # the same of classifiers; an encoder goes with any value
UNCONFIGURED_SETTINGS = ("norm_eps", "spread_registers")  # the same, which only timm.create_model changes
MODELS = Models(
    config=ModelConfig,
    names=MODEL_NAMES,
    create_classifier=create_model,
    create_backbone=create_backbone,
    probed=without_registers,
    create_probed=create_model,
    load_init=load_init,
    invisible_settings=(*INVISIBLE_SETTINGS, *CLASSIFIER_SETTINGS),
    classifier_settings=CLASSIFIER_SETTINGS,
    revealed_values={"num_heads": None},  # without attention there is none
    inputs=("in_chans",),
    resolved=resolved,
    families=FAMILIES,
    on_load=set_pretrained_cfg,
    elsewhere="map-points for models of clouds",
)
read_model_config = MODELS.read_model_config
