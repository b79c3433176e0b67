"""From the ``model`` section of a configuration to a model, and back from a run's description."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm

from map_core.errors import UserError, near_matches
from map_core.weights import read_description, read_settings
from map_vision.hybridnet import GlobalPool, HybridNet
from map_vision.models import MODEL_NAMES
from map_vision.positions import PositionKind
from map_vision.scan_orders import ScanOrder


@dataclass
class ModelConfig:
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
        order: Scan order of the patches.
        position: Learned or fixed sin-cos positions.
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
    position: PositionKind | None = None
    bidirectional: bool | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    def arguments(self) -> dict[str, Any]:
        """The model's keyword arguments that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "name"}


def create_model(config: ModelConfig, num_classes: int) -> HybridNet:
    """Create the model through ``timm.create_model``.

    Raises:
        UserError: an unknown name (with near matches), or arguments that do not fit together.
    """
    if config.name not in MODEL_NAMES:
        raise UserError(f"model {config.name!r} is unknown; {near_matches(config.name, MODEL_NAMES)}")
    return timm.create_model(config.name, num_classes=num_classes, **config.arguments())


def create_backbone(config: ModelConfig) -> HybridNet:
    """Create the form that is pretrained and probed: no registers, no head, mean-pooled patches."""
    arguments = {**config.arguments(), "num_registers": 0, "global_pool": "avg"}
    return create_model(ModelConfig(config.name, **arguments), num_classes=0)


def describe_model(config: ModelConfig, **more: Any) -> dict[str, Any]:
    """The JSON description that makes a weights file readable without its recipe."""
    return {"name": config.name, "arguments": config.arguments(), **more}


def described_model(path: str | Path) -> ModelConfig | None:
    """The model that wrote a run or weights file; None when the file has no description beside it.

    Raises:
        UserError: a description of arguments that this version does not know.
    """
    description = read_description(path)
    if "name" not in description:
        return None
    return read_settings(ModelConfig, {"name": description["name"], **description["arguments"]}, path)
