"""From the ``model`` section of a configuration to a model, and back from a run's description."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from map_core.weights import read_description, read_settings
from map_points.local_blocks import ScanKind
from map_points.models import HybridNet3D, create_point_model
from map_points.orders import PointOrder


@dataclass
class PointModelConfig:
    """A point model, and what to change in it; what is not given stays as the name says.

    Args:
        name: mamba3d or hybridnet3d.
        embed_dim: Width.
        patch_hidden_dim: Width inside the patch embedding (256).
        layout: Layers with counts, such as '(MMMT)x4' or 'Mx12'.
        num_heads: Attention heads of Transformer blocks.
        mlp_ratio: MLP width of Transformer blocks over embed_dim; 0 for attention only.
        neighbors: Patches that the local norm pools.
        scan: Scan both ways, forward only, or by the original's channel flip.
        num_patches: Patches of a cloud.
        patch_size: Points of a patch.
        order: Scan order of the patches.
        drop_rate: Dropout in the classifier's head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
    """

    name: str = "hybridnet3d"
    embed_dim: int | None = None
    patch_hidden_dim: int | None = None
    layout: str | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    neighbors: int | None = None
    scan: ScanKind | None = None
    num_patches: int | None = None
    patch_size: int | None = None
    order: PointOrder | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    def arguments(self) -> dict[str, Any]:
        """The model's keyword arguments that are given."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "name"}


def create_classifier(config: PointModelConfig, num_classes: int) -> HybridNet3D:
    """Create the classification form, with a class token and a head."""
    return create_point_model(config.name, num_classes, **config.arguments())


def create_backbone(config: PointModelConfig) -> HybridNet3D:
    """Create the form that is pretrained: no class token, no head."""
    return create_point_model(config.name, 0, class_token=False, **config.arguments())


def describe_model(config: PointModelConfig, **more: Any) -> dict[str, Any]:
    """The JSON description that makes a weights file readable without its recipe."""
    return {"name": config.name, "arguments": config.arguments(), **more}


def described_model(path: str | Path) -> PointModelConfig | None:
    """The model that wrote a run or weights file; None when the file has no description beside it.

    Raises:
        UserError: no weights there, or a description of arguments that this version does not know.
    """
    description = read_description(path)
    if "name" not in description:
        return None
    return read_settings(PointModelConfig, {"name": description["name"], **description["arguments"]}, path)
