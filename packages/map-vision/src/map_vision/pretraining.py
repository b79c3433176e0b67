"""Objectives over image patches: their settings, and the image-specific parts that they need."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from map_core import GridRegions, make_position
from map_core.data.views import TwoViews
from map_core.errors import UserError
from map_core.losses import MaskedL1, MaskedMSE, PatchLoss
from map_core.objective import CoarserTargets, Objective, ReconstructingObjective
from map_core.objectives.autoregression import AutoregressionConfig
from map_core.objectives.contrastive import ContrastiveConfig
from map_core.objectives.diffusion import MaskedDiffusionConfig
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.objectives.settings import Mixer, ObjectiveSettings, Settings
from map_core.objectives.simmim import SimMIMConfig
from map_core.orders import require_block_size, scan_order
from map_core.ranges import refuse_without_effect
from map_core.regions import GridRegionKind
from map_core.tasks.domain import OpenedData
from map_core.tokens import Tokens, with_global_tokens
from map_vision.backbone import ImageBackbone, require_image_backbone
from map_vision.mixing import MixingConfig
from map_vision.patches import PatchEmbed, patch_grid
from map_vision.targets import Neighborhoods
from map_vision.tokenizer import grid_position, refuse_overlap
from map_vision.views import Colors, view_colors

log = logging.getLogger(__name__)


@dataclass
class ImageMixing(MixingConfig):
    """Mixup and CutMix of the images before patches are hidden, as the authors' code pretrains."""

    def mixer(self) -> Mixer | None:
        return self.make_mixer(num_classes=0)


@dataclass
class ImageTargets(Settings):
    """Targets of a patch.

    Args:
        normalize_targets: Normalise each target patch by its own mean and deviation.
    """

    normalize_targets: bool = True

    def target_dim(self, backbone: ImageBackbone) -> int:
        height, width = backbone.patch_size
        return height * width * backbone.in_chans

    def make_loss(self) -> PatchLoss:
        return MaskedMSE(self.normalize_targets)

    def make_coarser_targets(self, backbone: ImageBackbone, scales: tuple[int, ...]) -> CoarserTargets:
        return Neighborhoods(backbone.patch_size, scales)


@dataclass
class ImageRegions(Settings):
    """Regions: the patches that are predicted together.

    Args:
        region: Patches that are predicted at once: a row, a column or a block.
        block_size: Rows and columns of patches in a block.
        decoder_position: Position embeddings of the decoder.
    """

    region: GridRegionKind = "row"
    block_size: tuple[int, int] = (4, 4)
    decoder_position: Literal["learned", "sincos", "fourier", "mlp"] = "learned"

    def validate(self) -> None:
        super().validate()
        require_block_size("objective.block_size", self.block_size)
        if self.region != "block":
            refuse_without_effect("objective", self, "block_size", because=f"objective.region {self.region}")

    def make_regions(self, backbone: ImageBackbone) -> GridRegions:
        return GridRegions(self.region, self.block_size)

    def make_position(self, backbone: ImageBackbone, embed_dim: int) -> nn.Module:
        grid = patch_grid(backbone.img_size, backbone.patch_size)
        return make_position(self.decoder_position, embed_dim, grid=grid)

    def global_tokens(self, backbone: ImageBackbone) -> int:
        return backbone.num_global


@dataclass
class ImageObjectiveConfig(ImageTargets, ImageMixing, ImageRegions, MaskedAutoregressionConfig):
    """Masked autoregression over image patches."""


@dataclass
class ImageAutoregressionConfig(ImageTargets, ImageMixing, ImageRegions, AutoregressionConfig):
    """Autoregression over image patches; with blocks as regions these are ARM's clusters."""


@dataclass
class ImageDiffusionConfig(ImageTargets, ImageMixing, ImageRegions, MaskedDiffusionConfig):
    """Masked autoregression with a diffusion head over image patches."""


@dataclass
class ImageSimMIMConfig(ImageTargets, ImageMixing, SimMIMConfig):
    """SimMIM over image patches: L1 on pixels."""

    normalize_targets: bool = False

    def make_loss(self) -> PatchLoss:
        return MaskedL1(self.normalize_targets)


