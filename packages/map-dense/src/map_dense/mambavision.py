"""MambaVision as a backbone for dense prediction, without any OpenMMLab import."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from map_core.errors import UserError, unknown_name
from map_core.json_values import is_whole
from map_dense.freezing import FreezableBackbone
from map_dense.settings import (
    check_frozen_stages,
    check_switch,
    check_types,
    lists_to_tuples,
    naming_backbone,
)
from map_vision.factory import ModelConfig, create_model
from map_vision.mambavision import MambaVision

NUM_STAGES = 4
MODEL_OPTIONS = ("in_chans", "embed_dim", "num_heads", "mlp_ratio", "stem_dim", "depths", "layer_scale")


class MambaVisionBackbone(FreezableBackbone):
    """A MambaVision without head that returns the normalised maps of chosen stages, at strides 4, 8, 16 and 32.

    Images may have any height and width. Each map is taken before it is downsampled for the next stage, and normalised
    over its channels at every position by a LayerNorm that the classifier does not have.

    Args:
        name: A model of map-vision: ``map_mambavision_*``; the tiny one when None.
        out_indices: Stages (from 0) whose maps are returned; all four when None. Stages after the last are left out.
        frozen_stages: -1 trains everything, 0 freezes the stem, n > 0 also the first n stages.
        activation_checkpointing: Recompute each block of stages three and four in the backward pass.
        window_size: Window size in stages three and four; the named model's when None. Larger images need larger
            windows: (64, 32) is the published choice for crops of 512.
        drop_path_rate: Stochastic depth rate of the last block; those before rise to it linearly from 0.
        **model_changes: What differs from the named model: ``embed_dim``, ``depths``, ``num_heads``, ``mlp_ratio``,
            ``stem_dim``, ``layer_scale`` or ``in_chans``.

    Raises:
        UserError: a name or option that MambaVision does not have; a setting of another type or out of range;
            ``out_indices`` that are not a list; ``out_indices`` or ``frozen_stages`` beyond its stages.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        out_indices: Sequence[int] | int | None = None,
        frozen_stages: int = -1,
        activation_checkpointing: bool = False,
        window_size: Sequence[int] | None = None,
        drop_path_rate: float = 0.2,
        **model_changes: Any,
    ) -> None:
        super().__init__()
        for option in set(model_changes) - set(MODEL_OPTIONS):
            raise unknown_name("backbone option", option, MODEL_OPTIONS)
        check_switch("model.backbone.activation_checkpointing", activation_checkpointing)
        model_options = lists_to_tuples({**model_changes, "window_size": window_size})
        self.config = ModelConfig(
            name or "map_mambavision_tiny", drop_path_rate=drop_path_rate, **model_options
        )
        check_types(self.config)
        with naming_backbone():
            model = create_model(self.config, num_classes=0)
        if not isinstance(model, MambaVision):
            raise UserError(
                f"{name} is not a MambaVision model; choose one of map_mambavision_*, or another type of backbone"
            )
        self.model = model
        self.out_indices = _validate_stages(out_indices)
        self.out_channels = [model.feature_info[i]["num_chs"] for i in self.out_indices]
        model.prune_intermediate_layers(self.out_indices, prune_norm=True)
        model.set_grad_checkpointing(activation_checkpointing)
        for i, channels in zip(self.out_indices, self.out_channels, strict=True):
            self.add_module(f"outnorm{i}", LayerNorm2d(channels, eps=1e-5))
        check_frozen_stages(frozen_stages, len(model.levels), first="stem", stages="stages")
        self.frozen_stages = frozen_stages
        self.freeze()

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ rows cols"]]:
        """Return the map of each of ``out_indices``; its sides are the image's over the stride, rounded up."""
        maps = self.model.forward_intermediates(x, self.out_indices, stop_early=True, intermediates_only=True)
        return [
            self.get_submodule(f"outnorm{i}")(feature_map)
            for i, feature_map in zip(self.out_indices, maps, strict=True)
        ]

    def frozen_modules(self) -> list[nn.Module]:
        """The stem and the first ``frozen_stages`` stages; none if that is -1."""
        if self.frozen_stages < 0:
            return []
        return [self.model.patch_embed, *self.model.stages[: self.frozen_stages]]


def _validate_stages(out_indices: Sequence[int] | int | None) -> list[int]:
    if out_indices is None:
        return list(range(NUM_STAGES))
    if isinstance(out_indices, str) or not isinstance(out_indices, Sequence):
        raise UserError(f"out_indices must be a list of stages, such as [0, 1, 2, 3]; got {out_indices!r}")
    indices = list(out_indices)
    is_valid = all(is_whole(index) and 0 <= index < NUM_STAGES for index in indices)
    if not indices or not is_valid or indices != sorted(set(indices)):
        raise UserError(f"out_indices {indices} must be ascending stages in 0..{NUM_STAGES - 1}")
    return indices
