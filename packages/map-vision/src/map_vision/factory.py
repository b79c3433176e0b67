"""From the ``model`` section of a configuration to a model."""

from dataclasses import dataclass

import timm
from timm.layers import to_2tuple

import map_core.tasks.trained_models
from map_core.errors import UserError, near_matches
from map_core.orders import ScanOrder
from map_core.positions import PositionKind
from map_core.tasks.trained_models import Models
from map_vision.model import GlobalPool, HybridNet
from map_vision.registry import MODEL_NAMES, default_cfgs
from map_vision.weights import load_init


@dataclass
class ModelConfig(map_core.tasks.trained_models.ModelConfig):
    """A registered model, and what to change in it; what is not given stays as the name says.

    Args:
        name: Registered model; `map-vision info` lists them.
        img_size: Height and width in pixels.
        patch_size: Height and width of a patch in pixels.
        in_chans: Image channels: 3, or 1 for grayscale.
        layout: Layers with counts, such as '(MMMT)x8', 'Mx24,Tx8', 'Mx32' or 'Tx32'.
        embed_dim: Width.
        num_heads: Attention heads of Transformer blocks.
        mlp_ratio: MLP width of Transformer blocks over embed_dim; 0 for attention only.
        num_registers: Global tokens of the classifier.
        neck_reduction: Factor by which the neck reduces each register.
        global_pool: What the classifier reads, 'register' or 'avg'.
        order: Scan order of the patches: row, column, snake, block, z_order, hilbert or random.
        block_size: Rows and columns of patches of a block, for order block.
        position: Positions: learned, sincos, fourier or mlp.
        bidirectional: Scan both ways in Mamba blocks.
        drop_rate: Dropout before the classifier's head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
    """

    name: str = "hybridnet_base_patch16_224"
    img_size: int | tuple[int, int] | None = None
    patch_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    layout: str | None = None
    embed_dim: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    num_registers: int | None = None
    neck_reduction: int | None = None
    global_pool: GlobalPool | None = None
    order: ScanOrder | None = None
    block_size: tuple[int, int] | None = None
    position: PositionKind | None = None
    bidirectional: bool | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None


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
        raise UserError(f"model {config.name!r} is unknown; {near_matches(config.name, MODEL_NAMES)}")
    return config.name


def create_model(config: ModelConfig, num_classes: int) -> HybridNet:
    """Create the model through ``timm.create_model``.

    Raises:
        UserError: an unknown name (with near matches), or arguments that do not fit together.
    """
    return timm.create_model(known_name(config), num_classes=num_classes, **config.arguments())


def without_registers(config: ModelConfig) -> ModelConfig:
    """The form that is pretrained and probed: no registers, mean-pooled patches."""
    arguments = {**config.arguments(), "num_registers": 0, "global_pool": "avg"}
    return ModelConfig(config.name, **arguments)


def create_backbone(config: ModelConfig) -> HybridNet:
    """Create the form that is pretrained and probed: no registers, no head, mean-pooled patches."""
    return create_model(without_registers(config), num_classes=0)


MODELS = Models(
    config=ModelConfig,
    names=MODEL_NAMES,
    create_classifier=create_model,
    create_backbone=create_backbone,
    probed=without_registers,
    create_probed=create_model,
    load_init=load_init,
)
described_model = MODELS.described
