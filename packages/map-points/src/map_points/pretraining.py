"""Pretraining of point models: the objective over patches of clouds, as a task of the training engine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from map_core import MaskedAutoregression, ObjectiveConfig
from map_core.errors import UserError
from map_core.masking import hidden_count
from map_core.objective import own_region
from map_core.pretraining import ObjectiveTask, assemble_objective, inputs_to_draw, load_objective
from map_core.training import TrainingConfig
from map_points.data import PointData, PointDataConfig, collate_clouds, load_point_data
from map_points.factory import PointModelConfig, create_backbone, describe_model, described_model
from map_points.local_blocks import Mamba3DBlock
from map_points.losses import ChamferKind, masked_chamfer
from map_points.models import HybridNet3D
from map_points.orders import PointOrder
from map_points.patch_embedding import CoordinatePosition
from map_points.reconstruction import draw_reconstructions
from map_points.tokenizer import PointTokenizer, regions_after_mask
from map_points.weights import load_init


@dataclass
class PointObjectiveConfig(ObjectiveConfig):
    """The objective over patches of points.

    Args:
        num_regions: Groups of patches that are predicted one after the other.
        regions: "scan" cuts all patches in scan order before hiding; "after_mask" is the authors' variant,
            which ranks visible patches before hidden ones and cuts that ranking.
        region_order: Cut regions along this order instead of the scan order (to show what the mismatch
            costs); as scanned when not given.
        chamfer: l2 (squared distances) or l1.
    """

    decoder_dim: int = 384
    decoder_heads: int = 6
    num_regions: int = 8
    regions: Literal["scan", "after_mask"] = "scan"
    region_order: PointOrder | None = None
    chamfer: ChamferKind = "l2"

    def validate(self) -> None:
        super().validate()
        if self.num_regions < 1:
            raise UserError(f"objective.num_regions must be at least 1; got {self.num_regions}")
        if self.regions == "after_mask" and self.region_order is not None:
            raise UserError(
                "objective.region_order has no effect with objective.regions 'after_mask': drop one"
            )


@dataclass
class PretrainConfig:
    """Masked autoregressive pretraining.

    Args:
        data: Clouds; labels are not used.
        model: The encoder.
        objective: What is hidden and how it is reconstructed.
        training: Epochs, batch, learning rate and the like.
        init: Start the encoder from this run or weights file.
        resume: 'auto' continues the newest checkpoint in out; a path continues that one.
        out: Run directory.
    """

    data: PointDataConfig = field(default_factory=PointDataConfig)
    model: PointModelConfig = field(default_factory=PointModelConfig)
    objective: PointObjectiveConfig = field(default_factory=PointObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    resume: str | None = None
    out: str = "runs/pretrain"


def build_objective(model: HybridNet3D, config: PointObjectiveConfig) -> MaskedAutoregression:
    """Put a model's patch embedding and encoder under the objective; both stay shared with the model.

    Raises:
        UserError: a model with a class token, or fewer visible patches than the local norm pools.
    """
    config.validate()
    if model.encoder.registers is not None:
        raise UserError("pretraining has no class token: create the model with class_token=False")
    _check_visible(model, config)
    tokenizer = PointTokenizer(
        model.patch_embed,
        num_patches=model.num_patches,
        patch_size=model.patch_size,
        order=model.order,
        num_regions=config.num_regions,
        region_order=config.region_order,
    )
    return assemble_objective(
        tokenizer,
        model.encoder,
        config,
        position=CoordinatePosition(config.decoder_dim),
        target_dim=3 * model.patch_size,
        loss=partial(masked_chamfer, kind=config.chamfer),
        region_rule=regions_after_mask if config.regions == "after_mask" else own_region,
    )


def _check_visible(model: HybridNet3D, config: PointObjectiveConfig) -> None:
    highest = config.mask_ratio if config.mask_ratio_std is None else config.mask_ratio_bounds[1]
    visible = model.num_patches - hidden_count(highest, model.num_patches)
    for block in model.encoder.blocks:
        if isinstance(block, Mamba3DBlock) and block.local.neighbors > visible:
            raise UserError(
                f"model.neighbors ({block.local.neighbors}) exceeds the {visible} visible of "
                f"{model.num_patches} patches at ratio {highest}; lower it or objective.mask_ratio"
            )


class PretrainTask(ObjectiveTask):
    """Masked autoregressive pretraining on clouds.

    Args:
        config: The run's configuration.
        data: Opened clouds, from ``config.data`` when None.
    """

    collate: Callable[[list[Any]], Any] | None = staticmethod(collate_clouds)

    def __init__(self, config: PretrainConfig, data: PointData | None = None) -> None:
        self.config, self.settings = config, config.objective
        torch.manual_seed(config.training.seed)
        backbone = create_backbone(config.model)
        backbone.set_grad_checkpointing(config.training.activation_checkpointing)
        self.model = build_objective(backbone, config.objective)
        if config.init is not None:
            load_init(backbone, config.init)
        self.num_tokens = backbone.num_patches
        self.data = data or load_point_data(config.data, purpose="pretrain")
        self.train_data = self.data.train

    def describe(self, weights: str) -> dict[str, Any]:
        return describe_model(self.config.model, task=self.name, holds="encoder", weights=weights)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        assert isinstance(model, MaskedAutoregression)
        plain = self.data.train.as_training(False)
        draw_reconstructions(
            model, inputs_to_draw(plain), directory / "reconstructions.png", up_axis=plain.up_axis
        )


def load_pretraining(path: str | Path) -> MaskedAutoregression:
    """Rebuild the whole objective of a pretraining run; see :func:`map_core.pretraining.load_objective`."""

    def build(settings: PointObjectiveConfig) -> MaskedAutoregression:
        model = described_model(path)
        assert model is not None
        return build_objective(create_backbone(model), settings)

    objective, _ = load_objective(path, PointObjectiveConfig, build)
    return objective
