"""The encoders of map-vision as backbones for dense prediction, without any OpenMMLab import."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from map_core.blocks import TransformerBlock
from map_core.errors import UserError, near_matches
from map_core.json_values import is_whole
from map_core.layout import expand_layout
from map_dense.freezing import FreezableBackbone
from map_dense.settings import (
    check_count,
    check_frozen_stages,
    check_switch,
    check_types,
    lists_to_tuples,
    naming_backbone,
)
from map_dense.windows import WindowedTransformerBlock
from map_vision.factory import ModelConfig, create_backbone
from map_vision.model import HybridNet
from map_vision.registry import named_settings

NUM_FEATURES = 4
CLASSIFIER_ONLY = {
    "num_registers",
    "neck_reduction",
    "global_pool",
    "drop_rate",
    "pool_norm",
    "patch_stride",
    "keep_registers",
}
PYRAMID_ONLY = {"stem_dim", "depths", "window_size", "layer_scale"}
MODEL_OPTIONS = tuple(
    field.name for field in fields(ModelConfig) if field.name not in CLASSIFIER_ONLY | PYRAMID_ONLY | {"name"}
)


def default_out_indices(num_layers: int) -> tuple[int, ...]:
    """The last layer of each quarter of the depth: 7, 15, 23, 31 of 32, which are Transformer blocks in HybridNet.

    Raises:
        UserError: fewer than four layers.
    """
    if num_layers < NUM_FEATURES:
        raise UserError(
            f"out_indices has no default for {num_layers} layer(s), fewer than {NUM_FEATURES}; set out_indices"
        )
    return tuple((i + 1) * num_layers // NUM_FEATURES - 1 for i in range(NUM_FEATURES))


def _validate_size(img_size: Any) -> int | tuple[int, int] | None:
    """Require one number of pixels for both sides, or two numbers, or None.

    Raises:
        UserError: anything else, or a side below one pixel.
    """
    if img_size is None:
        return None
    sides = [img_size] * 2 if isinstance(img_size, int) else img_size
    is_valid = isinstance(sides, Sequence) and len(sides) == 2 and all(is_whole(side) for side in sides)
    if not is_valid or min(sides) < 1:
        raise UserError(f"img_size must be a number of pixels or [height, width]; got {img_size!r}")
    return img_size if isinstance(img_size, int) else (sides[0], sides[1])


def _validate_changes(changes: Mapping[str, Any]) -> None:
    """Check the options that change the named model, as far as the model itself does not.

    Raises:
        UserError: an unknown option or one of the classifier; a number of heads that is not a whole number of at least
            1.
    """
    for option in set(changes) - set(MODEL_OPTIONS):
        reason = "belongs to the classifier" if option in CLASSIFIER_ONLY else "is unknown"
        raise UserError(f"backbone option {option!r} {reason}; {near_matches(option, MODEL_OPTIONS)}")
    check_count("num_heads", changes.get("num_heads"), "for the name's")


class HybridBackbone(FreezableBackbone):
    """A model of map-vision without registers, head or final norm that returns feature maps after chosen layers.

    Images may have any height and width: they are padded with zeros (the mean, once they are normalised) at the right
    and bottom to multiples of the patch size, and positions are resampled to the grid. The features are those of the
    residual stream, as :meth:`map_vision.model.HybridNet.forward_intermediates` returns them without its norm.

    Args:
        name: A model of map-vision: ``hybridnet_*``, ``mambar_*``, ``map_vit_*``, ``map_vim_*`` or ``map_arm_*``.
        img_size: Height and width in pixels that the position table is made for; the named model's when None.
        patch_size: Height and width of a patch, and the stride of the features; the named model's when None.
        out_indices: Layers (from 0) whose features are returned; four, evenly spaced, when None. Layers after the last
            one are left out.
        frozen_stages: -1 trains everything, 0 freezes patch embedding and positions, n > 0 also the first n layers.
        activation_checkpointing: Recompute each layer in the backward pass instead of storing its activations.
        window_size: Rows and columns of patches within which Transformer blocks attend, except those in
            ``out_indices``, which attend globally; None for global attention everywhere. Mamba always scans all.
        drop_path_rate: Stochastic depth rate of the last layer; those before rise to it linearly from 0.
        **model_changes: What differs from the named model: ``embed_dim``, ``layout``, ``num_heads``, ``mlp_ratio``,
            ``order``, ``block_size``, ``position``, ``bidirectional``, ``wiring`` or ``in_chans``.

    Raises:
        UserError: an unknown name, option or ``order``; a setting of another type, out of range, or without effect; an
            ``img_size`` that is neither one number nor two; ``out_indices`` that are not a list; ``out_indices`` or
            ``frozen_stages`` beyond the depth; a ``window_size`` or ``num_heads`` that is not a whole number of at
            least 1; a ``window_size`` where no block would attend in windows.
    """

    def __init__(
        self,
        name: str = "hybridnet_tiny_patch16_224",
        *,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | None = None,
        out_indices: Sequence[int] | int | None = None,
        frozen_stages: int = -1,
        activation_checkpointing: bool = False,
        window_size: int | None = None,
        drop_path_rate: float = 0.1,
        **model_changes: Any,
    ) -> None:
        super().__init__()
        _validate_changes(model_changes)
        check_count("patch_size", patch_size, "for the name's")
        check_count("window_size", window_size, "for global attention")
        check_switch("model.backbone.activation_checkpointing", activation_checkpointing)
        self.config = ModelConfig(
            name,
            img_size=_validate_size(img_size),
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
            **lists_to_tuples(model_changes),
        )
        check_types(self.config)
        with naming_backbone():
            self.config.validate()
            model = create_backbone(self.config)
        if not isinstance(model, HybridNet):
            raise UserError(f"{name} is a pyramid, which has a backbone for itself: type='MambaVision'")
        self.model = model
        self.embed_dim = self.model.embed_dim
        self.patch_size = self.model.patch_size[0]
        self.depth = len(self.model.encoder.blocks)
        self.out_indices = self._validate_indices(out_indices)
        self.out_channels = [self.embed_dim] * len(self.out_indices)
        self.model.prune_intermediate_layers(self.out_indices, prune_norm=True)
        self.num_layers = len(self.model.encoder.blocks)  # after pruning
        self.model.set_grad_checkpointing(activation_checkpointing)
        if window_size is not None:
            self._attend_in_windows(window_size)
        check_frozen_stages(frozen_stages, self.num_layers, first="embeddings", stages="layers")
        self.frozen_stages = frozen_stages
        self.freeze()

    @property
    def architecture(self) -> dict[str, Any]:
        """All arguments of the model: those of the named model, overridden by the options."""
        return named_settings(self.config.name) | self.config.arguments()

    @property
    def layout(self) -> str:
        """The kinds of the remaining layers, one letter each."""
        return expand_layout(self.architecture["layout"])[: self.num_layers]

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b d rows cols"]]:
        """Return the features after each of ``out_indices``; rows and columns are ceil(h / p) and ceil(w / p)."""
        p = self.patch_size
        padded = F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p))
        return self.model.forward_intermediates(padded, self.out_indices, intermediates_only=True)

    def frozen_modules(self) -> list[nn.Module]:
        """Patch embedding, positions and the first ``frozen_stages`` layers; none if that is -1."""
        if self.frozen_stages < 0:
            return []
        encoder = self.model.encoder
        return [self.model.patch_embed, encoder.position, *encoder.blocks[: self.frozen_stages]]

    def _validate_indices(self, out_indices: Sequence[int] | int | None) -> list[int]:
        depth = self.depth
        if out_indices is None:
            return list(default_out_indices(depth))
        is_text = isinstance(out_indices, str)
        if is_text or not isinstance(out_indices, Sequence) or not all(map(is_whole, out_indices)):
            raise UserError(
                f"out_indices must be a list of layers, such as [{depth - 1}] for the last; got {out_indices!r}"
            )
        indices = list(out_indices)
        if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= depth:
            raise UserError(
                f"out_indices {indices} must be ascending and lie in 0..{depth - 1}: "
                f"{self.config.name} has {depth} layers here (layout {self.architecture['layout']!r})"
            )
        return indices

    def _attend_in_windows(self, window_size: int) -> None:
        blocks = self.model.encoder.blocks
        windowed = {
            index: WindowedTransformerBlock(block, window_size)
            for index, block in enumerate(blocks)
            if isinstance(block, TransformerBlock) and index not in self.out_indices
        }
        if not windowed:
            raise UserError(
                f"window_size ({window_size}) changes nothing: layout {self.layout!r} has no Transformer block outside "
                f"out_indices {self.out_indices}, whose blocks attend globally; leave window_size out, or give other "
                "out_indices"
            )
        for index, block in windowed.items():
            blocks[index] = block
