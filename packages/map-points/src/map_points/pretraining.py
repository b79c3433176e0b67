"""Objectives over patches of clouds: the settings of recipes, and the parts of an objective that only clouds define."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from map_core import ConsecutiveRegions, RegionRule, RegionsAfterMask
from map_core.data.views import TwoViews
from map_core.errors import UserError
from map_core.masking import hidden_count
from map_core.objective import CoarserTargets, Loss, Objective, ReconstructingObjective
from map_core.objectives.autoregression import Autoregression, AutoregressionConfig
from map_core.objectives.contrastive import ContrastiveConfig
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.objectives.settings import MaskingSettings, ObjectiveSettings, Settings
from map_core.objectives.simmim import SimMIMConfig
from map_core.positions import MlpPosition
from map_core.tasks.domain import OpenedData
from map_core.tokens import Tokens
from map_points.blocks import Mamba3DBlock
from map_points.data import CloudSamples
from map_points.losses import ChamferKind, Matching, masked_distance
from map_points.model import HybridNet3D
from map_points.targets import WiderPatches
from map_points.tokenizer import PointOrder, order_of_centers

log = logging.getLogger(__name__)


@dataclass
class PointTargets(Settings):
    """What is predicted of a patch.

    Args:
        chamfer: l2 (squared distances) or l1.
        matching: Compare each point with the nearest one (Chamfer, as published), or by transport, so that
            predicted points spread over the patch instead of bunching at its centre.
    """

    chamfer: ChamferKind = "l2"
    matching: Matching = "nearest"

    def target_dim(self, backbone: HybridNet3D) -> int:
        return 3 * backbone.patch_size

    def make_loss(self) -> Loss:
        return partial(masked_distance, kind=self.chamfer, matching=self.matching)

    def make_coarser_targets(self, backbone: HybridNet3D, scales: tuple[int, ...]) -> CoarserTargets:
        return WiderPatches(backbone.patch_size, scales)


@dataclass
class PointRegions(Settings):
    """What is predicted together.

    Args:
        num_regions: Groups of patches that are predicted one after the other.
        region_order: Cut regions along this order instead of the scan order (to show what the mismatch
            costs); the scan order when not given.
    """

    num_regions: int = 8
    region_order: PointOrder | None = None

    def validate(self) -> None:
        super().validate()
        if self.num_regions < 1:
            raise UserError(f"objective.num_regions must be at least 1; got {self.num_regions}")

    def region_rule(self, order: PointOrder) -> RegionRule:
        """Which patches a model that scans in ``order`` predicts together."""
        scan_order = None if self.region_order in (None, order) else order_of_centers(self.region_order)
        return ConsecutiveRegions(self.num_regions, scan_order)

    def make_regions(self, backbone: HybridNet3D) -> RegionRule:
        if self.num_regions > backbone.num_patches:
            raise UserError(
                f"objective.num_regions ({self.num_regions}) must lie between 1 and the number of patches "
                f"({backbone.num_patches})"
            )
        return self.region_rule(backbone.order)

    def make_position(self, backbone: HybridNet3D, embed_dim: int) -> nn.Module:
        return MlpPosition(embed_dim)


@dataclass
class PointObjectiveConfig(PointTargets, PointRegions, MaskedAutoregressionConfig):
    """Masked autoregression over patches of points.

    Args:
        regions: "scan" cuts all patches in scan order before hiding; "after_mask" is the authors' variant,
            which ranks visible patches before hidden ones and cuts that ranking.
    """

    decoder_dim: int = 384
    decoder_heads: int = 6
    regions: Literal["scan", "after_mask"] = "scan"

    def validate(self) -> None:
        super().validate()
        if self.regions == "after_mask" and self.region_order is not None:
            raise UserError(
                "objective.region_order has no effect with objective.regions 'after_mask': drop one"
            )
        if self.regions == "after_mask" and self.encoder == "causal":
            raise UserError(
                "objective.regions 'after_mask' exist only once patches are hidden, too late for objective.encoder "
                "'causal': use regions 'scan'"
            )

    def region_rule(self, order: PointOrder) -> RegionRule:
        if self.regions == "after_mask":
            return RegionsAfterMask(self.num_regions)
        return super().region_rule(order)


@dataclass
class PointAutoregressionConfig(PointTargets, PointRegions, AutoregressionConfig):
    """Autoregression over patches of points."""

    decoder_dim: int = 384
    decoder_heads: int = 6


@dataclass
class PointSimMIMConfig(PointTargets, SimMIMConfig):
    """SimMIM over patches of points: Chamfer distance in place of L1."""

    chamfer: ChamferKind = "l1"

    def validate(self) -> None:
        super().validate()
        if self.mask_unit != 1:
            raise UserError(
                f"objective.mask_unit of clouds is 1, as patches tile no grid; got {self.mask_unit}"
            )


@dataclass
class PointContrastiveConfig(ContrastiveConfig):
    """Contrastive learning of clouds; data.augmentation makes their two views."""

    hidden_dim: int | None = 1024

    def make_views(self, data: OpenedData) -> TwoViews:
        samples = data.train
        if isinstance(samples, CloudSamples) and samples.config.augmentation == "none":
            raise UserError(
                "the two views of a cloud would be the same but for the points drawn: choose a data.augmentation, such "
                "as rotate_scale_translate"
            )
        return TwoViews(samples)


OBJECTIVES: Mapping[str, type[ObjectiveSettings]] = {
    settings.method: settings
    for settings in (
        PointObjectiveConfig,
        PointAutoregressionConfig,
        PointSimMIMConfig,
        PointContrastiveConfig,
    )
}


def build_objective(backbone: nn.Module, config: Any) -> Any:
    """Build the objective that a section describes around a model, which is not copied.

    A head, which pretraining gives no gradient, is frozen in the model. To finetune it, create a model anew and load
    ``objective.backbone.state_dict()``.

    Raises:
        UserError: it is no model of clouds, has a class token or predicts patches that it reads in two orders; some
            step could not hide or predict its patches; or fewer of them stay visible than the local norm pools.
    """
    config.validate()
    if not isinstance(backbone, HybridNet3D):
        raise UserError(
            f"{type(backbone).__name__} is not a model of clouds: create one with map_points.create_point_model"
        )
    if backbone.encoder.registers is not None:
        raise UserError("pretraining has no class token: create the model with class_token=False")
    backbone.head.requires_grad_(False)  # pretraining does not classify: it would get no gradient
    objective: Objective = config.build(backbone)
    tokens = _blank_tokens(backbone.num_patches)
    if isinstance(objective, ReconstructingObjective):
        backbone.require_one_order()
        objective.rehearse(tokens)
    if isinstance(config, MaskingSettings) and not isinstance(config, SimMIMConfig):
        highest = config.masking.highest_ratio
        num_hidden = hidden_count(highest, tokens.length)
        _check_visible(backbone, num_hidden, f"at ratio {highest}; lower it or objective.mask_ratio")
    if isinstance(objective, Autoregression):
        num_hidden = objective.last_hidden(tokens, objective.regions(tokens)).drop.shape[1]
        cure = "lower it or objective.hidden_tokens (where that is not set, raise objective.num_regions)"
        _check_visible(backbone, num_hidden, f"with the last {num_hidden} hidden; {cure}")
    if (
        config.is_causal
        and isinstance(config, PointRegions)
        and config.region_order not in (None, backbone.order)
    ):
        log.warning(
            "objective.region_order %r is not the order of the scan (model.order %r): what is predicted in one order "
            "is scanned in another, a mismatch that costs accuracy by the paper's Table 2; leave it out",
            config.region_order,
            backbone.order,
        )
    return objective


def _blank_tokens(num_patches: int) -> Tokens:
    """Tokens with empty embeddings whose patches lie along a line."""
    position = torch.arange(num_patches, dtype=torch.float32, device="cpu").view(1, -1, 1)
    return Tokens(torch.zeros(1, num_patches, 1, device="cpu"), position.expand(1, -1, 3))


def _check_visible(model: HybridNet3D, num_hidden: int, cause_and_cure: str) -> None:
    visible = model.num_patches - num_hidden
    for block in model.encoder.blocks:
        if isinstance(block, Mamba3DBlock) and block.local.neighbors > visible:
            raise UserError(
                f"model.neighbors ({block.local.neighbors}) exceeds the {visible} visible of "
                f"{model.num_patches} patches {cause_and_cure}"
            )
