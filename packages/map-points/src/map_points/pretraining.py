"""The objective over patches of clouds."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from map_core import ConsecutiveRegions, MaskedAutoregression, RegionRule, RegionsAfterMask
from map_core.errors import UserError
from map_core.masking import hidden_count
from map_core.positions import MlpPosition
from map_core.tasks.pretraining import ObjectiveConfig, assemble_objective
from map_points.blocks import Mamba3DBlock
from map_points.losses import ChamferKind, masked_chamfer
from map_points.model import HybridNet3D
from map_points.tokenizer import PointOrder, order_of_centers


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

    def region_rule(self, order: PointOrder) -> RegionRule:
        """Which patches are predicted together, of a model that scans in ``order``."""
        if self.regions == "after_mask":
            return RegionsAfterMask(self.num_regions)
        along = None if self.region_order in (None, order) else order_of_centers(self.region_order)
        return ConsecutiveRegions(self.num_regions, along)


def build_objective(backbone: nn.Module, config: PointObjectiveConfig) -> MaskedAutoregression:
    """Put a model under the objective; it stays shared.

    Raises:
        UserError: a model with a class token, more regions than patches, or fewer visible patches than the local
            norm pools.
    """
    config.validate()
    assert isinstance(backbone, HybridNet3D)
    if backbone.encoder.registers is not None:
        raise UserError("pretraining has no class token: create the model with class_token=False")
    if config.num_regions > backbone.num_patches:
        raise UserError(
            f"objective.num_regions ({config.num_regions}) must lie between 1 and the number of patches "
            f"({backbone.num_patches})"
        )
    _check_visible(backbone, config)
    return assemble_objective(
        backbone,
        config,
        position=MlpPosition(config.decoder_dim),
        target_dim=3 * backbone.patch_size,
        loss=partial(masked_chamfer, kind=config.chamfer),
        regions=config.region_rule(backbone.order),
    )


def _check_visible(model: HybridNet3D, config: PointObjectiveConfig) -> None:
    highest = config.masking.highest_ratio
    visible = model.num_patches - hidden_count(highest, model.num_patches)
    for block in model.encoder.blocks:
        if isinstance(block, Mamba3DBlock) and block.local.neighbors > visible:
            raise UserError(
                f"model.neighbors ({block.local.neighbors}) exceeds the {visible} visible of "
                f"{model.num_patches} patches at ratio {highest}; lower it or objective.mask_ratio"
            )
