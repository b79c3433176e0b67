"""The objective over image patches."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from map_core import GridRegions, MaskedAutoregression, make_position
from map_core.errors import UserError
from map_core.losses import MaskedMSE
from map_core.regions import GridRegionKind
from map_core.tasks.classification import Mixer
from map_core.tasks.pretraining import ObjectiveConfig, assemble_objective
from map_vision.backbone import ImageBackbone
from map_vision.mixing import MixingConfig
from map_vision.patches import patch_grid


@dataclass
class ImageObjectiveConfig(MixingConfig, ObjectiveConfig):
    """The objective over image patches.

    Args:
        region: What is predicted at once: a row, a column or a block of patches.
        block_size: Rows and columns of patches of a block.
        decoder_position: Positions of the decoder.
        normalize_targets: Reconstruct patches normalised by their own mean and deviation.
    """

    region: GridRegionKind = "row"
    block_size: tuple[int, int] = (4, 4)
    decoder_position: Literal["learned", "sincos", "fourier", "mlp"] = "learned"
    normalize_targets: bool = True

    def validate(self) -> None:
        super().validate()
        if min(self.block_size) < 1:
            rows, cols = self.block_size
            raise UserError(f"objective.block_size must be at least 1x1; got {rows}x{cols}")

    def mixer(self) -> Mixer | None:
        return self.make_mixer(num_classes=0)


def build_objective(backbone: nn.Module, config: ImageObjectiveConfig) -> MaskedAutoregression:
    """Put a model under the objective; it stays shared.

    Raises:
        UserError: a model with registers, or settings that no objective can have.
    """
    config.validate()
    assert isinstance(backbone, ImageBackbone)
    if backbone.num_prefix_tokens > backbone.num_global:
        raise UserError(
            "pretraining has no registers among the patches: create the model with num_registers=0, "
            "global_pool='avg'"
        )
    (height, width), channels = backbone.patch_size, backbone.in_chans
    grid = patch_grid(backbone.img_size, backbone.patch_size)
    return assemble_objective(
        backbone,
        config,
        position=make_position(config.decoder_position, config.decoder_dim, grid=grid),
        target_dim=height * width * channels,
        loss=MaskedMSE(config.normalize_targets),
        regions=GridRegions(config.region, config.block_size),
        num_global=backbone.num_global,
    )