@dataclass
class ImageContrastiveConfig(ContrastiveConfig):
    """Contrastive learning of images; data.augmentation makes the two views, colour changes come on top.

    Args:
        colors: Jitter, grey, blur and solarisation of the views, as MoCo v2 or v3 has them, or none.
    """

    colors: Literal[Colors, "none"] = "moco_v3"

    def make_views(self, data: OpenedData) -> TwoViews:
        """The two views of each training sample.

        Raises:
            UserError: colour changes of data whose normalisation is not known, or that have no colours.
        """
        if self.colors == "none":
            return TwoViews(data.train)
        preprocessing = data.preprocessing
        if missing := [name for name in ("mean", "std") if name not in preprocessing]:
            raise UserError(
                f"objective.colors {self.colors!r} changes colours of normalised images, and the preprocessing of "
                f"{data.description} has no {' and no '.join(missing)}: add them to OpenedData.preprocessing, or set "
                "objective.colors none"
            )
        stored = preprocessing.get("pixels") == "stored"
        changes = view_colors(self.colors, preprocessing["mean"], preprocessing["std"], stored=stored)
        return TwoViews(data.train, changes)


OBJECTIVES: Mapping[str, type[ObjectiveSettings]] = {
    config.method: config
    for config in (
        ImageObjectiveConfig,
        ImageAutoregressionConfig,
        ImageSimMIMConfig,
        ImageDiffusionConfig,
        ImageContrastiveConfig,
    )
}


def build_objective(backbone: nn.Module, config: Any) -> Any:
    """Build the objective that a configuration section describes around a model, which is not copied.

    What pretraining gives no gradient is frozen in the model: a head, a neck, a norm behind the pooling. To finetune
    it, create a model anew and load ``objective.backbone.state_dict()``.

    Raises:
        UserError: a model without the parts of an :class:`~map_vision.backbone.ImageBackbone`, with registers among
            the patches or with overlapping patches to reconstruct, or settings out of range.
    """
    config.validate()
    image_backbone = require_image_backbone(backbone)
    if image_backbone.num_prefix_tokens > image_backbone.num_global:
        raise UserError(
            "pretraining has no registers among the patches: create the model with num_registers=0, "
            "global_pool='avg' (leave --model.keep_registers out)"
        )
    patch_grid(image_backbone.img_size, image_backbone.patch_size)
    # pretraining neither pools nor classifies: these would get no gradient
    for module in (getattr(backbone, name, None) for name in ("pool_norm", "neck", "head")):
        if module is not None:
            module.requires_grad_(False)
    objective: Objective = config.build(backbone)
    if isinstance(objective, ReconstructingObjective):
        patch_embed = getattr(backbone, "patch_embed", None)
        if isinstance(patch_embed, PatchEmbed):
            refuse_overlap(patch_embed)
        objective.rehearse(tokens_of_grid(image_backbone, "row"))
    is_causal = config.is_causal and isinstance(config, ImageRegions)
    if is_causal and not predicted_as_scanned(image_backbone, config):
        log.warning(
            "objective.region %r does not follow the scan (model.order %r): what is predicted in one order is scanned "
            "in another, a mismatch that costs accuracy by the paper's Table 2; choose a model.order that runs through "
            "one region after the other",
            config.region,
            getattr(backbone, "order", None),
        )
    return objective


def predicted_as_scanned(backbone: ImageBackbone, config: ImageRegions) -> bool:
    """Whether the model scans one region after the other, in their order; true for a model without a scan order."""
    order: Any = getattr(backbone, "order", None)
    if order is None:
        return True
    tokens = tokens_of_grid(backbone, order)
    return bool((config.make_regions(backbone)(tokens).index.diff() >= 0).all())


def tokens_of_grid(backbone: ImageBackbone, order: Any) -> Tokens:
    """A model's tokens in a scan order, with positions and zero embeddings."""
    grid, cpu = patch_grid(backbone.img_size, backbone.patch_size), torch.device("cpu")
    position = grid_position(grid, cpu)
    block_size = getattr(backbone, "block_size", (1, 1))
    origin: Tensor = scan_order(position, order, grid=grid, block_size=block_size)
    patches = Tokens(torch.zeros(1, origin.shape[1], 1, device=cpu), position[:, origin[0]], grid=grid)
    n = backbone.num_global
    return with_global_tokens(patches, torch.zeros(n, 1, device=cpu), n)
