"""From the ``model`` section of a configuration to a model."""

import inspect
from dataclasses import asdict, dataclass
from typing import Any

import map_core.tasks.trained_models
from map_core.positions import MlpActivation
from map_core.tasks.trained_models import Models
from map_points.blocks import ScanKind, SpreadKind
from map_points.checkpoints import FAMILIES
from map_points.conventions import CONVENTIONS, Conventions, PoolKind
from map_points.model import MODEL_NAMES, HybridNet3D, check_ranges, create_point_model, named_settings
from map_points.tokenizer import PointOrder
from map_points.weights import load_init


@dataclass
class PointModelConfig(map_core.tasks.trained_models.ModelConfig):
    """A point model by name, and changes to it; settings left out stay as the name defines them.

    Args:
        name: mamba3d, hybridnet3d, hybridnet3d_nano, or as published: mamba3d_authors, point_mae, point_mamba.
        embed_dim: Width.
        patch_hidden_dim: Width inside the patch embedding (256).
        in_chans: Values of a point: 3, and one for each of data.channels.
        layout: Layers with counts, such as '(MMMT)x4' or 'Mx12'; S is a scan alone.
        num_heads: Attention heads of Transformer blocks.
        mlp_ratio: MLP width of Transformer blocks over embed_dim; 0 for attention only.
        neighbors: Patches that the local norm pools.
        scan: Scan both ways, forward only, or by the original's channel flip.
        num_patches: Patches of a cloud.
        patch_size: Points of a patch.
        order: Scan order of the patches.
        second_order: Read all patches a second time in this order, as PointMamba; pretraining and probes read once.
        position_activation: Activation of the MLP that embeds coordinates: gelu, or silu as the original Mamba3D.
        repeat_position: Add positions before every block, not once.
        pool: What the classifier reads of the patches: max_plus_mean, max (Point-MAE), mean or mean_and_max.
        local_spread: What the local norm divides by: variance, or deviation as the original Mamba3D.
        local_class_token: The class token takes part in the local step, as in the original Mamba3D.
        skip_origin: Place no patch's centre within sqrt(1e-3) of the origin, as pointnet2_ops does.
        order_scale: Scale and shift tokens separately for each order, as PointMamba.
        head_dim: Width of the hidden layers in the classifier's head.
        drop_rate: Dropout in the classifier's head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
    """

    name: str = "hybridnet3d"
    embed_dim: int | None = None
    patch_hidden_dim: int | None = None
    in_chans: int | None = None
    layout: str | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    neighbors: int | None = None
    scan: ScanKind | None = None
    num_patches: int | None = None
    patch_size: int | None = None
    order: PointOrder | None = None
    second_order: PointOrder | None = None
    position_activation: MlpActivation | None = None
    repeat_position: bool | None = None
    pool: PoolKind | None = None
    local_spread: SpreadKind | None = None
    local_class_token: bool | None = None
    skip_origin: bool | None = None
    order_scale: bool | None = None
    head_dim: int | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first setting that is invalid in every model."""
        check_ranges(self)


PRETRAINING_FORM = {"class_token": False, "second_order": None}


def create_classifier(config: PointModelConfig, num_classes: int) -> HybridNet3D:
    """Create the classification form, with a head, and a class token where the named model has one."""
    return create_point_model(config.name, num_classes, **valid_arguments(config))


def create_backbone(config: PointModelConfig) -> HybridNet3D:
    """Create the form to pretrain: no class token, no head, patches read once."""
    return create_point_model(config.name, 0, **valid_arguments(config) | PRETRAINING_FORM)


def create_probed(config: PointModelConfig, num_classes: int) -> HybridNet3D:
    """Create the classifier that a linear probe gives: the pretrained form with a linear head."""
    return create_point_model(
        config.name, num_classes, linear_head=True, **valid_arguments(config) | PRETRAINING_FORM
    )


def valid_arguments(config: PointModelConfig) -> dict[str, Any]:
    """The model's keyword arguments that the config sets.

    Raises:
        UserError: one is out of range.
    """
    config.validate()
    return config.arguments()


def resolved(config: PointModelConfig) -> dict[str, Any]:
    """Every setting of a model."""
    parameters = inspect.signature(HybridNet3D).parameters.items()
    settings = {name: parameter.default for name, parameter in parameters} | asdict(Conventions())
    return settings | named_settings(config.name) | config.arguments()


# all other settings may differ between pretraining and what follows, such as more patches or more dropout
INHERITED_SETTINGS = (
    "name",
    "embed_dim",
    "patch_hidden_dim",
    "in_chans",
    "layout",
    "num_heads",
    "mlp_ratio",
    "neighbors",
    "scan",
    "patch_size",
    "order",
    "second_order",
    *CONVENTIONS,
)
INVISIBLE_SETTINGS = ("num_heads", "neighbors", "scan", "patch_size", "order", "second_order", *CONVENTIONS)
CLASSIFIER_SETTINGS = ("second_order", "pool", "local_class_token")
MODELS = Models(
    config=PointModelConfig,
    names=MODEL_NAMES,
    create_classifier=create_classifier,
    create_backbone=create_backbone,
    probed=lambda config: config,
    create_probed=create_probed,
    load_init=load_init,
    inherited_settings=INHERITED_SETTINGS,
    invisible_settings=INVISIBLE_SETTINGS,
    classifier_settings=CLASSIFIER_SETTINGS,
    inputs=("in_chans",),
    revealed_values={"scan": "forward"},  # its weights have no backward scan
    resolved=resolved,
    families=FAMILIES,
    elsewhere="map-vision for models of images",
)
